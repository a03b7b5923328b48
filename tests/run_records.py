"""Run directories made by hand, without training: what a page shows at each stage of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config_schema import TrainingConfig, config_hash
from data_selector import CandidateLoss, MeasuredLosses, Pick, Selection
from ledger.records import Batch, Checkpoint, Shown, ShownPiece, ShownRow
from ledger.run_directory import EVALUATED
from ledger.store import RunStore
from loop.planning.plan import gate_of
from rows.examples import DroppedRow
from rows.places import RowPlace
from scores.decision import Spent, decide
from scores.diagnosis import topic_reports
from scores.results import (
    EvalResult,
    HeldOutRow,
    Measured,
    SampleResult,
    eval_result,
    held_out_loss,
    task_result,
)

TASK, SEALED = "qa:dev.jsonl", "qa:sealed.jsonl"
SECRET = "Which word is under the seal?"


@dataclass(frozen=True)
class Shape:
    """What kind of run is made. `shares` are of right answers, the start's first."""

    shares: Sequence[float] = (0.1, 0.4, 0.9)
    num_questions: int = 20
    num_topics: int = 4
    steps: int = 3  # of a round
    threshold: float = 0.75
    text: str = "plain"  # in every place that holds anybody's text
    is_sealed: bool = True
    loss: float = 2.0
    log: str | None = None  # Inspect's, of each evaluation


def settings_of(shape: Shape) -> TrainingConfig:
    evaluation = {"test_tasks": [SEALED]} if shape.is_sealed else {}
    return TrainingConfig.model_validate(
        {
            "base_model": "m",
            "train_file": "train.jsonl",
            "eval_tasks": [TASK],
            "eval_threshold": shape.threshold,
            "steps_per_round": shape.steps,
            "batch_size": 2,
            "max_rounds": max(1, len(shape.shares) - 1),
            "max_steps": 100_000,
            "evaluation": evaluation,
            "budget": {
                "prices": {
                    "usd_per_million_tokens": {"m": {"train": 3.0, "prefill": 1.0, "sample": 2.0}},
                    "as_of": "2026-01-02",
                }
            },
        }
    )


def begun(run_dir: Path, shape: Shape = Shape(), evaluated: Sequence[str] = ()) -> RunStore:
    """A run, or an evaluation of checkpoints, that has recorded what it is and nothing else."""
    config = settings_of(shape)
    resolved: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "config_hash": config_hash(config),
        "config_file": str(run_dir.parent / "config.json"),
        "resolved": {
            "renderer_name": "llama3",
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "service": "embedded",
        },
        "files": {"base_model": "m"},
        "versions": {"python": "3.11.0"},
    }
    if evaluated:
        named = [{"label": one, "path": None, "run_dir": None, "round": None} for one in evaluated]
        resolved[EVALUATED] = named
    store = RunStore.create(run_dir, resolved)
    dropped = [
        DroppedRow("train.jsonl", 3, "rejected", f"no answer in it: {shape.text}", shape.text),
        DroppedRow("train.jsonl", 4, "duplicate", "the same as line 1", shape.text),
        DroppedRow("train.jsonl", 5, "duplicate", "the same as line 2", shape.text),
        DroppedRow(
            "train.jsonl", 6, "contaminated", f"asks the question {SECRET!r} of {SEALED}", SECRET
        ),
    ]
    similar = [
        DroppedRow("train.jsonl", 1, "similar", f"is similar to the question 'a' of {TASK}", "b"),
        DroppedRow(
            "train.jsonl",
            2,
            "similar",
            f"is similar to the question {SECRET!r} of {SEALED}",
            SECRET,
        ),
    ]
    tasks = {TASK: {"path": "dev.jsonl", "sha256": "e" * 64}}
    if shape.is_sealed:
        tasks[SEALED] = {"path": "sealed.jsonl", "sha256": "f" * 64}
    examples = {"num_examples": 6, "num_tokens": 120, "num_loss_tokens": 30}
    files = {"train_file": {"path": "train.jsonl", "sha256": "a" * 64, "num_rows": 10}}
    manifest = {
        "files": {} if evaluated else files,
        "eval_tasks": tasks,
        "examples": {} if evaluated else {"train_file": examples},
        "num_dropped": {} if evaluated else {"rejected": 1, "duplicate": 2, "contaminated": 1},
        "num_similar": 0 if evaluated else len(similar),
    }
    store.record_start(manifest, dropped, config_hash(config), similar)
    return store


def result_of(round_no: int, share: float, shape: Shape, task: str = TASK) -> EvalResult:
    number = shape.num_questions
    samples = [
        SampleResult(
            id=f"{task}/{one}",
            topic=f"topic {one % shape.num_topics} {shape.text}",
            question=f"{SECRET if task == SEALED else 'Question'} {one} {shape.text}",
            expected=(f"right {one} {shape.text}",),
            answer=f"answer {one} {shape.text}",
            score=float(one < round(share * number)),
            truncated=one == number - 1,
            malformed=False,
            error=None,
            num_prompt_tokens=7,
            num_sampled_tokens=5,
        )
        for one in range(number)
    ]
    rows = [HeldOutRow(f"row {n}", None, 3.0 - share, 2, 4) for n in range(3)]
    losses = () if task == SEALED else (held_out_loss("nll:held.jsonl", rows, 9),)
    path = None if round_no == 0 else path_of(round_no, "sampler_weights")
    measured = Measured((task_result(task, samples, log=shape.log),), losses)
    return eval_result(round_no, path, measured, {"temperature": 0})


def path_of(round_no: int, kind: str) -> str:
    return f"tinker://s:train:0/{kind}/round_{round_no:02d}"


def evaluated(store: RunStore, round_no: int, share: float, shape: Shape) -> EvalResult:
    """A round's evaluation, recorded."""
    result, step = result_of(round_no, share, shape), round_no * shape.steps
    store.record_measured(round_no, Measured(result.tasks, result.held_out), step)
    store.record_result(result, step)
    return result


def trained(store: RunStore, round_no: int, shape: Shape, *, num_steps: int | None = None) -> None:
    """A round chosen and trained; with all of its steps it is saved, too."""
    names = [f"{round_no}-{n}" for n in range(2 * shape.steps)]
    reason = f"topic {shape.text}: 3 of 5 questions failed; loss 2.15 a token"
    picks = tuple(
        Pick(name, "pool", shape.text, reason, 0.5, "pool.jsonl", n + 1, f"begins {shape.text}")
        for n, name in enumerate(names)
    )
    suspects = (RowPlace("s", "pool.jsonl", 99, f"suspect {shape.text}"),)
    first = (round_no - 1) * shape.steps
    losses = {name: CandidateLoss(1.0 + n) for n, name in enumerate(names)}
    if round_no > 1:
        store.record_losses(MeasuredLosses(round_no, round_no - 1, losses), 11, 2)
    row = ShownRow(
        names[0], "pool.jsonl", 1, shape.text, "pool", reason, True, 9, 3, False, 1.0,
        [ShownPiece(f"asked {shape.text} ", 0.0), ShownPiece(f"told {shape.text}", 1.0, 1234)],
    )  # fmt: skip
    store.write_shown(Shown(round_no, "llama3", "all_assistant_messages", len(names), [row]))
    shares = {"pool": len(names)}
    selection = Selection(round_no, 0, picks, shares, {}, 0, {}, ("s",), suspects)
    store.record_selection(selection, first)
    for step in range(first, first + (shape.steps if num_steps is None else num_steps)):
        number = step - first
        batch = Batch(step, tuple(names[2 * number : 2 * number + 2]), 40, 10, 1e-3 / round_no)
        store.record_batch(round_no, batch, loss=shape.loss, nll=shape.loss / (step + 1))
    if num_steps is None:
        store.record_checkpoint(
            Checkpoint(
                round=round_no,
                step=first + shape.steps,
                state_path=path_of(round_no, "weights"),
                sampler_path=path_of(round_no, "sampler_weights"),
                base_model="m",
                lora_rank=8,
                lora_alpha=32,
                train_attn=True,
                train_mlp=True,
                train_unembed=True,
                renderer="llama3",
                expires_at=None,
            )
        )


def rounds(store: RunStore, shape: Shape = Shape(), *, num: int | None = None) -> None:
    """The rounds of a run up to a decision that stops it, or only so many, the start's counted."""
    gate, history = gate_of(settings_of(shape)), []
    for round_no, share in enumerate(shape.shares[:num]):
        if round_no:
            trained(store, round_no, shape)
        result, step = evaluated(store, round_no, share, shape), round_no * shape.steps
        decision = decide(history, result, Spent(step), gate)
        store.record_decision(decision, step)
        if round_no:
            store.record_diagnosis(round_no, f"The loss fell ({shape.text}).", [])
            store.record_topics(round_no, topic_reports(result, history[-1], {shape.text: 2}))
        history.append(result)
        if decision.stops:
            return


def finished(run_dir: Path, shape: Shape = Shape()) -> RunStore:
    """A run that has come to its end, its sealed test asked where it has one."""
    store = begun(run_dir, shape)
    rounds(store, shape)
    decision = store.last_decision()
    assert decision is not None and decision.stops
    if shape.is_sealed:
        path = path_of(decision.best_round, "sampler_weights")
        store.record_test_opened(decision.best_round, path, "h")
        test = result_of(decision.best_round, 0.8, shape, SEALED)
        store.record_test_measured(decision.best_round, Measured(test.tasks), 1)
        store.record_test(test, 1)
    store.append("run_finished", round=decision.round, action=decision.action)
    return store

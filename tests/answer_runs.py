"""Run directories with questions and answers, written by the run's own store; nothing is trained.

Four rounds: `simple_qa` in each, with what can befall a sample; a guard with repeats that is
measured every three rounds; a held-out loss; and round 3, whose evaluation failed in its midst.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config_schema import TrainingConfig
from conftest import REPO
from ledger.records import Batch, Checkpoint
from ledger.run_directory import EVALUATED
from ledger.store import RunStore
from scores.decision import Decision
from scores.results import (
    HeldOutLoss,
    HeldOutRow,
    Measured,
    Role,
    SampleResult,
    TaskResult,
    eval_result,
    held_out_loss,
    task_result,
)
from study_records import HOSTILE

SCORED, GUARD, LOSS = "simple_qa", "qa:facts.jsonl", "nll:val.jsonl"
NUM_QUESTIONS = 120
FAILED = "nll:val.jsonl: the service gave up. Start the run again with --resume."
TOPICS = ("capitals", "a & b=c#d", None)
SETTINGS: dict[str, Any] = {
    "base_model": str(REPO / "demo_model"),
    "train_file": "train.jsonl",
    "eval_tasks": [SCORED, GUARD, LOSS],
    "gate": {"guards": {GUARD: 0.5}},
    "evaluation": {"every": {GUARD: 3}},
    "max_rounds": 3,
    "run_name": "answers",
}
# Halves of surrogate pairs cannot be written to a run's files, and are refused when read.
WRITABLE = [text.replace("\ud800", "") for text in HOSTILE]
ODD_TEXTS = (
    *WRITABLE,
    "\u202eright to left\u202c \u2066x\u2069 \u200f",
    "bell \x07 escape \x1b[31m null \x00\x00\x00 \x85 \x9b \x7f\r\nnext",
    "\u05e9\u05dc\u05d5\u05dd 12 + 3",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467, tag \U000e0041, zero\u200bwidth\u200d",
    "",
    " \n\t ",
    "<!-- <script> ]]> &amp; &#x27; javascript:alert(1)",
)


def config_of(**changes: Any) -> dict[str, Any]:
    return TrainingConfig.model_validate(SETTINGS | changes).model_dump(mode="json")


def begun(run_dir: Path, labels: Sequence[str] = (), **changes: Any) -> RunStore:
    """A run that has been started, or with labels an evaluation of so many checkpoints."""
    resolved: dict[str, Any] = {
        "config": config_of(**changes),
        "config_hash": "abc",
        "config_file": str(run_dir / "config.json"),
        "resolved": {
            "renderer_name": "llama3",
            "train_on": "all_assistant_messages",
            "learning_rate": 0.003,
            "warmup_steps": 1,
            "steps_per_round": 1,
            "service": "embedded",
            "base_url": None,
        },
        "files": {"base_model": str(REPO / "demo_model"), "train_file": "train.jsonl"},
        "versions": {"python": "3"},
    }
    if labels:
        at = {"path": None, "weights": None, "run_dir": None, "run_id": None, "round": None}
        resolved[EVALUATED] = [{"label": label, **at} for label in labels]
    store = RunStore.create(run_dir, resolved)
    manifest = {"files": {"train_file": {"path": "t.jsonl", "sha256": "1"}}, "eval_tasks": {}}
    store.record_start(manifest, [], "abc")
    return store


def sample(task: str, number: int, answer: str | None, score: float, **more: Any) -> SampleResult:
    fields: dict[str, Any] = {
        "id": f"{task}/q{number:03d}",
        "topic": TOPICS[number % len(TOPICS)],
        "question": f"What is number {number}?",
        "expected": (f"number {number}",),
        "answer": answer,
        "score": score,
        "truncated": False,
        "malformed": False,
        "error": None,
        "num_prompt_tokens": 20,
        "num_sampled_tokens": 3,
    }
    return SampleResult(**(fields | more))


def scored_samples(round_no: int, num_questions: int = NUM_QUESTIONS) -> list[SampleResult]:
    """More are right in each round, but every tenth of those of the round before is lost again."""
    made = []
    for number in range(num_questions):
        is_right = number % 4 < round_no and number % 10 != round_no
        text = f"number {number}" if is_right else f"none, round {round_no}"
        more: dict[str, Any] = {"truncated": number % 7 == 1}
        if number < len(ODD_TEXTS):
            text = ODD_TEXTS[number]
            more |= {"question": f"Odd {number}: {text}", "topic": "odd", "expected": (text, "x")}
        made.append(sample(SCORED, number, text, float(is_right), **more))
    made[40] = sample(SCORED, 40, "half of it", 0.25 * (round_no + 1), other_scores={"f1": 0.5})
    made[41] = sample(SCORED, 41, None, 0.0, error="the <b>grader</b> gave up")
    made[42] = sample(SCORED, 42, "not in form", 0.0, malformed=True, expected=())
    made[43] = sample(SCORED, 43, f"long {round_no} " + "word " * 1000, 1.0)
    return made


def guard_task(round_no: int, role: Role = "guard") -> TaskResult:
    """Each question asked three times."""
    samples = [
        sample(
            GUARD, number, f"try {repeat}", float((number + repeat + round_no) % 2), repeat=repeat
        )
        for number in range(40)
        for repeat in (1, 2, 3)
    ]
    return task_result(GUARD, samples, role=role)


def held_out(round_no: int) -> HeldOutLoss:
    rows = [
        HeldOutRow(f"{LOSS}/row{number}", "chat", 30.0 - round_no * (number % 3 - 1), 10, 40, 29.0)
        for number in range(70)
    ]
    return held_out_loss(LOSS, rows, 700)


def record_round(
    store: RunStore, round_no: int, measured: Measured, decision: Decision | None = None
) -> None:
    """What a round leaves, its evaluation whole."""
    path = None
    if round_no and not store.is_evaluation:
        batch = Batch(round_no - 1, ("a", "b"), 100, 10, 0.003)
        store.record_batch(round_no, batch, loss=1.0, nll=2.0 / round_no)
        path = f"tinker://s:train:0/sampler_weights/round_{round_no:02d}"
        state = path.replace("sampler_weights", "weights")
        flags = ("demo", 16, 32, True, True, True, "llama3", None)
        store.record_checkpoint(Checkpoint(round_no, round_no, state, path, *flags))
    store.record_measured(round_no, measured, round_no)
    store.record_result(eval_result(round_no, path, measured, {"temperature": 0}), round_no)
    if decision is not None:
        store.record_decision(decision, round_no)


def decided(round_no: int, action: Any = "continue", best: int | None = None) -> Decision:
    best = round_no if best is None else best
    return Decision(round_no, action, f"Round {round_no}: {action}.", 1.0, best, round_no)


def answers_run(run_dir: Path) -> RunStore:
    """The run that this file tells of; round 2 is recommended."""
    store = begun(run_dir)
    log = "inspect_logs/2026 a&b_simple_qa.eval"
    for number in range(3):
        scored = task_result(SCORED, scored_samples(number), log=log if number else None)
        tasks = (scored, *((guard_task(number),) if number == 0 else ()))
        record_round(store, number, Measured(tasks, (held_out(number),)), decided(number))
    batch = Batch(2, ("a", "b"), 100, 10, 0.003)
    store.record_batch(3, batch, loss=1.0, nll=0.5)
    store.record_measured(3, Measured((task_result(SCORED, scored_samples(3)),)), 3)
    store.append("eval_failed", detail=FAILED)
    return store

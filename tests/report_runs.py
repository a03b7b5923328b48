"""Run directories made without training, event by event as a run records them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from config_schema import TrainingConfig
from data_selector import select_first
from ledger.records import Batch, Checkpoint
from ledger.rollouts import RolledGroup, write_rollouts
from ledger.run_directory import EVALUATED
from ledger.store import RunStore
from loop.planning.plan import gate_of
from scores.decision import Spent, decide
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from test_data_selector import TRAIN

SHA = "5e" * 32
TASK = "qa:questions.jsonl"
PROTOCOL: dict[str, Any] = {
    "renderer": "llama3",
    "temperature": 0.0,
    "max_tokens": None,
    "num_repeats": 1,
    "seed": 0,
    "grader_model": None,
    "grading": 3,
    "tasks": {TASK: {"sha256": SHA, "role": "score"}},
}


@dataclass(frozen=True)
class Made:
    """What kind of run is made."""

    shares: Sequence[float] = (0.1, 0.5, 0.8)  # of right answers, by round
    seed: int = 0
    num_questions: int = 40
    steps_per_round: int = 4
    settings: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    words: str = "What is"  # that questions, answers and topics begin with
    is_finished: bool = True
    log: str | None = None  # Inspect's
    measures: dict[str, float] = field(default_factory=dict)  # of step 0, a hundredth more each
    rollouts: Sequence[RolledGroup] = ()  # of each step


def make_run(run_dir: Path, made: Made = Made()) -> RunStore:
    """A run as far as `made.shares` go; the store holds its lock until it is closed."""
    settings = {
        "run_name": run_dir.name,
        "base_model": "nobody/nothing",
        "train_file": "train.jsonl",
        "eval_tasks": [TASK],
        "seed": made.seed,
        "eval_threshold": 0.75,
        "max_rounds": max(1, len(made.shares) - 1),
        **made.settings,
    }
    config = TrainingConfig.model_validate(settings)
    store = RunStore.create(run_dir, _resolved(config))
    store.record_start(_manifest(), [], "ab" * 32)
    chance, results, step = random.Random(made.seed), [], 0
    for number, share in enumerate(made.shares):
        if number:
            step = _train(store, number, step, made)
        result = result_of(number, share, chance, made)
        store.record_measured(number, Measured(result.tasks), step)
        store.record_result(result, step)
        decision = decide(results, result, Spent(steps=step), gate_of(config))
        store.record_decision(decision, step)
        results.append(result)
        if decision.stops and made.is_finished:
            store.append("run_finished", action=decision.action)
            break
    return store


def made_run(run_dir: Path, made: Made = Made()) -> Path:
    """The same, which no process holds."""
    make_run(run_dir, made).close()
    return run_dir


def make_evaluation(run_dir: Path) -> Path:
    """The directory of an `--evaluate` that has only begun."""
    config = TrainingConfig.model_validate(
        {"base_model": "nobody/nothing", "train_file": "t.jsonl", "eval_tasks": [TASK]}
    )
    evaluated = [{"label": "runs/r", "path": None, "run_dir": None, "round": None}]
    store = RunStore.create(run_dir, {**_resolved(config), EVALUATED: evaluated})
    store.record_start(_manifest(), [], "ab" * 32)
    store.close()
    return run_dir


def _resolved(config: TrainingConfig) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "config_hash": "ab" * 32,
        "config_file": "/nowhere/config.json",
        "resolved": {
            "renderer_name": "llama3",
            "learning_rate": config.learning_rate,
            "warmup_steps": 0,
            "service": "embedded",
            "train_on": "all_assistant_messages",
            "num_lora_params": 1000,
            "steps_per_round": 4,
        },
        "files": {"base_model": "nobody/nothing", "train_file": "/nowhere/train.jsonl"},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }


def _manifest() -> dict[str, Any]:
    counts = {"num_examples": 8, "num_tokens": 80, "num_loss_tokens": 16, "sha256": SHA}
    return {
        "files": {"train_file": {"path": "/nowhere/train.jsonl", "sha256": SHA, "num_rows": 9}},
        "eval_tasks": {TASK: {"path": "/nowhere/questions.jsonl", "sha256": SHA}},
        "examples": {"train_file": counts},
        "num_dropped": {"duplicate": 1},
        "dropped": [],
        "num_similar": 0,
        "code": {},
        "grading": 3,
        "base_model": None,
    }


def _train(store: RunStore, number: int, step: int, made: Made) -> int:
    """A round's selection, steps and weights; the number of steps so far."""
    first = select_first(TRAIN, num_slots=8, seed=made.seed)
    store.record_selection(replace(first, round=number), step)
    for one in range(step, step + made.steps_per_round):
        loss = 3.0 / (1 + one)
        measures = {name: value + one / 100 for name, value in made.measures.items()}
        if made.rollouts:
            write_rollouts(store, one, made.rollouts)
        batch = Batch(one, ("a", "b"), 100, 10, 1e-3, measures)
        store.record_batch(number, batch, loss=loss, nll=loss)
    step += made.steps_per_round
    store.record_checkpoint(checkpoint_of(number, step))
    return step


def checkpoint_of(number: int, step: int) -> Checkpoint:
    return Checkpoint(
        round=number,
        step=step,
        state_path=f"tinker://s:train:0/weights/round_{number:02d}",
        sampler_path=f"tinker://s:train:0/sampler_weights/round_{number:02d}",
        base_model="nobody/nothing",
        lora_rank=8,
        lora_alpha=32,
        train_attn=True,
        train_mlp=True,
        train_unembed=True,
        renderer="llama3",
        expires_at=None,
    )


def result_of(number: int, share: float, chance: random.Random, made: Made) -> EvalResult:
    samples = [
        SampleResult(
            id=f"{TASK}/{question}",
            topic=f"{made.words} {'ab'[question % 2]}",
            question=f"{made.words} {question}?",
            expected=(f"{made.words} {question}",),
            answer=f"{made.words} round {number}",
            score=float(chance.random() < share),
            truncated=False,
            malformed=False,
            error=None,
            num_prompt_tokens=5,
            num_sampled_tokens=2,
        )
        for question in range(made.num_questions)
    ]
    path = None if number == 0 else f"tinker://s:train:0/sampler_weights/round_{number:02d}"
    protocol = {**PROTOCOL, "seed": made.seed, **made.protocol}
    return eval_result(
        number, path, Measured((task_result(TASK, samples, log=made.log),)), protocol
    )


def lengthen(run_dir: Path, num_steps: int) -> None:
    """Add steps to a run's ledger in one write, after a selection that the next round begins
    with."""
    store = RunStore.open(run_dir)
    number = store.num_rounds + 1
    first = store.steps_taken()
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    selected = next(line for line in lines if '"type": "selected"' in line)
    step = next(line for line in lines if '"type": "step"' in line)
    seq = itertools.count(len(lines))
    added = [{**json.loads(selected), "seq": next(seq), "round": number}]
    added += [
        {**json.loads(step), "seq": next(seq), "round": number, "step": first + one}
        for one in range(num_steps)
    ]
    with open(run_dir / "ledger.jsonl", "a") as ledger:
        ledger.write("".join(json.dumps(event) + "\n" for event in added))

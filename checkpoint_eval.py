"""Checkpoints evaluated outside a run: which ones are meant, and how they compare.

A checkpoint is named `RUN_DIR` or `RUN_DIR@best` (what the run recommends), `RUN_DIR@round_02`
(`round_00` is the untouched model), or `tinker://...` (sampler weights). Of several the first is
the reference that the others are paired with, question by question. One alone is held against its
own evaluation in the run, where that had the same protocol. Nothing here samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from config_schema import TrainingConfig
from errors import ConfigError, RunStoreError
from run_store import Checkpoint, RunStore
from scores.decision import Gate, judge
from scores.results import (
    LEVEL,
    EvalResult,
    GateChange,
    ScoreDifference,
    gate_change,
    score_difference,
    task_difference,
)
from scores.wording import interval_text, p_value_text, score_text


@dataclass(frozen=True)
class Subject:
    """One checkpoint to evaluate. `path` is None for the untouched base model.

    What only a run knows is None for a bare `tinker://` path.
    """

    label: str
    path: str | None
    round: int | None = None
    step: int = 0
    base_model: str | None = None  # a model directory or a hub name, as the run resolved it
    renderer: str | None = None
    service: str | None = None  # the kind of service that the run was on
    run_dir: Path | None = None
    recorded: EvalResult | None = None  # of this checkpoint, in its run
    baseline: EvalResult | None = None  # of the untouched model, in that run

    @property
    def checkpoint_dir(self) -> Path | None:
        """Where the embedded service finds the weights."""
        return None if self.run_dir is None else self.run_dir / "checkpoints"

    def to_record(self) -> dict[str, Any]:
        """What names the checkpoint for good, whatever its run becomes and from wherever."""
        run_dir = None if self.run_dir is None else str(self.run_dir.resolve())
        return {"label": self.label, "path": self.path, "run_dir": run_dir, "round": self.round}


# --- which ones -----------------------------------------------------------------------------------


def find_subjects(names: Sequence[str], runs_dir: Path) -> list[Subject]:
    """The checkpoints that are meant, in the order given. Raises `InputError` children."""
    subjects = [_find(name, runs_dir) for name in names]
    _refuse_repeated(names, subjects)
    return subjects


def recorded_subjects(records: Sequence[Mapping[str, Any]]) -> list[Subject]:
    """The checkpoints of an evaluation that is resumed, from their `to_record`.

    Raises `ConfigError` when a run no longer has the weights that the evaluation began on.
    """
    subjects = []
    for record in records:
        label, path = record["label"], record["path"]
        if record["run_dir"] is None:
            subjects.append(Subject(label, path))
            continue
        subject = _of_round(RunStore.open(Path(record["run_dir"])), record["round"], label)
        if subject.path != path:
            raise ConfigError(
                f"{label}: the evaluation began on {path}, and {record['run_dir']} has "
                f"{subject.path} as round {record['round']} now. Start a new evaluation."
            )
        subjects.append(subject)
    return subjects


def _refuse_repeated(names: Sequence[str], subjects: Sequence[Subject]) -> None:
    for position, subject in enumerate(subjects):
        for other in subjects[:position]:
            if (subject.path, subject.base_model) == (other.path, other.base_model):
                raise ConfigError(
                    f"--evaluate: {names[position]} is the same checkpoint as {other.label}. Name "
                    "each once."
                )


def _find(name: str, runs_dir: Path) -> Subject:
    if name.startswith("tinker://"):
        return _find_path(name, runs_dir)
    match = re.fullmatch(r"(.+)@(best|round_(\d+))", name)
    run_dir = Path(name if match is None else match[1])
    before, at, after = name.rpartition("@")
    if match is None and at and not run_dir.exists() and Path(before).is_dir():
        raise ConfigError(
            f"--evaluate {name}: {after!r} names no checkpoint of {before}. Give @best, @round_01 "
            "and so on, or @round_00 for the untouched model."
        )
    store = RunStore.open(run_dir)
    if store.is_evaluation:
        raise ConfigError(
            f"--evaluate {name}: {run_dir} holds an earlier evaluation, no run. Name a run's "
            "directory, or continue the evaluation with --resume."
        )
    if match is not None and match[3] is not None:
        return _of_round(store, int(match[3]), name)
    decision = store.last_decision()
    if decision is None or decision.best_round == 0:
        raise ConfigError(
            f"--evaluate {name}: the run has no evaluated round yet, so none is its best. Name one "
            "as RUN_DIR@round_01, or continue the run with --resume."
        )
    return _of_round(store, decision.best_round, name)


def _find_path(path: str, runs_dir: Path) -> Subject:
    """A checkpoint by its path; the run it belongs to is looked for below `runs_dir`."""
    if "/weights/" in path:
        raise ConfigError(
            f"--evaluate {path}: this is a state to train on from. Give the sampler weights that "
            f"were saved with it: {path.replace('/weights/', '/sampler_weights/')}."
        )
    for config in sorted(runs_dir.glob("*/config.resolved.json"), reverse=True):
        try:
            store = RunStore.open(config.parent)
        except RunStoreError:
            continue  # damaged, or not a run of ours
        for event in store.events("checkpoint"):
            if event.get("sampler_path") == path:
                return _of_round(store, event["round"], path)
    return Subject(path, path)


def _of_round(store: RunStore, round_no: int, label: str) -> Subject:
    resolved = store.settled_config()
    checkpoint: Checkpoint | None = None
    if round_no > 0:
        checkpoint = store.checkpoint(round_no)
        if checkpoint is None:
            saved = [str(n) for n in range(1, store.num_rounds + 1) if store.checkpoint(n)]
            raise ConfigError(
                f"--evaluate {label}: {store.run_dir} has no weights of round {round_no}. It has "
                f"those of {', '.join(saved) or 'no round'}, and round_00 is the untouched model."
            )
    return Subject(
        label=label,
        path=None if checkpoint is None else checkpoint.sampler_path,
        round=round_no,
        step=0 if checkpoint is None else checkpoint.step,
        base_model=resolved["files"]["base_model"],
        renderer=resolved["resolved"]["renderer_name"],
        service=resolved["resolved"]["service"],
        run_dir=store.run_dir,
        recorded=store.result(round_no),
        baseline=store.result(0),
    )


def common_renderer(subjects: Sequence[Subject], config: TrainingConfig, model: str) -> str | None:
    """The renderer that the checkpoints were trained with; None where none of them tells.

    Raises `ConfigError` for checkpoints that one evaluation cannot ask alike: of another base model
    than the config's `model`, or trained with different renderers.
    """
    renderer = config.renderer_name
    for subject in subjects:
        if subject.base_model not in (None, model):
            raise ConfigError(
                f"--evaluate {subject.label}: its base model is {subject.base_model}, the config's "
                f"is {model}. Set base_model to it: one evaluation asks checkpoints of one model."
            )
        if subject.renderer is not None and renderer not in (None, subject.renderer):
            raise ConfigError(
                f"--evaluate {subject.label}: it was trained with the renderer {subject.renderer}, "
                f"and would be asked with {renderer}. Set renderer_name to {subject.renderer}, or "
                "leave out the checkpoints that were trained with another one."
            )
        renderer = renderer or subject.renderer
    return renderer


# --- how they compare -----------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One checkpoint beside the reference; `passed` is None for the reference itself."""

    label: str
    result: EvalResult
    against: str | None
    difference: ScoreDifference | None
    passed: bool | None
    sentence: str


def compare(
    subjects: Sequence[Subject], results: Sequence[EvalResult], gate: Gate
) -> list[Comparison]:
    """Judge each checkpoint by the gate; `gate.max_rounds` is the number that are judged.

    Whatever the rule, a checkpoint does not pass that is worse than the reference beyond noise.
    """
    reference, against, first_judged = results[0], subjects[0].label, 1
    guarded_by: EvalResult | None = reference  # what guards may not fall below
    if len(results) == 1:
        recorded, guarded_by, first_judged = subjects[0].recorded, subjects[0].baseline, 0
        against = None
        if recorded is not None and _is_comparable(recorded, reference):
            against, reference = "its evaluation in the run", recorded
        if guarded_by is not None and not _has_guards_of(guarded_by, results[0], gate):
            guarded_by = None
    comparisons = []
    for position, (subject, result) in enumerate(zip(subjects, results, strict=True)):
        if position < first_judged:
            sentence = f"{subject.label} is the reference: {score_text(result)}."
            comparisons.append(Comparison(subject.label, result, None, None, None, sentence))
            continue
        verdict = judge(result, guarded_by or reference, gate)
        why_not = None if verdict.passed else verdict.objection or verdict.numbers
        note = ""
        if against is None and subject.recorded is not None:
            note = (
                " It is not compared with its evaluation in the run, which had another protocol "
                "(questions, arguments, code, sampling or seed)."
            )
        if why_not is None and against is not None:
            why_not = _worse(gate_change(result, reference, gate.level), against, verdict.numbers)
        if why_not is None and guarded_by is None and gate.guards:
            why_not = (
                f"{verdict.numbers}, but there is nothing that guard {next(iter(gate.guards))} "
                "could be compared with; name a reference first, for example RUN_DIR@round_00"
            )
        difference = None
        sentence = (
            f"{subject.label} passes: {verdict.numbers}.{note}"
            if why_not is None
            else f"{subject.label} does not pass: {why_not}.{note}"
        )
        if against is not None:
            difference = score_difference(result, reference, LEVEL)
        comparisons.append(
            Comparison(subject.label, result, against, difference, why_not is None, sentence)
        )
    return comparisons


def _is_comparable(recorded: EvalResult, result: EvalResult) -> bool:
    """Whether an evaluation in a run had the same protocol, for all that enters the score."""
    return (
        recorded.protocol_hash == result.protocol_hash and recorded.sample_ids == result.sample_ids
    )


def _has_guards_of(baseline: EvalResult, result: EvalResult, gate: Gate) -> bool:
    """Whether a run's baseline tells what the guards may not fall below."""
    return _is_comparable(baseline, result) and baseline.names >= set(gate.guards)


def _worse(change: GateChange, against: str, numbers: str) -> str | None:
    interval = change.interval
    if interval is None or interval.high >= 0:
        return None
    return (
        f"{numbers}, but it is worse than {against} beyond noise: {change.mean:+.4f} "
        f"{interval_text(interval, signed=True)}"
    )


def gate_for(gate: Gate, num_subjects: int) -> Gate:
    """The gate with its error spread over the checkpoints that are judged."""
    return replace(gate, max_rounds=max(1, num_subjects - 1))


# --- what is said ---------------------------------------------------------------------------------


def summary(comparison: Comparison) -> str:
    """One line: the score, and what it is against the reference."""
    text = f"{comparison.label}: score {score_text(comparison.result)}, n={comparison.result.n}"
    if comparison.difference is not None:
        text += f"; {_difference_text(comparison.difference)} against {comparison.against}"
    return text


def _difference_text(difference: ScoreDifference) -> str:
    return (
        f"{difference.mean:+.4f} {interval_text(difference.interval, signed=True)} "
        f"({difference.method}{p_value_text(difference.p_value)})"
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    result, difference = comparison.result, comparison.difference
    return {
        "checkpoint": comparison.label,
        "path": result.checkpoint,
        "score": result.score,
        "interval": result.interval,
        "n": result.n,
        "num_truncated": result.num_truncated,
        "num_malformed": result.num_malformed,
        "num_failed": result.num_failed,
        "tasks": {task.name: task.score for task in result.tasks},
        "held_out_nll": {loss.name: loss.nll for loss in result.held_out},
        "against": comparison.against,
        "difference": None if difference is None else difference._asdict(),
        "passed": comparison.passed,
        "sentence": comparison.sentence,
    }


def write_comparison(
    store: RunStore, comparisons: Sequence[Comparison], config: TrainingConfig
) -> None:
    """Write eval_report.md of an evaluation."""
    lines = [
        f"# Evaluation of {len(comparisons)} checkpoint{'s' * (len(comparisons) > 1)}: "
        f"{config.run_name}",
        "",
        *(f"- {one.sentence}" for one in comparisons),
        "",
        *_score_table(comparisons),
        *_task_table(comparisons),
    ]
    store.write_text("eval_report.md", "\n".join(lines) + "\n")


def _score_table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield f"| checkpoint | weights | score, {LEVEL:.0%} interval | n | difference | flaws |"
    yield "|---|---|---|---|---|---|"
    for one in comparisons:
        result = one.result
        moved = "" if one.difference is None else _difference_text(one.difference)
        flaws = f"{result.num_truncated} truncated, {result.num_malformed} malformed"
        cells = [one.label, result.checkpoint or "untouched", score_text(result), str(result.n)]
        yield f"| {' | '.join([*cells, moved, f'{flaws}, {result.num_failed} failed'])} |"
    yield ""


def _task_table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Each task and held-out loss, with the paired difference to the first checkpoint."""
    first = comparisons[0].result
    yield f"| task | {' | '.join(one.label for one in comparisons)} |"
    yield f"|---|{'---|' * len(comparisons)}"
    for task in first.tasks:
        cells = []
        for one in comparisons:
            mine = one.result.task(task.name)
            assert mine is not None, "all checkpoints are asked the same tasks"
            cell = score_text(mine)
            if mine is not task:
                moved = task_difference(mine, task, LEVEL)
                cell += f", {moved.mean:+.4f} {interval_text(moved.interval, signed=True)}"
            cells.append(cell)
        yield f"| {task.name} ({task.role}) | {' | '.join(cells)} |"
    for position, loss in enumerate(first.held_out):
        losses = [one.result.held_out[position] for one in comparisons]
        yield f"| {loss.name}, nats a token | {' | '.join(f'{o.nll:.4f}' for o in losses)} |"

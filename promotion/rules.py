"""What keeps a checkpoint from being promoted, apart from the champion: each with its numbers.

It has to be measured, by exactly its weights; to pass the gate of its run; to keep to the run's
limits; and its results have to be about the questions, graders and rows that lie there now. A run
whose threshold nobody set has none to miss, which is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from config_schema import TrainingConfig
from ledger.registry_names import weights_problem
from ledger.store import RunStore
from promotion.evidence import Candidate, Measurement
from promotion.staleness import freshness
from scores.decision import Gate, broken_guard, judge
from scores.results import EvalResult

NEEDED = ("score", "guard")
DEFAULT_THRESHOLD = TrainingConfig.model_fields["eval_threshold"].default


class Objection(NamedTuple):
    """Why not to promote: in one word for programs, and in a clause with its numbers."""

    kind: str
    said: str
    figures: Mapping[str, Any] = MappingProxyType({})

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "said": self.said, **self.figures}


@dataclass(frozen=True)
class Judged:
    """What a checkpoint was found to be by itself."""

    measurement: Measurement | None  # that counts
    objections: tuple[Objection, ...]
    notes: tuple[str, ...]


def judge_candidate(candidate: Candidate) -> Judged:
    """Hold a checkpoint against what its own run asked of it."""
    measurement = counting(candidate)
    if measurement is None:
        return Judged(None, (_not_measured(candidate),), ())
    gate, notes = candidate.gate, []
    if has_no_threshold(gate):
        notes.append("its run had no threshold that anybody set, so it was held to none")
        gate = replace(gate, rule="mean", threshold=0.0)
    if candidate.digests is None:
        notes.append(
            f"its files are kept by the service: that {candidate.sampler_path} holds what was "
            "measured rests on the path and on the event that saved it, and on no sha256"
        )
    if measurement.is_outside:
        notes.append(f"measured outside its run, in {measurement.store.run_dir}")
    objections = [
        *_of_gate(candidate, measurement, gate),
        *guard_objections(measurement.result, candidate.baseline, candidate.gate),
        *_of_limits(candidate),
        *_of_state(candidate),
    ]
    fresh = [freshness(store) for store in _stores(candidate, measurement)]
    for reason in dict.fromkeys(one for found in fresh for one in found.stale):
        objections.append(Objection("stale", f"its results are stale: {reason}"))
    for one in dict.fromkeys(one for found in fresh for one in found.unchecked):
        notes.append(f"not checked for changes: {one}")
    return Judged(measurement, tuple(objections), tuple(notes))


def counting(candidate: Candidate) -> Measurement | None:
    """The measurement of these weights that asked what the run's own gate is about."""
    baseline = candidate.baseline
    for one in candidate.measured:
        asked = one.result.protocol_hash
        if not one.is_outside or (baseline is not None and asked == baseline.protocol_hash):
            return one
    return None


def has_no_threshold(gate: Gate) -> bool:
    """Whether no pass was asked for: 0, which everything reaches, or the default of a run that was
    to train all its rounds, as the trials of most studies."""
    if gate.rule == "paired":  # which asks for a gain, whatever the threshold
        return False
    return gate.threshold == 0 or (not gate.stops and gate.threshold == DEFAULT_THRESHOLD)


def _stores(candidate: Candidate, measurement: Measurement) -> list[RunStore]:
    return [candidate.store, measurement.store] if measurement.is_outside else [candidate.store]


def _not_measured(candidate: Candidate) -> Objection:
    run = f"{candidate.store.run_dir}@round_{candidate.checkpoint.round:02d}"
    why = candidate.why_unmeasured or "nobody measured it by the questions of its run"
    return Objection(
        "not_measured",
        f"its gate did not measure these weights: {why}. Measure them by the settings of the run, "
        f"trainer_with_eval.py --config FILE --evaluate {run}, and promote it then",
    )


def _of_gate(candidate: Candidate, measurement: Measurement, gate: Gate) -> Iterator[Objection]:
    result, baseline = measurement.result, candidate.baseline
    missing = _unasked(measurement)
    if missing:
        yield Objection(
            "not_measured",
            f"it was not measured on {', '.join(missing)}, which its run's score and guards need; "
            "the run measures that at its end, on the round that it recommends",
            {"tasks": missing},
        )
        return
    without_guards = replace(gate, guards={})  # told apart from them
    verdict = judge(result, baseline or result, without_guards)
    if not verdict.passed:
        figures = {"score": result.score, "threshold": gate.threshold, "rule": gate.rule}
        said = verdict.objection or verdict.numbers
        yield Objection("gate", f"it does not pass the gate of its run: {said}", figures)


def asked_roles(result: EvalResult) -> dict[str, str]:
    """The role of each task that a protocol has."""
    return {name: str(task.get("role")) for name, task in asked_tasks(result).items()}


def asked_tasks(result: EvalResult) -> dict[str, dict[str, Any]]:
    """What a protocol has of each task."""
    tasks = result.protocol.get("tasks")
    found = tasks.items() if isinstance(tasks, dict) else ()
    return {name: task for name, task in found if isinstance(task, dict)}


def _unasked(measurement: Measurement) -> list[str]:
    """The tasks of the score and the guards that the protocol has and the result has not."""
    needed = [n for n, role in asked_roles(measurement.result).items() if role in NEEDED]
    return [name for name in needed if name not in measurement.result.names]


def guard_objections(
    result: EvalResult, baseline: EvalResult | None, gate: Gate
) -> Iterator[Objection]:
    """Guards that fell by more than they may, or of which that is not known."""
    if not gate.guards:
        return
    unknown = [n for n in gate.guards if baseline is None or baseline.task(n) is None]
    if unknown or baseline is None:
        names = ", ".join(unknown or gate.guards)
        yield Objection("guard", f"what guard {names} fell from was not measured by its run")
    elif (broken := broken_guard(result, baseline, gate)) is not None:
        yield Objection("guard", broken)


def _of_state(candidate: Candidate) -> Iterator[Objection]:
    """What was saved to train on from holds the same adapter as what was measured."""
    path, run_dir = candidate.checkpoint.state_path, candidate.store.run_dir
    if (problem := weights_problem(run_dir, candidate.digests, path)) is not None:
        said = problem.replace("that was promoted", "that was measured")
        yield Objection("state", f"nothing could be started from it: {said}", {"path": path})


def _of_limits(candidate: Candidate) -> Iterator[Objection]:
    store, number = candidate.store, candidate.checkpoint.round
    verdict = store.limits_verdict(number)
    if verdict is not None and verdict["fails"]:
        found = verdict.get("violations")
        broken = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
        said = " ".join(str(one.get("message")) for one in broken) or "see its page"
        yield Objection("limits", f"it is over the limits of its run: {said}")
    elif verdict is None and candidate.config.evalops_budget_file is not None:
        yield Objection("limits", "its run was not held to the limits of evalops_budget_file")

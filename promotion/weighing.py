"""What speaks for a promotion and against it: the checkpoint by itself, and beside the champion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import LoopError
from ledger.registry_file import CHAMPION, Promoted, Registry
from ledger.registry_writing import Who
from ledger.run_directory import is_locked
from promotion.comparing import Pairing, comparable_pair, pair, why_incomparable
from promotion.entry import place_from, summary_of
from promotion.evidence import Candidate, Held, Measurement, held_entry
from promotion.keeping import why_gone
from promotion.measuring import measure_again
from promotion.rules import (
    NEEDED,
    Judged,
    Objection,
    asked_roles,
    asked_tasks,
    judge_candidate,
)
from services.keys import Keys

RUNS = "runs"  # beside a registry


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    checkpoint: str
    name: str
    registry: Path
    who: Who  # and which command, without keys
    alias: str = CHAMPION
    force: str | None = None  # why it is promoted whatever speaks against it
    then: Sequence[str] | None = None  # a command, as `notices.parse_then` gives it
    may_evaluate: bool = True


@dataclass(frozen=True)
class Case:
    """A checkpoint that is to be promoted, and what it would follow."""

    request: Request
    registry: Registry
    candidate: Candidate
    before: Promoted | None  # what the alias stands for now
    keys: Keys
    say: Callable[[str], None]

    @property
    def folders(self) -> list[Path]:
        """Where evaluations outside runs are looked for."""
        return folders_of(self.registry)


def folders_of(registry: Registry) -> list[Path]:
    return [registry.folder / RUNS, Path(RUNS)]


@dataclass
class Weighed:
    """What was found of a checkpoint and of the champion."""

    judged: Judged
    objections: list[Objection] = field(default_factory=list)
    pairing: Pairing | None = None
    against: dict[str, Any] | None = None  # as an entry keeps it
    notes: list[str] = field(default_factory=list)


def weigh(case: Case) -> Weighed:
    """Hold a checkpoint against its gate and against what it would follow; the champion is measured
    again where nothing else tells."""
    candidate, before = case.candidate, case.before
    judged = judge_candidate(candidate)
    found = Weighed(judged, list(judged.objections), notes=list(judged.notes))
    if (gone := why_gone(candidate)) is not None:
        found.objections.append(gone)
    decision = candidate.store.last_decision()
    if decision is not None and decision.best_round != candidate.checkpoint.round:
        found.notes.append(f"its run recommends round {decision.best_round}")
    if is_locked(candidate.store.run_dir):
        found.notes.append("its run is still at work")
    if (same := _same(case)) is not None:
        found.objections.append(same)
    if before is None:
        found.notes.append(
            f"there was no {case.request.name}@{case.request.alias} before, so it was held against "
            "its own gate alone"
        )
    elif same is None:
        _hold_against(case, before, found)
    return found


def _same(case: Case) -> Objection | None:
    """Where these weights have a version of this name already."""
    name, alias, before = case.request.name, case.request.alias, case.before
    if before is not None and case.candidate.is_same_weights(before):
        said = f"these weights are {before.reference}, which is {name}@{alias} now"
        return Objection("same", said, {"reference": before.reference})
    for entry in case.registry.entries:
        is_usable = entry.name == name and not case.registry.is_retired(entry)
        if is_usable and case.candidate.is_same_weights(entry):
            said = (
                f"these weights are {entry.reference} already, and a version is given once; "
                "registry.py alias lets an alias stand for it"
            )
            return Objection("same", said, {"reference": entry.reference})
    return None


# --- beside the champion --------------------------------------------------------------------------


def _hold_against(case: Case, before: Promoted, found: Weighed) -> None:
    """Pair the checkpoint with the champion, or object that this cannot be done."""
    measurement, held = found.judged.measurement, held_entry(case.registry, before, case.folders)
    if measurement is None:  # which is an objection already
        found.against = _uncompared(before, "the checkpoint was not measured")
        return
    _mind_what_is_not_asked(held, measurement, found)
    both = comparable_pair([measurement], held.measured)
    if both is None:
        again = _measured_again(case, held, measurement, found)
        both = None if again is None else (measurement, again)
    if both is None:
        return
    mine, theirs = both
    found.pairing = pair(case.candidate.label, mine.result, before.reference, theirs.result)
    found.against = {"reference": before.reference, **found.pairing.to_json()}
    if theirs.is_outside:
        where = place_from(case.registry.folder, theirs.store.run_dir)
        found.against["evaluation_dir"] = where
    if found.pairing.is_worse:
        found.objections.append(
            Objection("worse", found.pairing.sentence.rstrip("."), found.pairing.to_json())
        )


def _mind_what_is_not_asked(held: Held, measurement: Measurement, found: Weighed) -> None:
    """Object where the champion was held to a guard that the checkpoint's run has not: nothing
    would tell that it is worse there. Other questions of its score are noted."""
    missing = _not_asked(held, measurement)
    guards = [name for name, role in missing.items() if role == "guard"]
    if guards:
        said = (
            f"{held.entry.reference} was held to guard {', '.join(guards)}, and this run asked "
            "nothing of it in its score and guards"
        )
        found.objections.append(Objection("guard", said, {"tasks": guards}))
    if others := [name for name, role in missing.items() if role == "score"]:
        found.notes.append(
            f"{held.entry.reference} was promoted on {', '.join(others)}, which this run did not "
            "ask in its score"
        )


def _not_asked(held: Held, measurement: Measurement) -> dict[str, str]:
    """Score tasks and guards that an entry was promoted on and that another checkpoint's run has
    not, neither by name nor by content; each with its role."""
    mine, roles = asked_tasks(measurement.result), asked_roles(measurement.result)
    counted = {name: task for name, task in mine.items() if roles[name] in NEEDED}
    contents = {task.get("sha256") for task in counted.values()} - {None}
    theirs = asked_tasks(held.measured[0].result) if held.measured else {}
    told = held.entry.results.get("tasks")
    return {
        name: task["role"]
        for name, task in (told.items() if isinstance(told, dict) else ())
        if isinstance(task, dict)
        and task.get("role") in NEEDED
        and name not in counted
        and theirs.get(name, {}).get("sha256") not in contents
    }


def _measured_again(
    case: Case, held: Held, measurement: Measurement, found: Weighed
) -> Measurement | None:
    """The champion measured as the checkpoint was; None with an objection where it is not."""
    why = _why_again(held, measurement)
    if held.candidate is None:
        return _refused(held, f"{held.entry.reference} cannot be compared with: {why}", found)
    if not case.request.may_evaluate:
        said = f"{held.entry.reference} would have to be measured again ({why}), and "
        return _refused(held, f"{said}--no-evaluate was given", found)
    if found.objections and case.request.force is None:
        found.notes.append(
            f"{held.entry.reference} was not measured again, since it is refused anyway"
        )
        found.against = _uncompared(held.entry, "refused before")
        return None
    case.say(f"{held.entry.reference} has to be measured again: {why}.")
    try:
        again = measure_again(held.candidate, measurement, case.registry.folder / RUNS, case.keys)
    except LoopError as error:
        if case.request.force is None:
            raise
        said = f"{held.entry.reference} could not be measured again: {error}"
        return _refused(held, said.rstrip("."), found)
    if left := why_incomparable(measurement.result, again.result):
        said = f"{held.entry.reference}, measured again in {again.store.run_dir}, cannot be "
        return _refused(held, f"{said}compared with: {'; '.join(left)}", found)
    return again


def _why_again(held: Held, measurement: Measurement) -> str:
    """Why nothing that was measured of the champion can be compared with."""
    if not held.measured:
        return held.why_not.rstrip(".") or "nothing that was measured of it is left"
    reasons = why_incomparable(measurement.result, held.measured[0].result)
    return f"it was measured otherwise ({'; '.join(reasons)})"


def _refused(held: Held, said: str, found: Weighed) -> None:
    figures: dict[str, Any] = {"reference": held.entry.reference}
    if held.measured:
        figures["champion"] = summary_of(held.measured[0].result)
    found.objections.append(Objection("not_compared", said, figures))
    found.against = _uncompared(held.entry, said)


def _uncompared(entry: Promoted, why: str) -> dict[str, Any]:
    return {"reference": entry.reference, "verdict": "not compared", "why": why}

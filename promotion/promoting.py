"""A promotion: what a checkpoint shows is held against its gate and the champion, and written down.

The registry is held from reading the champion to the entry, so that of two promotions at once one
is refused. What is refused, and what is promoted with `--force REASON` in spite of it, is recorded
with its numbers. Nothing is measured again that is still valid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from errors import ConfigError, Interrupted, LoopError, RegistryError
from ledger.registry_file import Promoted, Registry
from ledger.registry_weights import digests_of_weights
from ledger.registry_writing import (
    RegistryWriter,
    refuse_alias,
    refuse_name,
    writing,
)
from promotion.comparing import Pairing
from promotion.entry import Grounds, entry_of, summary_of
from promotion.evidence import find_candidate
from promotion.keeping import keep, key_of, paths_of
from promotion.notices import message_of, notify
from promotion.rules import Objection
from promotion.weighing import Case, Request, Weighed, folders_of, weigh
from services.keys import Keys


@dataclass(frozen=True)
class Outcome:
    """What came of a promotion. `promoted` is None where it was refused."""

    checkpoint: str
    name: str
    alias: str
    promoted: Promoted | None
    objections: tuple[Objection, ...]
    pairing: Pairing | None  # with what the alias stood for
    before: str | None  # what the alias stood for
    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()  # weights that would have expired
    then_problem: str | None = None  # what went wrong with the command, or its record

    @property
    def exit_code(self) -> int:
        """3 where it was refused, as of a gate that was not passed; 1 where it was promoted and
        the command after it failed."""
        if self.promoted is None:
            return 3
        return 0 if self.then_problem is None else 1

    @property
    def lines(self) -> list[str]:
        """What is said of it, the outcome first."""
        said = [self._headline]
        is_said = any(one.kind == "worse" for one in self.objections)
        if self.pairing is not None and not is_said:
            said.append(self.pairing.sentence)
        said += [f"Note: {note}." for note in self.notes]
        if self.kept:
            said.append(f"Kept without expiry from now on: {', '.join(self.kept)}.")
        if self.then_problem is not None:
            said.append(f"warning: {self.then_problem}. The promotion stands.")
        return said

    @property
    def _headline(self) -> str:
        why = "; ".join(one.said for one in self.objections)
        if self.promoted is None:
            return (
                f"{self.checkpoint} is not promoted as {self.name}: {why}. It is recorded that it "
                "was refused; --force REASON promotes it all the same."
            )
        was = "" if self.before is None else f", which was {self.before}"
        head = f"{self.checkpoint} is {self.promoted.reference} and {self.name}@{self.alias}{was}."
        return head if not why else f"{head} Forced ({self.promoted.forced}), in spite of: {why}."

    def to_json(self) -> dict[str, Any]:
        promoted = self.promoted
        return {
            "checkpoint": self.checkpoint,
            "name": self.name,
            "alias": self.alias,
            "promoted": promoted is not None,
            "reference": None if promoted is None else promoted.reference,
            "forced": None if promoted is None else promoted.forced,
            "before": self.before,
            "objections": [one.to_json() for one in self.objections],
            "comparison": None if self.pairing is None else self.pairing.to_json(),
            "notes": list(self.notes),
            "kept": list(self.kept),
            "then_problem": self.then_problem,
        }


def promote(request: Request, keys: Keys, say: Callable[[str], None]) -> Outcome:
    """Promote a checkpoint, or refuse it; either is on disk when this returns. `say` is told what
    takes long before it begins. Raises `LoopError` where neither could be done."""
    refuse_name(request.name)
    refuse_alias(request.alias)
    if request.force is not None and not request.force.strip():
        raise ConfigError("--force: the reason is empty. Say in a few words why it is promoted.")
    with writing(request.registry) as writer:
        registry = writer.registry
        candidate = find_candidate(request.checkpoint, folders_of(registry), registry.path)
        before = registry.alias_of(request.name, request.alias)
        case = Case(request, registry, candidate, before, keys, say)
        outcome = _decide(case, writer)
        registry = writer.registry
    if outcome.promoted is not None and request.then is not None:
        problem = _run_then(request, registry, outcome, say)
        outcome = replace(outcome, then_problem=problem)
    return outcome


def _decide(case: Case, writer: RegistryWriter) -> Outcome:
    """Promote it where nothing is against it, or where a reason is given; else record why not."""
    request, candidate, before = case.request, case.candidate, case.before
    found = weigh(case)
    outcome = Outcome(
        checkpoint=candidate.label,
        name=request.name,
        alias=request.alias,
        promoted=None,
        objections=tuple(found.objections),
        pairing=found.pairing,
        before=None if before is None else before.reference,
        notes=tuple(found.notes),
    )
    gone = [one.said for one in found.objections if one.kind == "gone"]
    if found.objections and (request.force is None or gone):
        writer.refuse(_refusal(case, found))
    if gone and request.force is not None:
        raise RegistryError(
            f"{candidate.label}: {'; '.join(gone)}. No reason brings them back, so nothing was "
            "promoted. Name other weights."
        )
    if found.objections and request.force is None:
        return outcome
    forced = request.force if found.objections else None
    if request.force is not None and forced is None:
        outcome = replace(outcome, notes=(*outcome.notes, "--force was not needed"))
    notes = outcome.notes
    grounds = Grounds(found.judged.measurement, found.against, outcome.objections, forced, notes)
    return _write(case, writer, outcome, grounds)


def _refusal(case: Case, found: Weighed) -> dict[str, Any]:
    """What the registry keeps of a promotion that was refused."""
    candidate, measured = case.candidate, found.judged.measurement
    return {
        "name": case.request.name,
        "alias": case.request.alias,
        "checkpoint": candidate.label,
        "run_id": candidate.store.run_id,
        "round": candidate.checkpoint.round,
        "sampler_path": candidate.sampler_path,
        "weights_sha256": candidate.digests,
        "results": None if measured is None else summary_of(measured.result),
        "objections": [one.to_json() for one in found.objections],
        "against": found.against,
        "notes": found.notes,
        "forced": case.request.force,
        **case.request.who._asdict(),
    }


# --- writing it down ------------------------------------------------------------------------------


def _write(case: Case, writer: RegistryWriter, outcome: Outcome, grounds: Grounds) -> Outcome:
    """Keep the weights from expiring, and then promote them."""
    candidate, store = case.candidate, case.candidate.store
    is_here = candidate.digests is not None
    if is_here and digests_of_weights(store.run_dir, candidate.sampler_path) != candidate.digests:
        raise RegistryError(
            f"{candidate.label}: its files were changed while it was looked at, so nothing was "
            "promoted. Find out by what, and promote it again."
        )
    entry = entry_of(writer.registry, case.request.name, candidate, grounds, case.request.who)
    kept = keep(candidate, case.keys)
    paths = paths_of(candidate.checkpoint)
    # Before the entry: a kill between the two leaves weights that are kept for nothing, and no
    # entry whose weights a run that goes on lets expire.
    store.record_promoted(paths, key_of(writer.registry, entry))
    try:
        promoted = writer.promote(entry, [case.request.alias])
    except LoopError:
        store.record_let_go(paths, key_of(writer.registry, entry))
        raise
    return replace(outcome, promoted=promoted, kept=tuple(kept))


def _run_then(
    request: Request, registry: Registry, outcome: Outcome, say: Callable[[str], None]
) -> str | None:
    """Run the user's command and record what came of it; returns what went wrong. The registry is
    not held meanwhile, so that the command may use it."""
    words, entry = list(request.then or ()), outcome.promoted
    assert entry is not None, "the caller has looked"
    say(f"running the command of --then: {words[0]}")
    try:
        problem = notify(words, message_of(registry, entry, {request.alias: outcome.before}))
    except KeyboardInterrupt:
        said = _record_then(request, entry, f"{words[0]} was stopped before its end")
        raise Interrupted(
            f"Interrupted. {outcome.lines[0]} The command of --then, {said}."
        ) from None
    return _record_then(request, entry, problem)


def _record_then(request: Request, entry: Promoted, problem: str | None) -> str | None:
    """Record what came of the user's command; returns what went wrong, here as well."""
    record = {"reference": entry.reference, "ok": problem is None, "problem": problem}
    try:
        with writing(request.registry) as writer:
            writer.record("notified", record)
    except LoopError as error:
        said = f"what came of the command of --then could not be recorded: {error}".rstrip(".")
        return said if problem is None else f"{problem}; {said}"
    return problem

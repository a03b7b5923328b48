"""The weights that a run has saved: what was kept, let go and deleted, and what to go on from.

What was superseded by a resumption lies on the service all the same, and is counted here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from errors import RunStoreError
from ledger.records import Checkpoint, SavedWeights, Stamp, WeightsPath
from ledger.run_directory import Event, RunDirectory, now
from scores.decision import Decision
from storage.files import append_line, read_lines
from storage.journal import Journal
from storage.stored_json import parse_object, record_of

WEIGHTS = "weights_sha256"  # of what was measured: the files that it lies in, by name
PROMOTIONS = "promotions.jsonl"
REFERENCE = "reference.jsonl"  # log-probabilities of pairs under the reference


@dataclass(frozen=True)
class _Promotion:
    """A line of promotions.jsonl."""

    time: Stamp
    what: Literal["promoted", "let_go"]
    paths: list[WeightsPath]
    reference: str


class SavedWeightsRecords(RunDirectory):
    """The events of a run that tell of weights, recorded and found again."""

    def record_checkpoint(
        self, checkpoint: Checkpoint, pipeline: dict[str, Any] | None = None
    ) -> None:
        """Record saved weights; `pipeline` is what was measured of the steps in flight before."""
        fields = {k: v for k, v in asdict(checkpoint).items() if k not in ("round", "step")}
        if pipeline is not None:
            fields["pipeline"] = pipeline
        self.append("checkpoint", round=checkpoint.round, step=checkpoint.step, **fields)

    def record_kept(self, round_no: int, paths: Sequence[str]) -> None:
        """These weights have no expiry any more."""
        self.append("checkpoint_kept", round=round_no, paths=list(paths), expires_at=None)

    def record_released(self, round_no: int, paths: Sequence[str], expires_at: str | None) -> None:
        """These weights have an expiry again."""
        self.append("checkpoint_released", round=round_no, paths=list(paths), expires_at=expires_at)

    def record_reference(self, path: str | None, name: str) -> None:
        """Which weights preferences are trained against, for as long as the run lasts; a path of
        None is the base model."""
        self.append("reference_set", round=0, path=path, name=name)

    def reference(self) -> Event | None:
        """What preferences are trained against, once that is settled."""
        return next(self.events("reference_set"), None)

    def reference_journal(self, path: str | None) -> Journal:
        """What the reference's log-probabilities of pairs are; it stays."""
        return Journal(self.run_dir / REFERENCE, self.weights_of(path))

    def record_reference_measured(
        self, round_no: int, num_pairs: int, num_prompt_tokens: int, num_sampled_tokens: int
    ) -> None:
        """That the reference has been asked, by now, for so many pairs with so many tokens, where
        that is more than was told."""
        told = list(self.ever("reference_measured"))
        num_new = num_prompt_tokens - sum(event["num_prompt_tokens"] for event in told)
        if num_new > 0:
            self.append(
                "reference_measured",
                round=round_no,
                num_pairs=num_pairs,
                num_prompt_tokens=num_new,
                num_sampled_tokens=num_sampled_tokens
                - sum(event.get("num_sampled_tokens", 0) for event in told),
            )

    def record_deleted(self, round_no: int, paths: Sequence[str]) -> None:
        self.append("checkpoint_deleted", round=round_no, paths=list(paths))

    def record_care_failed(self, round_no: int, detail: str) -> None:
        """That a service did not change how long weights are kept; once a round, also where a
        resumed run has asked again."""
        if self._last("care_failed", round_no) is None:
            self.append("care_failed", round=round_no, detail=detail)

    def record_promoted(self, paths: Sequence[str], reference: str) -> None:
        """A registry has these weights: they have no expiry, whatever the run recommends. It is
        noted beside the ledger, since it is no event of the run, which may be at work."""
        self._note_promotion("promoted", paths, reference)

    def record_let_go(self, paths: Sequence[str], reference: str) -> None:
        """A registry does not need these weights any more."""
        self._note_promotion("let_go", paths, reference)

    def _note_promotion(self, what: str, paths: Sequence[str], reference: str) -> None:
        note = {"time": now(), "what": what, "paths": list(paths), "reference": reference}
        read_lines(self.run_dir / PROMOTIONS, repair=True)  # a power cut may have torn the last
        append_line(self.run_dir / PROMOTIONS, json.dumps(note))

    def promoted_paths(self) -> dict[str, list[str]]:
        """Weights that registries have, and as what. Raises `RunStoreError`."""
        found: dict[str, list[str]] = {}
        for line in read_lines(self.run_dir / PROMOTIONS, repair=False).complete:
            try:
                note = record_of(_Promotion, parse_object(line))
            except ValueError as error:
                raise RunStoreError(
                    f"{self.run_dir / PROMOTIONS}: a line of it is no note of a promotion: "
                    f"{error}. The file was changed by something else; restore it from a copy."
                ) from None
            for path in note.paths:
                held = found.setdefault(path, [])
                if note.what == "promoted" and note.reference not in held:
                    held.append(note.reference)
                elif note.what == "let_go" and note.reference in held:
                    held.remove(note.reference)
        return {path: references for path, references in found.items() if references}

    def refuse_losing_promoted(self, back_to: int) -> None:
        """Raise `RunStoreError` where going back to the end of a round would take promoted weights
        back, whose names would mean nothing from then on."""
        held = self.promoted_paths()
        lost = {
            reference: event["round"]
            for event in self.events("checkpoint")
            for path in (event["state_path"], event["sampler_path"])
            for reference in held.get(path, ())
            if event["round"] > back_to
        }
        if not lost:
            return
        shown = ", ".join(f"round {number} is {reference}" for reference, number in lost.items())
        place = f", with start_from: {self.run_dir}@round_{back_to:02d}" if back_to else ""
        raise RunStoreError(
            f"{self.run_dir}: going back to the end of round {back_to} would train what was "
            f"promoted again: {shown}. Nothing was changed. Start a new run from there{place}; or "
            f"retire what is not needed any "
            f"more (registry.py retire); or go back in a copy of the directory without its "
            f"{PROMOTIONS}."
        )

    def trained_ids(self) -> frozenset[str]:
        """The rows that the run's steps were made of."""
        steps = self.events("step")
        return frozenset(one for event in steps for one in event.get("example_ids", ()))

    def kept_paths(self) -> list[str]:
        """Weights without expiry; what was superseded since counts as well, it is still there."""
        kept: dict[str, None] = {}
        for event in self._all_events:
            if event["type"] == "checkpoint_kept":
                kept |= dict.fromkeys(event["paths"])
            elif event["type"] == "checkpoint_released":
                kept = {path: None for path in kept if path not in event["paths"]}
        return list(kept)

    def deleted_paths(self) -> set[str]:
        events = (event for event in self._all_events if event["type"] == "checkpoint_deleted")
        return {path for event in events for path in event["paths"]}

    def saved_weights(self) -> list[SavedWeights]:
        """Everything that was saved and not deleted, oldest first, with its expiry as it is now."""
        gone = self.deleted_paths() | {
            event["state_path"]
            for event in self._all_events
            if event["type"] == "checkpoint_unusable"
        }
        expiries: dict[str, str | None] = {}
        for event in self._all_events:
            if event["type"] in ("checkpoint_kept", "checkpoint_released"):
                expiries |= dict.fromkeys(event["paths"], event["expires_at"])
        expiries |= dict.fromkeys(self.promoted_paths(), None)
        current = {event["seq"] for event in self.events("checkpoint")}
        saved = []
        for event in self._all_events:
            if event["type"] != "checkpoint":
                continue
            for kind in ("state", "sampler"):
                path = event[f"{kind}_path"]
                if path is not None and path not in gone:
                    expires_at = expiries.get(path, event["expires_at"])
                    is_superseded = event["seq"] not in current
                    place = event["round"], event["step"], kind, path
                    saved.append(SavedWeights(*place, event["time"], expires_at, is_superseded))
        return saved

    def checkpoint(self, round_no: int) -> Checkpoint | None:
        """The checkpoint at the end of a round."""
        ended = [e for e in self._usable_saves(round_no) if e["sampler_path"] is not None]
        return self._record(Checkpoint, ended[-1]) if ended else None

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest state to go on from, inside a round or at its end."""
        saves = self._usable_saves()
        return self._record(Checkpoint, saves[-1]) if saves else None

    def steps_taken(self) -> int:
        """Optimizer steps in the newest saved weights."""
        checkpoint = self.last_checkpoint()
        return 0 if checkpoint is None else checkpoint.step

    def lineage(self, round_no: int) -> list[int]:
        """The rounds that a round's weights came from, the baseline first."""
        rounds: list[int] = []
        while round_no > 0:
            decided = self._last("decided", round_no - 1)
            if decided is None:
                round_no -= 1
            else:
                round_no = self._record(Decision, decided).goes_on_from
            rounds.append(round_no)
        return rounds[::-1]

    def num_steps_in(self, checkpoint: Checkpoint) -> int:
        """Optimizer steps of the run that saved weights have had: fewer than the run had taken,
        where it went back to earlier ones."""
        rounds = (*self.lineage(checkpoint.round), checkpoint.round)
        steps = (event["step"] for number in rounds for event in self.events("step", number))
        return sum(step < checkpoint.step for step in steps)

    def measured_weights(
        self, round_no: int, tasks: Collection[str]
    ) -> list[dict[str, str] | None]:
        """The sha256 of the files that these tasks were measured on, each that there is once; None
        where it was not recorded."""
        found: list[dict[str, str] | None] = []
        for event in self.events("measured", round_no):
            weights = event.get(WEIGHTS)
            if weights not in found and not set(event["tasks"]).isdisjoint(tasks):
                found.append(weights)
        return found

    def checkpoints(self) -> list[Checkpoint]:
        """What can be gone on from or evaluated, oldest first."""
        return [self._record(Checkpoint, event) for event in self._usable_saves()]

    def _usable_saves(self, round_no: int | None = None) -> list[Event]:
        unusable = {event["state_path"] for event in self.events("checkpoint_unusable")}
        saves = self.events("checkpoint", round_no)
        return [event for event in saves if event["state_path"] not in unusable]

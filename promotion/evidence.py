"""What is known of a checkpoint when it is to be promoted: its weights, and who measured exactly
those.

An evaluation counts where it was of the weights that lie there now. On this machine the sha256 of
their files tells, which each evaluation records; where a service keeps the files, there are the
path and the event that saved it. The run's own evaluation counts first, then those outside the run
(`--evaluate`), newest first. Nothing is sampled here, and nothing is decided.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config_schema import TrainingConfig, validate
from errors import ConfigError, LoopError
from ledger.records import Checkpoint
from ledger.references import Subject, find_subjects
from ledger.registry_file import Promoted, Registry
from ledger.registry_names import measured_in
from ledger.registry_weights import digest_of, digests_of_weights, weights_dir
from ledger.run_directory import CONFIG, EVALUATED
from ledger.store import RunStore
from loop.planning.plan import gate_of
from scores.decision import Gate
from scores.results import EvalResult


@dataclass(frozen=True)
class Measurement:
    """An evaluation of a checkpoint, in its run or outside it."""

    store: RunStore
    number: int  # the round, or the place among checkpoints that were evaluated
    result: EvalResult

    @property
    def is_outside(self) -> bool:
        """Whether it was made by `--evaluate`."""
        return self.store.is_evaluation

    @property
    def file(self) -> str:
        """The file of the result, in its directory."""
        return f"evals/{'checkpoint' if self.is_outside else 'round'}_{self.number:02d}.json"

    @property
    def where(self) -> str:
        return str(self.store.run_dir / self.file)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, its weights as they lie there now, and what was measured of exactly those."""

    subject: Subject
    store: RunStore
    checkpoint: Checkpoint
    digests: dict[str, str] | None  # of its files; None where a service keeps them
    measured: tuple[Measurement, ...]
    why_unmeasured: str = ""  # why the run's own evaluation does not count

    @property
    def label(self) -> str:
        """As it was named."""
        return self.subject.label

    @property
    def service(self) -> str:
        return self.store.settled_config()["resolved"]["service"]

    @property
    def sampler_path(self) -> str:
        path = self.checkpoint.sampler_path
        assert path is not None, "a round that ended has weights to sample from"
        return path

    @property
    def weights(self) -> str:
        """Which ones lie under the path, where a round may be trained again."""
        return self.store.weights_of(self.sampler_path)

    @property
    def config(self) -> TrainingConfig:
        return validate(self.store.settled_config()["config"], str(self.store.run_dir))

    @property
    def gate(self) -> Gate:
        return gate_of(self.config)

    @property
    def baseline(self) -> EvalResult | None:
        """What the run began with, measured by it."""
        return self.store.result(0)

    def is_same_weights(self, entry: Promoted) -> bool:
        """Whether an entry of a registry is of the weights that lie here now."""
        if self.digests is not None and entry.weights_sha256 is not None:
            return self.digests == entry.weights_sha256
        theirs = entry.run_id, entry.weights or entry.sampler_path
        return theirs in ((self.store.run_id, self.weights), (self.store.run_id, self.sampler_path))


def find_candidate(
    name: str, folders: Sequence[Path], registry: Path, key: str = "promote"
) -> Candidate:
    """The checkpoint that a command line names; evaluations outside its run are looked for in the
    `folders`, and beside the run. `key` is what errors begin with. Raises `InputError` children."""
    (subject,) = find_subjects([name], Path("runs"), registry, key)
    if subject.adapter is not None:
        raise ConfigError(
            f"{name}: another program wrote this adapter, so nothing tells how it was trained and "
            "measured. Start a run from it (start_from), and promote a round of that run."
        )
    if subject.run_dir is None:
        raise ConfigError(
            f"{name}: no run below ./runs has saved these weights, so nothing tells what they are "
            "and how they were measured. Name the round by its run: RUN_DIR@round_02."
        )
    return candidate_of(subject, folders)


def candidate_of(subject: Subject, folders: Sequence[Path]) -> Candidate:
    """A checkpoint of a run with its evidence. Raises `InputError` children."""
    assert subject.run_dir is not None and subject.round is not None, "it is of a run"
    store = RunStore.open(subject.run_dir)
    store.refuse_impossible_ledger()
    checkpoint = store.checkpoint(subject.round)
    if checkpoint is None or checkpoint.sampler_path is None:
        raise ConfigError(
            f"{subject.label}: this is the untouched base model, which nobody trained. Name a "
            f"trained round, for example {store.run_dir}@round_01."
        )
    digests = None
    if store.settled_config()["resolved"]["service"] == "embedded":
        digests = digests_of_weights(store.run_dir, checkpoint.sampler_path)
        if digests is None:
            folder = weights_dir(store.run_dir, checkpoint.sampler_path)
            raise ConfigError(
                f"{subject.label}: its weights are not there any more: {folder} has none. Restore "
                "the folder from a copy, or name another round."
            )
    found = Candidate(subject, store, checkpoint, digests, ())
    why_not, result = _why_not_own(found), store.result(checkpoint.round)
    own = [] if why_not or result is None else [Measurement(store, checkpoint.round, result)]
    outside = sorted(_outside(found, folders), key=lambda one: one.store.run_dir.name, reverse=True)
    return replace(found, measured=(*own, *outside), why_unmeasured=why_not or "")


# --- who measured these weights -------------------------------------------------------------------


def _why_not_own(candidate: Candidate) -> str | None:
    """Why the evaluation in the run is none of these weights; None where it is one."""
    store, number = candidate.store, candidate.checkpoint.round
    result = store.result(number)
    if result is None:
        return f"round {number} of {store.run_dir} was not evaluated"
    if result.checkpoint != candidate.sampler_path:
        return f"round {number} of {store.run_dir} was evaluated as {result.checkpoint}"
    return _other_weights(candidate, store, number, result)


def _other_weights(
    candidate: Candidate, store: RunStore, number: int, result: EvalResult
) -> str | None:
    """Why an evaluation was not of the files that lie there now, or cannot be told to be."""
    if candidate.digests is None:
        return None
    recorded = store.measured_weights(number, result.names)
    if recorded == [candidate.digests]:
        return None
    if None in recorded or not recorded:
        return (
            f"{store.run_dir} was begun by a version that did not record which files it measured, "
            "so whether they are those that lie there now cannot be told"
        )
    return (
        f"the files of {candidate.sampler_path} in {candidate.store.run_dir} are not those that "
        "were measured (they have another sha256 now)"
    )


def _outside(candidate: Candidate, folders: Sequence[Path]) -> Iterator[Measurement]:
    """Finished measurements of these weights by evaluations outside the run."""
    places = [candidate.store.run_dir.resolve().parent, *folders]
    for folder in dict.fromkeys(place.resolve() for place in places):
        for config in folder.glob(f"*/{CONFIG}"):
            with contextlib.suppress(LoopError, OSError):  # damaged, or of another program
                if f'"{EVALUATED}"'.encode() not in config.read_bytes():
                    continue  # of many runs none is read further
                store = RunStore.open(config.parent)
                if store.is_evaluation and store.has_started:
                    yield from _of_evaluation(candidate, store)


def _of_evaluation(candidate: Candidate, store: RunStore) -> Iterator[Measurement]:
    for number, record in enumerate(store.settled_config()[EVALUATED]):
        named = record.get("run_id"), record.get("path")
        if named != (candidate.store.run_id, candidate.sampler_path):
            continue
        if record.get("weights") not in (None, candidate.weights):
            continue
        result = store.result(number)
        if result is not None and _other_weights(candidate, store, number, result) is None:
            yield Measurement(store, number, result)


# --- an entry of the registry ---------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """An entry of a registry as it can be compared with now."""

    entry: Promoted
    candidate: Candidate | None = None  # None where its run or its weights are gone
    measured: tuple[Measurement, ...] = ()
    why_not: str = ""  # why there is no candidate, or why its own results do not count


def held_entry(registry: Registry, entry: Promoted, folders: Sequence[Path]) -> Held:
    """An entry with what was measured of exactly its weights: first what it was promoted on, where
    that file is still the one."""
    try:
        candidate = find_candidate(entry.reference, folders, registry.path, key="the entry")
        recorded = _recorded(registry, entry, candidate)
    except LoopError as error:
        return Held(entry, why_not=str(error))
    others = [one for one in candidate.measured if recorded is None or one.where != recorded.where]
    measured = (*others,) if recorded is None else (recorded, *others)
    return Held(entry, candidate, measured, candidate.why_unmeasured)


def _recorded(registry: Registry, entry: Promoted, candidate: Candidate) -> Measurement | None:
    """What the entry was promoted on; None where its file was changed since."""
    file, sha256 = entry.results.get("file"), entry.results.get("file_sha256")
    match = re.fullmatch(r"evals/(?:round|checkpoint)_(\d{1,9})\.json", str(file))
    if match is None:
        return None
    with contextlib.suppress(LoopError):  # gone, or damaged since
        store, place = candidate.store, measured_in(registry, entry, candidate.store.run_dir)
        if place != store.run_dir:
            store = RunStore.open(place)
        result = store.result(int(match[1]))
        if result is not None and digest_of(store.run_dir / match[0]) == sha256:
            return Measurement(store, int(match[1]), result)
    return None

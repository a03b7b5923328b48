"""Checkpoints as a command line or a setting names them, found in their run directories.

A checkpoint is named `RUN_DIR` or `RUN_DIR@best` (what the run recommends), `RUN_DIR@round_02`
(`round_00` is the untouched model, or what the run was started from), `registry:NAME@3`,
`registry:NAME@ALIAS` or `registry:ALIAS` (what was promoted), `tinker://...` (sampler weights to
evaluate, a state to train on from), or a folder with an adapter that another program wrote.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from errors import ConfigError, RunStoreError
from ledger.records import AdapterFolder, Checkpoint, ModelFiles, record_of
from ledger.registry_file import REGISTRY
from ledger.registry_names import is_registry_name, locate, registry_in, weights_problem
from ledger.run_directory import CONFIG, RunDirectory
from ledger.store import RunStore
from local_tinker.peft_folders import FolderError, PeftFolder, find_folder, read_folder
from scores.results import EvalResult

ADAPTER = "adapter"  # key of a checkpoint's record, where another program wrote it
PROMOTED = "promoted_sha256"  # key of a checkpoint's record, where a registry's name stood for it


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
    run_id: str | None = None
    weights: str | None = None  # which ones lie under the path: a round may be trained again
    recorded: EvalResult | None = None  # of this checkpoint, in its run
    baseline: EvalResult | None = None  # of the untouched model, in that run
    model_name: str | None = None  # what the base model was called on the run's service
    model_files: ModelFiles | None = None  # None also where the run did not record them
    promoted_sha256: dict[str, str] | None = None  # of the files that a registry's name stands for
    notes: tuple[str, ...] = ()  # what is to be said of its name
    adapter: PeftFolder | None = None  # that another program wrote; of no run

    @property
    def checkpoint_dir(self) -> Path | None:
        """Where the embedded service finds the weights."""
        return None if self.run_dir is None else self.run_dir / "checkpoints"

    def to_record(self) -> dict[str, Any]:
        """What names the checkpoint for good, whatever its run becomes and from wherever."""
        run_dir = None if self.run_dir is None else str(self.run_dir.resolve())
        of_run = {"run_dir": run_dir, "run_id": self.run_id, "round": self.round}
        promoted = {} if self.promoted_sha256 is None else {PROMOTED: self.promoted_sha256}
        adapter = {} if self.adapter is None else {ADAPTER: asdict(record_of_adapter(self.adapter))}
        named = {"label": self.label, "path": self.path, "weights": self.weights}
        return {**named, **of_run, **promoted, **adapter}


def find_subjects(
    names: Sequence[str],
    runs_dir: Path,
    registry: Path | None = None,
    key: str = "--evaluate",
) -> list[Subject]:
    """The checkpoints that are meant, in the order given; names of a registry are of the one beside
    the runs where no other is given, and `key` is what errors begin with. Raises `InputError`
    children."""
    registry = runs_dir.parent / REGISTRY if registry is None else registry
    subjects = [_find(name, runs_dir, registry, key) for name in names]
    _refuse_repeated(names, subjects)
    return subjects


def recorded_subjects(
    records: Sequence[Mapping[str, Any]], evaluation: RunDirectory
) -> list[Subject]:
    """The checkpoints of an evaluation that is resumed, from their `to_record`; their runs may have
    moved along with it.

    Raises `ConfigError` when a run no longer has the weights that the evaluation began on.
    """
    subjects = []
    for record in records:
        label, path = record["label"], record["path"]
        if record.get(ADAPTER) is not None:
            try:
                recorded = record_of(AdapterFolder, record[ADAPTER])
            except ValueError as error:
                raise ConfigError(f"{label}: {ADAPTER} of its record: {error}.") from None
            adapter = adapter_again(label, recorded)
            subjects.append(_of_adapter(label, adapter))
            continue
        if record["run_dir"] is None:
            subjects.append(Subject(label, path))
            continue
        run_dir = evaluation.now_at(Path(record["run_dir"]))
        subject = _of_round(RunStore.open(run_dir), record["round"], label)
        if subject.path != path or record.get("run_id") not in (None, subject.run_id):
            raise ConfigError(
                f"{label}: the evaluation began on {path or 'the untouched model'} of run "
                f"{record.get('run_id')}, and {run_dir} has {subject.path} as round "
                f"{record['round']} of run {subject.run_id} now. Start a new evaluation."
            )
        if record.get("weights") not in (None, subject.weights):
            raise ConfigError(
                f"{label}: round {record['round']} of {run_dir} was trained again since the "
                f"evaluation began: its weights are {subject.weights}, and were "
                f"{record['weights']}. Start a new evaluation."
            )
        problem = weights_problem(run_dir, record.get(PROMOTED), path)
        if problem is not None:
            raise ConfigError(
                f"{label}: the evaluation began on weights that were promoted, and in {run_dir} "
                f"{problem}. Put them back, or start a new evaluation."
            )
        subjects.append(replace(subject, promoted_sha256=record.get(PROMOTED)))
    return subjects


def _refuse_repeated(names: Sequence[str], subjects: Sequence[Subject]) -> None:
    for position, subject in enumerate(subjects):
        for earlier, other in zip(names, subjects[:position], strict=False):
            if (subject.path, subject.base_model) == (other.path, other.base_model):
                raise ConfigError(
                    f"--evaluate: {names[position]} is the same checkpoint as {earlier}. Name "
                    "each once."
                )


def _find(name: str, runs_dir: Path, registry: Path, key: str) -> Subject:
    if name.startswith("tinker://"):
        return _find_path(name, [runs_dir], key)
    if is_registry_name(name):
        return _find_promoted(name, registry, key)
    if (adapter := adapter_named(f"{key} {name}", name, [Path()])) is not None:
        return _of_adapter(name, adapter)
    found = _find_round(f"{key} {name}", name, [Path()])
    return _of_round(found.store, found.round, name, key)


class NamedRound(NamedTuple):
    """A run directory and a round of it as a name means them; None for its best. `notes` are to be
    said of the name."""

    run_dir: Path
    round: int | None
    notes: tuple[str, ...] = ()


def named_round(key: str, name: str, folders: Sequence[Path]) -> NamedRound:
    """What `RUN_DIR`, `RUN_DIR@best`, `RUN_DIR@round_02` and a registry's names mean, looked for in
    the folders; `key` is what errors begin with.

    Raises `ConfigError` for another word behind `@`, and `RegistryError`.
    """
    if is_registry_name(name):
        found = locate(registry_in(folders), name)
        return NamedRound(found.store.run_dir, found.entry.round, found.notes)
    match = re.fullmatch(r"(.+)@(best|round_(\d{1,9}))", name, re.DOTALL)
    run_dir = _in_one_of(folders, name if match is None else match[1])
    before, at, after = name.rpartition("@")
    if match is None and at and not run_dir.exists() and _in_one_of(folders, before).is_dir():
        raise ConfigError(
            f"{key}: {after!r} names no checkpoint of {before}. Give @best, @round_01 "
            "and so on, or @round_00 for the untouched model."
        )
    number = None if match is None or match[3] is None else int(match[3])
    return NamedRound(run_dir, number)


class _Found(NamedTuple):
    store: RunStore
    round: int


def _find_round(key: str, name: str, folders: Sequence[Path]) -> _Found:
    """The run and the round that a name means, its directory looked for in the folders; `key` is
    what errors begin with."""
    run_dir, number, _ = named_round(key, name, folders)
    store = RunStore.open(run_dir)
    if store.is_evaluation:
        raise ConfigError(
            f"{key}: {run_dir} holds an earlier evaluation, no run. Name a run's "
            "directory, or continue the evaluation with --resume."
        )
    if number is not None:
        return _Found(store, number)
    decision = store.last_decision()
    if decision is None or decision.best_round == 0:
        raise ConfigError(
            f"{key}: the run has no evaluated round yet, so none is its best. Name one "
            "as RUN_DIR@round_01, or continue the run with --resume."
        )
    return _Found(store, decision.best_round)


def _in_one_of(folders: Sequence[Path], name: str) -> Path:
    """The first of the places that a relative name may mean where something is, or else the last of
    them."""
    places = [folder / name for folder in folders]
    for place in places:
        with contextlib.suppress(OSError, ValueError):  # a name that nothing can have
            if place.exists():
                return place
    return places[-1]


# --- to train on from -----------------------------------------------------------------------------


class StartPoint(NamedTuple):
    """A state to train on from, and the run that saved it; a path alone where none is known.

    `name` is what a registry calls it for good, and `notes` are to be said of the name given.
    """

    state_path: str
    store: RunStore | None = None
    checkpoint: Checkpoint | None = None
    name: str | None = None
    notes: tuple[str, ...] = ()
    adapter: PeftFolder | None = None  # that another program wrote; of no run


def find_start(name: str, folders: Sequence[Path], key: str | None = None) -> StartPoint:
    """The state that `start_from` means, relative names looked for in the folders, in their order;
    `key` is what errors begin with.

    Raises `InputError` children.
    """
    key = key or f"start_from {name}"
    if name.startswith("tinker://"):
        for store in _stores([folder / "runs" for folder in folders]):
            for one in store.checkpoints():
                if name in (one.state_path, one.sampler_path):
                    return StartPoint(one.state_path, store, one)
        if "/sampler_weights/" in name:
            raise ConfigError(
                f"{key}: these are weights to sample from, of no run below ./runs. Give the state "
                f"that was saved with them: {name.replace('/sampler_weights/', '/weights/')}."
            )
        return StartPoint(name)
    if is_registry_name(name):
        at = locate(registry_in(folders), name)
        state_path = at.checkpoint.state_path
        problem = weights_problem(at.store.run_dir, at.entry.weights_sha256, state_path)
        if problem is not None:
            raise ConfigError(f"{key}: in {at.store.run_dir} {problem}. Name another entry.")
        return StartPoint(state_path, at.store, at.checkpoint, at.entry.reference, at.notes)
    if (adapter := adapter_named(key, name, folders)) is not None:
        return StartPoint(adapter.path("weights"), adapter=adapter)
    found = _find_round(key, name, folders)
    checkpoint = found.store.checkpoint(found.round)
    if checkpoint is None and found.round == 0:
        raise ConfigError(
            f"{key}: round_00 of this run is the untouched model, which a new run begins with "
            "where start_from is left out."
        )
    if checkpoint is None:
        raise _no_weights(key, found.store, found.round)
    return StartPoint(checkpoint.state_path, found.store, checkpoint)


def _stores(runs_dirs: Sequence[Path]) -> Iterator[RunStore]:
    """The runs in these folders that can be read, the newest names first."""
    for runs_dir in dict.fromkeys(folder.absolute() for folder in runs_dirs):
        for config in sorted(runs_dir.glob("*/config.resolved.json"), reverse=True):
            with contextlib.suppress(RunStoreError):  # damaged, or not a run of ours
                store = RunStore.open(config.parent)
                if not store.is_evaluation:
                    yield store


def _no_weights(key: str, store: RunStore, round_no: int) -> ConfigError:
    saved = [str(n) for n in range(1, store.num_rounds + 1) if store.checkpoint(n)]
    return ConfigError(
        f"{key}: {store.run_dir} has no weights of round {round_no}. It has those of "
        f"{', '.join(saved) or 'no round'}, and round_00 is {store.baseline_name}."
    )


# --- of no run ------------------------------------------------------------------------------------


def adapter_named(key: str, name: str, folders: Sequence[Path]) -> PeftFolder | None:
    """The adapter that another program wrote into the folder of this name, or into the one folder
    in it; None for a run's directory, and where there is no adapter. Raises `ConfigError`."""
    place = _in_one_of(folders, name)
    try:
        is_run = (place / CONFIG).exists()
        if name and place.is_dir() and not is_run and (found := find_folder(place)):
            return read_folder(found)
    except FolderError as error:
        raise ConfigError(f"{key}: {error}") from None
    except (OSError, ValueError):  # a name that nothing can have
        pass
    return None


def record_of_adapter(adapter: PeftFolder) -> AdapterFolder:
    """What names an adapter for good."""
    where, said = str(adapter.directory.resolve()), adapter.describe()
    return AdapterFolder(where, adapter.sha256, said, adapter.num_params)


def adapter_again(key: str, recorded: AdapterFolder) -> PeftFolder:
    """An adapter that was read before. Raises `ConfigError` where it is another one now."""
    try:
        adapter = read_folder(Path(recorded.directory))
    except FolderError as error:
        raise ConfigError(f"{key}: {error}") from None
    if adapter.sha256 != recorded.sha256:
        raise ConfigError(
            f"{key}: the adapter in {recorded.directory} is another one now, by its sha256. Put "
            "the files back, or begin anew."
        )
    return adapter


def _of_adapter(label: str, adapter: PeftFolder) -> Subject:
    path, note = adapter.path("sampler_weights"), f"{label}: {adapter.describe()}"
    return Subject(label, path, service="embedded", notes=(note,), adapter=adapter)


# --- to sample from -------------------------------------------------------------------------------


def names_weights(name: str, folders: Sequence[Path]) -> bool:
    """Whether a name that may also be a base model's is one of saved weights."""
    if name.startswith("tinker://") or is_registry_name(name):
        return True
    if re.search(r"@(best|round_\d{1,9})$", name):
        return True
    return (_in_one_of(folders, name) / CONFIG).is_file()


def find_to_sample(name: str, folders: Sequence[Path], key: str) -> Subject:
    """The weights to sample from that a setting means, relative names looked for in the folders;
    `key` is what errors begin with. Raises `InputError` children."""
    if name.startswith("tinker://"):
        return _find_path(name, [folder / "runs" for folder in folders], key)
    if is_registry_name(name):
        return _find_promoted(name, registry_in(folders), key)
    found = _find_round(f"{key} {name}", name, folders)
    return _of_round(found.store, found.round, name, key)


# --- to evaluate ----------------------------------------------------------------------------------


def _find_promoted(name: str, registry: Path, key: str) -> Subject:
    found = locate(registry, name)
    entry = found.entry
    # An alias moves; what is recorded and shown is the name that does not.
    subject = _of_round(found.store, entry.round, entry.reference, key)
    return replace(subject, promoted_sha256=entry.weights_sha256, notes=found.notes)


def _find_path(path: str, runs_dirs: Sequence[Path], key: str) -> Subject:
    """A checkpoint by its path; the run it belongs to is looked for below `runs_dirs`."""
    if "/weights/" in path:
        raise ConfigError(
            f"{key} {path}: this is a state to train on from. Give the sampler weights that were "
            f"saved with it: {path.replace('/weights/', '/sampler_weights/')}."
        )
    for store in _stores(runs_dirs):
        for event in store.events("checkpoint"):
            if event.get("sampler_path") == path:
                return _of_round(store, event["round"], path, key)
    return Subject(path, path)


def _of_round(store: RunStore, round_no: int, label: str, key: str = "--evaluate") -> Subject:
    resolved = store.settled_config()
    checkpoint = store.checkpoint(round_no)
    if checkpoint is None and (round_no > 0 or store.origin is not None):
        raise _no_weights(f"{key} {label}", store, round_no)
    path = None if checkpoint is None else checkpoint.sampler_path
    return Subject(
        label=label,
        path=path,
        round=round_no,
        step=0 if checkpoint is None else checkpoint.step,
        base_model=resolved["files"]["base_model"],
        renderer=resolved["resolved"]["renderer_name"],
        service=resolved["resolved"]["service"],
        run_dir=store.run_dir,
        run_id=store.run_id if store.has_started else None,
        weights=store.weights_of(path),
        recorded=store.result(round_no),
        baseline=store.result(0),
        model_name=resolved["config"].get("base_model"),
        model_files=store.manifest().base_model if store.has_started else None,
    )

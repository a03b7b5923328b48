"""What a registry's names mean on this machine: the run that saved the weights, found and proven.

A name never means other weights than were promoted. A run that was moved is looked for by its id;
one that no longer has these weights is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import RegistryError, RunStoreError
from ledger.records import Checkpoint
from ledger.registry_file import PREFIX, REGISTRY, Promoted, Registry, Results
from ledger.registry_weights import digest_of, digests_of_weights
from ledger.run_directory import CONFIG
from ledger.store import RunStore
from storage.stored_json import record_of


class Located(NamedTuple):
    """An entry, the run that has its weights, and what is to be said of the name."""

    entry: Promoted
    store: RunStore
    checkpoint: Checkpoint
    notes: tuple[str, ...]


def is_registry_name(name: str) -> bool:
    return name.startswith(PREFIX)


def registry_in(folders: Sequence[Path]) -> Path:
    """The first registry in these folders, or where the last one would have it."""
    places = [folder / REGISTRY for folder in folders]
    return next((place for place in places if place.exists() or place.is_symlink()), places[-1])


def locate(path: Path, name: str) -> Located:
    """What a name means, in the registry at `path`. Raises `RegistryError`."""
    registry = Registry.read(path)
    entry = registry.find(name)
    problems: list[str] = []
    for store in _stores_of(registry, entry, problems):
        checkpoint = store.checkpoint(entry.round)
        problem = problem_of(store, checkpoint, entry)
        if problem is None:
            assert checkpoint is not None, "an entry without is a problem"
            return Located(entry, store, checkpoint, _notes(registry, name, entry))
        problems.append(f"{store.run_dir}: {problem}")
    raise RegistryError(
        f"{name}: it is round {entry.round} of run {entry.run_id} (entry {entry.reference} of "
        f"{path}), and these weights are not found. {'; '.join(problems)}. Put the run back to "
        f"{_place_of(registry, entry)} or below runs/ as it was, or name another entry."
    )


def run_of(registry: Registry, entry: Promoted, problems: list[str]) -> RunStore | None:
    """The run that an entry is of, wherever it lies now and whatever became of its weights; None
    where it is gone, with the reasons added to the problems."""
    return next(_stores_of(registry, entry, problems), None)


def measured_in(registry: Registry, entry: Promoted, run_dir: Path) -> Path:
    """The directory of what an entry was promoted on: its run's, or that of an evaluation outside
    it, wherever that lies now; where it lay at first, if it is found nowhere."""
    results = record_of(Results, entry.results)
    if results.evaluation_dir is None:
        return run_dir
    place = registry.folder / results.evaluation_dir
    if (place / CONFIG).is_file() or results.file is None or results.file_sha256 is None:
        return place
    for folder in dict.fromkeys((registry.folder / "runs", Path("runs").absolute())):
        for found in _run_dirs(folder):
            if digest_of(found / results.file) == results.file_sha256:
                return found
    return place


def _place_of(registry: Registry, entry: Promoted) -> Path:
    """Where the run lay when it was promoted; an absolute place stays one."""
    return registry.folder / entry.run_dir


def _stores_of(registry: Registry, entry: Promoted, problems: list[str]) -> Iterator[RunStore]:
    """The directories that are this run, where it lay at first; why others are not is added to the
    problems."""
    place = _place_of(registry, entry)
    try:
        store = RunStore.open(place)
        if is_of(store, entry):
            yield store
        else:
            problems.append(f"{place}: it holds another run")
    except RunStoreError as error:
        problems.append(str(error).rstrip("."))
    except (OSError, ValueError) as error:  # a name that no directory can have
        problems.append(f"{place}: {error}")
    seen = {place.resolve()}
    for folder in dict.fromkeys((registry.folder / "runs", Path("runs").absolute())):
        for run_dir in _run_dirs(folder):
            with contextlib.suppress(RunStoreError, OSError):  # damaged, or of somebody else
                if run_dir.resolve() not in seen and is_of(store := RunStore.open(run_dir), entry):
                    seen.add(run_dir.resolve())
                    yield store


def _run_dirs(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        if CONFIG in files:
            folders.clear()  # no run lies in another one
            yield Path(place)


def is_of(store: RunStore, entry: Promoted) -> bool:
    """Whether a directory is the run that an entry is of."""
    return store.has_started and not store.is_evaluation and store.run_id == entry.run_id


def problem_of(store: RunStore, checkpoint: Checkpoint | None, entry: Promoted) -> str | None:
    """Why the run's checkpoint of the entry's round is not the one that was promoted; None where it
    is."""
    if checkpoint is None:
        return f"it has no weights of round {entry.round} any more"
    promoted = entry.sampler_path, entry.state_path, entry.step
    if (checkpoint.sampler_path, checkpoint.state_path, checkpoint.step) != promoted:
        return (
            f"its round {entry.round} is {checkpoint.sampler_path}, saved at step "
            f"{checkpoint.step}, and promoted was {entry.sampler_path}, of step {entry.step}"
        )
    if entry.weights not in (None, store.weights_of(entry.sampler_path)):
        return f"its round {entry.round} was trained again since"
    return weights_problem(store.run_dir, entry.weights_sha256, entry.sampler_path)


def weights_problem(
    run_dir: Path, promoted: dict[str, str] | None, *paths: str | None
) -> str | None:
    """What of the files of weights is not as it was promoted; None where all is, and where no file
    was known."""
    for path in paths:
        if promoted is None or path is None:
            continue
        found = digests_of_weights(run_dir, path) or {}
        if missing := sorted(promoted.keys() - found.keys()):
            return f"{path} has no {', '.join(missing)} any more"
        if other := sorted(file for file, sha256 in promoted.items() if found[file] != sha256):
            return f"{', '.join(other)} of {path} is not the file that was promoted"
    return None


def _notes(registry: Registry, name: str, entry: Promoted) -> tuple[str, ...]:
    notes = []
    if name.removeprefix(PREFIX) != entry.key:
        notes.append(f"{name} is {entry.reference}")
    if (retired := registry.retired(entry)) is not None:
        notes.append(f"{entry.reference} was retired on {retired.time[:10]}: {retired.reason}")
    return tuple(notes)

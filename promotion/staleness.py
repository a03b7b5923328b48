"""Whether a run's results are still about what lies there now: questions, graders, code and data.

A file that is gone, and what is no file here, cannot be compared; that is said, and is no change.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import simple_eval
from errors import LoopError, RegistryError
from grading.graders import GRADING
from ledger.finding import config_file_of
from ledger.registry_file import Promoted, Registry
from ledger.registry_names import measured_in, run_of
from ledger.store import RunStore
from rows.sources import HUB_PREFIX, Source, sha256_of
from settings.task_names import SPLIT_TASK

Kind = Literal["questions", "rows"]


class Freshness(NamedTuple):
    """What changed since something was measured, and what could not be compared; clauses."""

    stale: list[str]
    unchecked: list[str]


class _Recorded(NamedTuple):
    what: str
    kind: Kind
    path: Path
    sha256: str


def freshness(store: RunStore) -> Freshness:
    """Hold what a run, or an evaluation outside one, recorded of its files against those now."""
    manifest = store.manifest()
    stale: list[str] = []
    unchecked: list[str] = []
    if manifest.grading != GRADING:
        stale.append(
            f"answers were graded by version {manifest.grading} of the graders, and this program "
            f"has version {GRADING}"
        )
    for name, task in manifest.eval_tasks.items():
        if task.path == name:  # one of Inspect's, of which the code alone is a file
            unchecked.append(f"the samples of {name}, which were not loaded anew")
    for key, file in manifest.files.items():
        if file.path.startswith(HUB_PREFIX):
            unchecked.append(f"the rows of {key}, which are the hub's ({file.path})")
    for one in _recorded_files(store):
        now = _sha256_at(one.kind, one.path)
        if now is None:
            unchecked.append(f"{one.what}: {one.path} is not there, or cannot be read")
        elif now != one.sha256:
            stale.append(f"{one.what} changed since: {one.path} has another sha256 now")
    return Freshness(stale, unchecked)


def freshness_of(registry: Registry, entry: Promoted) -> Freshness:
    """Hold what an entry was promoted on against what lies there now. Its run is found wherever it
    lies.

    Raises `LoopError` where the run, or the evaluation outside it, cannot be read.
    """
    problems: list[str] = []
    run = run_of(registry, entry, problems)
    if run is None:
        raise RegistryError(f"{'; '.join(problems)}.")
    place = measured_in(registry, entry, run.run_dir)
    stores = [run] if place == run.run_dir else [run, RunStore.open(place)]
    found = [freshness(store) for store in stores]
    return Freshness(
        list(dict.fromkeys(one for each in found for one in each.stale)),
        list(dict.fromkeys(one for each in found for one in each.unchecked)),
    )


def _recorded_files(store: RunStore) -> Iterator[_Recorded]:
    """The files of a manifest, each where it lies now: with the run, or where it was."""
    manifest = store.manifest()
    for name, task in manifest.eval_tasks.items():
        if task.path != name and name != SPLIT_TASK:
            kind: Kind = "rows" if name.startswith(("nll:", "pref:")) else "questions"
            path = store.now_at(Path(task.path))
            yield _Recorded(f"the questions of {name}", kind, path, task.sha256)
    for key, file in manifest.files.items():
        if not file.path.startswith(HUB_PREFIX):
            path = store.now_at(Path(file.path))
            yield _Recorded(f"the rows of {key}", "rows", path, file.sha256)
    folder = config_file_of(store.settled_config(), store).parent
    for path, sha256 in manifest.code.items():
        place = Path(os.path.normpath(folder / path))  # older runs recorded the whole path
        yield _Recorded("the code of a task or grader", "rows", place, sha256)


def _sha256_at(kind: Kind, path: Path) -> str | None:
    """The sha256 of what lies there, as a run would record it; None where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, LoopError):
        found = path.stat()
        if path.is_dir():  # a saved dataset, whose own time tells nothing of its files
            return sha256_of(Source(path.name, path))
        if path.is_file():
            return _of_file(kind, path, found.st_size, found.st_mtime_ns)
    return None


@functools.lru_cache(maxsize=4096)
def _of_file(kind: Kind, path: Path, size: int, modified_ns: int) -> str:
    """Of a file that a list of many entries names again and again, read once."""
    if kind == "questions":
        return simple_eval.digest_of(path)
    return sha256_of(Source(path.name, path))

"""Folders that a reader may name instead of a run, and the runs below a folder.

Which runs there are is found by walking, so that whoever asks for one by its name gets what was
found and no path of their own making. Links lead nowhere here.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from errors import ConfigError
from ledger.glance import is_run

MAX_DEPTH = 3  # a study's trials are two below it
MAX_FOLDERS = 5_000  # that are looked into
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,100})*")


def is_study(folder: Path) -> bool:
    """Whether a folder is one of a study's: that of its experiment.yaml."""
    return (folder / "experiment.yaml").is_file() or (folder / "results/study.jsonl").is_file()


def refuse_other_folders(name: str, run_dir: Path) -> None:
    """Raise `ConfigError` for what is no run's directory, where it can be told what it is.

    `name` is what the reader gave. What is left, `RunStore.open` judges.
    """
    try:
        if not run_dir.exists():
            raise ConfigError(
                f"{name}: there is no such directory. Give the directory of a run, as "
                "runs/20261121-101500-run."
            )
        if is_run(run_dir) or not run_dir.is_dir():
            return
        study = next((one for one in (run_dir, run_dir.parent) if is_study(one)), None)
        has_runs = bool(runs_below(run_dir).found)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: cannot be read: {error}. Give the directory of a run."
        ) from None
    if study is not None:
        raise ConfigError(
            f"{name}: this belongs to a study, which has a report of its own: study.py report "
            f"{study}. Its trials are runs with pages: report.py {study / 'results/run_000'}."
        )
    if has_runs:
        raise ConfigError(
            f"{name}: it holds runs and is none. Name one of them, or look at all with report.py "
            f"--serve {name}."
        )


class Found(NamedTuple):
    """A run directory below a folder. `run_id` is its path there, where that is plain text."""

    run_id: str
    run_dir: Path
    study: Path | None  # that it is a trial of


class Listing(NamedTuple):
    """What was found, and whether all of the folder was looked through."""

    found: list[Found]
    is_whole: bool


def runs_below(folder: Path) -> Listing:
    """The run directories of a folder, at most `MAX_DEPTH` below it; the folder itself, if it is
    one. A folder that vanishes meanwhile is passed over."""
    if is_run(folder):
        return Listing([Found(id_of(folder.resolve().name), folder, None)], True)
    waiting, num_looked = [(folder, 1)], 0
    found = []
    while waiting and num_looked < MAX_FOLDERS:
        place, depth = waiting.pop(0)
        num_looked += 1
        for inner in _folders_in(place):
            if is_run(inner):
                relative = os.path.relpath(inner, folder)
                found.append(Found(id_of(relative), inner, _study_of(place)))
            elif depth < MAX_DEPTH:
                waiting.append((inner, depth + 1))
    return Listing(found, not waiting)


def _folders_in(place: Path) -> list[Path]:
    """Folders proper, neither hidden ones nor links."""
    try:
        with os.scandir(place) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:  # it vanished, or is somebody else's
        return []
    return [place / name for name in sorted(names)]


def _study_of(place: Path) -> Path | None:
    return next((one for one in (place.parent, place) if is_study(one)), None)


def id_of(relative: str) -> str:
    """What stands for a path in an address: itself, or for other than plain text its hash."""
    if _PLAIN.fullmatch(relative):
        return relative
    return sha256(os.fsencode(relative)).hexdigest()[:16]

"""Runs as they are found on disk: the newest of some settings, and never a copy for the run itself.

A run knows its id and where it was begun. A directory that was moved is the run; one that was
copied is not as long as the run itself lies where it was begun.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errors import RunStoreError
from ledger.records import seconds_of
from ledger.run_directory import BEGUN_AT, CONFIG, EVALUATED, LEDGER, RUN_ID, RunDirectory


class FoundRun(NamedTuple):
    """A run directory, and a line that says why it is the one."""

    run_dir: Path
    why: str


class _Candidate(NamedTuple):
    began: float  # seconds since 1970; of a run that is copied that stays
    run_dir: Path
    run_id: str
    begun_at: str | None  # None in runs of versions that did not record it

    @property
    def is_in_place(self) -> bool:
        return self.begun_at == str(self.run_dir.resolve())


def newest_run(parent: Path, hashes: Collection[str]) -> FoundRun:
    """The newest run below `parent` whose config hash is one of `hashes`.

    Raises `RunStoreError` for none, and where several directories are one run and none of them
    lies where it was begun.
    """
    by_run: dict[str, list[_Candidate]] = defaultdict(list)
    for one in _candidates(parent, hashes):
        by_run[one.run_id].append(one)
    if not by_run:
        raise RunStoreError(
            f"{parent.resolve()}: no run with these settings to resume. Start one without "
            "--resume, or name the directory with --resume RUN_DIR, which says what differs."
        )
    same_run = max(by_run.values(), key=max)
    in_place = [one for one in same_run if one.is_in_place]
    names = ", ".join(str(one.run_dir) for one in sorted(same_run))
    if len(same_run) > 1 and not in_place:
        raise RunStoreError(
            f"{parent}: {names} are copies of one run, and none of them lies where it was begun "
            f"({same_run[0].begun_at or 'which was not recorded'}), so it cannot be told which one "
            "goes on. Name one with --resume RUN_DIR."
        )
    chosen = (in_place or same_run)[0]
    why = f"--resume: {chosen.run_dir}, the newest run with these settings"
    copies = [str(one.run_dir) for one in sorted(same_run) if one is not chosen]
    if copies:
        why += f"; it lies where it was begun, and {', '.join(copies)} is a copy of it"
    elif not in_place and chosen.begun_at is not None:
        why += f"; it was begun at {chosen.begun_at}, and has been moved or copied since"
    return FoundRun(chosen.run_dir, why)


def _candidates(parent: Path, hashes: Collection[str]) -> Iterator[_Candidate]:
    seen = set()
    for file in sorted(parent.glob(f"*/{CONFIG}")):
        run_dir = file.parent
        try:
            resolved = json.loads(file.read_text(encoding="utf-8"))
            if resolved["config_hash"] not in hashes or EVALUATED in resolved:
                continue
            place, modified = run_dir.resolve(), file.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a run of ours, or one whose first write was cut short
        if place in seen:  # a link to another one
            continue
        seen.add(place)
        began, run_id = _first_event(run_dir)
        yield _Candidate(
            modified if began is None else began,
            run_dir,
            str(resolved.get(RUN_ID) or run_id or place),
            resolved.get(BEGUN_AT),
        )


def _first_event(run_dir: Path) -> tuple[float | None, str | None]:
    """When a run began and its id, of its ledger; None where there is none yet."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        with open(run_dir / LEDGER, encoding="utf-8") as ledger:
            event = json.loads(ledger.readline())
        return seconds_of(event["time"]), event["run_id"]
    return None, None


def config_file_of(settled: Mapping[str, Any], store: RunDirectory) -> Path:
    """The config file of a run, whose folder its files are looked for in: where it lies now.

    Where it is gone, it is looked for by its name in the folders above the run directory.
    """
    recorded = Path(settled["config_file"])
    file = store.now_at(recorded)
    with contextlib.suppress(OSError):
        if not file.parent.is_dir():
            for folder in store.run_dir.resolve().parents:
                if (folder / recorded.name).is_file():
                    return folder / recorded.name
    return file

"""The runs of a folder as they are served: found anew for each request, read no more than needed.

Whatever a request names is looked up in what was found, so that no path is made of it. Pages are
kept for as long as the ledger of their run is not written to.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from errors import ConfigError, RunStoreError
from ledger.glance import Glance, LedgerWatch
from ledger.store import RunStore
from loop.run_page.folders import Found, Listing, id_of, runs_below
from loop.run_page.following import following
from loop.run_page.page import page_of
from loop.run_page.runs_index import Listed, Study, index_page, version_of
from loop.run_page.side_by_side import find_named, side_by_side
from loop.run_page.viewed import viewed
from pages.html import html_page
from storage.files import open_plain

MAX_PAGES = 8  # that are kept; a large one has some 15 MB
LISTED_FOR_S = 1.0  # how long a walk through the folder stands
# What the page of a run leads to, beside Inspect's logs. The questions of a sealed test stand in
# its own files, and rows like them in the lists of rows that were left out: neither is among these.
SHOWN_FILE = re.compile(
    r"ledger\.jsonl|evals/(round|checkpoint)_\d+\.json|selections/[a-z0-9_]+\.json", re.ASCII
)
LOG = re.compile(r"inspect_logs/([\w.+@=-]+/)*[\w.+@=-]+\.(eval|json)", re.ASCII)
CHOSEN = re.compile(r"(?P<run_id>.*?)(?P<at>@(best|round_\d{1,9}))?", re.DOTALL)


class Unknown(Exception):
    """A request names what there is not (any more)."""


class _Page(NamedTuple):
    stamp: object
    html: str


class ServedRuns:
    """The runs below one folder. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._looking = threading.Lock()  # at ledgers: short
        self._making = threading.Lock()  # pages: one after the other, as it takes a processor each
        self._watches: dict[Path, LedgerWatch] = {}
        self._listing: tuple[float, Listing] | None = None
        self._pages: OrderedDict[Path, _Page] = OrderedDict()

    # --- the list

    def index(self) -> str:
        """The page that lists the runs."""
        listed, studies, is_whole = self._listed()
        return index_page(str(self.folder), listed, studies, is_whole=is_whole)

    def version(self) -> str:
        """Differs where the list says something else."""
        return version_of(self._listed()[0])

    def _listed(self) -> tuple[list[Listed], list[Study], bool]:
        listing = self._found()
        listed = [self._looked_at(found) for found in listing.found]
        folders = dict.fromkeys(one.study for one in listing.found if one.study is not None)
        studies = [
            Study(self._study_id(folder), folder, _is_plain(folder / "report.html"))
            for folder in folders
        ]
        return listed, studies, listing.is_whole

    def _found(self, *, anew: bool = False) -> Listing:
        with self._looking:
            now = time.monotonic()
            if anew or self._listing is None or now - self._listing[0] > LISTED_FOR_S:
                self._listing = now, runs_below(self.folder)
                present = {found.run_dir for found in self._listing[1].found}
                self._watches = {k: v for k, v in self._watches.items() if k in present}
            return self._listing[1]

    def _looked_at(self, found: Found) -> Listed:
        study = None if found.study is None else self._study_id(found.study)
        try:
            return Listed(found.run_id, found.run_dir, study, self._glance(found), "")
        except RunStoreError as error:
            return Listed(found.run_id, found.run_dir, study, None, str(error))

    def _glance(self, found: Found) -> Glance:
        with self._looking:
            watch = self._watches.get(found.run_dir)
            if watch is None:
                watch = self._watches[found.run_dir] = LedgerWatch(found.run_dir)
            return watch.look()

    def _study_id(self, folder: Path) -> str:
        return id_of(os.path.relpath(folder, self.folder))

    # --- one run

    def _runs(self) -> Iterator[Found]:
        """The runs as they were listed, and as they are now: one may have begun since."""
        yield from self._found().found
        yield from self._found(anew=True).found

    def find(self, run_id: str) -> Found:
        """The run of this id. Raises `Unknown`."""
        for found in self._runs():
            if found.run_id == run_id:
                return found
        raise Unknown(f"There is no run {run_id!r} here (any more).")

    def split(self, path: str) -> tuple[Found, str]:
        """The run that a path begins with, and what comes after it. Raises `Unknown`."""
        for found in self._runs():
            if path == found.run_id or path.startswith(f"{found.run_id}/"):
                return found, path[len(found.run_id) :]
        raise Unknown(f"There is no run {path!r} here (any more).")

    def state(self, found: Found) -> Glance:
        """How a run stands. Raises `RunStoreError`."""
        return self._glance(found)

    def page(self, found: Found) -> str:
        """The page of a run as it stands now. Raises `InputError` children."""
        # Before the page is made: it may only be newer than what it is said to be made of. Whether
        # a process is at work on the run is on it too, and changes without the ledger.
        ledger, glance = LedgerWatch(found.run_dir).stamp, self._glance(found)
        stamp = ledger, glance.state
        kept = self._pages.get(found.run_dir)
        if kept is not None and kept.stamp == stamp:
            return kept.html
        with self._making:
            seq = glance.last_page_seq
            store = RunStore.open(found.run_dir)
            store.refuse_impossible_ledger()
            html = page_of(viewed(store), following(seq))
            self._pages[found.run_dir] = _Page(stamp, html)
            self._pages.move_to_end(found.run_dir)
            while len(self._pages) > MAX_PAGES:
                self._pages.popitem(last=False)
            return html

    def file(self, found: Found, name: str) -> IO[bytes]:
        """A file of a run that its page leads to. Raises `Unknown` for any other."""
        opened = None
        is_shown = SHOWN_FILE.fullmatch(name) or (LOG.fullmatch(name) and name in _logs_of(found))
        if is_shown and name in _files_in(found.run_dir):
            opened = open_plain(found.run_dir / name)
        if opened is None:
            raise Unknown(f"{name!r} of this run is not shown here. It may lie in its directory.")
        return opened

    # --- others

    def study_report(self, study_id: str) -> IO[bytes]:
        """A study's page as its command wrote it. Raises `Unknown`."""
        folders = {one.study for one in self._found().found if one.study is not None}
        for folder in folders:
            if self._study_id(folder) == study_id:
                opened = open_plain(folder / "report.html")
                if opened is not None:
                    return opened
        raise Unknown(f"There is no report of a study {study_id!r} here (any more).")

    def comparison(self, chosen: Sequence[str]) -> str:
        """The page that compares runs, named by their ids, also with `@round_02` behind. Raises
        `InputError` children, and `Unknown`."""
        names = []
        for one in chosen:
            match = CHOSEN.fullmatch(one)
            assert match is not None, "it matches any text"
            names.append(f"{self.find(match['run_id']).run_dir}{match['at'] or '@best'}")
        with self._making:
            return html_page(side_by_side(find_named(names)).document)


def _logs_of(found: Found) -> set[str]:
    """Inspect's logs of what was measured in rounds, and not of the sealed test."""
    store = RunStore.open(found.run_dir)
    rounds = {event["round"] for event in store.events("measured")}
    tasks = [task for number in rounds for task in store.measured(number).tasks]
    return {task.log for task in tasks if task.log is not None}


def _files_in(run_dir: Path) -> set[str]:
    """The files of a run directory that no link leads to, relative to it."""
    found = set()
    for folder in ("", "evals", "selections", "inspect_logs"):
        top = run_dir / folder
        if folder and top.is_symlink():
            continue
        for place, folders, files in os.walk(top):  # which follows no links
            if not folder:
                folders.clear()
            found.update(os.path.relpath(os.path.join(place, name), run_dir) for name in files)
    return found


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def refuse_no_folder(folder: Path) -> None:
    """Raise `ConfigError` where there is no folder to be served."""
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError):
        is_folder = False
    if not is_folder:
        raise ConfigError(
            f"--serve {folder}: there is no such directory. Runs are made in runs/ of the folder "
            "that the command is given in; name theirs, or start one."
        )

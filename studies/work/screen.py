"""What a person sees while a study runs: a live table of its trials, plain lines in a pipe.

What a trial says in full goes to its log below results/logs/; the screen has its rounds, warnings,
and what became of it.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from errors import one_line
from loop.reports.console import (
    USUAL_WIDTH,
    as_written,
    can_redraw,
    drop,
    printable,
    shown_python,
    tell,
    width_of,
)
from loop.reports.lines import columns_of, cut, seconds_text, wrapped
from loop.reports.live import Beside, Now, Redrawn, Shown, terminal_console
from loop.reports.progress import UNREAD, Progress
from scores.decision import Decision
from scores.diagnosis import TopicReport
from scores.results import EvalResult
from scores.wording import score_and_n
from storage.files import append_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

MAX_ROWS = 20  # of the table; the others are counted
NARROW = 60  # columns below which the table says less
PHASES = WORKING, WAITING, ENDED = "at work", "waiting", "ended"


@dataclass
class Row:
    """A trial in the table: what it is, and what it does right now."""

    label: str
    phase: str = WAITING
    now: Shown = field(default_factory=lambda: Now("waiting"))
    score: str = ""


class Screen:
    """The table of a study, and the lines above it.

    Once nobody reads it any more it is silent, and every trial at work is stopped as by Ctrl-C.
    """

    def __init__(
        self,
        rows: Mapping[str, str],
        *,
        redacted: Callable[[str], str],
        logs_dir: Path,
        how_to_continue: str,
        verbose: bool,
    ) -> None:
        """`rows` are the trials by their ids, as they are shown."""
        self.rows = {run_id: Row(label) for run_id, label in rows.items()}
        self.is_gone = False
        self.redacted, self.logs_dir, self.verbose = redacted, logs_dir, verbose
        self.how_to_continue = how_to_continue
        self._at_work: list[TrialProgress] = []
        self._said: set[str] = set()
        self._told: set[int] = set()  # numbers of what a service held up
        self._started = time.monotonic()
        self._console: Console | None = None
        self._live: Live | None = None
        if can_redraw(sys.stderr):
            self._console = terminal_console()
            self._live = Redrawn(
                console=self._console, get_renderable=self.table, refresh_per_second=2,
                redirect_stdout=False, redirect_stderr=False, transient=True,
            )  # fmt: skip
            self._live.start()

    def progress_of(self, run_id: str) -> TrialProgress:
        progress = TrialProgress(self, run_id)
        self._at_work.append(progress)
        return progress

    def forget(self, progress: TrialProgress) -> None:
        """A trial is no longer at work."""
        self._at_work.remove(progress)

    def set(self, run_id: str, phase: str, what: str, score: str | None = None) -> None:
        """What a trial does from now on, without a line of its own."""
        row = self.rows[run_id]
        row.phase, row.now = phase, Now(printable(self.redacted(what)))
        row.score = row.score if score is None else score

    def end(self, run_id: str, what: str, told: str, score: str | None = None) -> None:
        """What became of a trial, in a word and in a line."""
        self.set(run_id, ENDED, what, score)
        self.line(f"{run_id}: {told}")

    def line(self, text: str) -> None:
        if self.is_gone:
            return
        try:
            self._write(printable(self.redacted(text)))
        except OSError as error:
            if error.errno not in UNREAD:
                raise
            self.is_gone = True
            drop(sys.stderr)
            for progress in self._at_work:
                progress.leave_unread()
            if not self._at_work:
                raise BrokenPipeError(errno.EPIPE, "nobody reads the progress") from error

    def line_once(self, run_id: str, text: str) -> None:
        """A warning of a trial, which others may have as well."""
        if text not in self._said:
            self._said.add(text)
            self.line(f"{run_id}: {text}")

    def told_line(self, number: int, text: str) -> None:
        """What the service holds up, which all trials at work would say; told once."""
        if number not in self._told:  # of two services, one's may come after the other's next one
            self._told.add(number)
            self.line(text)

    def _write(self, text: str) -> None:
        if self._console is None:
            tell(text, file=sys.stderr)
        else:
            width = width_of(sys.stderr) or USUAL_WIDTH
            shown = as_written(text, self._console.file)
            self._console.print(wrapped(shown, width, f"{shown_python()} "))

    def close(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):  # nobody may watch it any more
                self._live.stop()
            self._live = None

    # --- the table ------------------------------------------------------------------------------

    def table(self) -> Table:
        """The trials, those at work first where there is no room for all."""
        from rich.table import Table
        from rich.text import Text

        counts = Counter(row.phase for row in self.rows.values())
        seconds = seconds_text(time.monotonic() - self._started)
        title = f"{counts[ENDED]} of {len(self.rows)} ended, {counts[WORKING]} at work, {seconds}"
        title += "".join(f"; {one}" for one in self._held_up())
        columns = self._columns()
        room = sum(columns.values()) + 2 * len(columns) - 2
        shown = Table(title=cut(title, room), title_justify="left", box=None, pad_edge=False)
        for name, width in columns.items():
            shown.add_column(name, width=width, no_wrap=True, overflow="crop")
        at, rows = time.monotonic(), self._rows_shown()
        for run_id, row in rows:
            now = row.now.shown(at if row.phase == WORKING else 0.0, columns["now"])
            cells = {"trial": run_id, "what it is": row.label, "score": row.score, "now": now}
            written = {name: as_written(cells[name], sys.stderr) for name in columns}
            shown.add_row(*(Text(cut(one, columns[name])) for name, one in written.items()))
        left_out = Counter(row.phase for row in self.rows.values())
        left_out.subtract(row.phase for _, row in rows)
        if more := [f"{number} {phase}" for phase, number in left_out.items() if number]:
            shown.add_row(*("" for _ in list(columns)[1:]), Text(f"and {', '.join(more)}"))
        return shown

    def _held_up(self) -> list[str]:
        """What the service holds up of the trials at work, each once."""
        said = dict.fromkeys(progress.held_up() for progress in self._at_work)
        return [printable(one) for one in said if one]

    def _columns(self) -> dict[str, int]:
        """Columns for ids and scores as they need them; the rest is for what it is, and for now.
        Where there is little room, what a trial is stands in its log alone."""
        width = width_of(sys.stderr) or USUAL_WIDTH
        if self._console is not None:
            width = min(width, self._console.size.width)
        widest = 20 if width >= NARROW else max(1, width // 3)
        ids = min(widest, max((len(run_id) for run_id in self.rows), default=5))
        if width < NARROW:
            return {"trial": ids, "score": 6, "now": max(1, width - ids - 6 - 4)}
        labels = max((columns_of(row.label) for row in self.rows.values()), default=10)
        left = width - ids - 6 - 6  # two between columns
        of_label = max(10, min(labels, left // 2))
        return {"trial": ids, "what it is": of_label, "score": 6, "now": left - of_label}

    def _rows_shown(self) -> Sequence[tuple[str, Row]]:
        """All rows in their order, or as many as there is room for: those at work, those that are
        next, those that ended last."""
        room = MAX_ROWS
        if self._console is not None:
            room = max(1, min(room, self._console.size.height - 5))
        rows = list(self.rows.items())
        if len(rows) <= room:
            return rows
        by_phase = {phase: [one for one in rows if one[1].phase == phase] for phase in PHASES}
        return [*by_phase[WORKING], *by_phase[WAITING], *by_phase[ENDED][::-1]][:room]


class TrialProgress(Progress):
    """How one trial of several goes on: to its log, and what matters to the screen."""

    def __init__(self, screen: Screen, run_id: str) -> None:
        self._screen, self._run_id = screen, run_id
        self._log = screen.logs_dir / f"{run_id}.log"
        super().__init__(verbose=screen.verbose, redacted=screen.redacted)
        self._live = None  # the screen has one

    def line(self, text: str) -> None:
        shown = self._redacted(text)
        append_line(self._log, one_line(shown), is_synced=False)
        if self._verbose:
            self._screen.line(f"{self._run_id}: {shown}")
        elif shown.startswith("warning"):
            self._screen.line_once(self._run_id, shown)

    def told_line(self, number: int, text: str) -> None:
        append_line(self._log, one_line(self._redacted(text)), is_synced=False)
        self._screen.told_line(number, text)

    def stopping(self, what: str) -> None:
        self._screen.rows[self._run_id].now = Now(what)
        self._screen.line(f"{self._run_id}: {what}")

    def how_to_continue(self, run_dir: Path) -> str:
        return self._screen.how_to_continue

    def round_line(
        self,
        result: EvalResult,
        decision: Decision,
        diagnosis: str | None,
        topics: Sequence[TopicReport],
    ) -> None:
        super().round_line(result, decision, diagnosis, topics)
        self._screen.rows[self._run_id].score = f"{result.score:.4f}"
        if not self._verbose:
            self._screen.line(f"{self._run_id}: round {result.round}: score {score_and_n(result)}")

    def recorded_line(self, result: EvalResult, decision: Decision) -> None:
        super().recorded_line(result, decision)
        self._screen.rows[self._run_id].score = f"{result.score:.4f}"

    def leave_unread(self) -> None:
        """Nobody reads the screen any more."""
        self.is_gone = True
        if self.on_gone is not None:
            self.on_gone()

    def leave_terminal(self) -> None:
        self._screen.close()

    def _show(self, now: Shown) -> None:
        row = self._screen.rows[self._run_id]
        row.phase, row.now = WORKING, Beside(now, lambda: self.held_up())

    def close(self) -> None:
        """The screen stays."""

"""The one row of a terminal that says what is going on right now, and is redrawn as it changes.

What is shown is worked out each time it is drawn, so that how long it takes, and what is left, is
of now. It is cut to the terminal as wide as it is then: what tells least is left out first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, NamedTuple, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loop.reports.console import (
    USUAL_WIDTH,
    as_written,
    can_encode,
    can_redraw,
    shown_python,
    width_of,
)
from loop.reports.lines import columns_of, cut, fitted, seconds_text, time_left, wrapped

QUIET_S = 5.0  # after which a live line says how long it has stood there
FRAMES_PER_S = 5
PACED = 3  # answers from which on the time that is left can be told
SPINNERS = ("\u280b\u2819\u2839\u2838\u283c\u2834\u2826\u2827\u2807\u280f", "|/-\\")


class Shown(Protocol):
    """What goes on, in one row."""

    def shown(self, now: float, width: int | None = None) -> str: ...


@dataclass(frozen=True)
class Beside:
    """What goes on, and that the service holds it up, where `held_up` says so."""

    now: Shown
    held_up: Callable[[], str]

    def shown(self, now: float, width: int | None = None) -> str:
        said = self.held_up()
        if not said or width is None:
            return self.now.shown(now, width) + (f", {said}" if said else "")
        # What goes on has a third of the row, if it needs so much; the rest is for why it stands.
        rest = columns_of(said) + len(", ")
        begun = self.now.shown(now, max(width // 3, width - rest))
        return cut(f"{begun}, {said}", width)


@dataclass
class Now:
    """What is going on, with how long already, and, where answers are awaited, that none has come
    for a while."""

    text: str
    is_asking: bool = False
    since: float = field(default_factory=time.monotonic)

    def shown(self, now: float, width: int | None = None) -> str:
        if width is None:
            return self.text + "".join(f"; {one}" for one in _quiet(now - self.since, self))
        return fitted(self.text, [(0, one) for one in _quiet(now - self.since, self)], width)


def _quiet(seconds: float, now: Now | Asking | Training) -> list[str]:
    if seconds < QUIET_S:
        return []
    waiting = "waiting for the service" if now.is_asking else "still at it"
    return [f"{waiting} for {seconds_text(seconds)}"]


@dataclass(frozen=True)
class Asking:
    """Answers on their way: `number` of `total` have come, the last one at `since`."""

    title: str
    number: int
    total: int
    started: float
    since: float
    task: str = ""
    num_graded: int = 0
    num_right: int = 0
    num_spent: int | None = None  # tokens of the run
    is_asking: bool = True

    def shown(self, now: float, width: int | None = None) -> str:
        # The first answers may have waited for weights that were loaded, and tell no pace.
        is_paced = self.number >= PACED
        left = time_left(self.number, self.total, now - self.started) if is_paced else ""
        right = f"{self.num_right} of {self.num_graded} right" if self.num_graded else ""
        details = [
            (4, self.task),
            (2, right),
            (1, left),
            (5, _spent(self.num_spent)),
            *((0, one) for one in _quiet(now - self.since, self)),
        ]
        count = f" {self.number:,}/{self.total:,}"
        title = self.title if width is None else cut(self.title, max(1, width - len(count)))
        return fitted(f"{title}{count}", details, width)


class StepDone(NamedTuple):
    """What the newest step came to: its loss, or what its method measures first."""

    loss: float
    lr: float
    name: str = "loss"


@dataclass(frozen=True)
class Training:
    """A round's steps: `num_done` of `total`, of which `num_before` by an earlier process."""

    round_no: int
    num_before: int
    num_done: int
    total: int
    started: float
    since: float  # when the newest step was done
    last: StepDone | None = None
    num_tokens: int = 0  # trained on since `started`
    oldest: float | None = None  # when the oldest step in flight was sent
    num_spent: int | None = None
    is_asking: bool = True

    def shown(self, now: float, width: int | None = None) -> str:
        elapsed = now - self.started
        new = self.num_done - self.num_before
        loss = lr = ""
        if self.last is not None:
            loss, lr = f"{self.last.name} {self.last.loss:.4g}", f"lr {self.last.lr:.3g}"
        is_paced = self.num_tokens > 0 and elapsed > 0
        age = 0.0 if self.oldest is None else now - self.oldest
        details = [
            (2, loss),
            (4, lr),
            (5, f"{self.num_tokens / elapsed:,.0f} tokens/s" if is_paced else ""),
            (3, f"oldest request {seconds_text(age)}" if age >= 1 else ""),
            (1, time_left(new, self.total - self.num_before, elapsed)),
            (6, _spent(self.num_spent)),
            *((0, one) for one in _quiet(now - self.since, self)),
        ]
        step = min(self.num_done + 1, self.total)
        return fitted(f"round {self.round_no} step {step}/{self.total}", details, width)


def _spent(num_tokens: int | None) -> str:
    return f"{num_tokens:,} tokens spent" if num_tokens else ""


# --- the terminal ---------------------------------------------------------------------------------


class CursorShown(Console):
    """A console that never hides the cursor: who is killed or stopped (Ctrl-Z) amid a row cannot
    show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def terminal_console() -> Console:
    """Standard error's, to which texts go as they are, as wide as the terminal is right now."""
    # rich believes any COLUMNS, also 0, and for as long as it runs; width_of reads it with care.
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    return CursorShown(
        stderr=True,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        _environ=environment,
    )


class Redrawn(Live):
    """Redrawn by a thread, which is not to fail where nobody watches any more: the next line that
    is written finds it out."""

    def refresh(self) -> None:
        with contextlib.suppress(OSError):
            super().refresh()


class LiveLine:
    """The live row on standard error, with lines of text above it; only for one that can redraw."""

    def __init__(self) -> None:
        self._console = terminal_console()
        self._live: Live | None = None
        self._now: Shown | None = None
        stream = self._console.file
        self._frames = SPINNERS[not can_encode(stream, SPINNERS[0])]

    def show(self, now: Shown) -> None:
        self._now = now
        if self._live is None:
            self._live = Redrawn(
                console=self._console, get_renderable=self._drawn, transient=True,
                refresh_per_second=FRAMES_PER_S,
            )  # fmt: skip
            self._live.start(refresh=True)

    def print(self, text: str) -> None:
        """Write prose above the row, broken at words."""
        shown = as_written(text, self._console.file)
        width = width_of(self._console.file) or USUAL_WIDTH
        self._console.print(wrapped(shown, width, f"{shown_python()} "))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _drawn(self) -> Text:
        now = time.monotonic()
        # Not markup, which a name in it may look like; and one column less than there is room for,
        # since a terminal may go on in the next row when the last column is written.
        told = width_of(self._console.file) or USUAL_WIDTH
        width = max(1, min(told, real_width(self._console.file)) - 1)
        frame = self._frames[int(now * FRAMES_PER_S) % len(self._frames)]
        shown = "" if self._now is None else self._now.shown(now, max(1, width - 2))
        row = as_written(f"{frame} {shown}", self._console.file)
        return Text(cut(row, width), no_wrap=True, overflow="crop")


def real_width(stream: IO[str]) -> int:
    """Columns that a terminal has right now, whatever COLUMNS says."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH * 100
    except (OSError, ValueError):
        return USUAL_WIDTH * 100


def live_line() -> LiveLine | None:
    """The live row, where standard error can have one."""
    return LiveLine() if can_redraw(sys.stderr) else None

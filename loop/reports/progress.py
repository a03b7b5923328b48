"""What a person sees while a run goes on: a live line on a terminal, plain lines in a pipe.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import errno
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_selector import Selection
from errors import one_line
from ledger.records import Batch
from loop.reports.console import (
    USUAL_WIDTH,
    drop,
    how_to_continue,
    printable,
    say,
    shown_python,
    width_of,
)
from loop.reports.lines import seconds_text, time_left, wrapped
from rows.places import place_text
from scores.decision import Decision, flaw_warning
from scores.diagnosis import TopicReport
from scores.results import EvalResult, HeldOutLoss
from scores.wording import ROLE_NAMES, loss_text, score_and_n

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

NUM_WEAKEST = 3
NUM_SUSPECTS = 3
MAX_TOPIC_CHARS = 30
QUIET_S = 5.0  # after which a live line says how long it has stood there
UNREAD = (errno.EPIPE, errno.EIO)  # a pipe whose reader has gone, and a terminal that is closed


class Progress:
    """Progress on stderr.

    Once nobody reads it any more it is silent, and `on_gone` has been called, which stops the run
    as Ctrl-C would. Before there is anything to stop, `BrokenPipeError` says it.
    """

    def __init__(
        self, *, verbose: bool, redacted: Callable[[str], str] = lambda text: text
    ) -> None:
        self._redacted = redacted
        self._verbose = verbose
        self._console: Console | None = None
        self._status: Status | None = None
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None
        if width_of(sys.stderr) is not None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def line(self, text: str) -> None:
        if self.is_gone:
            return
        try:
            self._write(self._redacted(text))
        except OSError as error:
            if error.errno not in UNREAD:
                raise
            self.is_gone = True
            drop(sys.stderr)
            if self.on_gone is None:
                raise BrokenPipeError(error.errno, "nobody reads the progress") from error
            self.on_gone()

    def _write(self, text: str) -> None:
        if self._console is None:
            say(text, file=sys.stderr)
            return
        width = width_of(sys.stderr) or USUAL_WIDTH
        shown = wrapped(printable(text), width, f"{shown_python()} ")
        self._console.print(shown)

    def stopping(self, what: str) -> None:
        """What is still done before a run that was asked to stop has stopped."""
        self.line(what)

    def how_to_continue(self, run_dir: Path) -> str:
        """What somebody is told who leaves at once."""
        return how_to_continue(run_dir)

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    # --- what is going on right now -----------------------------------------------------------

    def live(self, text: str) -> None:
        """Show what is going on right now; only a terminal has such a line."""
        self._show(Now(printable(self._redacted(text))))

    def _show(self, now: Now) -> None:
        if self._console is None or self.is_gone:
            return
        if self._status is None:
            self._status = self._console.status(now)
            self._status.start()
        self._status.update(now)

    def counter(self, title: str, total: int) -> Callable[[], None]:
        """Show how many of `total` answers have come, and about how long the others take; to be
        called once for each."""
        started, counted = time.monotonic(), itertools.count(1)

        def show(number: int) -> None:
            left = time_left(number, total, time.monotonic() - started)
            self._show(Now(printable(f"{title} {number}/{total}{left}"), is_asking=True))

        show(0)
        return lambda: show(next(counted))

    def steps_counter(self, round_no: int, num_done: int, total: int) -> Callable[[], None]:
        """The same for the steps of a round, of which `num_done` were taken before."""
        title, started, counted = f"round {round_no}", time.monotonic(), itertools.count(1)

        def show(number: int) -> None:
            if num_done + number >= total:
                self.live(f"{title}: saving the weights")
                return
            left = time_left(number, total - num_done, time.monotonic() - started)
            step = f"step {num_done + number + 1}/{total}"
            self._show(Now(f"{title} {step}{left}", is_asking=True))

        show(0)
        return lambda: show(next(counted))

    # --- rounds -------------------------------------------------------------------------------

    def step_line(self, round_no: int, batch: Batch, loss: float) -> None:
        self.line(
            f"round {round_no} step {batch.step}: loss {loss:.4f}, lr {batch.lr:.3g}, "
            f"{batch.num_loss_tokens} loss tokens"
        )

    def recorded_line(self, result: EvalResult, decision: Decision) -> None:
        """A round that an earlier process has done, in one line."""
        self.line(f"from the ledger, {_result_text(f'round {result.round}', result)}")
        if decision.stops:
            self.line(f"from the ledger, decision: {decision.sentence}")

    def held_out_line(self, round_no: int, num_steps: int, loss: HeldOutLoss) -> None:
        self.line(f"round {round_no}, after {num_steps} steps: {loss_text(loss)}")

    def losses_line(self, round_no: int, num_rows: int, num_tokens: int) -> None:
        rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
        self.line(f"round {round_no}: measured the losses of {rows}, {num_tokens:,} tokens read")

    def selection_line(self, selection: Selection) -> None:
        shares = ", ".join(f"{number} {source}" for source, number in selection.shares.items())
        topics = sorted(selection.topic_slots.items(), key=lambda item: (-item[1], item[0]))
        most = ", ".join(f"{topic} {number}" for topic, number in topics[:4] if topic)
        self.line(
            f"round {selection.round}: {shares} examples" + (f"; most from {most}" if most else "")
        )
        mined = next((pick for pick in selection.picks if pick.weight is not None), None)
        if mined is not None and mined.file is not None and mined.line_no is not None:
            place = place_text(mined.file, mined.line_no, mined.text)
            self.line(f"  for example {place}: {one_line(mined.reason, 100)}")
        if selection.suspects:
            places = ", ".join(map(str, selection.suspect_rows[:NUM_SUSPECTS]))
            self.line(
                f"  rows that may be wrong: {len(selection.suspects)}, unlikely to every "
                f"checkpoint, as {places}; all are in selections/round_{selection.round:02d}.json"
            )

    def round_line(
        self,
        result: EvalResult,
        decision: Decision,
        diagnosis: str | None,
        topics: Sequence[TopicReport],
    ) -> None:
        if self._verbose:
            for sample in result.samples:
                mark = "ok  " if sample.score == 1 else "miss"
                answer = sample.error if sample.answer is None else sample.answer
                self.line(f"  {mark} {sample.question} -> {one_line(answer or '', 60)}")
        self.result_lines(f"round {result.round}", result)
        if diagnosis is not None:
            self.line(f"  {diagnosis}")
        self._topics_line(topics)
        if (warning := flaw_warning(result)) is not None:
            self.line(warning)
        if not decision.stops:
            self.line(decision.sentence)

    def _topics_line(self, reports: Sequence[TopicReport]) -> None:
        shown = [
            f"{one_line(one.topic, MAX_TOPIC_CHARS)} {one.score * one.n:.4g} of {one.n}"
            for one in reports[:NUM_WEAKEST]
            if one.score < 1
        ]
        if shown and len(reports) > 1:
            self.line(f"  weakest topics (right answers): {', '.join(shown)}")

    def result_lines(self, title: str, result: EvalResult) -> None:
        """The score, and each task and held-out loss where there are more than one."""
        self.line(_result_text(title, result))
        if len(result.names) > 1:
            self.task_lines(result, result.names)

    def task_lines(self, result: EvalResult, names: frozenset[str]) -> None:
        """A line for each of these tasks and held-out losses."""
        for task in result.tasks:
            if task.name in names:
                self.line(f"  {task.name}: {score_and_n(task)}{ROLE_NAMES[task.role]}")
        for loss in result.held_out:
            if loss.name in names:
                self.line(f"  {loss_text(loss)}, n={loss.n}")

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _result_text(title: str, result: EvalResult) -> str:
    counts = {"truncated": result.num_truncated, "malformed": result.num_malformed}
    counts["failed"] = result.num_failed
    flaws = "".join(f", {number} {name}" for name, number in counts.items() if number)
    return f"{title}: score {score_and_n(result)}{flaws}"


@dataclass
class Now:
    """What is going on, as a live line shows it each time it is drawn: with how long already, and,
    where answers are awaited, that none has come for a while."""

    text: str
    is_asking: bool = False
    since: float = field(default_factory=time.monotonic)

    def shown(self, now: float) -> str:
        seconds = now - self.since
        if seconds < QUIET_S:
            return self.text
        waiting = "waiting for the service" if self.is_asking else "still at it"
        return f"{self.text}; {waiting} for {seconds_text(seconds)}"

    def __rich__(self) -> Text:
        from rich.text import Text

        # Not markup, which a name in it may look like; one line, or the terminal could not redraw.
        return Text(self.shown(time.monotonic()), no_wrap=True, overflow="ellipsis")

"""What a person sees while a run goes on: a live line on a terminal, plain lines in a pipe.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from data_selector import Selection
from errors import one_line
from ledger.records import Batch
from loop.reports.console import printable
from rows.places import place_text
from scores.decision import Decision, flaw_warning
from scores.diagnosis import TopicReport
from scores.results import EvalResult, HeldOutLoss
from scores.wording import ROLE_NAMES, interval_text, loss_text, score_and_n

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

NUM_WEAKEST = 3
NUM_SUSPECTS = 3


class Progress:
    """Progress on stderr."""

    def __init__(
        self, *, verbose: bool, redacted: Callable[[str], str] = lambda text: text
    ) -> None:
        from rich.console import Console

        self._redacted = redacted

        self._console: Console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._verbose = verbose
        self._status: Status | None = None

    def line(self, text: str) -> None:
        self._console.print(printable(self._redacted(text)))

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def live(self, text: str) -> None:
        """Show what is going on right now; only a terminal has such a line."""
        if not self._console.is_terminal:
            return
        from rich.text import Text

        shown = Text(printable(text))  # a name in it may look like markup
        if self._status is None:
            self._status = self._console.status(shown)
            self._status.start()
        self._status.update(shown)

    def counter(self, title: str, total: int) -> Callable[[], None]:
        """Show how many of `total` answers have come; to be called once for each."""
        counted = itertools.count(1)
        self.live(f"{title}: 0 of {total} answers")
        return lambda: self.live(f"{title}: {next(counted)} of {total} answers")

    def step_line(self, round_no: int, batch: Batch, loss: float) -> None:
        self.line(
            f"round {round_no} step {batch.step}: loss {loss:.4f}, lr {batch.lr:.3g}, "
            f"{batch.num_loss_tokens} loss tokens"
        )

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
                f"  {len(selection.suspects)} rows look wrong: every checkpoint found them "
                f"unlikely, as {places}; selections/round_{selection.round:02d}.json names them all"
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
            f"{one.topic} {one.score:.2f} {interval_text(one.interval)} of {one.n}"
            + ("" if one.change is None else f", {one.change:+.2f}")
            + f", {one.num_added} added"
            for one in reports[:NUM_WEAKEST]
            if one.score < 1
        ]
        if shown and len(reports) > 1:
            self.line(f"  weakest topics: {'; '.join(shown)}")

    def result_lines(self, title: str, result: EvalResult) -> None:
        """The score, and each task and held-out loss where there are more than one."""
        counts = {"truncated": result.num_truncated, "malformed": result.num_malformed}
        counts["failed"] = result.num_failed
        flaws = "".join(f", {number} {name}" for name, number in counts.items() if number)
        self.line(f"{title}: score {score_and_n(result)}{flaws}")
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

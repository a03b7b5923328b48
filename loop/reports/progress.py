"""What a person sees while a run goes on: a live row on a terminal, plain lines in a pipe, and what
a program reads instead of it with --json.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_selector import Selection
from errors import one_line
from ledger.records import Batch
from loop.reports.console import USUAL_WIDTH, can_encode, drop, how_to_continue, tell, width_of
from loop.reports.events_out import event_stream
from loop.reports.lines import columns_of, fitted
from loop.reports.live import Asking, Beside, LiveLine, Now, Shown, StepDone, Training, live_line
from loop.reports.sparkline import BLOCKS, course_text, ends_text, figure
from rows.places import place_text
from scores.decision import Decision, flaw_warning
from scores.diagnosis import TopicReport
from scores.measures import leading, main_of, names_in, values_of, words_of
from scores.results import EvalResult, HeldOutLoss, SampleResult
from scores.wording import ROLE_NAMES, loss_text, score_and_n

NUM_WEAKEST = 3
NUM_SUSPECTS = 3
MAX_TOPIC_CHARS = 30
NUM_BESIDE = 2  # measures of a method that a round's line has beside the first
MAX_COURSE, MIN_COURSE = 24, 8  # columns of a round's losses, drawn
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
        self._live: LiveLine | None = live_line()
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None
        self.num_spent: Callable[[], int | None] = lambda: None  # tokens of the run so far
        self.held_up: Callable[[], str] = lambda: ""  # what the service holds up right now

    def line(self, text: str) -> None:
        shown = self._redacted(text)
        self._deliver(lambda: self._write(shown))

    def event(self, event: dict[str, Any]) -> None:
        """An event that was appended to the ledger, for a program that reads along."""
        if (stream := event_stream()) is not None:
            self._deliver(lambda: stream.event(event))

    def _deliver(self, write: Callable[[], None]) -> None:
        if self.is_gone:
            return
        try:
            write()
        except OSError as error:
            if error.errno not in UNREAD:
                raise
            self.is_gone = True
            drop(sys.stderr)
            if self.on_gone is None:
                raise BrokenPipeError(error.errno, "nobody reads the progress") from error
            self.on_gone()

    def _write(self, text: str) -> None:
        if (stream := event_stream()) is not None:
            stream.event({"type": "message", "text": text})
        elif self._live is not None:
            self._live.print(text)
        else:
            tell(text, file=sys.stderr)

    def told_line(self, number: int, text: str) -> None:
        """What the service holds up, or held up; `number` tells what others at work say as well."""
        self.line(text)

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
        self._show(Now(self._redacted(text)))

    def _show(self, now: Shown) -> None:
        if (live := self._live) is not None:
            shown = Beside(now, lambda: self.held_up())
            self._deliver(lambda: live.show(shown))

    def counter(self, title: str, total: int) -> Counter:
        """Show how many of `total` answers have come, and about how long the others take."""
        return Counter(self, title, total)

    def steps(self, round_no: int, num_before: int, total: int) -> Steps:
        """Show how far the steps of a round are, of which `num_before` were taken before."""
        return Steps(self, round_no, num_before, total)

    # --- rounds -------------------------------------------------------------------------------

    def step_line(self, round_no: int, batch: Batch, nll: float) -> None:
        """A step, where each of them is asked for."""
        if self._verbose:
            names = names_in([{"measures": batch.measures}])
            measures = [f"{words_of(one).short} {figure(batch.measures[one])}" for one in names]
            if leading([{"measures": batch.measures}]) is None:
                measures.insert(0, f"loss {nll:.4f}")
            told = ", ".join(measures)
            self.line(
                f"round {round_no} step {batch.step}: {told}, lr {batch.lr:.3g}, "
                f"{batch.num_loss_tokens} loss tokens"
            )

    def steps_line(self, round_no: int, steps: Sequence[dict[str, Any]]) -> None:
        """The steps of a round in one line, as the ledger has them."""
        if steps and not self._verbose:
            has_blocks = event_stream() is None and can_encode(sys.stderr, BLOCKS)
            width = width_of(sys.stderr) or USUAL_WIDTH
            self.line(steps_text(round_no, steps, width, has_blocks=has_blocks))

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
        drawn = [pick for pick in selection.picks if pick.weight is not None]
        # Of the topic that most are from: the first row drawn may be of one that nothing failed in.
        of_most = [pick for pick in drawn if topics and (pick.topic or "") == topics[0][0]]
        mined = next(iter(of_most or drawn), None)
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

    def leave_terminal(self) -> None:
        """Leave the terminal as it was, its cursor shown, where the process ends at once."""
        self.close()

    def close(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):  # nobody may watch it any more
                self._live.close()


class Counter:
    """The answers of an evaluation on the live row; to be called once for each that has come."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        now, shown = time.monotonic(), progress._redacted(title)
        self._set(Asking(shown, 0, total, now, now, num_spent=progress.num_spent()))

    def __call__(self) -> None:
        self._set(replace(self._now, number=self._now.number + 1, since=time.monotonic()))

    def begin(self, task: str) -> None:
        """The answers that come from now on are of this task."""
        shown = self._progress._redacted(task)
        self._set(replace(self._now, task=shown, num_graded=0, num_right=0))

    def graded(self, sample: SampleResult) -> None:
        right = self._now.num_right + (sample.score == 1)
        self._set(replace(self._now, num_graded=self._now.num_graded + 1, num_right=right))

    def _set(self, now: Asking) -> None:
        self._now = now
        self._progress._show(now)


class Steps:
    """The steps of a round on the live row, as they are sent and as they come back."""

    def __init__(self, progress: Progress, round_no: int, num_before: int, total: int) -> None:
        self._progress = progress
        self._sent: deque[float] = deque()  # when those in flight were
        now = time.monotonic()
        self._now = Training(
            round_no, num_before, num_before, total, now, now, num_spent=progress.num_spent()
        )
        self._set(self._now)

    def sent(self) -> None:
        """A step was submitted."""
        self._sent.append(time.monotonic())
        self._set(replace(self._now, oldest=self._sent[0]))

    def done(self, batch: Batch, nll: float) -> None:
        """The oldest step in flight has come back."""
        if self._sent:
            self._sent.popleft()
        before, spent = self._now, self._now.num_spent
        read = 0 if batch.counted_before else batch.num_prompt_tokens + batch.num_sampled_tokens
        self._progress.step_line(before.round_no, batch, nll)
        self._set(
            replace(
                before,
                num_done=before.num_done + 1,
                since=time.monotonic(),
                last=_newest(batch, nll),
                num_tokens=before.num_tokens + batch.num_tokens,
                oldest=self._sent[0] if self._sent else None,
                num_spent=None if spent is None else spent + batch.num_tokens + read,
            )
        )

    def _set(self, now: Training) -> None:
        self._now = now
        if now.num_done >= now.total:
            self._progress.live(f"round {now.round_no}: saving the weights")
        else:
            self._progress._show(now)


def _newest(batch: Batch, nll: float) -> StepDone:
    """What a step is told by on the live row."""
    name, values = main_of([{"nll": nll, "measures": batch.measures}])
    return StepDone(values[0], batch.lr, name)


def steps_text(
    round_no: int, steps: Sequence[dict[str, Any]], width: int, *, has_blocks: bool
) -> str:
    """A round's steps: the course of the loss, the rate, and how much was trained on. Where the
    method has measures of its own, the course of the first, and from where to where the others
    went, as far as there is room."""
    name, values = main_of(steps)  # the loss as the diagnosis and the page have it
    rates = dict.fromkeys(f"{step['lr']:.3g}" for step in (steps[0], steps[-1]))
    num_tokens = sum(step.get("num_loss_tokens", 0) for step in steps)
    head = f"round {round_no}: {len(steps)} step{'s' * (len(steps) > 1)}, {name} "
    rest = f", lr {' -> '.join(rates)}, {num_tokens:,} loss tokens"
    leader = leading(steps)
    if own := [one for one in names_in(steps) if one != leader]:
        drawn = f"{head}{course_text(values, MIN_COURSE if has_blocks else None)}"
        return _with_others(drawn, {one: values_of(steps, one) for one in own}, rates, width)
    room = width - columns_of(f"{head} {ends_text(values)}{rest}")
    columns = max(MIN_COURSE, min(MAX_COURSE, room)) if has_blocks else None
    return f"{head}{course_text(values, columns)}{rest}"


def _with_others(drawn: str, own: dict[str, list[float]], rates: Iterable[str], width: int) -> str:
    """The first measure with the others as far as there is room: from where to where they went, or
    where that leaves out one of the next two, only to where."""
    row = drawn
    for told in (ends_text, lambda values: figure(values[-1]), lambda values: f"{values[-1]:.2g}"):
        shown = [f"{words_of(name).short} {told(values)}" for name, values in own.items()]
        row = fitted(drawn, [*enumerate(shown), (2, f"lr {' -> '.join(rates)}")], width)
        if all(one in row for one in shown[:NUM_BESIDE]):
            break
    return row


def _result_text(title: str, result: EvalResult) -> str:
    counts = {"truncated": result.num_truncated, "malformed": result.num_malformed}
    counts["failed"] = result.num_failed
    flaws = "".join(f", {number} {name}" for name, number in counts.items() if number)
    return f"{title}: score {score_and_n(result)}{flaws}"

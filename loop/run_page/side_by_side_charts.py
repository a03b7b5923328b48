"""Curves of several runs over each other: score by round, losses and learning rate by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ledger.glance import Head
from loop.run_page.thinning import MOST_MARKERS, thinned
from pages.charts import LineChart, Point, Series
from pages.document import Block, Column, Figure, Paragraph, Section, Table
from pages.ticks import Axis, Span, Tick
from scores.measures import names_in, words_of
from scores.wording import interval_text

MAX_ROUND_TICKS = 12
MAX_MEASURES = 6
# Times the smallest value, from which a logarithmic axis shows more, and beyond which no loss is.
LOG_FROM, LOG_TO = 50.0, 1e15


class AtStep(NamedTuple):
    step: int
    value: float


class Curves(NamedTuple):
    """The curves of one run, by the name that it has on the page."""

    label: str
    scores: dict[int, Head]  # by round
    losses: list[AtStep]  # of training, a token
    held_out: dict[str, list[AtStep]]  # by task
    rates: list[AtStep]
    measures: dict[str, list[AtStep]]  # of its method, by name
    learns_rows: bool  # else its `losses` are no training loss


def curves_section(curves_R: Sequence[Curves]) -> Section:
    """The charts that there is something to draw in."""
    blocks: list[Block] = []
    if any(curves.scores for curves in curves_R):
        blocks.append(_scores(curves_R))
    losses = [(curves.label, curves.losses) for curves in curves_R if curves.learns_rows]
    held_out = [
        (f"{curves.label}, held out: {task}", points)
        for curves in curves_R
        for task, points in curves.held_out.items()
    ]
    rates = [(curves.label, curves.rates) for curves in curves_R]
    for title, unit, named in (
        ("Training loss by step", "loss a token", losses),
        ("Held-out loss by step", "loss a token", held_out),
        ("Learning rate by step", "learning rate", rates),
    ):
        if any(points for _, points in named):
            blocks.append(_by_step(title, unit, named))
    blocks += _measures(curves_R)
    if not blocks:
        blocks.append(Paragraph("No run has taken a step or been evaluated yet."))
    return Section("Curves", blocks, anchor="curves")


def _measures(curves_R: Sequence[Curves]) -> Iterator[Figure]:
    """A chart for each of the first measures that a run has, with the runs that have it."""
    names = names_in([{"measures": curves.measures} for curves in curves_R])
    for name in names[:MAX_MEASURES]:
        title = words_of(name).title
        named = [
            (curves.label, curves.measures[name]) for curves in curves_R if name in curves.measures
        ]
        yield _by_step(f"{title[:1].upper()}{title[1:]} by step", title, named)


def _scores(curves_R: Sequence[Curves]) -> Figure:
    series = [
        Series(
            curves.label,
            [_score_point(number, head) for number, head in curves.scores.items()],
            has_markers=len(curves.scores) <= MOST_MARKERS,
        )
        for curves in curves_R
        if curves.scores
    ]
    columns = [
        Column("run"),
        Column("round", True),
        Column("score", True),
        Column("95% interval", True),
        Column("questions", True),
    ]
    rows = [
        [
            curves.label,
            str(number),
            f"{head.score:.4f}",
            interval_text(head.interval),
            f"{head.n:,}",
        ]
        for curves in curves_R
        for number, head in curves.scores.items()
    ]
    description = "Round 0 is what a run began with. The bars are 95% intervals of each score."
    limits = Span(0.0, 1.0)
    rounds = sorted({number for curves in curves_R for number in curves.scores})
    every = -(-len(rounds) // MAX_ROUND_TICKS)
    ticks = tuple(Tick(number, str(number)) for number in rounds[::every])
    chart = LineChart(Axis("round", ticks=ticks), Axis("score", limits=limits), series)
    return Figure("Score by round", description, chart, Table("Scores by round", columns, rows))


def _score_point(number: int, head: Head) -> Point:
    ends = (None, None) if head.interval is None else head.interval
    text = f"round {number}: {head.score:.4f} {interval_text(head.interval)}, n={head.n}"
    return Point(number, head.score, *ends, text)


def _by_step(title: str, unit: str, named: Sequence[tuple[str, Sequence[AtStep]]]) -> Figure:
    drawn = [(label, thinned([_step_point(at) for at in some])) for label, some in named if some]
    series = [Series(label, some, has_markers=len(some) <= MOST_MARKERS) for label, some in drawn]
    values = [point.y for _, some in drawn for point in some]
    is_log = min(values) > 0 and LOG_FROM <= max(values) / min(values) <= LOG_TO
    axis = Axis(unit, "log10" if is_log else "linear")
    num_all, num_drawn = sum(len(points) for _, points in named), len(values)
    left_out = (
        f" {num_drawn:,} of {num_all:,} points are drawn, of each stretch the lowest and the "
        "highest; all of them are in each run's ledger.jsonl."
        if num_drawn < num_all
        else ""
    )
    columns = [Column("run"), Column("step", True), Column(unit, True)]
    rows = [[label, f"{point.x:.0f}", f"{point.y:.6g}"] for label, some in drawn for point in some]
    chart = LineChart(Axis("step"), axis, series, is_spread=False)
    numbers = Table(f"{title}, the numbers drawn", columns, rows)
    return Figure(title, f"Steps are counted from the begin of each run.{left_out}", chart, numbers)


def _step_point(at: AtStep) -> Point:
    return Point(at.step, at.value, None, None, f"step {at.step}: {at.value:.4g}")

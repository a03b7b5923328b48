"""Of a run's page: what the run's method measures of each step, such as the reward or the margin of
preference pairs, as curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ledger.run_directory import Event
from loop.run_page.curves import begins_of, left_out_text
from loop.run_page.thinning import MOST_MARKERS, thinned
from loop.run_page.viewed import Viewed
from loop.run_page.wording import loss_text
from pages.charts import Begin, LineChart, Point, Series
from pages.document import Block, Column, Figure, Paragraph, Section, Table
from pages.ticks import Axis, Span
from scores.measures import method_words, names_in, settings_text, values_of, words_of

MOST_DRAWN = 6  # measures; the table has all
MOST_OPEN = 12  # rounds, from which a table is folded


def measures_sections(view: Viewed) -> Iterator[Section]:
    """The section, of a run whose steps have measures of their own."""
    steps = list(view.store.events("step"))
    names = names_in(steps)
    if not names:
        return
    method = method_words(view.config)
    blocks: list[Block] = [
        Paragraph(f"{method.title}: {settings_text(view.config)}. Minimised is {method.minimised}.")
    ]
    ends = Span(0.0, float(max(steps[-1]["step"], 1)))
    begins = begins_of(steps)
    blocks += [_figure(steps, name, ends, begins) for name in names[:MOST_DRAWN]]
    if len(names) > MOST_DRAWN:
        others = ", ".join(words_of(one).title for one in names[MOST_DRAWN:])
        blocks.append(Paragraph(f"In the table alone: {others}."))
    blocks.append(_rounds_table(steps, names))
    yield Section("What training measured", blocks, anchor="measures")


def _figure(steps: Sequence[Event], name: str, ends: Span, begins: Sequence[Begin]) -> Figure:
    words = words_of(name)
    points = [
        Point(
            float(one["step"]),
            one["measures"][name],
            None,
            None,
            f"step {one['step']}: {loss_text(one['measures'][name])}",
        )
        for one in steps
        if name in one.get("measures", {})
    ]
    chart = LineChart(
        Axis("step", limits=ends),
        Axis(words.short),
        [Series(words.title, thinned(points), has_markers=len(points) <= MOST_MARKERS)],
        is_spread=False,
        begins=begins,
    )
    meaning = f"{words.meaning[:1].upper()}{words.meaning[1:]}." if words.meaning else ""
    description = f"{meaning}{left_out_text(len(points), steps)}".strip()
    title = f"{words.title[:1].upper()}{words.title[1:]} by step"
    return Figure(title, description, chart, _numbers(steps, name))


def _numbers(steps: Sequence[Event], name: str) -> Table:
    """By round: each step stands in the ledger."""
    rows = []
    for number, of_round in _by_round(steps).items():
        if values := values_of(of_round, name):
            figures = (values[0], values[-1], min(values), max(values), _mean(values))
            rows.append([str(number), f"{len(values):,}", *map(loss_text, figures)])
    columns = [
        Column("round", True),
        Column("steps", True),
        *(Column(one, True) for one in ("first", "last", "lowest", "highest", "mean")),
    ]
    note = "Each step's is in ledger.jsonl."
    title = words_of(name).title
    return Table(f"{title[:1].upper()}{title[1:]} by round", columns, rows, True, note)


def _rounds_table(steps: Sequence[Event], names: Sequence[str]) -> Table:
    by_round = _by_round(steps)
    rows = []
    for number, of_round in by_round.items():
        values_by_name = (values_of(of_round, name) for name in names)
        cells = ("" if not one else f"{loss_text(_mean(one))}" for one in values_by_name)
        rows.append([str(number), *cells])
    columns = [Column("round", True), *(Column(words_of(name).title, True) for name in names)]
    return Table("Means over the steps of a round", columns, rows, len(rows) > MOST_OPEN)


def _by_round(steps: Sequence[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for one in steps:
        found.setdefault(one["round"], []).append(one)
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

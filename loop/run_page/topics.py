"""Of a run's page: how each topic stands, round by round."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.store import RunStore
from loop.run_page.thinning import spread
from loop.run_page.viewed import Viewed
from pages.document import Block, Column, Paragraph, Section, Table
from scores.diagnosis import TopicReport, topic_reports

MOST_COLUMNS = 10  # rounds
MOST_TOPICS = 200
MOST_OPEN = 40  # topics, from which the table is folded


def topics_section(view: Viewed) -> Section:
    """A row a topic, a column a round; the weakest of the recommended round first."""
    store, decision = view.store, view.store.last_decision()
    reports = {one.round: topics_at(store, one.round) for one in store.results()}
    reports = {number: found for number, found in reports.items() if found}
    if not reports:
        why = "The questions have no topics." if store.results() else "Nothing is measured yet."
        return Section("Topics", [Paragraph(why)], anchor="topics")
    best = max(reports)
    if decision is not None and decision.best_round in reports:
        best = decision.best_round
    shown = spread(sorted(reports), MOST_COLUMNS, [best])
    return Section("Topics", [_table(reports, shown, best)], anchor="topics")


def topics_at(store: RunStore, round_no: int) -> Sequence[TopicReport]:
    """The topics of a round as they were recorded; of round 0 those that its questions have."""
    if (recorded := store.topics(round_no)) is not None:
        return recorded
    result = store.result(round_no)
    return [] if result is None else topic_reports(result, None, {})


def _table(reports: dict[int, Sequence[TopicReport]], shown: Sequence[int], best: int) -> Block:
    by_round = {number: {one.topic: one for one in reports[number]} for number in shown}
    order = dict.fromkeys(one.topic for number in (best, *shown) for one in reports[number])
    rows, shades = [], []
    for topic in list(order)[:MOST_TOPICS]:
        found = [by_round[number].get(topic) for number in shown]
        last = by_round[best].get(topic) or next(one for one in found if one is not None)
        cells, shade = [topic, f"{last.n:,}"], list[float | None]([None, None])
        for one in found:
            of_n = "" if one is None or one.n == last.n else f" (of {one.n:,})"
            cells.append("" if one is None else f"{one.score:.2f}{of_n}")
            shade.append(None if one is None else one.score)
        cells += [_interval(last), f"{last.num_added:,}"]
        rows.append(cells)
        shades.append([*shade, None, None])
    columns = [
        Column("topic"),
        Column("questions", True),
        *(Column(f"round {number}", True) for number in shown),
        Column(f"95% interval, round {best}", True),
        Column(f"rows drawn for round {best}, replayed ones apart", True),
    ]
    note = f"Weakest in round {best} first; the more is right, the stronger a score is shaded."
    if len(shown) < len(reports):
        note += f" {len(shown)} of {len(reports)} rounds are shown; ledger.jsonl has all."
    if len(order) > MOST_TOPICS:
        note += f" {MOST_TOPICS} of {len(order):,} topics are shown; ledger.jsonl has all."
    caption = "Share of right answers by topic"
    return Table(caption, columns, rows, len(rows) > MOST_OPEN, note, shades)


def _interval(report: TopicReport) -> str:
    interval = report.interval
    return "unknown" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"

"""The page of an evaluation of checkpoints: they stand in the place of rounds."""

from __future__ import annotations

from collections.abc import Iterator

from ledger.run_directory import Event
from loop.reports.console import resume_command
from loop.run_page.answers import answers_at
from loop.run_page.opening import standing_text
from loop.run_page.rounds import SCORE_AXIS, SCORE_COLUMNS, scores_cells
from loop.run_page.thinning import spread
from loop.run_page.viewed import Viewed
from loop.run_page.wording import gain_of, gain_text
from pages.charts import Level, LineChart, Point, Series
from pages.document import (
    Beside,
    Block,
    Bullets,
    Code,
    Column,
    Figure,
    Lead,
    Paragraph,
    Section,
    Table,
    Verdict,
)
from pages.ticks import Axis, Tick
from scores.results import LEVEL, EvalResult
from scores.wording import score_text

MOST_DRAWN = 30
MOST_TICKS = 12


def labels_of(view: Viewed) -> dict[int, str]:
    """What each checkpoint is called, by its place."""
    named = view.store.settled_config()["evaluate"]
    return {number: str(one["label"]) for number, one in enumerate(named)}


def lead_of_evaluation(view: Viewed) -> list[Lead]:
    """Which of the checkpoints pass."""
    compared, standing = _compared(view), view.standing
    if not compared or standing.kind != "finished":
        num_done, num = len(view.store.results()), len(labels_of(view))
        text = f"{num_done} of {num} checkpoints are measured. {standing_text(view, standing)}"
        return [Verdict("Not finished.", text)]
    # Of several the first is what the others are compared with, and is not judged.
    passed = [one for one in compared if one.get("passed") is True]
    failed = [one for one in compared if one.get("passed") is False]
    tone = "good" if passed and not failed else "bad" if failed and not passed else "open"
    if len(passed) + len(failed) == 1:
        word = "Good enough." if passed else "Not good enough."
        return [Verdict(word, str((passed or failed)[0].get("sentence", "")), tone)]
    text = (
        f"{len(passed)} of {len(passed) + len(failed)} checkpoints pass; the threshold is "
        f"{view.gate.threshold:g}, and they are compared with {labels_of(view)[0]}."
    )
    return [Verdict("Compared.", text, tone)]


def _compared(view: Viewed) -> list[Event]:
    return list(view.store.events("compared"))


def checkpoints_sections(view: Viewed) -> list[Block]:
    """The chart and the sentence of each checkpoint, and the numbers of each."""
    results, labels = view.store.results(), labels_of(view)
    if not results:
        return [Section("Checkpoints", [Paragraph("Nothing is measured yet.")]), *_next(view)]
    sentences = [str(one.get("sentence", "")) for one in _compared(view)]
    beside = Bullets(sentences) if sentences else Paragraph("They are compared at the end.")
    blocks: list[Block] = [
        Beside([_figure(view, results, labels)], [beside]),
        _table(results, labels),
        _tasks(results, labels),
    ]
    return [Section("Checkpoints", blocks, anchor="checkpoints"), *_next(view)]


def _next(view: Viewed) -> Iterator[Section]:
    """How an evaluation that is not finished goes on."""
    if view.standing.kind not in ("finished", "going_on"):
        said = "Go on with the evaluation; what was measured is not measured again:"
        command = Code([resume_command(view.store.run_dir)])
        yield Section("What to do next", [Paragraph(said), command], anchor="next")


def _figure(view: Viewed, results: list[EvalResult], labels: dict[int, str]) -> Figure:
    drawn = spread(results, MOST_DRAWN)
    points = []
    for one in drawn:
        low, high = (None, None) if one.interval is None else one.interval
        text = f"{labels[one.round]}: {score_text(one)}, n={one.n:,}"
        href = answers_at(one.round)
        points.append(Point(float(one.round), one.score, low, high, text, href))
    ticks = tuple(Tick(float(one.round), str(one.round + 1)) for one in spread(drawn, MOST_TICKS))
    chart = LineChart(
        Axis("checkpoint", ticks=ticks),
        SCORE_AXIS,
        [Series("score", points, is_joined=False)],
        Level(f"threshold {view.gate.threshold:g}", view.gate.threshold),
    )
    description = f"In the order in which they were named; bars are the {LEVEL:.0%} intervals."
    if len(drawn) < len(results):
        description += f" {len(drawn)} of {len(results)} are drawn; the table has all of them."
    rows = [[str(one.round + 1), labels[one.round], *scores_cells(one)] for one in results]
    columns = [Column("number", True), Column("checkpoint"), *SCORE_COLUMNS]
    numbers = Table("Scores", columns, rows, is_folded=True)
    return Figure("Score by checkpoint", description, chart, numbers)


def _table(results: list[EvalResult], labels: dict[int, str]) -> Table:
    first, rows = results[0], []
    for one in results:
        change = "" if one is first else gain_text(gain_of(one, first))
        weights = one.checkpoint or "the untouched base model"
        rows.append([labels[one.round], weights, score_text(one), f"{one.n:,}", change])
    columns = [
        Column("checkpoint"),
        Column("weights"),
        Column("score"),
        Column("n", True),
        Column("change on the first"),
    ]
    return Table("Each checkpoint", columns, rows)


def _tasks(results: list[EvalResult], labels: dict[int, str]) -> Table:
    rows = [
        [labels[one.round], task.name, score_text(task), f"{task.n:,}"]
        for one in results
        for task in one.tasks
    ]
    rows += [
        [labels[one.round], loss.name, f"loss {loss.nll:.4f} a token", f"{loss.n:,}"]
        for one in results
        for loss in one.held_out
    ]
    columns = [Column("checkpoint"), Column("task"), Column("score"), Column("n", True)]
    return Table("By task", columns, rows, is_folded=len(rows) > MOST_TICKS)

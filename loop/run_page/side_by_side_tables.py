"""The tables of a comparison of runs: checkpoints, differences, tasks, questions, topics, cost.

Nothing is computed here but how many of what there are; what is left out is said to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from errors import one_line
from ledger.records import Usage
from loop.reports.lines import money
from loop.run_page.side_by_side_scores import (
    Changed,
    Pair,
    Side,
    against,
    changes_of,
    other_task,
    p_text,
    task_pairs,
)
from pages.document import Block, Bullets, Column, Figure, Paragraph, Section, Table
from pages.forest import ForestChart, ForestRow
from pages.ticks import Axis
from scores.results import LEVEL, EvalResult, topic_scores
from scores.wording import ROLE_NAMES, interval_text, score_text, signed_text

INTERVAL = f"{LEVEL:.0%} interval"
NOT_MEASURED = "not measured"
MAX_QUESTIONS = 50  # of one table; the files of the evaluations hold all
MAX_UNFOLDED = 30  # rows of a table
TEXT_CHARS = 240


@dataclass(frozen=True)
class Told:
    """A run and its checkpoint as the tables tell of them."""

    label: str
    run_label: str
    place: str
    state: str
    detail: str
    result: EvalResult | None
    baseline: EvalResult | None
    test: EvalResult | None
    sentence: str | None
    usage: Usage
    cost_usd: float | None  # None without a price table
    is_local: bool  # on this machine, where nothing is paid for
    num_steps: int
    num_rounds: int


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoints_section(told: Sequence[Told]) -> Section:
    """One row a checkpoint."""
    columns = [
        Column("checkpoint"),
        Column("score", True),
        Column(INTERVAL, True),
        Column("questions", True),
        Column("cut off", True),
        Column("malformed", True),
        Column("failed", True),
        Column("what the run began with", True),
        Column("sealed test"),
    ]
    rows = [
        [one.label, *_result_cells(one.result), _score(one.baseline), _test(one)] for one in told
    ]
    caption = "The checkpoints that are compared"
    places = [f"{one.run_label}: {one.place}" for one in told]
    blocks: list[Block] = [Table(caption, columns, rows), Bullets(list(dict.fromkeys(places)))]
    return Section("Checkpoints", blocks, anchor="checkpoints")


def _result_cells(result: EvalResult | None) -> list[str]:
    if result is None:
        return [NOT_MEASURED, "", "", "", "", ""]
    counts = (result.n, result.num_truncated, result.num_malformed, result.num_failed)
    return [f"{result.score:.4f}", interval_text(result.interval), *(f"{n:,}" for n in counts)]


def _score(result: EvalResult | None) -> str:
    return NOT_MEASURED if result is None else f"{result.score:.4f}"


def _test(one: Told) -> str:
    if one.test is None:
        return "not opened"
    return f"{score_text(one.test)}, n={one.test.n}, round {one.test.round}"


# --- differences ----------------------------------------------------------------------------------


def differences_section(sides: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[Section]:
    """All pairs, and a chart of the others against the first that was named."""
    if not pairs:
        return
    compared = [pair for pair in pairs if pair.mean is not None]
    blocks: list[Block] = []
    if compared:
        if len(sides) > 2:
            blocks.append(_forest(sides[0].label, pairs))
        blocks.append(_pairs_table(compared))
    left_out = [pair.sentence for pair in pairs if pair.mean is None]
    if left_out:
        blocks += [Paragraph("What is not compared, and why:"), Bullets(left_out)]
    yield Section("Differences of the scores", blocks, anchor="differences")


def _forest(reference: str, pairs: Sequence[Pair]) -> Figure | Paragraph:
    shown = [pair for pair in against(reference, pairs) if pair.mean is not None]
    if not shown:
        return Paragraph(f"Nothing is compared with {reference}.")
    rows = [
        ForestRow(
            pair.one,
            pair.mean,
            *((None, None) if pair.interval is None else pair.interval),
            f"{signed_text(pair.mean)} {interval_text(pair.interval, signed=True)}, "
            f"{p_text(pair.p_holm)}",
            pair.is_told_apart,
        )
        for pair in shown
        if pair.mean is not None
    ]
    chart = ForestChart(
        Axis(f"score less that of {reference}"), rows, "told apart (p by Holm below 0.05)", "not"
    )
    return Figure(
        f"Against {reference}",
        "It was named first. Each difference is paired question by question.",
        chart,
        _pairs_table(shown),
    )


def _pairs_table(pairs: Sequence[Pair]) -> Table:
    columns = [
        Column("pair"),
        Column("difference", True),
        Column(INTERVAL, True),
        Column("p", True),
        Column("p (Holm)", True),
        Column("questions", True),
        Column("told apart"),
        Column("method"),
    ]
    rows = [
        [
            f"{pair.one} less {pair.other}",
            signed_text(pair.mean),
            interval_text(pair.interval, signed=True),
            p_text(pair.p_value).removeprefix("p ").removeprefix("= "),
            p_text(pair.p_holm).removeprefix("p ").removeprefix("= "),
            f"{pair.num_questions:,}",
            "yes" if pair.is_told_apart else "no",
            pair.method,
        ]
        for pair in pairs
        if pair.mean is not None
    ]
    note = "p (Holm) is adjusted for all pairs that are compared; intervals are not."
    title, is_folded = "Paired differences of the score", len(rows) > MAX_UNFOLDED
    return Table(title, columns, rows, is_folded=is_folded, note=note)


# --- tasks ----------------------------------------------------------------------------------------


def tasks_section(sides: Sequence[Side]) -> Iterator[Section]:
    """Each task, also those beside the score, against the first checkpoint's; held-out losses."""
    if len(sides) < 2:
        return
    first, columns = sides[0], _task_columns()
    rows = [
        [
            f"{task.name}{ROLE_NAMES[task.role]}",
            first.label,
            f"{task.score:.4f}",
            interval_text(task.interval),
            f"{task.n:,}",
            "",
            "",
            "",
        ]
        for task in first.result.tasks
    ]
    for one in task_pairs(sides):
        moved = one.moved
        change = ["", "", one.why_not]
        if moved is not None:
            ends = interval_text(moved.interval, signed=True)
            change = [f"{signed_text(moved.mean)} {ends}", p_text(moved.p_value), ""]
        score = [f"{one.task.score:.4f}", interval_text(one.task.interval), f"{one.task.n:,}"]
        rows.append([f"{one.task.name}{ROLE_NAMES[one.task.role]}", one.label, *score, *change])
    rows.sort(key=lambda row: row[0])
    note = f"Differences are from {first.label}; p is of each by itself."
    blocks: list[Block] = [Table("Each task of each checkpoint", columns, rows, note=note)]
    losses = [
        [loss.name, side.label, f"{loss.nll:.4f}", f"{loss.perplexity:.4g}", f"{loss.n:,}"]
        for side in sides
        for loss in side.result.held_out
    ]
    if losses:
        columns = [
            Column("held-out rows"),
            Column("checkpoint"),
            Column("loss a token", True),
            Column("perplexity", True),
            Column("rows", True),
        ]
        losses.sort(key=lambda row: row[0])
        blocks.append(Table("Held-out losses", columns, losses))
    yield Section("Tasks", blocks, anchor="tasks")


def _task_columns() -> list[Column]:
    return [
        Column("task"),
        Column("checkpoint"),
        Column("score", True),
        Column(INTERVAL, True),
        Column("questions", True),
        Column("difference", True),
        Column("p", True),
        Column("not compared, since"),
    ]


# --- questions ------------------------------------------------------------------------------------


def questions_section(sides: Sequence[Side]) -> Iterator[Section]:
    """Which questions one checkpoint got right and the first one did not, and the other way."""
    if len(sides) < 2:
        return
    first, *others = sides
    counts, tables = [], []
    for side in others:
        for task in side.result.tasks:
            if other_task(task.name, side.result, first.result):
                continue
            changes = changes_of(task.name, first.result, side.result)
            found = [changes.num_same_right, len(changes.gained), len(changes.lost)]
            numbers = [f"{number:,}" for number in (*found, changes.num_same_other)]
            counts.append([side.label, task.name, *numbers])
            for better, worse, some in (
                (side.label, first.label, changes.gained),
                (first.label, side.label, changes.lost),
            ):
                if some:
                    title = f"{task.name}: {better} scored higher than {worse}"
                    tables.append(_questions(title, (first.label, side.label), some))
    if not counts:
        told = f"No task was asked of another checkpoint as it was of {first.label}."
        yield Section("Questions", [Paragraph(told)], anchor="questions")
        return
    columns = [
        Column("checkpoint"),
        Column("task"),
        Column("both right", True),
        Column(f"higher than {first.label}", True),
        Column("lower", True),
        Column("both alike, not right", True),
    ]
    blocks: list[Block] = [Table(f"Answers against those of {first.label}", columns, counts)]
    yield Section("Questions", [*blocks, *tables], anchor="questions")


def _questions(title: str, labels: tuple[str, str], changes: Sequence[Changed]) -> Table:
    columns = [
        Column("question"),
        Column("expected"),
        Column(f"answer of {labels[0]}"),
        Column("its score", True),
        Column(f"answer of {labels[1]}"),
        Column("its score", True),
    ]
    rows = [
        [
            one_line(one.question, TEXT_CHARS),
            one_line(one.expected, TEXT_CHARS),
            one_line(one.answer_before, TEXT_CHARS),
            f"{one.before:.4g}",
            one_line(one.answer_after, TEXT_CHARS),
            f"{one.after:.4g}",
        ]
        for one in changes[:MAX_QUESTIONS]
    ]
    num = len(changes)
    note = f"Texts are cut at {TEXT_CHARS} characters; of repeats the first answer is shown."
    if num > MAX_QUESTIONS:
        note += f" The first {MAX_QUESTIONS} of {num:,}; the runs' evals/ folders have all."
    return Table(title, columns, rows, is_folded=True, note=note)


# --- topics, decisions, cost ----------------------------------------------------------------------


def topics_section(sides: Sequence[Side]) -> Iterator[Section]:
    """The mean score of each topic, where questions have any."""
    found = [topic_scores(side.result.samples) for side in sides]
    topics = sorted({topic for one in found for topic in one})
    if not topics:
        return
    columns = [Column("topic"), *(Column(side.label, True) for side in sides)]
    rows = []
    for topic in topics:
        cells = []
        for one in found:
            score = one.get(topic)
            cells.append(
                NOT_MEASURED
                if score is None
                else f"{1 - score.num_failures / score.n:.2f} (n={score.n:,})"
            )
        rows.append([one_line(topic, TEXT_CHARS), *cells])
    is_folded = len(rows) > MAX_UNFOLDED
    note = "The mean score, and n, the number of answers; a topic of few says little."
    table = Table("Score by topic", columns, rows, is_folded=is_folded, note=note)
    yield Section("Topics", [table], anchor="topics")


def decisions_section(told: Sequence[Told]) -> Section:
    """How each run stands, and the sentence of its last decision."""
    of_runs = {one.run_label: one for one in told}
    columns = [Column("run"), Column("state"), Column("last decision")]
    rows = [
        [one.run_label, _state(one), one.sentence or "No round has been decided yet."]
        for one in of_runs.values()
    ]
    table = Table("How each run ended, or stands", columns, rows)
    return Section("Decisions", [table], anchor="decisions")


def _state(one: Told) -> str:
    return f"{one.state}: {one_line(one.detail, TEXT_CHARS)}" if one.detail else one.state


def cost_section(told: Sequence[Told]) -> Section:
    """What each run used, all that was done twice included."""
    of_runs = {one.run_label: one for one in told}
    columns = [
        Column("run"),
        Column("rounds", True),
        Column("steps", True),
        Column("tokens trained", True),
        Column("tokens read", True),
        Column("tokens sampled", True),
        Column("minutes of work", True),
        Column("US dollars", True),
    ]
    rows = []
    for one in of_runs.values():
        used = one.usage
        free = "none" if one.is_local else "no prices given"
        cost = free if one.cost_usd is None else money(one.cost_usd).removeprefix("$")
        counts = (
            one.num_rounds,
            one.num_steps,
            used.train_tokens,
            used.prompt_tokens,
            used.sampled_tokens,
        )
        rows.append([one.run_label, *(f"{n:,}" for n in counts), f"{used.minutes:.1f}", cost])
    note = "With what was sent and is recorded nowhere, at the most: it was paid for in vain."
    table = Table("What each run used", columns, rows, note=note)
    return Section("Cost", [table], anchor="cost")

"""Of a study's report: scores over what varied, and over the tokens that were trained on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pages.charts import Level, LineChart, Point, Series
from pages.document import Block, Column, Figure, Paragraph, Section, Table
from pages.ticks import Axis, Scale, Span, Tick, number_text
from scores.intervals import Interval
from scores.wording import interval_text
from studies.findings.findings import ArmFinding, Findings
from studies.findings.outcome import ArmOutcome, CurvePoint, StudyOutcome, TrialOutcome
from studies.reports.report_words import (
    INTERVAL,
    count_words,
    counted,
    ends_words,
    num_questions,
    params_words,
    score_words,
    value_words,
)

SCORE_AXIS = Axis("score (0 to 1)", limits=Span(0.0, 1.0))
MOST_SERIES = 12  # in one chart; more cannot be told apart by eye
LOG_RATIO = 8  # from which another variable is drawn on a logarithmic axis


DROPPED = "dropped early"


class _Arm(NamedTuple):
    found: ArmFinding
    params: Mapping[str, Any]
    is_dropped: bool  # its score is of less training than the others', so no line joins it


def curves_section(outcome: StudyOutcome, findings: Findings) -> Section:
    """A chart of everything that varies in numbers; nothing of what does not."""
    found = {one.name: one for one in findings.arms}
    arms = [  # as the study lists them, so that a legend has its values in order
        _Arm(found[arm.name], arm.params, not arm.measured)
        for arm in outcome.arms
        if arm.is_trained and arm.name in found
    ]
    level = next(
        (Level(f"control: {a.name}", a.score) for a in findings.arms if a.name == findings.control),
        None,
    )
    blocks: list[Block] = [*_over_settings(arms, level), *_over_tokens(outcome, level)]
    if not blocks:
        blocks = [Paragraph("Nothing that can be drawn varies between the arms with results.")]
    return Section("Curves", blocks)


def _over_settings(arms: Sequence[_Arm], level: Level | None) -> Iterator[Figure]:
    def rank(arm: _Arm) -> float | None:
        return _number(arm.params.get("lora_rank"))

    sizes = {arm.found.name: arm.found.num_lora_params for arm in arms}
    if any(size is not None for size in sizes.values()):
        ticks = [
            Tick(float(size), number_text(size), "" if rank(arm) is None else f"rank {rank(arm):g}")
            for arm in arms
            if (size := sizes[arm.found.name]) is not None
        ]
        axis = Axis("LoRA parameters, trained", "log2", tuple(dict.fromkeys(ticks)))
        yield from _over(axis, arms, lambda arm: sizes[arm.found.name], "lora_rank", level)
    else:
        axis = _plain_axis("LoRA rank", "log2", [rank(arm) for arm in arms])
        yield from _over(axis, arms, rank, "lora_rank", level)
    rates = [arm.found.learning_rate for arm in arms]
    axis = _plain_axis("learning rate", "log10", rates)
    yield from _over(axis, arms, lambda arm: arm.found.learning_rate, "learning_rate", level)
    names = dict.fromkeys(name for arm in arms for name in arm.params)
    for name in names:
        if name not in ("lora_rank", "learning_rate"):
            yield from _over_variable(name, arms, level)


def _over_variable(name: str, arms: Sequence[_Arm], level: Level | None) -> Iterator[Figure]:
    values = [_number(arm.params.get(name)) for arm in arms]
    known = [value for value in values if value is not None]
    if known:
        is_wide = min(known) > 0 and max(known) / min(known) >= LOG_RATIO
        axis = _plain_axis(name, "log2" if is_wide else "linear", values)
        yield from _over(axis, arms, lambda arm: _number(arm.params.get(name)), name, level)


def _plain_axis(title: str, scale: Scale, values: Sequence[float | None]) -> Axis:
    """Marked at the values themselves: they are what was tried."""
    ticks = {Tick(value, number_text(value)) for value in values if value is not None}
    return Axis(title, scale, tuple(sorted(ticks)))


def _number(value: Any) -> float | None:
    """A value as a number that can be drawn."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with contextlib.suppress(OverflowError):  # whole numbers have no end, axes do
        return float(value) if math.isfinite(value) else None
    return None


def _over(
    axis: Axis,
    arms: Sequence[_Arm],
    x_of: Callable[[_Arm], float | None],
    variable: str,
    level: Level | None,
) -> Iterator[Figure]:
    """A chart over one setting, where it varies; a series for each combination of the others."""
    placed = [(arm, x) for arm in arms if (x := x_of(arm)) is not None]
    if len({x for _, x in placed}) < 2:
        return
    varying = [
        name
        for name in dict.fromkeys(name for arm in arms for name in arm.params)
        if name != variable and len({value_words(arm.params.get(name)) for arm in arms}) > 1
    ]
    series: dict[str, list[Point]] = {}
    for arm, x in placed:
        others = {name: arm.params[name] for name in varying if name in arm.params}
        parts = [params_words(others), DROPPED if arm.is_dropped else ""]
        name = ", ".join(part for part in parts if part) or "trained arms"
        series.setdefault(name, []).append(_arm_point(arm.found, x))
    title = f"Score over {axis.title}"
    named = [
        Series(name, points, is_joined=not name.endswith(DROPPED))
        for name, points in series.items()
    ]
    low, *_, high = sorted(score_words(arm.found.score) for arm, _ in placed)
    scores = f"all with score {low}" if low == high else f"scores {low} to {high}"
    words = f"{counted(len(placed), 'arm')}, {scores}."
    yield _figure(title, words, LineChart(axis, SCORE_AXIS, named, level), _numbers(axis, placed))


def _numbers(axis: Axis, placed: Sequence[tuple[_Arm, float]]) -> Table:
    columns = [
        Column("arm"),
        Column(axis.title, True),
        Column("score (0 to 1)", True),
        Column(INTERVAL, True),
        Column("n (questions)", True),
        Column("seeds", True),
    ]
    rows = [
        [
            arm.found.name,
            f"{x:,.0f}" if x >= 1e4 else f"{x:g}",
            score_words(arm.found.score),
            ends_words(arm.found.interval),
            count_words(num_questions(arm.found)),
            str(arm.found.num_seeds),
        ]
        for arm, x in sorted(placed, key=lambda pair: pair[1])
    ]
    return Table(f"Score over {axis.title}: numbers", columns, rows)


def _arm_point(arm: ArmFinding, x: float) -> Point:
    low, high = (None, None) if arm.interval is None else arm.interval
    text = (
        f"{arm.name}: {score_words(arm.score)} {interval_text(arm.interval)}, "
        f"n={num_questions(arm)}, {counted(arm.num_seeds, 'seed')}"
    )
    return Point(x, arm.score, low, high, text)


def _figure(title: str, words: str, chart: LineChart, numbers: Table) -> Figure:
    """A figure of as many series as can be told apart; the table has all of them."""
    names = list(dict.fromkeys(one.name for one in chart.series))
    if len(names) > MOST_SERIES:
        shown = set(names[:MOST_SERIES])
        kept = [one for one in chart.series if one.name in shown]
        chart = replace(chart, series=kept)
        words += f" The first {MOST_SERIES} of {len(names)} series are drawn; the table has all."
    return Figure(title, words, chart, numbers)


# --- over tokens ----------------------------------------------------------------------------------


def _over_tokens(outcome: StudyOutcome, level: Level | None) -> Iterator[Figure]:
    """A line for each trial that was evaluated at two amounts of training or more."""
    drawn = [
        (arm, trial)
        for arm in outcome.arms
        for trial in arm.trials
        if len({point.num_tokens for point in trial.curve}) > 1
    ]
    if not drawn:
        return
    series = [
        Series(arm.name, [_curve_point(trial, point) for point in trial.curve])
        for arm, trial in drawn
    ]
    columns = [
        Column("run"),
        Column("arm"),
        Column("seed", True),
        Column("round", True),
        Column("step", True),
        Column("tokens trained on", True),
        Column("score (0 to 1)", True),
        Column(INTERVAL, True),
    ]
    rows = [row for arm, trial in drawn for row in _curve_rows(arm, trial)]
    title = "Score over tokens trained on"
    words = f"{counted(len(drawn), 'trial')}, a line each, after every round that was evaluated."
    chart = LineChart(Axis("tokens trained on"), SCORE_AXIS, series, level, is_spread=False)
    yield _figure(title, words, chart, Table(f"{title}: numbers", columns, rows))


def _ends(point: CurvePoint) -> Interval | None:
    if point.low is None or point.high is None:
        return None
    return Interval(point.low, point.high)


def _curve_point(trial: TrialOutcome, point: CurvePoint) -> Point:
    text = (
        f"{trial.run_id}, round {point.round}: {score_words(point.score)} "
        f"{interval_text(_ends(point))}, {point.num_tokens:,} tokens"
    )
    return Point(float(point.num_tokens), point.score, point.low, point.high, text)


def _curve_rows(arm: ArmOutcome, trial: TrialOutcome) -> Iterator[list[str]]:
    for point in trial.curve:
        yield [
            trial.run_id,
            arm.name,
            "none" if trial.seed is None else str(trial.seed),
            str(point.round),
            str(point.step),
            f"{point.num_tokens:,}",
            score_words(point.score),
            ends_words(_ends(point)),
        ]

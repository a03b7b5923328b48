"""The learning rate, where it comes from, and the schedule that will really be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import hyperparam_utils
from errors import ConfigError
from hyperparam_utils import RunSteps, Schedule
from loop.plan_page.view import Part, Planned
from loop.planning.inputs import counted
from loop.planning.methods import words_for
from loop.planning.page import describe_schedule, schedule_table
from loop.planning.steps import passes_of
from pages.charts import LineChart, Point, Series
from pages.document import Column, Figure, Table
from pages.ticks import Axis
from scores.measures import SFT
from scores.wording import share_text

NUM_SHOWN = 10  # rounds in the terminal; the page has all
MOST_POINTS = 200
FLAT = 0.9  # of its highest rate, which a rate that is as good as constant never leaves


class RoundRates(NamedTuple):
    """The learning rates of a round, where every threshold before it was missed."""

    round: int
    first_step: int
    last_step: int
    first_lr: float
    last_lr: float
    peak_step: int  # where the rate is highest: the first step, or the end of the warm-up
    peak_lr: float


def rates_of(steps: RunSteps, schedule: Schedule) -> Iterator[RoundRates]:
    """Yield the rounds of a run whose thresholds are all missed."""
    for round_no in range(1, steps.max_rounds + 1):
        first = (round_no - 1) * steps.per_round
        last = min(first + steps.per_round, steps.total) - 1
        if first > last:
            return
        peak = min(max(first, schedule.warmup_steps - 1), last)
        lrs = [schedule.lr(step, round_no - 1) for step in (first, last, peak)]
        yield RoundRates(round_no, first, last, lrs[0], lrs[1], peak, lrs[2])


def full_finetuning_factor(base_model: str) -> float:
    """What a full fine-tuning rate is multiplied by for LoRA, by the cookbook."""
    from tinker_cookbook.hyperparam_utils import get_lora_lr_over_full_finetune_lr

    return float(get_lora_lr_over_full_finetune_lr(base_model))


def recommended(view: Planned) -> float | None:
    """The cookbook's rate for a hub model; None for a directory, and where it has none."""
    if view.inputs.model_dir is not None:
        return None
    try:
        return hyperparam_utils.recommended_lr(view.config.base_model)
    except ConfigError:
        return None


def constancy(steps: RunSteps, schedule: Schedule) -> str:
    """How far the schedule is from a constant rate, and what would make it one."""
    end = schedule.lr(steps.total - 1, 0) / schedule.learning_rate
    why = []
    if schedule.warmup_steps:
        why.append(f"it rises for {counted(schedule.warmup_steps, 'step')}")
    if end < FLAT:
        why.append(
            f"its cosine over max_steps {schedule.max_steps} falls to {share_text(end)} by the "
            "last step (a larger max_steps keeps it up)"
        )
    if schedule.lr_decay < 1 and steps.max_rounds > 1:
        why.append(
            f"each missed threshold multiplies it by {schedule.lr_decay:g} (lr_decay 1 does not)"
        )
    told = f"here {', and '.join(why)}" if why else "here it is as good as constant"
    return f"a constant rate is usually fine unless there is a reason for another; {told}"


def rates_part(view: Planned) -> Part:
    """The steps, the passes and the rates."""
    inputs, config = view.inputs, view.config
    train = inputs.split.train if view.plan is None else view.plan.train.examples
    pool = inputs.split.pool if view.plan is None else view.plan.pool.examples
    steps, schedule = inputs.settled
    factor, known = full_finetuning_factor(config.base_model), recommended(view)
    rates = list(rates_of(steps, schedule))
    lines = [*describe_schedule(inputs, train, pool)]
    lines += _of_other_rates(schedule, factor, known, is_own=words_for(config) is SFT)
    passes = passes_of(config, steps, train, pool, inputs.train_weights)
    facts: dict[str, Any] = {
        "num_steps": steps.total,
        "steps_per_round": steps.per_round,
        "max_rounds": steps.max_rounds,
        "warmup_steps": schedule.warmup_steps,
        "learning_rate": schedule.learning_rate,
        "learning_rate_source": inputs.learning_rate_source,
        "recommended_learning_rate": known,
        "lora_over_full_finetuning": factor,
        "lr_decay": schedule.lr_decay,
        "min_lr": schedule.min_lr,
        "rounds": [one._asdict() for one in rates],
        "passes": [one._asdict() for one in passes],
    }
    details = [constancy(steps, schedule)]
    shown = _table_lines(list(schedule_table(inputs)))
    title, blocks = "Steps and learning rate", [_figure(rates)]
    return Part("schedule", title, lines, facts, blocks, details, shown)


def _of_other_rates(
    schedule: Schedule, factor: float, known: float | None, *, is_own: bool
) -> Iterator[str]:
    yield (
        f"a rate of full fine-tuning times {factor:g} is LoRA's: {schedule.learning_rate:g} is "
        f"{schedule.learning_rate / factor:g} there"
    )
    if known is not None:
        of = "" if is_own else " and supervised rows"
        yield f"the cookbook's rate for this model{of} is {known:.2g} (use_recommended_lr takes it)"


def _table_lines(table: list[str]) -> list[str]:
    """The schedule; of many rounds the first ones and the last."""
    if len(table) - 1 <= NUM_SHOWN:
        return table
    left = len(table) - 1 - NUM_SHOWN
    return [*table[:NUM_SHOWN], f"  ... {left:,} rounds more ...", table[-1]]


def _figure(rates: list[RoundRates]) -> Figure:
    """The rates by step; of many rounds every so many-th is drawn, and the table has all."""
    every = math.ceil(len(rates) / (MOST_POINTS / 2))
    drawn = {
        step: lr
        for one in [*rates[:-1:every], *rates[-1:]]
        for step, lr in (
            (one.first_step, one.first_lr),
            (one.peak_step, one.peak_lr),
            (one.last_step, one.last_lr),
        )
    }
    points = [
        Point(float(step), lr, None, None, f"step {step}: {lr:.4g}") for step, lr in drawn.items()
    ]
    columns = [Column("Round", True), Column("Steps"), Column("First", True), Column("Last", True)]
    rows = [
        (
            str(one.round),
            f"{one.first_step}-{one.last_step}",
            f"{one.first_lr:.4g}",
            f"{one.last_lr:.4g}",
        )
        for one in rates
    ]
    return Figure(
        "Learning rate by step.",
        "At the first and last step of each round and its highest, if every threshold is missed.",
        LineChart(Axis("step"), Axis("learning rate"), [Series("learning rate", points)]),
        Table("The learning rate of each round", columns, rows, is_folded=True),
    )

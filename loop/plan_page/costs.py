"""Tokens, time and dollars of the whole run, each at the most, and of what nothing is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from evaluation.held_out import HeldOutFile
from loop.plan_page.view import Part, Planned
from loop.planning.inputs import counted
from loop.planning.methods import words_for
from loop.planning.plan import Plan
from loop.planning.steps import most_in_flight
from loop.planning.tokens import RunTokens, describe_tokens, eval_tokens, tokens_of
from loop.reports.lines import money, seconds_text
from pages.document import Block, Column, Table
from scores.measures import DPO, ON_POLICY, RL
from settings.groups import ModelPrices

FOR_EVER_S = 1e10  # beyond which only the power of ten is of use


class InVain(NamedTuple):
    """Steps that may be in flight, and paid for, behind one that turns out to be bad, and about how
    many tokens they come to: trained on, and read and sampled for them and between them."""

    steps: int
    tokens: int
    prompt: int
    sampled: int


def in_vain(plan: Plan, tokens: RunTokens) -> InVain:
    """What a loss that is not finite may cost; a round ends with nothing in flight. `tokens` are
    those of the whole run."""
    config, steps = plan.config, plan.steps
    number = min(most_in_flight(config), steps.per_round, steps.total) - 1
    method, prompt, sampled = words_for(config), 0, 0
    if method is DPO:
        prompt = tokens.trained  # each pair is read before its loss; the reference has read it
    elif method in (RL, ON_POLICY):
        prompt, sampled = tokens.prompt_to_train, tokens.sampled_to_train
    if (every := config.evaluation.held_out_every_steps) is not None:
        works = [one for one in plan.tasks if isinstance(one.work, HeldOutFile)]
        prompt += steps.total // every * sum(eval_tokens(plan, one).num_prompt for one in works)
    behind = (round(number * one / steps.total) for one in (tokens.trained, prompt, sampled))
    return InVain(number, *behind)


class Dollars(NamedTuple):
    """What a run costs at the most, by kind; cached tokens are counted as uncached ones."""

    train: float
    prefill: float
    sample: float

    @property
    def total(self) -> float:
        return self.train + self.prefill + self.sample


def dollars_of(tokens: RunTokens, prices: ModelPrices) -> Dollars | None:
    """None for prices with which no number holds the sum."""
    dollars = Dollars(
        tokens.trained / 1e6 * prices.train,
        tokens.prompt / 1e6 * prices.prefill,
        tokens.sampled / 1e6 * prices.sample,
    )
    return dollars if math.isfinite(dollars.total) else None


def seconds_of(view: Planned, tokens: RunTokens) -> float | None:
    """What the run takes at the most at the speed of an earlier one; None where a speed that it
    needs was not measured."""
    if view.earlier is None:
        return None
    speed = view.earlier.speed
    total = 0.0
    for number, per_s in (
        (tokens.trained, speed.trained_per_s),
        # A step's own sampling and reading is in the time of its training.
        (tokens.sampled - tokens.sampled_to_train, speed.sampled_per_s),
    ):
        if number and per_s is None:
            return None
        total += number / per_s if per_s else 0.0
    return total


def costs_part(view: Planned) -> Part:
    """Tokens, time and price."""
    title = "Tokens, time and price"
    if view.plan is None:
        line = "tokens, time and price: not known, as there is no tokenizer on this machine"
        return Part("cost", title, [line], {"tokens": None, "seconds": None, "dollars": None})
    tokens = tokens_of(view.plan)
    seconds, prices = seconds_of(view, tokens), _prices_of(view)
    dollars = None if prices is None else dollars_of(tokens, prices)
    lost = in_vain(view.plan, tokens)
    lines = [describe_tokens(view.plan, tokens), *_in_vain_lines(lost), _time_line(view, seconds)]
    lines += _price_lines(view, tokens, dollars)
    table = view.config.budget.prices
    facts: dict[str, Any] = {
        "tokens": tokens._asdict(),
        "in_vain": lost._asdict(),
        "seconds": seconds,
        "speed_of": None
        if view.earlier is None
        else {"run": view.earlier.run, **view.earlier.speed._asdict()},
        "prices": None
        if table is None or prices is None
        else {"as_of": table.as_of, "source": table.source, **prices.model_dump()},
        "dollars": None if dollars is None else {**dollars._asdict(), "total": dollars.total},
        "dollars_per_round": None if dollars is None else dollars.total / _num_rounds(tokens),
    }
    blocks: list[Block] = []
    if dollars is not None and prices is not None:
        blocks = [_price_table(tokens, prices, dollars)]
    return Part("cost", title, lines, facts, blocks)


def _in_vain_lines(lost: InVain) -> Iterator[str]:
    if lost.steps:
        steps = counted(lost.steps, "step")
        more, are = (
            ("1 more step", "is") if lost.steps == 1 else (f"{lost.steps} more steps", "are")
        )
        yield (
            f"steps in flight: a loss that is not finite is seen up to {steps} late, so "
            f"that up to {more}, about {lost.tokens:,} trained, {lost.prompt:,} prompt and "
            f"{lost.sampled:,} sampled tokens, {are} paid for in vain "
            "(data.max_steps_in_flight; how many there are follows from the delay)"
        )


def _num_rounds(tokens: RunTokens) -> int:
    return tokens.num_evaluations - 1


def _prices_of(view: Planned) -> ModelPrices | None:
    table = view.config.budget.prices
    return None if table is None else table.usd_per_million_tokens.get(view.config.base_model)


def _time_line(view: Planned, seconds: float | None) -> str:
    if not view.is_embedded:
        return "time: not known; it is the service's"
    if view.earlier is None or seconds is None:
        return "time: not known: no run of this model and adapter is in runs/ yet"
    speed = view.earlier.speed
    rates = [
        f"{rate:,.0f} {what} tokens a second"
        for rate, what in ((speed.trained_per_s, "trained"), (speed.sampled_per_s, "sampled"))
        if rate is not None
    ]
    return (
        f"time at most: about {_time_words(seconds)}, by the {' and '.join(rates)} of "
        f"{view.earlier.run}, the newest run of this model and adapter here"
    )


def _time_words(seconds: float) -> str:
    return seconds_text(seconds) if seconds < FOR_EVER_S else f"{seconds / 3600:.1g} h"


def _price_lines(view: Planned, tokens: RunTokens, dollars: Dollars | None) -> Iterator[str]:
    config = view.config
    table = config.budget.prices
    if dollars is None or table is None:
        if view.is_embedded and table is None:
            yield "price: none, as it trains on this machine"
        else:
            yield (
                f"price: not known, as {_why_no_price(view)}, and no prices are built in, because "
                "they change (budget.prices takes a table or the path of one)"
            )
        return
    source = "" if table.source is None else f", {table.source}"
    yield (
        f"price at most: {money(dollars.total)} ({money(dollars.train)} trained, "
        f"{money(dollars.prefill)} read, {money(dollars.sample)} sampled), "
        f"{money(dollars.total / _num_rounds(tokens))} a round, by the prices of "
        f"{table.as_of}{source}; what is read counts as not cached"
    )
    if config.budget.usd is not None and dollars.total > config.budget.usd:
        yield (
            f"warning: the run may come to more than budget.usd {config.budget.usd:g} allows, and "
            "then ends before a round that, like the dearest so far, would exceed it"
        )
    if config.evaluation.grader_model is not None:
        yield "price: what the grader reads and says is not in it"


def _why_no_price(view: Planned) -> str:
    if view.config.budget.prices is None:
        return "budget.prices is not set"
    if _prices_of(view) is None:
        return "budget.prices has no entry for base_model"
    return "the prices in budget.prices come to more than a number holds"


def _price_table(tokens: RunTokens, prices: ModelPrices, dollars: Dollars) -> Table:
    cached = prices.cached_prefill
    rows = [
        ("trained", f"{tokens.trained:,}", f"{prices.train:g}", money(dollars.train)),
        ("read (prefill)", f"{tokens.prompt:,}", f"{prices.prefill:g}", money(dollars.prefill)),
        (
            "read from a cache",
            "not counted",
            "not given" if cached is None else f"{cached:g}",
            "in the line above",
        ),
        ("sampled", f"{tokens.sampled:,}", f"{prices.sample:g}", money(dollars.sample)),
    ]
    columns = [
        Column("Tokens"),
        Column("At most", True),
        Column("Dollars a million", True),
        Column("Dollars at most", True),
    ]
    how = (
        "Sampled answers that are trained on count at their longest. "
        if tokens.mean_trained is None
        else f"With mean rows {tokens.mean_trained:,} tokens are trained on. "
    )
    note = (
        f"{how}No service says how many tokens it had cached, so all that is read counts in full."
    )
    return Table("What the run costs at the most", columns, rows, note=note)

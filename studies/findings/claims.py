"""What a study's hypothesis claims of a variable, held against the scores.

Contrasts of the variable's values are taken per seed and question, averaged over the other
variables, and judged by their 95 % interval: supported where it lies wholly on the claimed side,
not supported where it lies on the other or excludes an effect of `SMALLEST`, else undecided. With
fewer than three seeds nothing is claimed of a setting.

- rises, falls: the rise of the least-squares line over log2 of the values, from the first to the
  last, cut to what a difference of scores can be.
- diminishing: what the lower part of the range gains, less what the upper part's slope would bring
  for as much added; and the lower part has to gain. For lora_rank what is added is counted in LoRA
  parameters, where they are known.
- differs: two values are told apart, Holm-adjusted over the values' pairs.
- same: every pair's interval lies within `SMALLEST` on both sides (equivalence).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scores.comparisons import (
    MIN_SEEDS,
    Crossed,
    Parts,
    Pool,
    bounds_of,
    crossed,
    half_weights,
    holm,
    shared,
    trend_weights,
    weighted,
)
from scores.intervals import Interval, mean
from scores.power import MAX_SEEDS, needed_to_show
from scores.wording import interval_text
from studies.findings.findings import ClaimFinding, Verdict
from studies.findings.measured import (
    MeasuredArm,
    clusters_of,
    known_variance,
    p_text,
    paired,
    pool_of,
)

SMALLEST = 0.02  # of score: the smallest effect that a claim is about
ALPHA = 0.05
CLAIMS = ("rises", "falls", "diminishing", "differs", "same")
SAID = {
    "rises": "the score rises with {}",
    "falls": "the score falls with {}",
    "diminishing": "the score rises with {} by less and less",
    "differs": "the score differs between values of {}",
    "same": "the score is the same for all values of {}",
}


@dataclass(frozen=True)
class Ladder:
    """The values of a variable in order, what they count as, and for each combination of the other
    variables the arms that have them."""

    variable: str
    values: Sequence[Any]
    x: Sequence[float] | None  # rising; None where the values are no numbers
    counted_in: str
    blocks: Sequence[Sequence[MeasuredArm]]  # each in the order of the values
    missing: Sequence[Any]  # values that no finished trial has
    pool: Pool | None = None  # how all arms vary with their seeds

    def contrast(self, weights: Sequence[float]) -> Crossed | None:
        """The weighted sum over values, averaged over blocks; None where no question or seed is in
        all arms."""
        used = [
            (weight / len(self.blocks), arm)
            for block in self.blocks
            for weight, arm in zip(weights, block, strict=True)
            if weight
        ]
        arms = [arm for _, arm in used]
        shares = [weight for weight, _ in used]
        tables = [weighted(list(zip(shares, one, strict=True))) for one in paired(arms)]
        if not tables or not shared(tables):
            return None
        known = known_variance(used, self.pool)
        return crossed(tables, clusters_of(arms), bounds_of(weights), known)


def ladder_of(
    variable: str, variables: Mapping[str, Sequence[Any]], arms: Sequence[MeasuredArm]
) -> Ladder:
    """The arms by their value of a variable; combinations that lack a value are left out."""
    blocks: dict[str, dict[str, MeasuredArm]] = {}
    for arm in arms:
        params = {} if arm.outcome is None else arm.outcome.params
        if arm.is_trained and variable in params and not arm.is_dropped:
            others = {key: value for key, value in params.items() if key != variable}
            block = blocks.setdefault(_shown(others), {})
            block[_shown(params[variable])] = arm
    values = list(variables.get(variable, ()))
    if all(_is_number(value) for value in values):
        values.sort()
    had = [value for value in values if any(_shown(value) in block for block in blocks.values())]
    whole = [
        [block[_shown(value)] for value in had]
        for _, block in sorted(blocks.items())
        if all(_shown(value) in block for value in had)
    ]
    x, counted_in = _positions(variable, had, whole)
    missing = [value for value in values if value not in had]
    compared = [arm for arm in arms if not arm.is_dropped]
    return Ladder(variable, had, x, counted_in, whole, missing, pool_of(compared))


def _positions(
    variable: str, values: Sequence[Any], blocks: Sequence[Sequence[MeasuredArm]]
) -> tuple[list[float] | None, str]:
    if not values or not all(_is_number(value) for value in values):
        return None, variable
    if variable.rpartition(".")[2] == "lora_rank":
        counts = [[_num_lora_params(block[i]) for block in blocks] for i in range(len(values))]
        known = [[n for n in at if n is not None] for at in counts]
        if all(len(at) == len(blocks) for at in known) and blocks:
            x = [mean(at) for at in known]
            if x[0] > 0 and all(a < b for a, b in itertools.pairwise(x)):
                return x, "LoRA parameters"
    return [float(value) for value in values], variable


def _num_lora_params(arm: MeasuredArm) -> int | None:
    trials = [] if arm.outcome is None else arm.outcome.trials
    return next((t.num_lora_params for t in trials if t.num_lora_params is not None), None)


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and math.isfinite(value)


def _shown(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# --- one claim ------------------------------------------------------------------------------------


class _Judged(NamedTuple):
    verdict: Verdict
    table: Crossed
    told: str  # what was found, as a clause
    caveat: str = ""  # what it is to be read with


def judge_claim(claim: str, ladder: Ladder) -> ClaimFinding:
    """Hold one claim against the scores."""
    if (why := _untestable(claim, ladder)) is not None:
        return _finding(
            claim, ladder, None, f"Undecided whether {_said(claim, ladder)}: {why}", None
        )
    if claim in ("rises", "falls"):
        judged = _judge_trend(ladder, -1.0 if claim == "falls" else 1.0)
    elif claim == "diminishing":
        judged = _judge_diminishing(ladder)
    else:
        judged = _judge_pairs(ladder, is_same=claim == "same")
    if judged is None:
        why = "its arms have no seed, or no question, in common."
        return _finding(
            claim, ladder, None, f"Undecided whether {_said(claim, ladder)}: {why}", None
        )
    table = judged.table
    over = f"{_seeds(table.num_seeds)}, {table.n} questions"
    if not table.is_of_setting:
        number = "one seed" if table.num_seeds == 1 else f"{table.num_seeds} seeds"
        sentence = (
            f"Undecided whether {_said(claim, ladder)}: of these checkpoints, {judged.told} "
            f"({over}); with {number} that says nothing of a setting."
        )
        few = judged._replace(verdict="undecided", caveat="")
        return _finding(claim, ladder, few, sentence, THREE_SEEDS)
    head = judged.verdict[0].upper() + judged.verdict[1:]
    link = " whether" if judged.verdict == "undecided" else ": that"
    sentence = f"{head}{link} {_said(claim, ladder)}: {judged.told} ({over})."
    needed = _needed(claim, table) if judged.verdict == "undecided" else None
    return _finding(claim, ladder, judged, sentence, needed)


THREE_SEEDS = (
    f"at least {MIN_SEEDS} seeds of each arm, since how much a setting varies between seeds is not "
    "known with fewer; how many questions it takes can be said then"
)


def _finding(
    claim: str, ladder: Ladder, judged: _Judged | None, sentence: str, needed: str | None
) -> ClaimFinding:
    caveat = "" if judged is None else judged.caveat
    if caveat:
        sentence += f" But {caveat}."
    if left_out := [str(value) for value in ladder.missing]:
        are = "it is" if len(left_out) == 1 else "they are"
        of_these = " or ".join(
            ([", ".join(left_out[:-1])] if left_out[:-1] else []) + left_out[-1:]
        )
        sentence += f" No trial with {ladder.variable} {of_these} is finished, so {are} left out."
    return ClaimFinding(
        claim=claim,
        variable=ladder.variable,
        verdict="undecided" if judged is None else judged.verdict,
        effect=None if judged is None else judged.table.mean,
        interval=None if judged is None else judged.table.interval,
        sentence=sentence,
        needed=needed,
        caveat=caveat,
    )


def _said(claim: str, ladder: Ladder) -> str:
    return SAID.get(claim, f"{claim!r} holds of {{}}").format(ladder.variable)


def _untestable(claim: str, ladder: Ladder) -> str | None:
    if claim not in CLAIMS:
        return f"study.expects knows {', '.join(CLAIMS)}."
    if len(ladder.values) < 2:
        return f"fewer than two values of {ladder.variable} were measured."
    if not ladder.blocks:
        return (
            "no combination of the other variables has all of its values measured, so they cannot "
            "be compared with all else equal."
        )
    if claim in ("rises", "falls", "diminishing") and ladder.x is None:
        return f"the values of {ladder.variable} are no numbers, so nothing rises with them."
    if claim == "diminishing" and len(ladder.values) < 3:
        return f"it takes three values of {ladder.variable} or more."
    return None


def _verdict(interval: Interval | None) -> Verdict:
    if interval is None:
        return "undecided"
    if interval.low > 0:
        return "supported"
    return "not supported" if interval.high < SMALLEST else "undecided"


def _judge_trend(ladder: Ladder, sign: float) -> _Judged | None:
    x = ladder.x or []
    is_log = min(x) > 0
    z = [math.log2(one) for one in x] if is_log else list(x)
    weights = trend_weights(z)
    table = _cut(ladder.contrast([sign * weight for weight in weights]))
    change = _cut(ladder.contrast(weights))
    ends = ladder.contrast([-1.0, *[0.0] * (len(x) - 2), 1.0])
    if table is None or change is None or ends is None:
        return None
    verdict, end = _verdict(table.interval), ""
    if verdict == "not supported" and table.interval is not None and table.interval.high >= 0:
        end = f", which excludes {SMALLEST:g} in that direction"
    from_to = f"from {ladder.values[0]} to {ladder.values[-1]}"
    if len(x) == 2:
        return _Judged(verdict, table, f"{from_to} the score changes by {_signed(change)}{end}")
    over = f" (over {'log2 of ' if is_log else ''}{ladder.counted_in})"
    told = (
        f"its fitted line {from_to}{over} changes by {_signed(change)}{end}; the scores at these "
        f"ends differ by {ends.mean:+z.4f}"
    )
    return _Judged(verdict, table, told, _turning_point(ladder, z))


def _cut(table: Crossed | None) -> Crossed | None:
    """The rise of a fitted line as a difference of scores, which cannot be above 1."""
    if table is None:
        return None
    ends = table.interval
    cut = None if ends is None else Interval(*(max(-1.0, min(1.0, one)) for one in ends))
    return table._replace(mean=max(-1.0, min(1.0, table.mean)), interval=cut)


def _turning_point(ladder: Ladder, z: Sequence[float]) -> str:
    """What is to be said beside a fitted line where the best value, or the worst, is surely inside
    of the range; "" where it is not."""
    number = len(z)
    levels = [ladder.contrast([float(i == at) for i in range(number)]) for at in range(number)]
    means = [0.0 if one is None else one.mean for one in levels]
    for what, sign in (("best", 1.0), ("worst", -1.0)):
        # Of equals the end: it is as good as what is inside.
        at = max(range(number), key=lambda i: (round(sign * means[i], 9), i in (0, number - 1)))
        if 0 < at < number - 1 and _is_off(ladder, z, at, sign):
            return (
                f"the {what} value, {ladder.values[at]}, lies inside the range; the scores do not "
                "follow a line"
            )
    return ""


def _is_off(ladder: Ladder, z: Sequence[float], at: int, sign: float) -> bool:
    """Whether a value is told apart from both ends, or from the straight line between them."""
    share = (z[at] - z[0]) / (z[-1] - z[0])
    tables = []
    for first, last in ((1.0, 0.0), (0.0, 1.0), (1.0 - share, share)):
        weights = [0.0] * len(z)
        weights[at], weights[0], weights[-1] = sign, -sign * first, -sign * last
        tables.append(ladder.contrast(weights))
    *to_ends, to_line = [None if one is None or one.mean <= 0 else one.p_value for one in tables]
    is_apart = all(p is not None and p < ALPHA for p in holm(to_ends))
    return is_apart or (to_line is not None and to_line < ALPHA)


def _judge_diminishing(ladder: Ladder) -> _Judged | None:
    lower_weights, diminished_weights = half_weights(ladder.x or [])
    lower, diminished = ladder.contrast(lower_weights), ladder.contrast(diminished_weights)
    if lower is None or diminished is None:
        return None
    middle = ladder.values[(len(ladder.values) - 1) // 2]
    gain = f"up to {ladder.variable} {middle} it gains {_signed(lower)}"
    first = _verdict(lower.interval)
    if first != "supported":
        told = f"{gain}, so there is no gain of {SMALLEST:g} or more to diminish"
        if first == "undecided":
            told = f"{gain}, so there may be no gain to diminish"
        return _Judged(first, lower, told)
    told = (
        f"{gain}, and for as much added ({ladder.counted_in}) above it {_signed(diminished)} less "
        "than that"
    )
    return _Judged(_verdict(diminished.interval), diminished, told)


def _judge_pairs(ladder: Ladder, *, is_same: bool) -> _Judged | None:
    number = len(ladder.values)
    pairs = list(itertools.combinations(range(number), 2))
    found = []
    for low, high in pairs:
        weights = [0.0] * number
        weights[low], weights[high] = -1.0, 1.0
        found.append(ladder.contrast(weights))
    tables = [one for one in found if one is not None]
    if len(tables) < len(pairs):
        return None
    adjusted = holm([one.p_value for one in tables])
    is_apart = any(p is not None and p < ALPHA for p in adjusted)
    is_within = all(
        one.interval is not None and one.interval.low > -SMALLEST and one.interval.high < SMALLEST
        for one in tables
    )
    # The pair that decides: the one least like chance.
    order = [1.0 if p is None else p for p in (one.p_value for one in tables)]
    at = min(range(len(pairs)), key=lambda i: (order[i], -abs(tables[i].mean)))
    if is_same:
        verdict: Verdict = "supported" if is_within else "not supported"
        verdict = verdict if is_within or is_apart else "undecided"
    else:
        verdict = "supported" if is_apart else "not supported" if is_within else "undecided"
    one, other = (ladder.values[i] for i in pairs[at])
    p_value = adjusted[at]
    told = f"{other} against {one} gives {_signed(tables[at])}, {p_text(p_value)} by Holm"
    if is_within:
        told += f", and every pair is within {SMALLEST:g}"
    smallest_seeds = min(tables, key=lambda table: table.num_seeds).num_seeds
    return _Judged(verdict, tables[at]._replace(num_seeds=smallest_seeds), told)


def _signed(table: Crossed) -> str:
    return f"{table.mean:+.4f} {interval_text(table.interval, signed=True)}"


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


# --- what would decide it -------------------------------------------------------------------------


def _needed(claim: str, table: Crossed) -> str:
    if table.parts is None:
        return "more questions: one question, or one cluster of them, tells nothing of chance"
    observed = abs(table.mean)
    if claim == "same":
        # By what is nearer to a decision: that it is not the same, or that it is.
        aim = max(observed, SMALLEST - observed)
        what = f"to show {'a difference' if aim == observed else 'that there is none'}"
    elif observed < SMALLEST / 4:
        aim, what = SMALLEST, f"the effect is about zero; to show one of {SMALLEST:g}"
    elif table.mean < 0 and claim != "differs":
        # It goes against the claim, so what is nearer is to exclude that the claim holds.
        aim = observed + SMALLEST
        what = f"as observed {AGAINST[claim].format(observed)} {SMALLEST:g} or more"
    else:
        aim, what = observed, f"to show an effect as large as this one ({table.mean:+.4f})"
    return f"{what}: {needed_words(aim, table.parts, table.n, table.num_seeds)}"


AGAINST = {
    "rises": "it falls by {:.4f}; seeds and questions enough to exclude a rise of",
    "falls": "it rises by {:.4f}; seeds and questions enough to exclude a fall of",
    "diminishing": "the effect is {:.4f} against the claim; seeds and questions enough to exclude "
    "one for it of",
}


def needed_words(aim: float, parts: Parts, n: int, num_seeds: int) -> str:
    """How many questions, or seeds, show an effect of `aim`, given what `n` and `num_seeds` did."""
    found = needed_to_show(aim, parts, n, num_seeds)
    having = f"now {n} questions and {_seeds(num_seeds)}; for 8 of 10 tries"
    either = []
    if found.questions is not None:
        either.append(f"about {found.questions:,} questions with as many seeds")
    if found.seeds is not None:
        either.append(f"about {found.seeds} seeds with as many questions")
    if either:
        return f"{', or '.join(either)} ({having})"
    if found.both is not None:
        return (
            f"about {found.both[1]} seeds and {found.both[0]:,} questions, since no number "
            f"of questions would do with {_seeds(num_seeds)} ({having})"
        )
    return f"more than {MAX_SEEDS} seeds or more than a million questions ({having})"

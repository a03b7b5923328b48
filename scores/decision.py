"""From the history of results to the next action, with the sentence that explains it. Pure.

A round passes when the gate's rule holds: `mean` compares the score with the threshold,
`lower_bound` the lower end of its one-sided interval, `paired` asks for the score at the threshold
and for a gain over the baseline that exceeds `margin` beyond noise. `alpha` is spent evenly over
`max_rounds` looks (Bonferroni). Whatever the rule, a broken guard, or more than a tenth of a scored
task's answers truncated or malformed, keeps a round from passing.

A round that does not pass multiplies the learning rate by `lr_decay`. The best round is the one
that passed, or else the one with the highest score among those whose guards hold, the earlier one
of equals; it is what the run recommends, not the last. Where it scores lower than what the run
began with, the sentence says so.

A round that is worse than the best beyond noise, or breaks a guard, is gone back on. The best is
then the best of all that was evaluated: what the run began with, where every trained round is
below it or breaks a guard.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scores.intervals import Interval
from scores.results import EvalResult, TaskResult, gate_change
from scores.wording import beside, signed_text

Action = Literal[
    "continue", "rollback", "stop_passed", "stop_budget", "stop_rounds", "stop_plateau"
]
Rule = Literal["mean", "lower_bound", "paired"]
# Decisions that a larger bound lets a run take again.
EXTENDABLE = ("stop_rounds", "stop_budget", "stop_plateau")
WARN_FLAWED_SHARE = 0.02  # of answers truncated or malformed
MAX_FLAWED_SHARE = 0.10
UNTOUCHED = "the untouched model"
ROUNDING = 1e-12  # the mean of 0.7, 0.8 and 0.9 is a hair below 0.8


@dataclass(frozen=True)
class Gate:
    """What a round has to reach and how far the run may go. Budgets that are None have no limit."""

    threshold: float
    max_rounds: int
    max_steps: int
    lr_decay: float
    rule: Rule = "mean"
    alpha: float = 0.05
    margin: float = 0.0
    patience: int | None = None
    rollback: bool = True
    stops: bool = True  # at a round that passes; else all rounds are trained
    guards: Mapping[str, float] = field(default_factory=dict)  # task -> largest allowed drop
    max_tokens: int | None = None
    max_minutes: float | None = None
    max_usd: float | None = None
    baseline: str = UNTOUCHED  # what round 0 measures

    @property
    def alpha_per_look(self) -> float:
        return self.alpha / self.max_rounds

    @property
    def level(self) -> float:
        """Of the two-sided interval whose lower end is the one-sided bound at `alpha_per_look`."""
        return 1 - 2 * self.alpha_per_look


@dataclass(frozen=True)
class Spent:
    """What the run has used so far, and the most that one round has used of it."""

    steps: int
    tokens: int = 0
    minutes: float = 0.0
    usd: float = 0.0
    round_tokens: int = 0
    round_minutes: float = 0.0
    round_usd: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What happens after a round. `lr_multiplier` applies to the next round's rate."""

    round: int
    action: Action
    sentence: str
    lr_multiplier: float
    best_round: int
    num_missed_gates: int  # so far, this round included; the k of the learning-rate formula
    to_start: bool = False  # of a rollback: to what the run began with, not to the best round

    @property
    def stops(self) -> bool:
        return self.action not in ("continue", "rollback")

    @property
    def goes_on_from(self) -> int:
        """The round whose weights the next one is trained on from."""
        if self.action != "rollback":
            return self.round
        return 0 if self.to_start else self.best_round


def decide(
    earlier: Sequence[EvalResult],
    result: EvalResult,
    spent: Spent,
    gate: Gate,
    champion: Champion | None = None,
) -> Decision:
    """Decide after one round, given the results of the rounds before it, oldest first.

    `champion` is what the caller knows of `champion_of` these results already.
    """
    history = [*earlier, result]
    best = best_round(history, gate)
    verdict = judge(result, history[0], gate)
    if result.round == 0:
        # Truncated answers only warn here: nothing is stopped or recommended by a baseline.
        already = gate.rule != "paired" and _apply_rule(result, result, gate).passed
        of = "" if gate.baseline == UNTOUCHED else f" of {gate.baseline}"
        sentence = f"Baseline {result.score:.4f} (n={result.n}){of}" + (
            f": {gate.baseline} meets the threshold already ({verdict.numbers}). Training all "
            "the same."
            if already
            else f", threshold {gate.threshold:g}."
        )
        return Decision(0, "continue", sentence, 1.0, best, 0)
    missed = _num_missed(history, gate)
    if verdict.passed and gate.stops:
        below = _if_below_baseline(result, history[0], gate)
        sentence = f"Target met: {verdict.numbers}{below}. Stopping."
        return Decision(result.round, "stop_passed", sentence, 1.0, result.round, missed)
    why_not = verdict.numbers if verdict.objection is None else verdict.objection
    end = _end(history, spent, gate, champion)
    if end is not None:
        return _ended(history, end, gate, best, missed)
    fallen = _fall(history, gate)
    head = "Not passed" if _is_reached(result, gate) else "Score below threshold"
    going_on = f"Learning rate times {gate.lr_decay:g}, preparing round {result.round + 1}."
    multiplier = gate.lr_decay
    if verdict.passed:
        head, multiplier = "Target met", 1.0
        going_on = (
            f"All rounds are trained (gate.stop is false), preparing round {result.round + 1}."
        )
    if fallen is not None:
        sentence = f"{head}: {why_not}. {fallen.why} {going_on}"
        to_start = fallen.to == 0
        return Decision(result.round, "rollback", sentence, multiplier, best, missed, to_start)
    sentence = f"{head}: {why_not}. {going_on}"
    return Decision(result.round, "continue", sentence, multiplier, best, missed)


def _num_missed(history: Sequence[EvalResult], gate: Gate) -> int:
    """The trained rounds that did not pass. Where a pass ends the run, only the last one can."""
    *earlier, last = history[1:]
    num_earlier = len(earlier)
    if not gate.stops:
        num_earlier = sum(not judge(one, history[0], gate).passed for one in earlier)
    return num_earlier + (not judge(last, history[0], gate).passed)


def _ended(
    history: Sequence[EvalResult], end: _End, gate: Gate, best: int, missed: int
) -> Decision:
    """The decision of a run that no pass has stopped. Where a pass does not stop it, a round that
    passed is recommended all the same, the best of them."""
    last, first = history[-1], history[0]
    passed = [] if gate.stops else [one for one in history[1:] if judge(one, first, gate).passed]
    best = best_round([first, *passed], gate) if passed else best
    recommended = next(one for one in history if one.round == best)
    below = _if_below_baseline(recommended, first, gate)
    if passed:
        by = "" if best == last.round else f" by round {best}"
        numbers = judge(recommended, first, gate).numbers
        sentence = f"Target met{by}: {numbers}, {end.reason}{below}. Stopping."
        return Decision(last.round, "stop_passed", sentence, 1.0, best, missed)
    verdict = judge(last, first, gate)
    why_not = verdict.numbers if verdict.objection is None else verdict.objection
    sentence = f"Target not met: {why_not} {end.reason}{below}. Stopping."
    return Decision(last.round, end.action, sentence, 1.0, best, missed)


# --- does a round pass? ---------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Whether a result passes; `objection` says what keeps one from it that meets the rule."""

    passed: bool
    numbers: str
    objection: str | None


def judge(result: EvalResult, baseline: EvalResult, gate: Gate) -> Verdict:
    """Apply the rule, then what no rule overrides: guards and flawed answers."""
    rule = _apply_rule(result, baseline, gate)
    guard = broken_guard(result, baseline, gate)
    if not rule.passed:
        return rule if guard is None else rule._replace(numbers=f"{rule.numbers}, and {guard}")
    objection = guard or _too_many_flaws(result)
    if objection is None:
        return rule
    return Verdict(False, rule.numbers, f"{rule.numbers}, but {objection}")


def _apply_rule(result: EvalResult, baseline: EvalResult, gate: Gate) -> Verdict:
    is_reached = _is_reached(result, gate)
    numbers = _compared(result.score, gate.threshold, is_reached)
    if gate.rule == "mean":
        return Verdict(is_reached, numbers, None)
    sure = f"one-sided {1 - gate.alpha_per_look:.1%}"
    if gate.rule == "lower_bound":
        interval = result.gate_interval(gate.level)
        if interval is None:
            return Verdict(False, f"{numbers}, but {_why_unknown(result, gate)}", None)
        passed = interval.low >= gate.threshold
        numbers = (
            f"lower bound {_compared(interval.low, gate.threshold, passed)} "
            f"(score {result.score:.4f}, n={result.n}, {sure})"
        )
        return Verdict(passed, numbers, None)
    gain = gate_change(result, baseline, gate.level)
    if gain.interval is None:
        return Verdict(False, f"{numbers}, but {_why_unknown(result, gate)}", None)
    is_gain = gain.interval.low > gate.margin
    low, margin = beside(gain.interval.low, gate.margin, is_met=is_gain, how=operator.gt, sign="+")
    numbers += (
        f" and {signed_text(gain.mean)} on the baseline, at least {low} "
        f"{'>' if is_gain else '<='} margin {margin} (paired, {sure})"
    )
    return Verdict(is_reached and is_gain, numbers, None)


def _is_reached(result: EvalResult, gate: Gate) -> bool:
    return result.score >= gate.threshold - ROUNDING


def _compared(value: float, threshold: float, is_reached: bool) -> str:
    """Both numbers with the sign between them, with digits enough to see that it is right."""
    shown, bound = beside(value, threshold, is_met=is_reached)
    return f"{shown} {'>=' if is_reached else '<'} {bound}"


def _why_unknown(result: EvalResult, gate: Gate) -> str:
    task = next(t for t in result.scored_tasks if t.gate_interval(gate.level) is None)
    number = "question" if task.n == 1 else "cluster"
    return f"{task.name} has one {number} only, which gives no bound"


def broken_guard(result: EvalResult, baseline: EvalResult, gate: Gate) -> str | None:
    """The first guard that fell by more than it may, as a clause; None when all known ones hold."""
    for name, allowed in gate.guards.items():
        after, before = result.task(name), baseline.task(name)
        if after is None or before is None or after is before:
            continue
        drop = before.score - after.score
        if drop > allowed + 1e-12:  # 0.90 - 0.85 is not more than 0.05
            fallen, most = beside(drop, allowed, is_met=True, how=operator.gt)
            return (
                f"guard {name} fell by {fallen} from {before.score:.4f} "
                f"(allowed {most}, n={after.n})"
            )
    return None


def _most_flawed(result: EvalResult) -> TaskResult:
    return max(result.scored_tasks, key=lambda task: task.flawed_share)


def _too_many_flaws(result: EvalResult) -> str | None:
    task = _most_flawed(result)
    if task.flawed_share <= MAX_FLAWED_SHARE:
        return None
    return (
        f"{_flaws(task, result)}, and a round with more than {MAX_FLAWED_SHARE:.0%} never passes; "
        "raise evaluation.max_tokens or look at the answers"
    )


def _flaws(task: TaskResult, result: EvalResult) -> str:
    of_task = f" of {task.name}" if len(result.scored_tasks) > 1 else ""
    kinds = {"truncated": task.num_truncated, "malformed": task.num_malformed}
    which = " or ".join(kind for kind, number in kinds.items() if number)
    return f"{task.num_flawed} of {len(task.samples)} answers{of_task} were {which}"


def flaw_warning(result: EvalResult) -> str | None:
    """A sentence where so many answers are truncated or malformed that the score may mislead."""
    task = _most_flawed(result)
    if task.flawed_share <= WARN_FLAWED_SHARE:
        return None
    graded = {"cut ones are graded as they stand": task.num_truncated,
              "malformed ones count as wrong": task.num_malformed}  # fmt: skip
    how = ", ".join(words for words, number in graded.items() if number)
    return (
        f"warning: {_flaws(task, result)} ({how}); with more than {MAX_FLAWED_SHARE:.0%} a round "
        "cannot pass"
    )


# --- does the run end? ----------------------------------------------------------------------------


class _End(NamedTuple):
    action: Action
    reason: str


def _end(
    history: Sequence[EvalResult], spent: Spent, gate: Gate, champion: Champion | None
) -> _End | None:
    """Why the run ends after a round that did not pass, or None."""
    round_no = history[-1].round
    if round_no >= gate.max_rounds:
        return _End("stop_rounds", f"after {round_no} of {gate.max_rounds} rounds")
    if spent.steps >= gate.max_steps:
        return _End("stop_budget", f"after {spent.steps} of max_steps {gate.max_steps}")
    for name, used, per_round, limit in (
        ("tokens", spent.tokens, spent.round_tokens, gate.max_tokens),
        ("minutes", spent.minutes, spent.round_minutes, gate.max_minutes),
        ("usd", spent.usd, spent.round_usd, gate.max_usd),
    ):
        if limit is not None and used + per_round > limit:
            return _End(
                "stop_budget",
                f"with {_figure(used)} of budget.{name} {_figure(limit, 6)} used and "
                f"{_figure(per_round)} needed "
                "for another round like the dearest so far",
            )
    if gate.patience is not None:
        champion = champion_of(history, gate, champion)
        if champion is not None and (still := _plateau(history, gate, champion)) is not None:
            return _End("stop_plateau", still)
    return None


def _figure(value: float, digits: int = 4) -> str:
    """To so many digits, and what has more before the point to all of those."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.{digits}g}"


class Champion(NamedTuple):
    """The round that no later one beat beyond noise, up to round `until`."""

    round: int
    until: int


def champion_of(
    history: Sequence[EvalResult], gate: Gate, known: Champion | None = None
) -> Champion | None:
    """The champion of the results, going on from what is `known` of the earlier ones; None where
    nothing is known of the noise.

    It changes only when the one-sided bound of the paired difference is above 0 (the idea of the
    Ladder, Blum and Hardt 2015), so slow progress still counts once it adds up.
    """
    by_round = {result.round: result for result in history}
    champion = history[0] if known is None else by_round[known.round]
    for result in history[1:]:
        if known is not None and result.round <= known.until:
            continue
        gain = gate_change(result, champion, 1 - 2 * gate.alpha)
        if gain.interval is None:
            return None
        if gain.interval.low > 0 and broken_guard(result, history[0], gate) is None:
            champion = result
    return Champion(champion.round, history[-1].round)


def _plateau(history: Sequence[EvalResult], gate: Gate, champion: Champion) -> str | None:
    """Name the plateau when no round of the last `patience` beat the champion beyond noise."""
    last, best = history[-1], next(one for one in history if one.round == champion.round)
    if gate.patience is None or last.round - best.round < gate.patience:
        return None
    gain = gate_change(last, best, 1 - 2 * gate.alpha)
    return (
        f"and no round since round {best.round} ({best.score:.4f}) was better beyond noise "
        f"(round {last.round}: {_signed(gain.mean, gain.interval)}, patience {gate.patience})"
    )


def is_below_baseline(result: EvalResult, baseline: EvalResult) -> bool:
    return result.score < baseline.score - ROUNDING


def _if_below_baseline(recommended: EvalResult, baseline: EvalResult, gate: Gate) -> str:
    """A clause where what is recommended scores lower than what the run began with; else nothing.

    The gate asks for the threshold alone, and what is recommended is a trained round.
    """
    if not is_below_baseline(recommended, baseline):
        return ""
    numbers = _compared(recommended.score, baseline.score, False)
    return f"; round {recommended.round} is below {gate.baseline} ({numbers})"


class _Fall(NamedTuple):
    to: int  # the round to go back to
    why: str


def _fall(history: Sequence[EvalResult], gate: Gate) -> _Fall | None:
    """Where to go back to, and why: the last round is worse than the best beyond noise, or broke a
    guard that the best holds."""
    last, first = history[-1], history[0]
    if not gate.rollback:
        return None
    guard = broken_guard(last, first, gate)
    for target in _worth_going_back_to(history, gate):
        if target is last:
            continue
        numbers = f"({target.score:.4f})"
        name = f"round {target.round}"
        if target is first:
            name, numbers = gate.baseline, f"(round 0, {target.score:.4f})"
        if guard is not None and broken_guard(target, first, gate) is None:
            return _Fall(target.round, f"Back to {name}: {guard}.")
        change = gate_change(last, target, 1 - 2 * gate.alpha)
        if change.interval is not None and change.interval.high < 0:
            return _Fall(
                target.round,
                f"Back to {name} {numbers}, which this round is worse than beyond noise "
                f"({_signed(change.mean, change.interval)}).",
            )
    return None


def _worth_going_back_to(history: Sequence[EvalResult], gate: Gate) -> list[EvalResult]:
    """What a rollback may go back to, the best first: the best trained round, and before it what
    the run began with, where that is better."""
    start = history[0]
    trained = next(one for one in history if one.round == best_round(history, gate))
    return [start, trained] if is_start_best(history, gate) else [trained]


def is_start_best(history: Sequence[EvalResult], gate: Gate) -> bool:
    """Whether nothing that was trained is as good as what the run began with: every round whose
    guards hold is below it."""
    start = history[0]
    trained = next(one for one in history if one.round == best_round(history, gate))
    return is_below_baseline(trained, start) or broken_guard(trained, start, gate) is not None


def _signed(value: float, interval: Interval | None) -> str:
    shown = "" if interval is None else f" [{signed_text(interval[0])}, {signed_text(interval[1])}]"
    return f"{signed_text(value)}{shown}"


def best_round(history: Sequence[EvalResult], gate: Gate) -> int:
    """The trained round with the highest score whose guards hold, the earlier of equals.

    Where every trained round broke a guard they all count; 0 if none is trained.
    """
    trained = [result for result in history if result.round > 0]
    if not trained:
        return 0
    whole = [r for r in trained if broken_guard(r, history[0], gate) is None]
    candidates = whole or trained
    highest = max(result.score for result in candidates)
    return min(result.round for result in candidates if result.score >= highest - ROUNDING)

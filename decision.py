"""From the history of scores to the next action, with the sentence that explains it. Pure.

The rule of this version: the score is compared with `eval_threshold`; a round that misses it
multiplies the learning rate by `lr_decay`. The best round is the one with the highest score, the
earlier one of equals, and it is what the run recommends, not the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eval_stats import EvalResult

Action = Literal["continue", "stop_passed", "stop_budget", "stop_rounds"]


@dataclass(frozen=True)
class Gate:
    """What a round has to reach and how far the run may go."""

    threshold: float
    max_rounds: int
    max_steps: int
    lr_decay: float


@dataclass(frozen=True)
class Decision:
    """What happens after a round. `lr_multiplier` applies to the next round's rate."""

    round: int
    action: Action
    sentence: str
    lr_multiplier: float
    best_round: int
    num_missed_gates: int  # so far, this round included; the k of the learning-rate formula

    @property
    def stops(self) -> bool:
        return self.action != "continue"


def decide(scores: Mapping[int, float], result: EvalResult, step: int, gate: Gate) -> Decision:
    """Decide after one round, given the scores of the rounds before it and the steps so far."""
    best = best_round({**scores, result.round: result.score})
    numbers = (
        f"{result.score:.4f} {'>=' if result.score >= gate.threshold else '<'} {gate.threshold:g}"
    )
    if result.round == 0:
        already = result.score >= gate.threshold
        sentence = f"Baseline {result.score:.4f} (n={result.n})" + (
            f": the untouched model meets the threshold already ({numbers}). Training all the same."
            if already
            else f", threshold {gate.threshold:g}."
        )
        return Decision(0, "continue", sentence, 1.0, best, 0)
    missed = result.round  # every trained round before this one missed, or the run had stopped
    if result.score >= gate.threshold:
        sentence = f"Target met: {numbers}. Stopping."
        return Decision(result.round, "stop_passed", sentence, 1.0, best, missed - 1)
    if result.round >= gate.max_rounds:
        sentence = (
            f"Target not met: {numbers} after {result.round} of {gate.max_rounds} rounds. Stopping."
        )
        return Decision(result.round, "stop_rounds", sentence, 1.0, best, missed)
    if step >= gate.max_steps:
        sentence = (
            f"Target not met: {numbers} after {step} of max_steps {gate.max_steps}. Stopping."
        )
        return Decision(result.round, "stop_budget", sentence, 1.0, best, missed)
    sentence = (
        f"Score below threshold: {numbers}. "
        f"Learning rate times {gate.lr_decay:g}, preparing round {result.round + 1}."
    )
    return Decision(result.round, "continue", sentence, gate.lr_decay, best, missed)


def best_round(scores: Mapping[int, float]) -> int:
    """The trained round with the highest score, the earlier of equals; 0 if none is trained."""
    trained = {number: score for number, score in scores.items() if number > 0} or scores
    return min(trained, key=lambda number: (-trained[number], number))

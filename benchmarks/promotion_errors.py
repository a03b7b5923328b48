"""How often does a promotion refuse an equally good candidate, and let a worse one through?

    .venv/bin/python benchmarks/promotion_errors.py [--times 400] [--questions 100] [--seed 0]

Champion and candidate answer the same questions, right or wrong. A share of the questions is
answered otherwise by the two; which of them is right there is the toss of a coin, fair for an
equally good candidate and biased for one that is better or worse. The results are held against
each other by the comparison that a promotion makes (`promotion.comparing.pair`): as the score, and
as a guard would be. No model is asked.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from promotion.comparing import Pairing, pair  # noqa: E402
from scores.results import (  # noqa: E402
    EvalResult,
    Measured,
    SampleResult,
    eval_result,
    task_result,
)

RIGHT = 0.8  # of the champion's answers
POINTS = (0, -2, -5, -10, 2, 5, 10)  # by which the candidate is better
CHANGED = (0.05, 0.1, 0.2)  # of the questions, answered otherwise by the two


class Rates(NamedTuple):
    """Shares of the comparisons."""

    refused: float  # because the score is lower
    called_better: float  # beyond noise
    guard_refused: float  # because a guard is worse beyond noise


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=400)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        f"{args.times} comparisons a row, n={args.questions}, the champion right in {RIGHT:.0%}; "
        f"shares are off by up to {1 / args.times**0.5:.0%} (95 %)\n"
    )
    print("| candidate | answers changed | refused | let through | called better | guard refuses |")
    print("|---|---|---|---|---|---|")
    for points in POINTS:
        for changed in CHANGED:
            if abs(points) / 100 <= changed:
                rng = random.Random(f"{args.seed} {points} {changed}")
                rates = rates_of(rng, args.times, args.questions, points / 100, changed)
                print(f"| {_called(points)} | {_percent(changed)} | {_cells(rates)} |")
    return 0


def rates_of(
    rng: random.Random, times: int, num_questions: int, gain: float, changed: float
) -> Rates:
    """Compare so many candidates, each with answers of its own, with a champion."""
    refused = better = guard = 0
    for _ in range(times):
        before, after = answers(rng, num_questions, gain, changed)
        found = compared(after, before)
        refused += found.is_worse
        better += found.verdict == "better"
        guard += found.tasks[0].is_worse  # which is what is asked of a guard
    return Rates(refused / times, better / times, guard / times)


def answers(
    rng: random.Random, num_questions: int, gain: float, changed: float
) -> tuple[list[int], list[int]]:
    """What the champion and the candidate score on each question."""
    gained, lost = (changed + gain) / 2, (changed - gain) / 2  # shares of all questions
    before = [int(rng.random() < RIGHT) for _ in range(num_questions)]
    chances = (lost / RIGHT, gained / (1 - RIGHT))  # of a right answer to be lost, and the reverse
    after = [one ^ (rng.random() < chances[1 - one]) for one in before]
    return before, after


def compared(after: list[int], before: list[int]) -> Pairing:
    return pair("new", result(after), "old", result(before))


def result(scores: list[int]) -> EvalResult:
    """An evaluation with these answers."""
    samples = [
        SampleResult(f"task/{number}", None, "?", ("!",), "", score, False, False, None)
        for number, score in enumerate(scores)
    ]
    return eval_result(1, "weights", Measured((task_result("task", samples),)), {})


def _called(points: int) -> str:
    if points == 0:
        return "as good"
    return f"{abs(points)} points {'better' if points > 0 else 'worse'}"


def _cells(rates: Rates) -> str:
    cells = (rates.refused, 1 - rates.refused, rates.called_better, rates.guard_refused)
    return " | ".join(map(_percent, cells))


def _percent(share: float) -> str:
    """In whole percents, which is all that a few hundred comparisons tell."""
    if 0 < share <= 0.005:
        return "below 1 %"
    if 0.995 <= share < 1:
        return "above 99 %"
    return f"{share:.0%}".replace("%", " %")


if __name__ == "__main__":
    sys.exit(main())

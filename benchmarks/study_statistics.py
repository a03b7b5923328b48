"""Measure what a study's report promises: coverage, false alarms and power, by simulation.

    .venv/bin/python benchmarks/study_statistics.py [--runs 400]

Answers are right or wrong: a question's difficulty, a seed's luck and what is left are normal on
the probit scale. Prints Markdown tables; exits with 1 when a stated target is missed, and says
which.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from scores.comparisons import Answers, crossed, difference, holm, pooled_seeds  # noqa: E402
from scores.intervals import UNIT, mean  # noqa: E402

SCORES = (0.55, 0.75)
LUCKS = (0.0, 0.1, 0.2, 0.5)  # standard deviation of a seed's luck, on the probit scale
SIZES = ((3, 60), (5, 60), (3, 300), (5, 300))  # seeds and questions
SPREAD = math.sqrt(3)  # of difficulty, what is left and the answer's own chance
MIN_COVERAGE = 0.93
MAX_FALSE_ALARMS = 0.07
MAX_UNLIKE = 0.10
ALPHA = 0.05


def answers(
    rng: np.random.Generator,
    scores: Sequence[float],
    lucks: float | Sequence[float],
    k: int,
    n: int,
) -> list[list[Answers]]:
    """The answers of one study: for each arm, each of its seeds. `scores` are the arms' own, at a
    seed without luck."""
    places = [NormalDist().inv_cdf(score) * SPREAD for score in scores]
    difficulty = rng.normal(size=n)
    ids = [f"q{i:03}" for i in range(n)]
    arms = []
    for place, luck in zip(places, np.broadcast_to(lucks, len(places)), strict=True):
        shift = place + difficulty + rng.normal(0, luck, size=(k, 1)) + rng.normal(size=(k, n))
        right = (rng.normal(size=(k, n)) < shift).astype(float)
        arms.append([{"t": dict(zip(ids, row, strict=True))} for row in right.tolist()])
    return arms


def true_score(score: float, luck: float) -> float:
    """The expected score over seeds and questions."""
    place = NormalDist().inv_cdf(score) * SPREAD
    return NormalDist().cdf(place / math.hypot(SPREAD, luck))


def score_deviation(score: float, luck: float) -> float:
    """By how much the true scores of seeds deviate."""
    normal, place = NormalDist(), NormalDist().inv_cdf(score) * SPREAD
    steps = [normal.inv_cdf((i + 0.5) / 2000) for i in range(2000)]
    found = np.array([normal.cdf((place + luck * step) / SPREAD) for step in steps])
    return float(found.std())


def apart(arms: Sequence[Sequence[Answers]]) -> list[bool]:
    """Which pairs are told apart, by Holm over all of them."""
    pool = pooled_seeds([[mean(list(one["t"].values())) for one in arm] for arm in arms])
    known = None if pool is None else (2 * pool.between, pool.df)
    pairs = itertools.combinations(arms, 2)
    p_values = holm([difference(one, other, {}, known=known).p_value for one, other in pairs])
    return [p is not None and p < ALPHA for p in p_values]


def levels(num_runs: int) -> list[str]:
    """Coverage of an arm's interval, and false alarms of four arms that are alike."""
    print("### Coverage of a setting's interval; a false alarm anywhere among four like arms\n")
    print("| seeds | questions | score | seeds deviate by | coverage | width | false alarms |")
    print("|---|---|---|---|---|---|---|")
    rng, missed = np.random.default_rng(17), []
    for (k, n), score, luck in itertools.product(SIZES, SCORES, LUCKS):
        truth, covered, width, alarms = true_score(score, luck), 0, 0.0, 0
        for _ in range(num_runs):
            arms = answers(rng, [score] * 4, luck, k, n)
            interval = crossed(arms[0], {}, UNIT).interval
            assert interval is not None
            covered += interval.low <= truth <= interval.high
            width += interval.high - interval.low
            alarms += any(apart(arms))
        print(
            f"| {k} | {n} | {score} | {score_deviation(score, luck):.3f} | "
            f"{covered / num_runs:.3f} | {width / num_runs:.2f} | {alarms / num_runs:.3f} |",
            flush=True,
        )
        what = f"{k} seeds, {n} questions, score {score}, luck {luck}"
        missed += [f"coverage at {what}"] * (covered / num_runs < MIN_COVERAGE)
        missed += [f"false alarms at {what}"] * (alarms / num_runs > MAX_FALSE_ALARMS)
    print()
    return missed


def one_seed(num_runs: int) -> list[str]:
    """False alarms of four checkpoints that are alike, one seed each: exact McNemar and Holm."""
    rng = np.random.default_rng(18)
    alarms = sum(any(apart(answers(rng, [0.55] * 4, 0.0, 1, 60))) for _ in range(num_runs))
    print(f"One seed each, 60 questions: a false alarm in {alarms / num_runs:.3f} of studies.\n")
    return ["false alarms with one seed"] * (alarms / num_runs > MAX_FALSE_ALARMS)


def unlike_seeds(num_runs: int) -> list[str]:
    """False alarms where one of four arms varies far more with its seeds than the others."""
    print("### False alarms where one of four arms varies ten times as much with its seeds\n")
    print("| seeds | questions | deviates by | false alarms |\n|---|---|---|---|")
    rng, missed = np.random.default_rng(20), []
    for (k, n), luck in itertools.product(SIZES, (0.2, 0.5)):
        lucks = [luck / 10] * 3 + [luck]
        alarms = sum(any(apart(answers(rng, [0.5] * 4, lucks, k, n))) for _ in range(num_runs))
        deviation = score_deviation(0.5, luck)
        print(f"| {k} | {n} | {deviation:.3f} | {alarms / num_runs:.3f} |", flush=True)
        where = f"{k} seeds, {n} questions, one arm's luck {luck}"
        missed += [f"false alarms at {where}"] * (alarms / num_runs > MAX_UNLIKE)
    print()
    return missed


def power(num_runs: int) -> None:
    """How often a gain of one arm over another is found, among three arms."""
    print("### How often 0.40 against more is told apart, among three arms (120 questions)\n")
    gains = (0.1, 0.2, 0.3)
    print(f"| seeds | seeds deviate by | {' | '.join(f'+{gain}' for gain in gains)} |")
    print(f"|---|---|{'---|' * len(gains)}")
    rng = np.random.default_rng(19)
    for k, luck in itertools.product((1, 3, 5), (0.0, 0.2)):
        found = []
        for gain in gains:
            studies = (answers(rng, [0.4, 0.4, 0.4 + gain], luck, k, 120) for _ in range(num_runs))
            found.append(sum(apart(arms)[1] for arms in studies) / num_runs)
        cells = " | ".join(f"{share:.2f}" for share in found)
        print(f"| {k} | {score_deviation(0.4, luck):.3f} | {cells} |", flush=True)
    print()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400, help="studies a cell (default: 400)")
    args = parser.parse_args()
    started = time.monotonic()
    missed = [*levels(args.runs), *one_seed(args.runs), *unlike_seeds(args.runs)]
    power(max(1, args.runs // 2))
    print(f"{len(missed)} targets missed, in {time.monotonic() - started:.0f} s.")
    for what in missed:
        print(f"missed: {what}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure what scores/intervals.py promises: levels, coverage and power, enumerated or simulated.

    .venv/bin/python benchmarks/eval_statistics.py [--runs 500]

Prints Markdown tables. Exact numbers are enumerated over the binomial, simulated ones have fixed
seeds. Exits with 1 when a stated target is missed, and says which.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from scores.distributions import student_t_quantile  # noqa: E402
from scores.intervals import (  # noqa: E402
    estimate,
    gate_interval,
    paired_difference,
    standard_error,
    wilson_interval,
)
from scores.power import StopRule, false_stop_risk, questions_needed, smallest_difference  # noqa: E402

ALPHA = 0.05
RULES: tuple[StopRule, ...] = ("mean", "lower_bound")
TRUE_SCORES = np.arange(1, 20) / 20
STATED_SIZES = (10, 20, 50, 99, 100, 200, 500, 1000)
UNEQUAL = (1, 2, 3, 5, 8, 10, 12, 15, 24, 40)
SIZES: dict[str, tuple[int, ...]] = {
    "10 x 10": (10,) * 10,
    "10 of 1 to 40": UNEQUAL,
    "20 of 1 to 40": UNEQUAL * 2,
    "50 x 10": (10,) * 50,
}


class Report:
    """Collects the missed targets while the tables are printed."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.num_targets = 0

    def target(self, is_met: bool, what: str) -> None:
        self.num_targets += 1
        if not is_met:
            self.missed.append(what)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        print(f"### {title}\n")
        print(f"| {' | '.join(header)} |")
        print(f"|{'---|' * len(header)}")
        for row in rows:
            print(f"| {' | '.join(row)} |")
        print()


def binomial_pmf(n: int, p: float | np.ndarray) -> np.ndarray:
    """Chances of 0 to n, one column per p."""
    k = np.arange(n + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    log_p, log_q = np.log(p), np.log1p(-np.asarray(p))
    return np.exp(ways[:, None] + k[:, None] * log_p + (n - k)[:, None] * log_q)


def false_stops(report: Report) -> None:
    """True score 0.80, threshold 0.85, three looks, as in the tests."""
    threshold, true, looks, num_runs = 0.85, 0.80, 3, 200_000
    rng, rows = np.random.default_rng(1), []
    for n in (20, 50, 100, 200, 400, 1000):
        counts = rng.binomial(n, true, size=(num_runs, looks))
        lower = [wilson_interval(k, n, 1 - 2 * ALPHA / looks).low for k in range(n + 1)]
        passing = {
            "mean": np.arange(n + 1) / n >= threshold,
            "lower_bound": np.array(lower) >= threshold,
        }
        row = [str(n)]
        for rule in RULES:
            exact = false_stop_risk(rule, n, threshold, true, looks)
            simulated = float(passing[rule][counts].any(axis=1).mean())
            error = math.sqrt(max(exact * (1 - exact), 1 / num_runs) / num_runs)
            report.target(abs(simulated - exact) <= 4 * error, f"simulated {rule} at n = {n}")
            row += [f"{exact:.4f}", f"{simulated:.4f}"]
            if rule == "lower_bound":
                report.target(exact <= ALPHA, f"lower_bound risk at n = {n} is {exact:.4f}")
        rows.append(row)
    header = ["n", "mean, exact", "mean, simulated", "lower bound, exact", "simulated"]
    report.table(
        "False stops: true score 0.80, threshold 0.85, three looks, alpha 0.05", header, rows
    )
    border = []
    for n in (20, 50, 100, 200, 400, 1000):
        risks = [false_stop_risk(rule, n, threshold, threshold, looks) for rule in RULES]
        border.append([str(n), *(f"{risk:.4f}" for risk in risks)])
    report.table(
        "The same, true score exactly at the threshold", ["n", "mean", "lower bound"], border
    )


def wilson_coverage(report: Report) -> None:
    coverage = {}
    for n in range(10, 1001):
        ends = np.array([wilson_interval(k, n) for k in range(n + 1)])
        covers = (ends[:, :1] <= TRUE_SCORES) & (ends[:, 1:] >= TRUE_SCORES)
        coverage[n] = (binomial_pmf(n, TRUE_SCORES) * covers).sum(axis=0)
    rows, outside = [], []
    for name, sizes, low, high in (
        ("10 to 99", range(10, 100), 0.90, 0.99),
        ("100 to 1000", range(100, 1001), 0.93, 0.97),
    ):
        cells = np.array([coverage[n] for n in sizes])
        misses = [
            f"n = {n}, p = {p:.2f}: {value:.4f}"
            for n in sizes
            for p, value in zip(TRUE_SCORES, coverage[n], strict=True)
            if not low <= value <= high
        ]
        outside += misses
        average = cells.mean()
        report.target(0.94 <= average <= 0.96, f"mean Wilson coverage, n {name}: {average:.4f}")
        rows.append(
            [
                *(name, f"{cells.min():.4f}", f"{average:.4f}", f"{cells.max():.4f}"),
                *(f"{low} to {high}", f"{len(misses)} of {cells.size}"),
            ]
        )
        for n in STATED_SIZES:
            if n in sizes:
                inside = low <= coverage[n].min() and coverage[n].max() <= high
                report.target(bool(inside), f"Wilson coverage at n = {n}")
    header = ["n", "least", "mean", "most", "wanted in each cell", "cells outside"]
    report.table("Wilson's exact coverage at 95 %, true scores 0.05 to 0.95", header, rows)
    sizes = ", ".join(map(str, STATED_SIZES))
    print(f"The target is for n = {sizes}. Outside, of all n: {'; '.join(outside) or 'none'}.\n")


def t_coverage(report: Report, num_runs: int) -> None:
    rng, rows = np.random.default_rng(2), []
    for n in (5, 10, 30, 100):
        covered = 0
        for scores in rng.normal(0.5, 0.1, size=(2 * num_runs, n)).clip(0, 1):
            interval = estimate(scores.tolist()).interval
            assert interval is not None
            covered += interval.low <= 0.5 <= interval.high
        share = covered / (2 * num_runs)
        report.target(abs(share - 0.95) <= 0.02, f"Student t on normal scores, n = {n}: {share}")
        rows.append([f"normal, n = {n}", f"{share:.3f}", "-"])
    for n, true in ((10, 0.9), (20, 0.95), (50, 0.95), (100, 0.95), (100, 0.5)):
        chances = binomial_pmf(n, np.array([true]))[:, 0]
        by_t = by_wilson = 0.0
        for k in range(n + 1):
            stderr = standard_error([1.0] * k + [0.0] * (n - k))
            assert stderr is not None
            half, wilson = student_t_quantile(0.975, n - 1) * stderr, wilson_interval(k, n)
            by_t += chances[k] * (k / n - half <= true <= k / n + half)
            by_wilson += chances[k] * (wilson.low <= true <= wilson.high)
        report.target(by_wilson >= 0.90, f"Wilson on {n} binary scores of {true}: {by_wilson:.3f}")
        rows.append([f"binary, n = {n}, true {true}", f"{by_t:.3f}", f"{by_wilson:.3f}"])
    # Repeats make the scores graded, and `estimate` then takes Student's t.
    for n, true in ((20, 0.95), (100, 0.95), (100, 0.8)):
        covered = 0
        for counts in rng.binomial(4, true, size=(num_runs, n)):
            interval = estimate((counts / 4).tolist()).interval
            assert interval is not None
            covered += interval.low <= true <= interval.high
        rows.append([f"means of 4 repeats, n = {n}, true {true}", f"{covered / num_runs:.3f}", "-"])
    report.table("Coverage at 95 %, unclustered", ["scores", "Student t", "Wilson"], rows)


def clustered(
    rng: np.random.Generator,
    sizes: Sequence[int],
    icc: float,
    draw: Callable[[int], np.ndarray],
    is_normal: bool = False,
) -> np.ndarray:
    """Values with correlation `icc` in a cluster: a question copies its cluster's draw, or not."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    shared, own = draw(len(sizes))[owner], draw(len(owner))
    if is_normal:
        return math.sqrt(icc) * shared + math.sqrt(1 - icc) * own
    return np.where(rng.random(len(owner)) < math.sqrt(icc), shared, own)


def clustered_coverage(report: Report, num_runs: int) -> None:
    rng, rows = np.random.default_rng(3), []
    for name, sizes in SIZES.items():
        owner = np.repeat(np.arange(len(sizes)), sizes).tolist()
        for icc in (0.1, 0.7):
            row = [name, str(icc)]
            for kind in ("normal", 0.5, 0.8, 0.95):
                true = 0.5 if kind == "normal" else float(kind)
                covered = 0
                for _ in range(num_runs):
                    if kind == "normal":
                        values = clustered(rng, sizes, icc, lambda k: rng.normal(size=k), True)
                        values = (0.5 + 0.1 * values).clip(0, 1)
                    else:
                        values = clustered(rng, sizes, icc, lambda k, p=true: rng.random(k) < p)
                    interval = estimate(values.astype(float).tolist(), owner).interval
                    assert interval is not None
                    covered += interval.low <= true <= interval.high
                share = covered / num_runs
                row.append(f"{share:.3f}")
                if name == "50 x 10" and true < 0.9:
                    what = f"clustered estimate, {name}, icc {icc}, {kind}: {share:.3f}"
                    report.target(abs(share - 0.95) <= 0.02 + 2 * math.sqrt(0.05 / num_runs), what)
            rows.append(row)
    header = ["clusters", "ICC", "normal", "binary 0.5", "binary 0.8", "binary 0.95"]
    report.table("Coverage at 95 %, clustered", header, rows)


def paired_levels(report: Report) -> None:
    """Exact, over all tables of n questions."""
    rows = []
    for n in (20, 50):
        for changed in (0.1, 0.3):
            cells = []
            for gain in (0.0, 0.08):
                up, down = (changed + gain) / 2, (changed - gain) / 2
                rejected = covered = 0.0
                for better in range(n + 1):
                    for worse in range(n + 1 - better):
                        ways = math.comb(n, better) * math.comb(n - better, worse)
                        stay = (1 - up - down) ** (n - better - worse)
                        chance = ways * up**better * down**worse * stay
                        if chance < 1e-9:
                            continue
                        after = [1.0] * better + [0.0] * (n - better)
                        before = [0.0] * better + [1.0] * worse + [0.0] * (n - better - worse)
                        result = paired_difference(by_id(after), by_id(before))
                        assert result.p_value is not None and result.interval is not None
                        rejected += chance * (result.p_value <= ALPHA)
                        covered += chance * (result.interval.low <= gain <= result.interval.high)
                report.target(covered >= 0.93, f"Bonett and Price, n = {n}: {covered:.3f}")
                cells += [f"{rejected:.3f}", f"{covered:.3f}"]
                if gain == 0:
                    report.target(rejected <= ALPHA, f"McNemar at n = {n}: {rejected:.3f}")
            rows.append([str(n), str(changed), *cells])
    header = ["n", "share changed", "no gain: rejects", "covers", "gain 0.08: rejects", "covers"]
    report.table("Paired binary scores, exact, level 0.05", header, rows)


def by_id(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {f"q{i:04}": float(value) for i, value in enumerate(values)}


def clustered_levels(report: Report, num_runs: int) -> None:
    rng, rows = np.random.default_rng(4), []
    values = np.array([-1.0, 0.0, 1.0])
    for name, sizes in SIZES.items():
        owner = np.repeat(np.arange(len(sizes)), sizes)
        names = {f"q{i:04}": f"c{cluster}" for i, cluster in enumerate(owner)}
        for icc in (0.1, 0.7):
            for kind in ("normal", "30 % change", "6 % change", "10 % up, 2 % down"):
                ups, downs = {
                    "normal": (0.0, 0.0),
                    "30 % change": (0.15, 0.15),
                    "6 % change": (0.03, 0.03),
                    "10 % up, 2 % down": (0.1, 0.02),
                }[kind]
                chances = [downs, 1 - ups - downs, ups]
                misses = naive = 0
                true = ups - downs
                for _ in range(num_runs):
                    if kind == "normal":
                        changes = clustered(rng, sizes, icc, lambda k: rng.normal(0, 0.2, k), True)
                    else:
                        changes = clustered(
                            rng, sizes, icc, lambda k, c=chances: rng.choice(values, k, p=c)
                        )
                    after, before = by_id(changes.clip(0, None)), by_id((-changes).clip(0, None))
                    ours = paired_difference(after, before, names).interval
                    plain = paired_difference(after, before, is_repeated=True).interval
                    assert ours is not None and plain is not None
                    misses += not ours.low <= true <= ours.high
                    naive += not plain.low <= true <= plain.high
                share, naive_share = misses / num_runs, naive / num_runs
                rows.append([name, str(icc), kind, f"{naive_share:.3f}", f"{share:.3f}"])
                if true == 0:
                    most = 0.06 + 3 * math.sqrt(0.05 * 0.95 / num_runs)
                    report.target(share <= most, f"bootstrap, {name}, {icc}, {kind}: {share:.3f}")
                if (name, icc, kind) == ("50 x 10", 0.7, "30 % change"):
                    report.target(naive_share > 0.30, f"plain paired t only {naive_share:.3f}")
    header = ["clusters", "ICC", "changes", "plain paired t", "cluster bootstrap"]
    title = "Share of 95 % intervals that miss the true change (0.05 is wanted), clustered pairs"
    report.table(title, header, rows)


def gate_levels(report: Report, num_runs: int) -> None:
    """How often the gate's one-sided bound is above the truth; 0.0167 is wanted at the most."""
    rng, rows = np.random.default_rng(6), []
    level, most = 1 - 2 * ALPHA / 3, ALPHA / 3
    tolerance = 3 * math.sqrt(most / (4 * num_runs))
    kinds: dict[str, tuple[float, Callable[[int], np.ndarray]]] = {
        "0, 0.9 or 1": (0.85, lambda n: rng.choice([0, 0.9, 1], n, p=[0.13, 0.2, 0.67])),
        "means of 4 repeats": (0.856, lambda n: rng.binomial(4, 0.856, n) / 4),
        "normal": (0.7, lambda n: rng.normal(0.7, 0.1, n).clip(0, 1)),
    }
    for kind, (true, draw) in kinds.items():
        for n in (10, 20, 50, 200):
            by_gate = by_t = 0
            for _ in range(4 * num_runs):
                scores = draw(n).tolist()
                bound, described = gate_interval(scores, None, level), estimate(scores, None, level)
                assert bound is not None and described.interval is not None
                by_gate += bound.low > true
                by_t += described.interval.low > true
            share = by_gate / (4 * num_runs)
            report.target(share <= most + tolerance, f"gate bound, {kind}, n = {n}: {share:.4f}")
            rows.append([kind, str(n), f"{by_t / (4 * num_runs):.4f}", f"{share:.4f}"])
    for name, sizes in SIZES.items():
        owner = np.repeat(np.arange(len(sizes)), sizes).tolist()
        for true in (0.8, 0.95):
            by_gate = by_t = 0
            for _ in range(num_runs):
                values = clustered(rng, sizes, 0.7, lambda k, p=true: rng.random(k) < p)
                scores = values.astype(float).tolist()
                bound = gate_interval(scores, owner, level)
                described = estimate(scores, owner, level).interval
                assert bound is not None and described is not None
                by_gate += bound.low > true
                by_t += described.low > true
            share = by_gate / num_runs
            what = f"gate bound, {name}, true {true}: {share:.4f}"
            report.target(share <= most + 2 * tolerance, what)
            kind = f"binary {true}, {name} clusters, ICC 0.7"
            rows.append([kind, str(len(owner)), f"{by_t / num_runs:.4f}", f"{share:.4f}"])
    title = (
        "One-sided bounds above the truth: the described interval and the gate's (0.0167 wanted)"
    )
    report.table(title, ["scores", "n", "described", "gate"], rows)


def power(report: Report, num_runs: int) -> None:
    rows = []
    for low, high in ((0.5, 0.6), (0.7, 0.75), (0.75, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 0.95)):
        n = questions_needed(low, high)
        at_high = false_stop_risk("lower_bound", n, low, high, 1)
        at_low = false_stop_risk("lower_bound", n, low, low, 1)
        report.target(abs(at_high - 0.8) <= 0.05, f"power at {low} to {high}: {at_high:.3f}")
        rows.append([str(low), str(high), str(n), f"{at_high:.3f}", f"{at_low:.3f}"])
    header = ["from", "to", "questions", "exact power", "exact level"]
    report.table("Questions needed for Wilson's one-sided lower bound", header, rows)
    rows = [
        [str(n), *(f"{smallest_difference(n, s) or math.nan:.3f}" for s in (0.5, 0.75, 0.9))]
        for n in (20, 50, 100, 200, 400, 1000)
    ]
    report.table("Smallest drop told apart from a score", ["n", "0.5", "0.75", "0.9"], rows)
    rng, rows = np.random.default_rng(5), []
    for n in (50, 100, 200, 400):
        cells = []
        for gain in (0.05, 0.1):
            chances = [0.1 - gain / 2, 0.8, 0.1 + gain / 2]
            tests = {"exact McNemar": 0, "paired t": 0, "cluster bootstrap": 0}
            names = {f"q{i:04}": f"c{i // 10}" for i in range(n)}
            for _ in range(num_runs // 2):
                for kind, icc in (("independent", 0.0), ("clustered", 0.3)):
                    sizes = (10,) * (n // 10)
                    changes = clustered(
                        rng,
                        sizes,
                        icc,
                        lambda k, c=chances: rng.choice(np.array([-1.0, 0.0, 1.0]), k, p=c),
                    )
                    after, before = by_id(changes.clip(0, None)), by_id((-changes).clip(0, None))
                    results = (
                        [paired_difference(after, before, names)]
                        if kind == "clustered"
                        else [
                            paired_difference(after, before),
                            paired_difference(after, before, is_repeated=True),
                        ]
                    )
                    for result in results:
                        assert result.p_value is not None
                        tests[result.method] += result.p_value <= ALPHA
            cells += [f"{count / (num_runs // 2):.2f}" for count in tests.values()]
        rows.append([str(n), *cells])
    tests = ("McNemar", "paired t", "bootstrap, clusters of 10, ICC 0.3")
    header = ["n", *(f"+{gain}: {test}" for gain in ("0.05", "0.10") for test in tests)]
    report.table("Power of the paired tests, 20 % of questions change", header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500, help="runs a cell (default: 500)")
    args = parser.parse_args()
    started, report = time.monotonic(), Report()
    false_stops(report)
    wilson_coverage(report)
    t_coverage(report, args.runs)
    clustered_coverage(report, args.runs)
    paired_levels(report)
    clustered_levels(report, args.runs)
    gate_levels(report, args.runs)
    power(report, args.runs)
    seconds = time.monotonic() - started
    met = report.num_targets - len(report.missed)
    print(f"{met} of {report.num_targets} targets met, in {seconds:.0f} s.")
    for what in report.missed:
        print(f"missed: {what}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a gate can tell with the questions that there are, in words, before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

from scores.decision import Gate
from scores.intervals import combine, gate_interval
from scores.power import false_stop_risk, false_stop_risk_normal, smallest_difference
from scores.wording import share_text

FALSE_STOP_GAP = 0.05  # how far below the threshold a model is in the example of a false stop


class TaskSize(NamedTuple):
    """Questions of a scored task, and how many clusters they form (n where none are shared)."""

    n: int
    num_clusters: int


def describe_gate(gate: Gate, sizes: Sequence[TaskSize]) -> Iterator[str]:
    """Yield what the questions can tell apart, how often the rule stops falsely, and a warning
    where it can never be met."""
    yield describe_resolution(gate, sizes) + _false_stops(gate, sizes)
    if (why := out_of_reach(gate, sizes)) is not None:
        yield f"warning: {why}"


def describe_resolution(gate: Gate, sizes: Sequence[TaskSize]) -> str:
    """What the evaluation set can and cannot tell apart.

    Before anything is measured the answers are taken as right or wrong, and those of a cluster as
    rising and falling together, which is the widest that they can be.
    """
    n, n_eff = sum(size.n for size in sizes), effective_n(sizes)
    worth = (
        ""
        if n_eff == n
        else f" (which may tell as little as {n_eff}, for small tasks and questions of one cluster)"
    )
    drop = smallest_difference(n_eff, gate.threshold) if 0 < gate.threshold < 1 else None
    if drop is None:
        told = f"cannot tell a score of {gate.threshold:g} from any lower one"
    else:
        lower = math.floor((gate.threshold - drop) * 100) / 100
        told = f"tell {gate.threshold:g} from {lower:.2f}, not from closer scores"
    return f"resolution: {n} questions{worth} {told} (in 8 of 10 tries, at 1 false alarm in 20)"


def effective_n(sizes: Sequence[TaskSize]) -> int:
    """How many questions of one task the plain mean of tasks is worth: k^2 / sum(1 / n)."""
    inverse = sum(1 / size.num_clusters for size in sizes)
    return max(1, math.floor(len(sizes) ** 2 / inverse + 1e-9))


def _false_stops(gate: Gate, sizes: Sequence[TaskSize]) -> str:
    truth = gate.threshold - FALSE_STOP_GAP
    if not 0 < truth < 1 or not gate.stops:
        return ""
    looks = gate.max_rounds
    risk = _pass_chance(gate, sizes, truth, looks, gate.alpha)
    is_clustered = any(size.num_clusters < size.n for size in sizes)
    most = "at most " if gate.rule == "paired" or is_clustered else ""
    about = "about " if len(sizes) > 1 else ""
    told = share_text(risk, digits=1)
    if told.startswith("less"):  # which is a bound of its own
        most = about = ""
    return (
        f"; a model that is really {truth:.2f} would stop falsely in {most}{about}{told} of "
        f"runs of {looks} round{'s' * (looks != 1)} (gate.rule {gate.rule})"
    )


def pass_chance(gate: Gate, sizes: Sequence[TaskSize], truth: float) -> float:
    """The chance that one round passes whose model is really at `truth`; for the rule `paired` that
    its score reaches the threshold, which is the rule's one half."""
    return _pass_chance(gate, sizes, truth, 1, gate.alpha_per_look)


def _pass_chance(
    gate: Gate, sizes: Sequence[TaskSize], truth: float, looks: int, alpha: float
) -> float:
    rule = "lower_bound" if gate.rule == "lower_bound" else "mean"
    n_eff = effective_n(sizes)
    if len(sizes) == 1:
        return false_stop_risk(rule, n_eff, gate.threshold, truth, looks, alpha)
    stderr = math.sqrt(truth * (1 - truth) / n_eff)
    if stderr == 0:  # all right or all wrong, whatever is asked
        return float(truth >= gate.threshold)
    return false_stop_risk_normal(rule, stderr, gate.threshold, truth, looks, alpha)


def gain_chance(
    gate: Gate, sizes: Sequence[TaskSize], low: float, high: float, changed: float
) -> float:
    """The chance that one round shows a gain above the margin, as the rule `paired` wants it, where
    the baseline is really at `low`, the model at `high`, and the share `changed` of the answers
    turns. By the normal distribution."""
    gain = high - low
    stderr = math.sqrt(max(0.0, changed - gain * gain) / effective_n(sizes))
    if stderr == 0:
        return float(gain > gate.margin)
    normal = NormalDist()
    bound = normal.inv_cdf(1 - gate.alpha_per_look)
    return normal.cdf((gain - gate.margin) / stderr - bound)


def out_of_reach(gate: Gate, sizes: Sequence[TaskSize]) -> str | None:
    """Why no round can pass, where not even right answers only would reach the bound."""
    if gate.rule == "mean":
        return None
    if any(size.num_clusters == 1 for size in sizes):
        return (
            f"no round can pass, because gate.rule {gate.rule} needs a bound and a scored "
            "task of one question or one cluster has none. Ask more, or set gate.rule to mean."
        )
    if gate.rule == "paired":
        return None
    perfect = [
        gate_interval([1.0] * size.n, [i % size.num_clusters for i in range(size.n)], gate.level)
        for size in sizes
    ]
    bound = combine([1.0] * len(sizes), perfect)
    if bound is None or bound.low >= gate.threshold:
        return None
    return (
        f"no round can pass, because even right answers only would have the lower bound "
        f"{bound.low:.4f} < {gate.threshold:g}. Ask more questions, lower eval_threshold, or set "
        "gate.rule to mean."
    )

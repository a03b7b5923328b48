"""Arms side by side: means over seeds and questions, Holm's adjustment, letters, contrasts.

Every seed answers the same questions, so scores form a table of seeds by questions for each task,
and so do differences and contrasts of arms, taken per seed and question. The variance of its mean
is estimated as

    V = V_seeds + V_questions
    V_seeds     = s^2 / k, s^2 the variance of the k seeds' means
    V_questions = the squared standard error of the mean over questions of their means over seeds,
                  clustered where questions share clusters; with T tasks, the sum over T^2

Each term holds the residual once, so V counts it twice and errs on the wide side: it is the crossed
random-effects (generalizability) design, whose naive estimate is conservative (Owen 2007, "The
pigeonhole bootstrap", Annals of Applied Statistics 1:386; Brennan 2001, "Generalizability Theory").
Half of the interval is sqrt(t_seeds^2 V_seeds + t_questions^2 V_questions), each part with the t
quantile of its own degrees of freedom (Graybill and Wang 1980, JASA 75:869), and p is the level at
which it reaches 0. One t with Satterthwaite's degrees is too sure with three seeds: where their
scores deviated by 0.07 on 300 questions, a null study of four arms told two apart in 14 % of cases
instead of 5 % (2 % this way). Three seeds alone have 2 degrees, so between arms V_seeds is the
larger of the contrast's own and that of the analysis of variance of all arms by seeds, which has
more (`pooled_seeds`). `benchmarks/study_statistics.py` measures it. Below three seeds V_seeds is
left out, and the mean is one of these checkpoints and of no setting.
Pure. Suffixes: _S one per seed, _A one per arm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from scores.distributions import student_t_cdf, student_t_quantile, upper_share
from scores.intervals import (
    DIFFERENCE,
    TINY,
    Interval,
    PairedDifference,
    clustered_standard_error,
    combine,
    mean,
    paired_difference,
    wilson_interval,
)

MIN_SEEDS = 3  # below, the variation between seeds is not known well enough to speak of a setting
LEVEL = 0.95
MAX_GROUPS = 300
MIN_P = 1e-12  # smaller ones are not told from it

Answers = Mapping[str, Mapping[str, float]]  # task -> question id -> score
Clusters = Mapping[str, Mapping[str, str] | None]  # task -> question id -> cluster


class Parts(NamedTuple):
    """Where the variance of a mean comes from. `seeds` is 0 below three seeds.

    `residual` is what both others hold of what neither seeds nor questions explain: it shrinks with
    either.
    """

    seeds: float
    questions: float
    residual: float
    questions_df: float
    seeds_df: float = 0.0

    @property
    def total(self) -> float:
        return self.seeds + self.questions


class Pool(NamedTuple):
    """How seeds vary over all arms: the variance of one seed's mean, and its degrees of freedom."""

    between: float  # of what arms differ by: of a contrast, times the sum of its squared weights
    own: float  # of one arm by itself
    df: float


class Crossed(NamedTuple):
    """A mean over seeds and questions. `interval`, `p_value` (two-sided, for 0) and `parts` are
    None where a task has one question or one cluster alone."""

    mean: float
    interval: Interval | None
    p_value: float | None
    method: str
    n: int  # questions that all seeds were asked
    num_seeds: int
    parts: Parts | None

    @property
    def is_of_setting(self) -> bool:
        return self.num_seeds >= MIN_SEEDS


def shared(answers: Sequence[Answers]) -> dict[str, list[str]]:
    """The questions that all have, sorted, of each task that all have; tasks without any left
    out."""
    tasks = [task for task in answers[0] if all(task in one for one in answers)]
    ids = {task: set.intersection(*(set(one[task]) for one in answers)) for task in sorted(tasks)}
    return {task: sorted(found) for task, found in ids.items() if found}


def weighted(terms: Sequence[tuple[float, Answers]]) -> dict[str, dict[str, float]]:
    """The weighted sum of answers, question by question, over the questions that all have."""
    ids = shared([answers for _, answers in terms])
    return {
        task: {
            question: math.fsum(weight * answers[task][question] for weight, answers in terms)
            for question in questions
        }
        for task, questions in ids.items()
    }


def crossed(
    answers_S: Sequence[Answers],
    clusters: Clusters,
    bounds: Interval = DIFFERENCE,
    known: tuple[float, float] | None = None,
    level: float = LEVEL,
) -> Crossed:
    """The mean of a table of seeds by questions, as the module says; at least one seed, and one
    question that all seeds have. The interval is cut to the bounds. `known` is the variance of a
    seed's mean as all arms have it, with its degrees of freedom."""
    ids = shared(answers_S)
    if not ids:
        raise ValueError("no question was asked of every seed")
    k, num_tasks, n = len(answers_S), len(ids), sum(map(len, ids.values()))
    means_S = [
        mean([mean([one[task][q] for q in questions]) for task, questions in ids.items()])
        for one in answers_S
    ]
    centre = mean(means_S)
    method = "t over seeds and questions" if k >= MIN_SEEDS else "t over questions"
    found = [_task_parts(answers_S, task, ids[task], clusters.get(task), bounds) for task in ids]
    tasks = [one for one in found if one is not None]
    if len(tasks) < num_tasks:
        return Crossed(centre, None, None, "unknown", n, k, None)
    seeds, seeds_df = (_variance(means_S), k - 1.0) if k >= MIN_SEEDS else (0.0, 0.0)
    if known is not None and k >= MIN_SEEDS:
        seeds, seeds_df = max(seeds, known[0]), max(seeds_df, known[1])
    questions = math.fsum(one.questions for one in tasks) / num_tasks**2
    squares = math.fsum((one.questions / num_tasks**2) ** 2 / one.questions_df for one in tasks)
    residual = math.fsum(one.residual for one in tasks) / num_tasks**2
    parts = Parts(seeds / k, questions, residual, questions**2 / squares, seeds_df)
    half = half_width(parts, 1 - level)
    interval = Interval(max(bounds.low, centre - half), min(bounds.high, centre + half))
    return Crossed(centre, interval, _p_value(centre, parts), method, n, k, parts)


def half_width(parts: Parts, alpha: float) -> float:
    """Half of the two-sided interval at level 1 - alpha."""
    p = 1 - alpha / 2
    questions = student_t_quantile(p, parts.questions_df) * math.sqrt(parts.questions)
    if parts.seeds == 0:
        return questions
    return math.hypot(questions, student_t_quantile(p, parts.seeds_df) * math.sqrt(parts.seeds))


def _p_value(centre: float, parts: Parts) -> float:
    """The level at which the interval ends at 0, by false position on the seeds' t (Illinois)."""
    distance = abs(centre)
    if distance == 0:
        return 1.0
    if parts.seeds == 0:
        t = distance / math.sqrt(parts.questions)
        return min(1.0, 2 * student_t_cdf(-t, parts.questions_df))

    def level(t: float) -> float:
        return min(1.0, max(MIN_P, 2 * student_t_cdf(-t, parts.seeds_df)))

    def beyond(t: float) -> float:
        questions = student_t_quantile(1 - level(t) / 2, parts.questions_df)
        return math.hypot(t * math.sqrt(parts.seeds), questions * math.sqrt(parts.questions))

    low, high = 0.0, distance / math.sqrt(parts.seeds)
    below, above = -distance, beyond(high) - distance
    t = high
    for _ in range(100):
        t = high - above * (high - low) / (above - below) if above > 0 else high
        off = beyond(t) - distance
        if abs(off) <= 1e-9 * distance:
            break
        if off < 0:
            low, below, above = t, off, above / 2
        else:
            high, above, below = t, off, below / 2
    return level(t)


def _task_parts(
    answers_S: Sequence[Answers],
    task: str,
    questions: Sequence[str],
    clusters: Mapping[str, str] | None,
    bounds: Interval,
) -> Parts | None:
    """The parts of one task but for the seeds'; None where its uncertainty is unknown."""
    k, n = len(answers_S), len(questions)
    means_Q = [mean([one[task][q] for one in answers_S]) for q in questions]
    names: Sequence[Hashable] = questions if clusters is None else [clusters[q] for q in questions]
    stderr = clustered_standard_error(means_Q, names)
    if stderr is None:
        return None
    units = _effective_number(names)
    df = max(1.0, units - 1)
    if stderr <= TINY:
        # Identical values do not prove that there is no spread: as far as the rule of three goes.
        centre, share = mean(means_Q), wilson_interval(0, units, LEVEL).high
        half = share * max(centre - bounds.low, bounds.high - centre)
        stderr = half / student_t_quantile(upper_share(LEVEL), df)
    residual = 0.0
    if k > 1:
        means_S = [mean([one[task][q] for q in questions]) for one in answers_S]
        centre = mean(means_S)
        squares = math.fsum(
            (one[task][q] - of_question - of_seed + centre) ** 2
            for one, of_seed in zip(answers_S, means_S, strict=True)
            for q, of_question in zip(questions, means_Q, strict=True)
        )
        residual = squares / ((k - 1) * (n - 1)) / (k * n)
    return Parts(0.0, stderr**2, residual, df)


def _variance(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)


def _effective_number(clusters: Sequence[Hashable]) -> float:
    """Kish 1965, as in `scores.intervals`: n^2 / sum(size^2)."""
    sizes = Counter(clusters).values()
    return len(clusters) ** 2 / sum(size * size for size in sizes)


def pooled_seeds(scores_A_S: Sequence[Sequence[float]]) -> Pool | None:
    """How the scores of arms vary with seeds that all of them have: the analysis of variance of
    arms by seeds. None for fewer than three arms or seeds.

    It takes arms to vary alike. Where one varies more, its differences have their own, larger
    variance, if with too many degrees. Seeds may shift all arms alike, so what one arm varies by
    has no more degrees than what they differ by.
    """
    num_arms, k = len(scores_A_S), min(map(len, scores_A_S), default=0)
    if num_arms < 3 or k < MIN_SEEDS:
        return None
    of_seeds = [mean([scores[i] for scores in scores_A_S]) for i in range(k)]
    df = (num_arms - 1) * (k - 1)
    squares = math.fsum(
        (scores[i] - mean(scores) - of_seeds[i] + mean(of_seeds)) ** 2
        for scores in scores_A_S
        for i in range(k)
    )
    return Pool(squares / df, mean([_variance(scores) for scores in scores_A_S]), df)


def seed_deviation(scores_S: Sequence[float]) -> float | None:
    """The standard deviation of the seeds' scores; None for one."""
    return math.sqrt(_variance(scores_S)) if len(scores_S) > 1 else None


# --- two arms -------------------------------------------------------------------------------------


def difference(
    after_S: Sequence[Answers],
    before_S: Sequence[Answers],
    clusters: Clusters,
    *,
    is_repeated: bool = False,
    known: tuple[float, float] | None = None,
) -> Crossed:
    """By how much two arms differ, seed by seed and question by question.

    With three seeds or more as `crossed` says. Below, of these checkpoints: each task as
    `paired_difference` says (its means over seeds, where there are two), several tasks with the
    interval of `combine` and the t test on their combined standard error.
    """
    changes_S = [
        weighted([(1.0, after), (-1.0, before)])
        for after, before in zip(after_S, before_S, strict=True)
    ]
    table = crossed(changes_S, clusters, known=known)
    if table.is_of_setting:
        return table
    ids = shared(changes_S)
    means = [
        {task: {q: mean([one[task][q] for one in side]) for q in ids[task]} for task in ids}
        for side in (after_S, before_S)
    ]
    moved: list[PairedDifference] = []
    for task in ids:
        named = clusters.get(task)
        is_graded = is_repeated or len(after_S) > 1
        moved.append(
            paired_difference(means[0][task], means[1][task], named, is_repeated=is_graded)
        )
    if len(moved) == 1:
        (only,) = moved
        return table._replace(interval=only.interval, p_value=only.p_value, method=only.method)
    interval = combine([one.mean for one in moved], [one.interval for one in moved], DIFFERENCE)
    return table._replace(interval=interval, method="combined over tasks")


# --- all pairs ------------------------------------------------------------------------------------


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm 1979's step-down adjustment: the family-wise error stays below the level whatever the
    tests' dependence. Unknown ones stay so and count as tests."""
    m = len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * m
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (m - rank) * p))
        adjusted[i] = largest
    return adjusted


def groups_of(num_arms: int, apart: Collection[tuple[int, int]]) -> list[list[int]] | None:
    """The largest sets of arms of which no two are told apart, for a compact letter display.

    Insert and absorb (Piepho 2004, J. Comput. Graph. Stat. 13:456): a set that holds a pair told
    apart becomes two, without the one and without the other; sets within others are absorbed. Arms
    are numbered from the best, and the groups are in the order of their members. None for more
    than `MAX_GROUPS`, of which pairs here and there among many arms make millions.
    """
    sets = [(1 << num_arms) - 1] if num_arms else []
    for one, other in sorted(tuple(sorted(pair)) for pair in apart):
        both = 1 << one | 1 << other
        kept = [group for group in sets if group & both != both]
        split = {
            group & ~(1 << arm) for group in sets if group & both == both for arm in (one, other)
        }
        for group in split:
            if not any(group & larger == group for larger in [*kept, *split] if larger != group):
                kept.append(group)
        if len(kept) > MAX_GROUPS:
            return None
        sets = kept
    members = [[arm for arm in range(num_arms) if group >> arm & 1] for group in sets]
    return sorted(members)


def letter(number: int) -> str:
    """The name of a group: a to z, A to Z, then numbers in brackets."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[number] if number < len(letters) else f"[{number + 1}]"


# --- contrasts of a numeric variable --------------------------------------------------------------


def trend_weights(z: Sequence[float]) -> list[float]:
    """Weights of the levels whose sum is the rise of the least-squares line over the whole range:
    the linear orthogonal polynomial, scaled. For two levels, -1 and 1."""
    centre = mean(z)
    squares = math.fsum((one - centre) ** 2 for one in z)
    return [(one - centre) * (max(z) - min(z)) / squares for one in z]


def half_weights(x: Sequence[float]) -> tuple[list[float], list[float]]:
    """Of rising levels, the gain over the lower part, and what of it the upper part does not bring.

    The level in the middle (the lower one of two) ends the lower part and begins the upper. The
    first weights give the lower part's least-squares gain; the second that gain less what the upper
    part's slope would bring for as much added. Returns diminish where the second is above 0.
    """
    middle = (len(x) - 1) // 2
    added = x[middle] - x[0]
    lower = trend_weights(x[: middle + 1]) + [0.0] * (len(x) - middle - 1)
    range_above = x[-1] - x[middle]
    upper = [0.0] * middle + [w * added / range_above for w in trend_weights(x[middle:])]
    return lower, [low - high for low, high in zip(lower, upper, strict=True)]


def bounds_of(weights: Sequence[float]) -> Interval:
    """Where a weighted sum of scores in [0, 1] can be."""
    return Interval(sum(w for w in weights if w < 0), sum(w for w in weights if w > 0))

"""What the curves of a round say, in one sentence: learning, stuck, exploding, overfitting. Pure.

A training loss that falls and questions that are answered no better are two findings: what answers
look like is learned first, and what they are may be learned later or never.

The rules are rules of thumb with stated bounds; they explain a round and decide nothing. Losses are
in nats per loss token. Batches differ, and later rounds train on harder rows, so training losses
are compared within a round only, whose rows are shuffled: its end with its start and with a blind
guess, and the trend over its steps with its error. Held-out losses, which are of the same rows, are
compared with those of the rounds that the weights came from, row by row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median, median_low
from typing import Literal, NamedTuple, get_args

from scores.distributions import student_t_quantile
from scores.intervals import Interval, estimate, mcnemar_exact, mean
from scores.measures import SFT
from scores.results import EvalResult, HeldOutLoss

MIN_STEPS = 4  # of a round, before its trend is looked at
MIN_STEPS_STUCK = 8  # before all of its steps together are evidence
STUCK_FRAC = 0.1  # of a loss: a smaller fall in a round, surely, is none
LOW_NATS = 0.5  # the right token has 0.6: a loss below this is low, whether it changes or not
RISE_FACTOR = 1.5  # of a round's end over its start, where the trend is sure
FEW_STEPS = 5  # whose median is a round's start or end: a bad batch or two do not move it
FAR_FACTOR = 2.0  # over the start, of a loss above a blind guess, where batches are much alike
FAR_FACTOR_BELOW = 4.0  # below one, where batches of 4 rows differ so in 1 flat round of 50
BROKEN_FACTOR = 10.0  # over a blind guess: no rows are so unlikely to weights that are whole
FALLEN_FRAC = 0.9  # an end below this share of its start has fallen
LEARNED_FRAC = 0.75  # an end below this share of its start shows that something was learned
RISING_FRAC = 0.02  # of a held-out loss: a smaller rise is none
MIN_ROWS = 5  # of a held-out file, before its rise is named
MIN_QUESTIONS = 5  # of a topic, before it is named
MAX_TOPICS = 3
FELL_ALPHA = 0.05  # one-sided, of all topics together
SURE = 0.99  # one-sided, of every comparison
DIVERGED_STEPS = 20  # of which half or more are bad; a spike that a run recovers from is shorter


Kind = Literal["too_high", "stuck", "overfitting", "no_gain", "reward_only", "no_variance"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class HeldOutPoint(NamedTuple):
    """A held-out loss measured inside a round, after `step` steps of the run."""

    name: str
    step: int
    nll: float


class Curves(NamedTuple):
    """What training recorded in a round."""

    losses: Sequence[float]  # training loss of each step
    held_out: Sequence[HeldOutPoint]
    lr: float  # of the last step
    lora_rank: int
    vocab_size: int  # a blind guess among it has a loss of its logarithm
    course: str | None = None  # said instead of the losses, where they are not of the rows' answers
    course_kinds: tuple[Kind, ...] = ()  # of the problems that it tells of
    loss_is: str = SFT.nll_is  # what the losses are


class Diagnosis(NamedTuple):
    """What a round shows, in words, and which of the known problems it has."""

    sentence: str
    kinds: tuple[Kind, ...]


class _Problem(NamedTuple):
    kind: Kind
    said: str


def diagnose(curves: Curves, lineage: Sequence[EvalResult], result: EvalResult) -> Diagnosis:
    """Say what a trained round's curves show.

    `lineage` are the results of the rounds that its weights came from, the baseline first.
    """
    problems = []
    if curves.course is not None:
        pass
    elif (said := _too_high(curves)) is not None:
        problems.append(_Problem("too_high", said))
    elif (said := _stuck(curves)) is not None:
        problems.append(_Problem("stuck", said))
    if not problems:  # else a held-out loss rises for that reason
        rises = (_rise(loss, lineage, curves.held_out) for loss in result.held_out)
        problems = [_Problem("overfitting", said) for said in rises if said is not None]
    found = [problem.said for problem in problems]
    if curves.course is not None:
        found.insert(0, curves.course)
    elif not found:
        found.append(_course(curves))
    kinds: dict[Kind, None] = dict.fromkeys(problem.kind for problem in problems)
    kinds |= dict.fromkeys(curves.course_kinds)
    if (topics := _topics_without_gain(lineage[0], result)) is not None:
        has_learned = not (problems or curves.course) and _has_learned(curves.losses)
        but = "the form of the answers was learned, but " if has_learned else ""
        found.append(f"{but}no more questions were answered right than before training in {topics}")
        kinds["no_gain"] = None
    if lineage[-1].round and (topics := _topics_that_fell(lineage[-1], result)) is not None:
        found.append(f"fewer were right than after round {lineage[-1].round} in {topics}")
    sentence = "; ".join(found)
    return Diagnosis(sentence[0].upper() + sentence[1:] + ".", tuple(kinds))


class PreferenceSteps(NamedTuple):
    """What training on preferences measured in a round, step by step."""

    losses: Sequence[float]  # of pairs
    margins: Sequence[float]
    chosen_gains: Sequence[float]  # nats a token of the chosen answers, above the reference's


def preference_course(steps: PreferenceSteps) -> str:
    """Where a round of training on preferences went, and whether its chosen answers became less
    likely, which the loss allows where the rejected ones do so even more.

    Their log-probability is counted from the reference's of the same answers, since the batches of
    a round differ more than training moves them.
    """
    loss, margin, gain = (_start_and_end(values) for values in steps)
    said = (
        f"the loss of the pairs went from {loss.start:.3f} to {loss.end:.3f} (no preference has "
        f"{math.log(2):.3f}), their margin from {margin.start:z.3f} to {margin.end:z.3f}"
        f"{_means_said(steps.losses)}"
    )
    if round(gain.end, 3) < round(gain.start, 3):
        said += (
            "; the chosen answers themselves became less likely, from "
            f"{gain.start:+.3f} to {gain.end:+.3f} nats a token beside the reference"
        )
    return said


def teacher_course(reverse_kls: Sequence[float]) -> str:
    """Where a round of on-policy distillation went; one value for each step, in nats a token."""
    kl = _start_and_end(reverse_kls)
    return (
        f"the reverse KL of the student's answers to the teacher went from {kl.start:.3f} to "
        f"{kl.end:.3f} nats a token in this round{_means_said(reverse_kls)}"
    )


def _means_said(values: Sequence[float]) -> str:
    """What the ends of a round are, which beside each step's value would look wrong."""
    num = len(values) // 4 if len(values) >= MIN_STEPS else 1
    return "" if num == 1 else f", means of its first and last {num} steps"


class _Ends(NamedTuple):
    start: float
    end: float


def _start_and_end(values: Sequence[float]) -> _Ends:
    """Means of the first and the last quarter of a round's steps; of few steps the outer ones."""
    if len(values) < MIN_STEPS:
        return _Ends(values[0], values[-1])
    return _Ends(first_quarter(values), last_quarter(values))


def divergence(losses: Sequence[float], vocab_size: int) -> str | None:
    """What shows that a round's training loss, in nats per token, diverges; None where nothing.

    It does when, over the last steps, it is far above the round's start and worse than a blind
    guess. This stops a run, so it asks for more steps than a diagnosis does, and for both.
    """
    if len(losses) < FEW_STEPS + DIVERGED_STEPS:
        return None
    start, last = _start(losses), median_low(losses[-DIVERGED_STEPS:])
    blind_guess = math.log(vocab_size)
    if last <= blind_guess or not _is_far_above(start, last, blind_guess):
        return None
    return (
        f"{last:.2f} a token over the last {DIVERGED_STEPS} steps, {start:.2f} at the "
        f"round's start, and a blind guess has {blind_guess:.2f}"
    )


def first_quarter(losses: Sequence[float]) -> float:
    """Mean loss over the first quarter of a round's steps, at least one."""
    return mean(losses[: max(1, len(losses) // 4)])


def last_quarter(losses: Sequence[float]) -> float:
    """Mean loss over the last quarter of a round's steps, at least one."""
    return mean(losses[-max(1, len(losses) // 4) :])


def _too_high(curves: Curves) -> str | None:
    """What shows a learning rate that is too high: the end of a round, however the way there looks,
    or a sure rise."""
    losses, n, blind_guess = curves.losses, len(curves.losses), math.log(curves.vocab_size)
    start, end = _start(losses), _end(losses)
    first, last = first_quarter(losses), last_quarter(losses)
    is_far = _is_far_above(start, end, blind_guess) and (n >= MIN_STEPS or end > blind_guess)
    if n >= MIN_STEPS_STUCK:  # no batch after the first came near it
        is_far = is_far or min(losses[1:]) > max(FAR_FACTOR * start, LOW_NATS)
    if is_far:
        moved = f"is exploding, from {start:.3f} to {(reached := max(end, last)):.3f}"
    elif end > min(  # an earlier round exploded, and this one may have fallen from there
        BROKEN_FACTOR * blind_guess, max(FAR_FACTOR * blind_guess, FALLEN_FRAC * start)
    ):
        moved = f"is exploding, at {(reached := end):.3f}"
    elif n >= MIN_STEPS and min(last, end) > max(RISE_FACTOR * first, LOW_NATS):
        growth = _trend([math.log(max(loss, 1e-6)) for loss in losses])  # it is exponential
        if growth.change <= student_t_quantile(0.95, n - 2) * growth.stderr:
            return None
        moved = f"rose from {first:.3f} to {(reached := last):.3f}"
    else:
        return None
    return (
        f"the {curves.loss_is} {moved} a token{_guess_beside(reached, blind_guess)}: the "
        f"learning rate {curves.lr:.3g} is too high, or rows of this round are bad"
    )


def _stuck(curves: Curves) -> str | None:
    losses, n = curves.losses, len(curves.losses)
    if n < MIN_STEPS_STUCK or last_quarter(losses) <= LOW_NATS:
        return None
    trend, level = _trend(losses), mean(losses)
    most_fallen = student_t_quantile(SURE, n - 2) * trend.stderr - trend.change
    # A rate that is too high can do all of its harm in the first step, and looks flat from there.
    if most_fallen >= STUCK_FRAC * level or _end(losses) > RISE_FACTOR * _start(losses):
        return None
    return (
        f"the {curves.loss_is} stayed at {level:.3f} a token for {n} steps"
        f"{_guess_beside(level, math.log(curves.vocab_size))}: the learning rate {curves.lr:.3g} "
        f"or lora_rank {curves.lora_rank} is too low, or these rows have no more to teach"
    )


def _course(curves: Curves) -> str:
    """Where the training loss went, where that is no problem; a spike is named beside it."""
    losses, blind_guess = curves.losses, math.log(curves.vocab_size)
    if len(losses) < MIN_STEPS:
        first = last = median(losses)
        moved = f"is {last:.3f} a token"
    else:
        num = len(losses) // 4
        first = mean(losses[:num])
        last, end = last_quarter(losses), _end(losses)
        means = _means_said(losses)
        former, latter = (
            f", the {which} the mean of its {side} {num} steps" if num > 1 else ""
            for which, side in (("former", "first"), ("latter", "last"))
        )
        if first > RISE_FACTOR * losses[0]:  # a bad batch is in it
            first, means = losses[0], latter
            former = ""
        if last > RISE_FACTOR * end:
            last = end
            means = f"{former}, the latter the median of its last {_num_end(losses)} steps"
        moved = f"went from {first:.3f} to {last:.3f} a token in this round{means}"
    is_spike = _is_far_above(max(first, last), max(losses), blind_guess)
    spike = f", with a spike to {max(losses):.3f}" if is_spike else ""
    scale = f" (certainty has 0, a blind guess {blind_guess:.2f})" if last <= blind_guess else ""
    return f"the {curves.loss_is} {moved}{_guess_beside(last, blind_guess)}{spike}{scale}"


def _has_learned(losses: Sequence[float]) -> bool:
    """Whether the end of a round is well below its start, for which one step is no evidence."""
    return len(losses) > 1 and _end(losses) <= LEARNED_FRAC * losses[0]


def _guess_beside(loss: float, blind_guess: float) -> str:
    return f", where a blind guess has {blind_guess:.2f}" if loss > blind_guess else ""


def _start(losses: Sequence[float]) -> float:
    """The loss that a round started at; one bad batch does not count.

    Only the first step's is of the weights that the round began with, and a rate that is far too
    high does its harm in one step. Where that batch was a bad one, the steps after it say so.
    """
    return min(losses[0], median(losses[: _few(losses)]))


def _end(losses: Sequence[float]) -> float:
    """The loss that a round ended at; a bad batch or two do not count.

    The first step's loss is never part of it, being of the weights before any step.
    """
    return median_low((losses[1:] or losses)[-_num_end(losses) :])


def _num_end(losses: Sequence[float]) -> int:
    """How many steps the end of a round is told by."""
    return max(2, _few(losses))


def _few(losses: Sequence[float]) -> int:
    return max(1, min(FEW_STEPS, len(losses) // 2))


def _is_far_above(start: float, loss: float, blind_guess: float) -> bool:
    """Whether a loss is further above the start than batches differ by chance.

    Rows that contradict what was learned begin worse than a blind guess, and fall. A loss that is
    still low is not far above: a few new rows among learned ones raise 0.01 to 0.3.
    """
    factor = FAR_FACTOR if loss > blind_guess else FAR_FACTOR_BELOW
    return loss > max(factor * start, LOW_NATS)


class _Trend(NamedTuple):
    change: float
    stderr: float


def _trend(losses: Sequence[float]) -> _Trend:
    """Change over the round by the least-squares line through its steps, and its error."""
    n, centre = len(losses), mean(losses)
    offsets = [step - (n - 1) / 2 for step in range(n)]
    squares = math.fsum(offset * offset for offset in offsets)
    slope = math.fsum(o * (loss - centre) for o, loss in zip(offsets, losses, strict=True))
    slope /= squares
    residuals = [loss - centre - slope * o for o, loss in zip(offsets, losses, strict=True)]
    variance = math.fsum(residual * residual for residual in residuals) / (n - 2)
    return _Trend(slope * (n - 1), math.sqrt(variance / squares) * (n - 1))


def _rise(
    loss: HeldOutLoss, lineage: Sequence[EvalResult], points: Sequence[HeldOutPoint]
) -> str | None:
    """Where a held-out loss is above its lowest, beyond noise: overfitting."""
    if loss.n < MIN_ROWS:
        return None
    lows: list[tuple[float, str]] = []
    before = [(one, r.round) for r in lineage for one in r.held_out if one.name == loss.name]
    if before:
        one, number = min(before, key=lambda pair: pair[0].nll)
        if _is_higher(loss, one):
            lows.append((one.nll, f"after round {number}" if number else "untrained"))
    lows += [(p.nll, f"after {p.step} steps") for p in points if p.name == loss.name]
    lows = [low for low in lows if loss.nll > low[0] * (1 + RISING_FRAC)]
    if not lows:
        return None
    lowest, when = min(lows)
    return (
        f"the held-out loss of {loss.name} rose to {loss.nll:.3f} a token from {lowest:.3f} "
        f"{when}: overfitting, so fewer steps, a lower rate or more data"
    )


def _is_higher(now: HeldOutLoss, before: HeldOutLoss) -> bool:
    """Whether a loss on the same rows rose beyond the error of its paired change.

    The change is a ratio of sums over rows (Cochran 1977, eq. 2.39).
    """
    was = {row.id: row.nll_sum for row in before.rows}
    rows = [(row.nll_sum - was[row.id], row.num_loss_tokens) for row in now.rows]
    num_tokens, n = sum(tokens for _, tokens in rows), len(rows)
    change = math.fsum(moved for moved, _ in rows) / num_tokens
    squares = math.fsum((moved - change * tokens) ** 2 for moved, tokens in rows)
    stderr = math.sqrt(squares * n / (n - 1)) / num_tokens
    return change > student_t_quantile(SURE, n - 1) * stderr


def _topic_scores(result: EvalResult) -> dict[str, list[float]]:
    """Topic -> the score of each of its questions."""
    topics: dict[str, list[float]] = defaultdict(list)
    for task in result.scored_tasks:
        of_question = {sample.id: sample.topic for sample in task.samples}
        for question, score in task.scores.items():
            if (topic := of_question[question]) is not None:
                topics[topic].append(score)
    return topics


def _topic_clusters(result: EvalResult) -> dict[str, list[tuple[str, str]]]:
    """Topic -> the cluster of each of its questions, in the order of `_topic_scores`."""
    topics: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for task in result.scored_tasks:
        samples = {sample.id: sample for sample in task.samples}
        for question in task.scores:
            if (topic := samples[question].topic) is not None:
                topics[topic].append((task.name, samples[question].cluster or question))
    return topics


def _topics_without_gain(baseline: EvalResult, result: EvalResult) -> str | None:
    """The topics that the untouched model answered as well; None where there are none."""
    before, after = _topic_scores(baseline), _topic_scores(result)
    asked = [topic for topic, scores in sorted(after.items()) if len(scores) >= MIN_QUESTIONS]
    unlearned = [
        topic
        for topic in asked
        if sum(after[topic]) <= sum(before[topic]) and mean(after[topic]) < 0.5
    ]
    if not unlearned:
        return None
    if len(unlearned) == len(asked) > 1:
        return f"any of {len(asked)} topics"
    shown = []
    for topic in unlearned[:MAX_TOPICS]:
        was, is_now = sum(before[topic]), sum(after[topic])
        fell = "" if was == is_now else f", {was:g} before"
        shown.append(f"{topic} ({is_now:g} of {len(after[topic])}{fell})")
    more = len(unlearned) - MAX_TOPICS
    return ", ".join(shown) + (f" and {more} topics more" if more > 0 else "")


def _topics_that_fell(before: EvalResult, result: EvalResult) -> str | None:
    """The topics of which answers that were right are not any more, beyond chance by sign tests
    that share one error (Bonferroni); None where there are none. Gains elsewhere hide them in the
    score."""
    moved: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for task in result.scored_tasks:
        earlier = before.task(task.name)
        was = {} if earlier is None else earlier.scores
        of_question = {sample.id: sample.topic for sample in task.samples}
        for question, score in task.scores.items():
            if (topic := of_question[question]) is not None and question in was:
                moved[topic].append((was[question], score))
    fallen = []
    for topic, pairs in sorted(moved.items()):
        better, worse = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        # Of two sides, as the exact test has them: 0.1 is an error of 0.05 on the one asked about.
        if worse > better and mcnemar_exact(better, worse) <= 2 * FELL_ALPHA / len(moved):
            had, has = sum(a for a, _ in pairs), sum(b for _, b in pairs)
            fallen.append(f"{topic} ({has:g} of {len(pairs)}, {had:g} before)")
    more = len(fallen) - MAX_TOPICS
    return ", ".join(fallen[:MAX_TOPICS]) + (f" and {more} topics more" if more > 0 else "") or None


# --- topics ---------------------------------------------------------------------------------------


class TopicReport(NamedTuple):
    """How one topic stands after a round; `interval` is at 95 %."""

    topic: str
    score: float
    interval: Interval | None
    n: int  # questions
    change: float | None  # since the round that the weights came from
    num_added: int  # examples of the topic that the round drew


def topic_reports(
    result: EvalResult, before: EvalResult | None, added: Mapping[str, int]
) -> list[TopicReport]:
    """The topics of the scored questions, the weakest first; `added` are the examples drawn."""
    earlier = {} if before is None else _topic_scores(before)
    clusters, reports = _topic_clusters(result), []
    for topic, scores in _topic_scores(result).items():
        known = estimate(scores, clusters[topic])
        change = mean(scores) - mean(earlier[topic]) if topic in earlier else None
        reports.append(
            TopicReport(topic, known.mean, known.interval, known.n, change, added.get(topic, 0))
        )
    return sorted(reports, key=lambda report: (report.score, report.topic))

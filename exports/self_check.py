"""An export held against the service: tokens, prompts, log-probabilities and greedy answers.

What may differ, and why:

- An export is held against a control: what rounding alone does to the checkpoint itself, as it lies
  on disk, in the export's precision (for float32: against float64). Log-probabilities may be off by
  `OF_NOISE` times that and the floors, for an export sums in another order, with another kernel,
  and is merged.
- Where no control was measured, an export has to agree with the service as float32 does (`EXACT`).
- Answers are equal token by token. One that parts from the service's where the two tokens' own
  log-probabilities are as close as rounding leaves them is a tie and no fault; it is counted all
  the same, with the largest gap among them.
- Rounding moves a few tokens by far more than most, where it makes a router pick other experts. A
  wider gap is no fault either where the checkpoint itself, rounded alike, has the same gap there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from errors import ExportError, one_line
from exports.check import Check
from exports.loaded import Loaded
from exports.reference import OWN_QUESTIONS, GreedyAnswer, Reference

OF_NOISE = 3  # both of the mean and of the largest
# Float32 keeps seven digits; log-probabilities down to -30 that pass dozens of layers keep four.
EXACT_MEAN, EXACT_LARGEST = 1e-4, 1e-3
FLOOR_MEAN, FLOOR_LARGEST = 1e-5, 1e-4  # for a control that happens to be nearly exact
TIE_OF_MEAN = 4  # of each of two candidates twice as much as of the mean
SHOWN_CHARS = 40


class Noise(NamedTuple):
    """How far rounding alone moves log-probabilities of the same weights, and how it was seen."""

    mean: float
    largest: float
    how: str
    # The checkpoint itself, rounded as the export is: what it says of the tokens of any text.
    rounded: Callable[[Sequence[int]], list[float]] | None = None


class Limits(NamedTuple):
    """How far an export's log-probabilities may be off, and why so far."""

    mean: float
    largest: float
    tie: float  # two candidates that lie so close are told apart by noise alone
    why: str
    rounded: Callable[[Sequence[int]], list[float]] | None = None


def check(loaded: Loaded, reference: Reference, noise: Noise | None = None) -> list[Check]:
    """Compare an export with the service. `noise` is what `rounding.rounding_noise`
    measured for the export's precision; None holds it to what float32 allows in any model."""
    limits = limits_for(noise)
    works: dict[str, Callable[[], Check]] = {
        "tokens": lambda: check_tokens(loaded, reference),
        "prompts": lambda: check_prompts(loaded, reference),
        "log-probabilities": lambda: check_logprobs(loaded, reference, limits),
        "greedy answers": lambda: check_answers(loaded, reference, limits),
    }
    return [_explained(name, work) for name, work in works.items()]


def _explained(name: str, work: Callable[[], Check]) -> Check:
    """What an export cannot even be asked is a comparison that does not hold."""
    try:
        return work()
    except ExportError as error:
        return Check(name, False, str(error))


def limits_for(noise: Noise | None) -> Limits:
    """The limits that a measured noise makes; those of float32 without one. Pure."""
    if noise is None:
        why = "what float32 leaves open in any model; it was not measured on this one"
        return Limits(EXACT_MEAN, EXACT_LARGEST, TIE_OF_MEAN * EXACT_MEAN, why)
    mean = OF_NOISE * noise.mean + FLOOR_MEAN
    largest = OF_NOISE * noise.largest + FLOOR_LARGEST
    why = (
        f"{OF_NOISE} times what {noise.how} changes, {noise.mean:.2g} and {noise.largest:.2g}, and "
        f"{FLOOR_MEAN:g} and {FLOOR_LARGEST:g} more"
    )
    return Limits(mean, largest, TIE_OF_MEAN * mean, why, noise.rounded)


# --- tokens ---------------------------------------------------------------------------------------


def check_tokens(loaded: Loaded, reference: Reference) -> Check:
    """Whether sample texts have the tokens that they had in training."""
    wrong = []
    for text, tokens in reference.texts:
        found = loaded.tokens_of(text)
        if list(found) != list(tokens):
            wrong.append(
                f"{_shown(text)} was {_ids(tokens)} in training and is {_ids(found)} here "
                f"(from token {_first_difference(tokens, found)} on)"
            )
    return _of_all("tokens", len(reference.texts), "sample texts", "as in training", wrong)


def check_prompts(loaded: Loaded, reference: Reference) -> Check:
    """Whether the export's chat template writes the questions as the renderer did."""
    wrong = []
    for answer in reference.answers:
        messages = [{"role": role, "content": content} for role, content in answer.messages]
        found = loaded.prompt_of(messages)
        if list(found) != list(answer.prompt):
            position = _first_difference(answer.prompt, found)
            wrong.append(
                f"question {one_line(answer.question_id, SHOWN_CHARS)} has {len(found)} tokens, "
                f"the renderer's {len(answer.prompt)}, and they part at token {position}: "
                f"{_ids(answer.prompt[position:])} by the renderer, {_ids(found[position:])} here"
            )
    what = "written by the chat template as by the renderer, token by token"
    return _of_all("prompts", len(reference.answers), "questions", what, wrong)


def _of_all(name: str, num: int, what: str, how: str, wrong: Sequence[str]) -> Check:
    figures: dict[str, float | int | str | None] = {"num": num, "num_different": len(wrong)}
    if num == 0:
        return Check(name, False, f"There were no {what} to compare.", figures)
    sentence = f"{num - len(wrong)} of {num} {what} are {how}."
    if wrong:
        sentence += f" The first that is not: {wrong[0]}."
    return Check(name, not wrong, sentence, figures)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first place where two lists of tokens differ; that of the shorter's end at the latest."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _ids(tokens: Sequence[int]) -> str:
    """Tokens as a message shows them."""
    more = ", ..." if len(tokens) > 6 else ""
    return f"[{', '.join(map(str, tokens[:6]))}{more}]"


def _shown(text: str) -> str:
    return ascii(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "...")


# --- log-probabilities ----------------------------------------------------------------------------


class Difference(NamedTuple):
    """How far apart two lists of log-probabilities are."""

    num_tokens: int
    mean: float
    largest: float


def difference(one: Iterable[Sequence[float]], other: Iterable[Sequence[float]]) -> Difference:
    """The absolute differences of two lists of texts' log-probabilities, of equal lengths. Pure."""
    apart = [
        abs(a - b)
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    if not apart:
        return Difference(0, math.nan, math.nan)
    return Difference(len(apart), math.fsum(apart) / len(apart), max(apart))


def check_logprobs(loaded: Loaded, reference: Reference, limits: Limits) -> Check:
    """How far the export's log-probabilities of whole conversations are from the service's."""
    name = "log-probabilities"
    scored = [one.logprobs for one in reference.scored]
    found = [loaded.logprobs(one.tokens) for one in reference.scored]
    problem = _unusable(reference, found)
    if problem is not None:
        return Check(name, False, problem, {"num_texts": len(scored)})
    apart = difference(scored, found)
    passed = apart.mean <= limits.mean and apart.largest <= limits.largest
    figures: dict[str, float | int | str | None] = {
        "num_texts": len(scored),
        "num_tokens": apart.num_tokens,
        "mean": apart.mean,
        "largest": apart.largest,
        "limit_mean": limits.mean,
        "limit_largest": limits.largest,
    }
    mean, limit_mean = _beside(apart.mean, limits.mean)
    largest, limit_largest = _beside(apart.largest, limits.largest)
    sentence = (
        f"Of {apart.num_tokens} tokens in {len(scored)} conversations the log-probabilities are "
        f"{mean} off the service's on average and {largest} at most; allowed are {limit_mean} and "
        f"{limit_largest} ({limits.why})."
    )
    if reference.untouched:
        effect = difference(scored, reference.untouched)
        figures["adapter_mean"] = effect.mean
        sentence += f" The adapter itself moves them by {effect.mean:.2g} on average"
        sentence += "." if effect.mean > limits.mean else _too_little(limits)
    return Check(name, passed, sentence, figures)


def _beside(value: float, limit: float) -> tuple[str, str]:
    """A figure and its limit, with digits enough to see whether it keeps to it."""
    texts = ((f"{value:.{digits}g}", f"{limit:.{digits}g}") for digits in range(2, 18))
    return next(both for both in texts if (float(both[0]) <= float(both[1])) == (value <= limit))


def _too_little(limits: Limits) -> str:
    return (
        f", which is no more than the {limits.mean:.2g} that are allowed, so that this comparison "
        "cannot tell the export from the untouched model."
    )


def _unusable(reference: Reference, found: Sequence[Sequence[float]]) -> str | None:
    """Why log-probabilities cannot be compared; None where they can."""
    if not any(one.logprobs for one in reference.scored):
        return "There were no log-probabilities of the service to compare with."
    for number, (one, mine) in enumerate(zip(reference.scored, found, strict=True), start=1):
        for whose, logprobs in (("the service", one.logprobs), ("the export", mine)):
            if len(logprobs) != len(one.tokens) - 1:
                return (
                    f"Of conversation {number}, which has {len(one.tokens)} tokens, {whose} gives "
                    f"{len(logprobs)} log-probabilities instead of {len(one.tokens) - 1}."
                )
            bad = next((place for place, v in enumerate(logprobs, 1) if not math.isfinite(v)), None)
            if bad is not None:
                return (
                    f"The log-probability of token {bad} in conversation {number} is "
                    f"{logprobs[bad - 1]} by {whose}, which is no number to compare."
                )
    return None


# --- greedy answers -------------------------------------------------------------------------------


class Parting(NamedTuple):
    """Where an answer parts from the service's. `gap` is None where one of them just ends; it is
    by how much the export prefers its own token there."""

    answer: GreedyAnswer
    position: int
    found: tuple[int, ...]
    gap: float | None
    expected: float | None = None  # the gap of the checkpoint itself, rounded alike


def check_answers(loaded: Loaded, reference: Reference, limits: Limits) -> Check:
    """How many greedy answers are the service's, and whether those that are not part at ties."""
    partings = []
    for answer in reference.answers:
        found = tuple(loaded.greedy(answer.prompt, reference.max_tokens, reference.stop))
        if reference.stop_texts:  # which no token ends, so that the export cannot know
            found = found[: len(answer.answer)]
        if found != answer.answer:
            partings.append(_parting(loaded, answer, found, limits))
    num = len(reference.answers)
    ties = [one.gap for one in partings if one.gap is not None and one.gap <= limits.tie]
    wider = [one for one in partings if one.gap is None or not one.gap <= limits.tie]
    wrong = [one for one in wider if not _is_rounding(one, limits)]
    figures: dict[str, float | int | str | None] = {
        "num": num,
        "num_identical": num - len(partings),
        "num_at_ties": len(ties),
        "num_as_rounded": len(wider) - len(wrong),
        "num_wrong": len(wrong),
        "largest_tie": max(ties, default=None),
        "limit_tie": limits.tie,
    }
    if num == 0:
        return Check("greedy answers", False, "There were no answers to compare.", figures)
    sentence = f"{num - len(partings)} of {num} greedy answers are the service's, token by token."
    if reference.origin not in ("", OWN_QUESTIONS):
        sentence += f" Asked were {reference.origin}."
    if ties:
        sentence += (
            f" Different at ties: {len(ties)}, where the two tokens' log-probabilities are at most "
            f"{max(ties):.2g} apart, and {limits.tie:.2g} is within the rounding of both."
        )
    if len(wider) > len(wrong):
        sentence += (
            f" Different as the rounded checkpoint itself is: {len(wider) - len(wrong)}, where it "
            f"prefers the other token by as much, within {limits.tie:.2g}."
        )
    if wrong:
        sentence += f" Other answers: {len(wrong)}; the first: {_told(wrong[0], limits)}"
    return Check("greedy answers", not wrong, sentence, figures)


def _parting(
    loaded: Loaded, answer: GreedyAnswer, found: tuple[int, ...], limits: Limits
) -> Parting:
    place = _first_difference(answer.answer, found)
    if place >= min(len(answer.answer), len(found)):
        return Parting(answer, place, found, None)
    before, tokens = [*answer.prompt, *found[:place]], (found[place], answer.answer[place])
    gap = abs(_gap(loaded.logprobs, before, tokens))
    if gap <= limits.tie or limits.rounded is None:
        return Parting(answer, place, found, gap)
    return Parting(answer, place, found, gap, _gap(limits.rounded, before, tokens))


def _gap(
    logprobs: Callable[[Sequence[int]], list[float]], before: list[int], tokens: tuple[int, int]
) -> float:
    """By how much the first of two tokens is preferred to the other."""
    mine, theirs = (logprobs([*before, token])[-1] for token in tokens)
    return mine - theirs


def _is_rounding(one: Parting, limits: Limits) -> bool:
    """Whether the checkpoint itself, rounded as the export is, parts there by as much."""
    if one.gap is None or one.expected is None:
        return False
    return abs(one.gap - one.expected) <= limits.tie


def _told(one: Parting, limits: Limits) -> str:
    where = f"question {one_line(one.answer.question_id, SHOWN_CHARS)}"
    if one.gap is not None:
        told = (
            ""
            if one.expected is None
            else (
                f"; the checkpoint itself, rounded alike, prefers the latter by {one.expected:.2g}"
            )
        )
        return (
            f"{where} at token {one.position}, {one.answer.answer[one.position]} by the service "
            f"and {one.found[one.position]} by the export, which are {one.gap:.2g} apart there, "
            f"more than the {limits.tie:.2g} that rounding explains{told}."
        )
    if len(one.found) > len(one.answer.answer):
        return (
            f"{where} goes on after the {len(one.answer.answer)} tokens with which the service's "
            "answer ends. Check the stop tokens of the export's generation settings."
        )
    return (
        f"{where} ends after {len(one.found)} tokens, and the service's goes on to "
        f"{len(one.answer.answer)}. Check the stop tokens of the export's generation settings."
    )

"""What a service samples, beside what it trains: the probes, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import tinker

from errors import ServiceError
from services.check.bench import Bench, Refused, Row, Spent, quiet_sdk, within
from services.check.training import MANY_NOISES
from services.check.verdicts import Found, Line, Verdict
from services.watched_client import for_each_token

NUM_TOKENS = 24  # of an answer
NUM_PROMPT_TOKENS = 8
TEMPERATURE = 0.5
TOPK = 20  # as many as Tinker gives
CLOSE_NATS = 0.05  # mean distance of two computations of the same log-probabilities, in bfloat16
APART_NATS = 0.15  # what two hypotheses must be apart to be told from each other
MIN_TOKENS = 4
FLAT_TEMPERATURE = 2.0  # at which several answers begin with several tokens
NUM_FLAT = 8


class Answer(NamedTuple):
    """Sampled tokens, with what the service says of their log-probabilities and their end."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: str = "length"


class Scored(NamedTuple):
    """An answer whose tokens the trainer and the sampler have scored, untempered, in nats; and of
    each place the likeliest tokens' (None: not given; what was said where they were refused)."""

    answer: Answer
    by_trainer: tuple[float, ...]
    by_sampler: tuple[float | None, ...]  # of the prompt and the answer
    likeliest: tuple[tuple[float, ...], ...] | Refused | None
    whole_by_trainer: tuple[float, ...]  # of all but the first token


async def sampled(
    bench: Bench,
    client: tinker.SamplingClient,
    temperature: float,
    seed: int,
    stop: Sequence[int] = (),
) -> Answer:
    """Sample after the row's first tokens, up to `NUM_TOKENS` whatever they are, or to one of
    `stop`."""
    prompt = list(bench.row.tokens[:NUM_PROMPT_TOKENS])
    bench.spent.prompt_tokens += len(prompt)
    response = await client.sample(
        tinker.ModelInput.from_ints(prompt),
        1,
        tinker.SamplingParams(
            max_tokens=NUM_TOKENS, seed=seed, temperature=temperature, stop=list(stop)
        ),
    )
    (sequence,) = response.sequences
    bench.spent.sampled_tokens += len(sequence.tokens)
    logprobs = tuple(sequence.logprobs or ())
    return Answer(tuple(sequence.tokens), logprobs, str(sequence.stop_reason))


async def scored(
    bench: Bench, trainer: tinker.TrainingClient, sampler: tinker.SamplingClient, answer: Answer
) -> Scored:
    """Score an answer by both, behind its prompt."""
    start = NUM_PROMPT_TOKENS
    tokens = (*bench.row.tokens[:start], *answer.tokens)
    whole = await bench.logprobs(trainer, Row(tokens))
    with quiet_sdk():
        response = await within(_prompted(bench, sampler, tokens, TOPK))
    refused = response if isinstance(response, Refused) else None
    if isinstance(response, Refused):  # an engine may know all but the likeliest tokens
        response = await _prompted(bench, sampler, tokens, 0)
    rows = response.topk_prompt_logprobs
    likeliest: tuple[tuple[float, ...], ...] | Refused | None = refused
    if refused is None and rows is not None and len(rows) == len(tokens):
        likeliest = tuple(tuple(lp for _, lp in row or ()) for row in rows[start:])
    given = response.prompt_logprobs or []
    return Scored(answer, whole[start - 1 :], tuple(given), likeliest, whole)


async def _prompted(
    bench: Bench, sampler: tinker.SamplingClient, tokens: Sequence[int], topk: int
) -> tinker.SampleResponse:
    """Ask for the log-probabilities of a prompt, and those of the likeliest tokens."""
    bench.spent.prompt_tokens += len(tokens)
    response = await sampler.sample(
        tinker.ModelInput.from_ints(list(tokens)),
        1,
        tinker.SamplingParams(max_tokens=1, temperature=0.0),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=topk,
    )
    bench.spent.sampled_tokens += 1
    return response


class Flat(NamedTuple):
    """First tokens of answers, sampled at `FLAT_TEMPERATURE`: what was said of each, and what the
    trainer says, untempered, in nats. All follow the same prompt."""

    said: tuple[float, ...]
    by_trainer: tuple[float, ...]


async def flat_tokens(
    bench: Bench, trainer: tinker.TrainingClient, sampler: tinker.SamplingClient
) -> Flat:
    """Sample some different tokens behind the prompt, and score them by the trainer."""
    prompt = bench.row.tokens[:NUM_PROMPT_TOKENS]
    bench.spent.prompt_tokens += len(prompt)
    response = await sampler.sample(
        tinker.ModelInput.from_ints(list(prompt)),
        NUM_FLAT,
        tinker.SamplingParams(max_tokens=1, seed=7, temperature=FLAT_TEMPERATURE),
    )
    bench.spent.sampled_tokens += sum(len(one.tokens) for one in response.sequences)
    said = {
        one.tokens[0]: one.logprobs[0] for one in response.sequences if one.tokens and one.logprobs
    }
    by_trainer = [(await bench.logprobs(trainer, Row((*prompt, token))))[-1] for token in said]
    return Flat(tuple(said.values()), tuple(by_trainer))


class Sampling(NamedTuple):
    """All that was sampled: greedily twice, and once more up to a token of the first answer; by one
    seed twice and by another, at temperature 1 and at another one. What was refused is that."""

    greedy: tuple[Answer, Answer] | Refused
    stopped: Answer | Refused
    seeded: tuple[Answer, Answer, Answer] | Refused
    plain: Scored | Refused
    tempered: Scored | Refused
    flat: Flat | Refused | None  # where the likeliest tokens are not to be had


async def probe_sampling(bench: Bench, trainer: tinker.TrainingClient) -> Sampling | Refused:
    """Sample from the trainer's weights, and score what comes. One request waits for another, so
    that what a service batches is not part of the question."""
    client = await within(_sampler(bench, trainer))
    if isinstance(client, Refused):
        return client

    async def answers(*asked: tuple[float, int]) -> list[Answer]:
        return [await sampled(bench, client, *one) for one in asked]

    async def scores(temperature: float, seed: int) -> Scored:
        answer = await sampled(bench, client, temperature, seed)
        return await scored(bench, trainer, client, answer)

    greedy = await within(answers((0.0, 1), (0.0, 2)))
    if isinstance(greedy, Refused) and greedy.is_late:
        return greedy  # what comes after it would be waited for as long
    stopped: Answer | Refused = Refused("there is no answer that could be stopped")
    if not isinstance(greedy, Refused) and greedy[0].tokens:
        stopped = await within(sampled(bench, client, 0.0, 1, (_stop_of(greedy[0]),)))
    seeded = await within(answers((1.0, 3), (1.0, 3), (1.0, 4)))
    plain = await within(scores(1.0, 5))
    tempered = await within(scores(TEMPERATURE, 6))
    flat: Flat | Refused | None = None
    if not isinstance(tempered, Refused) and _without_likeliest(tempered):
        flat = await within(flat_tokens(bench, trainer, client))
    return Sampling(
        greedy if isinstance(greedy, Refused) else (greedy[0], greedy[1]),
        stopped,
        seeded if isinstance(seeded, Refused) else (seeded[0], seeded[1], seeded[2]),
        plain,
        tempered,
        flat,
    )


def _without_likeliest(found: Scored) -> bool:
    return found.likeliest is None or isinstance(found.likeliest, Refused)


def planned_sampling() -> Spent:
    """The tokens that `probe_sampling` sends at most."""
    asked = NUM_PROMPT_TOKENS + NUM_TOKENS
    return Spent(
        # Eight answers, two of which both score, the sampler again where it is refused something.
        prompt_tokens=(9 + NUM_FLAT) * NUM_PROMPT_TOKENS + 6 * asked,
        sampled_tokens=8 * NUM_TOKENS + 4 + NUM_FLAT,
    )


async def _sampler(bench: Bench, trainer: tinker.TrainingClient) -> tinker.SamplingClient:
    path = await bench.save_sampler(trainer, "sampler")
    return await bench.service.create_sampling_client(model_path=path)


def _stop_of(answer: Answer) -> int:
    """The token that an answer is to end at when it is asked for again."""
    return answer.tokens[len(answer.tokens) // 2]


# --- what is made of it ---------------------------------------------------------------------------


def sampling_lines(found: Sampling | Refused, noise: float) -> list[Line]:
    """The lines on sampling; `noise` is how far apart the trainer's log-probabilities by the same
    weights are, in nats."""
    if isinstance(found, Refused):
        found = Sampling(found, found, found, found, found, None)
    return [
        greedy_line(found.greedy),
        ends_line(found.greedy, found.stopped),
        seeded_line(found.seeded),
        trainer_line(found.plain, noise),
        temperature_line(found.tempered, found.flat, noise),
        prompt_line(found.plain, noise),
    ]


def _is_close(apart: float, noise: float) -> Verdict:
    """Whether two computations of log-probabilities are of one distribution."""
    if apart <= CLOSE_NATS:
        return "works"
    return "cannot tell" if apart <= MANY_NOISES * noise else "differs"


def ends_line(greedy: tuple[Answer, Answer] | Refused, stopped: Answer | Refused) -> Line:
    """Whether an answer has as many tokens as were asked for, or ends with its stop token."""
    name, affects = "answers end as asked", "all evaluation: answers are longer or shorter"
    if isinstance(greedy, Refused):
        return Line(name, "cannot tell", greedy.said, affects)
    whole = greedy[0]
    if len(whole.tokens) != NUM_TOKENS or whole.end != "length":
        why = (
            f"{NUM_TOKENS} tokens were asked for without a stop: {len(whole.tokens)} came, and the "
            f'end is called "{whole.end}"'
        )
        return Line(name, "differs", why, affects)
    if isinstance(stopped, Refused):
        why = f"with a stop token: {stopped.said}"
        return Line(name, stopped.verdict, why, affects)
    stop, tokens = _stop_of(whole), stopped.tokens
    if stop in tokens[:-1]:
        return Line(name, "differs", "an answer goes on after its stop token", affects)
    if tokens[-1:] == (stop,):
        why = f"{NUM_TOKENS} tokens where none stops; a stop token is the last"
        if stopped.end == "stop":
            return Line(name, "works", why, affects)
        return Line(name, "differs", f'{why}, but the end is called "{stopped.end}"', affects)
    if tokens == whole.tokens[: whole.tokens.index(stop)]:
        return Line(name, "differs", "the stop token is left out of the answer", affects)
    return Line(name, "cannot tell", "another answer came, without the stop token", affects)


def greedy_line(found: tuple[Answer, Answer] | Refused) -> Line:
    name, affects = "greedy answers repeat", "scores: `evaluation.temperature` is 0 by default"
    if isinstance(found, Refused):
        return Line(name, found.verdict, found.said, "all evaluation")
    one, two = found
    num_same = _num_alike(one.tokens, two.tokens)
    shown = f"{num_same} of {len(one.tokens)} tokens alike, asked twice"
    return Line(name, "works" if one.tokens == two.tokens else "differs", shown, affects)


def seeded_line(found: tuple[Answer, Answer, Answer] | Refused) -> Line:
    name, affects = "seeds of samples", "that evaluations above temperature 0 can be repeated"
    if isinstance(found, Refused):
        return Line(name, found.verdict, found.said, "all evaluation", False)
    one, two, other = (answer.tokens for answer in found)
    if one != two:
        shown = f"the seed is ignored: {_num_alike(one, two)} of {len(one)} tokens alike"
        return Line(name, "differs", shown, affects, False)
    if one == other:
        why = "two seeds gave one answer: the model may be sure of it"
        return Line(name, "cannot tell", why, affects, False)
    return Line(name, "works", "one seed repeats, another differs", affects, False)


def trainer_line(found: Scored | Refused, noise: float) -> Line:
    name = "sampler and trainer agree"
    affects = "methods that learn from samples (`rl`, `distill`)"
    if isinstance(found, Refused):
        return Line(name, "cannot tell", found.said, affects)
    apart = _mean_apart(found.answer.logprobs, found.by_trainer)
    if apart is None:
        return Line(name, "cannot tell", _too_few(found.answer), affects)
    shown = f"{apart:.4f} nats a token apart, temperature 1"
    return Line(name, _is_close(apart, noise), shown, affects)


def temperature_line(found: Scored | Refused, flat: Flat | Refused | None, noise: float) -> Line:
    """Whether sampled tokens carry the log-probabilities of the distribution they came from. Where
    there are no likeliest tokens, `flat` tells."""
    name, affects = "tempered log-probabilities", "`rl` and `distill` at a temperature other than 1"
    if isinstance(found, Refused):
        return Line(name, "cannot tell", found.said, affects)
    said, untempered = found.answer.logprobs, found.by_trainer
    from_untempered = _mean_apart(said, untempered)
    if from_untempered is None:
        return Line(name, "cannot tell", _too_few(found.answer), affects)
    if found.likeliest is None or isinstance(found.likeliest, Refused):
        if isinstance(flat, Refused):
            return Line(name, "cannot tell", flat.said, affects)
        assert flat is not None, "it is tried where these are not there"
        judged = flat_tempered(flat, noise)
        return Line(name, judged.verdict, judged.why, affects)
    bounds = [
        tempered_bounds(lp, top, TEMPERATURE)
        for lp, top in zip(untempered, found.likeliest, strict=True)
    ]
    off = math.fsum(
        max(low - one, one - high, 0.0) for one, (low, high) in zip(said, bounds, strict=True)
    )
    off /= len(said)
    gap = math.fsum(
        max(low - one, one - high, 0.0) for one, (low, high) in zip(untempered, bounds, strict=True)
    ) / len(said)
    shown = (
        f"temperature {TEMPERATURE:g}: {off:.3f} nats from the tempered, {from_untempered:.3f} "
        "from the untempered"
    )
    if gap < APART_NATS:
        return Line(name, "cannot tell", f"this model's are too alike; {shown}", affects)
    if (verdict := _is_close(off, noise)) != "differs":
        return Line(name, verdict, shown, affects)
    how = "they are untempered: " if from_untempered <= CLOSE_NATS else ""
    return Line(name, "differs", how + shown, affects)


def flat_tempered(flat: Flat, noise: float) -> Found:
    """Judge tokens behind one prompt: how far their log-probabilities are from their mean is the
    untempered ones' distance, divided by the temperature."""
    if len(flat.said) < MIN_TOKENS:
        return Found("cannot tell", f"{len(flat.said)} different tokens came behind one prompt")
    said, untempered = _centred(flat.said), _centred(flat.by_trainer)
    tempered = [one / FLAT_TEMPERATURE for one in untempered]
    apart = [_mean_apart(said, one) for one in (tempered, untempered)]
    off, from_untempered = (0.0 if one is None else one for one in apart)
    shown = (
        f"temperature {FLAT_TEMPERATURE:g}, {len(said)} tokens behind one prompt: {off:.3f} nats "
        f"from the tempered, {from_untempered:.3f} from the untempered"
    )
    if (_mean_apart(tempered, untempered) or 0.0) < APART_NATS:
        return Found("cannot tell", f"this model's are too alike; {shown}")
    if (verdict := _is_close(off, noise)) != "differs":
        return Found(verdict, shown)
    how = "they are untempered: " if from_untempered <= CLOSE_NATS else ""
    return Found("differs", how + shown)


def _centred(logprobs: Sequence[float]) -> list[float]:
    mean = math.fsum(logprobs) / len(logprobs)
    return [one - mean for one in logprobs]


def tempered_bounds(
    logprob: float, likeliest: Sequence[float], temperature: float
) -> tuple[float, float]:
    """Between what the log-probability of a token lies at a temperature below 1, in nats, from its
    untempered one and those of the likeliest tokens.

    What is left for the others is bounded: p^(1/T) is at most p times the last likeliest token's
    p^(1/T - 1).
    """
    power = 1 / temperature
    known = math.fsum(math.exp(one * power) for one in likeliest)
    rest = max(0.0, 1.0 - math.fsum(map(math.exp, likeliest)))
    least = min(likeliest, default=0.0)
    unknown = rest * math.exp(least * (power - 1))
    low = logprob * power - math.log(known + unknown) if known + unknown > 0 else -math.inf
    high = logprob * power - math.log(known) if known > 0 else 0.0
    return low, min(high, 0.0)


def prompt_line(found: Scored | Refused, noise: float) -> Line:
    """Whether a prompt's log-probabilities are the trainer's, one a token, and the likeliest
    tokens' fit to them."""
    name, affects = "prompt log-probabilities", "`nll:` tasks, teachers of `distill`"
    if isinstance(found, Refused):
        return Line(name, "cannot tell", found.said, affects)
    num_tokens = len(found.whole_by_trainer) + 1
    try:
        given = for_each_token(found.by_sampler, num_tokens)
    except ServiceError as error:
        return Line(name, "differs", str(error), affects, False)
    if None in given[1:]:
        num = sum(one is not None for one in given)
        why = f"{num} for a prompt of {num_tokens} tokens"
        return Line(name, "differs", why, affects, False)
    apart = _mean_apart([one for one in given[1:] if one is not None], found.whole_by_trainer)
    assert apart is not None, "one each"
    shown = f"{apart:.4f} nats a token from the trainer's"
    if len(found.by_sampler) < num_tokens:
        shown += ", without the first token's place, as the loop reads them too"
    if (verdict := _is_close(apart, noise)) != "works":
        return Line(name, verdict, shown, affects)
    top = found.likeliest
    if isinstance(top, Refused):
        why = f"{shown}; the likeliest tokens: {top.said}"
        return Line(name, top.verdict, why, "`distill.targets` soft, and nothing else", False)
    if top is None:
        return Line(name, "works", f"{shown}; the likeliest tokens are not given", affects)
    own = given[NUM_PROMPT_TOKENS:]
    fits = all(
        list(row) == sorted(row, reverse=True)
        and row[0] >= (one or 0.0) - CLOSE_NATS
        and math.fsum(map(math.exp, row)) < 1 + CLOSE_NATS
        for row, one in zip(top, own, strict=True)
        if row
    )
    if not fits or not all(top):
        return Line(name, "differs", f"{shown}; the {TOPK} likeliest do not fit to them", affects)
    return Line(name, "works", f"{shown}; the {TOPK} likeliest fit", affects)


def _num_alike(ones: Sequence[int], others: Sequence[int]) -> int:
    return sum(one == other for one, other in zip(ones, others, strict=False))


def _mean_apart(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """The mean distance of two computations; None where there are too few, or not as many."""
    if len(ones) != len(others) or len(ones) < MIN_TOKENS:
        return None
    return math.fsum(abs(one - other) for one, other in zip(ones, others, strict=True)) / len(ones)


def _too_few(answer: Answer) -> str:
    return (
        f"{len(answer.tokens)} tokens were sampled, with {len(answer.logprobs)} log-probabilities"
    )

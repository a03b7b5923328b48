"""Answers sampled from the weights as they are, and what a policy-gradient loss takes of them.

Answers are kept in the run directory one by one as they come (`kept_rollouts` has them whole).
Seeds follow from the run's seed, the step, the prompt and the attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from errors import ServiceError, TrainingError
from ledger.rollouts import (
    RolledGroup,
    RolledSample,
    RolledTurn,
)
from loop.methods.method import StepInFlight, Workplace, adam_params, parts_of
from loop.planning.plan import Plan
from loop.planning.rewards import question_of, reference_of
from rows.examples import find_example
from scores.intervals import mean
from simple_eval import ReadAnswer, read_answer
from storage.journal import Journal
from storage.stored_json import Count, Measure

if TYPE_CHECKING:
    import tinker
    import torch
    from tinker_cookbook.rl.types import TrajectoryGroup

T = TypeVar("T")

MAX_SEED = 2**31


class Prompt(NamedTuple):
    """What a row asks, up to its last answer, which is the reference, where it has one."""

    example_id: str
    question: str  # the turn that is answered
    reference: str | None
    tokens: tinker.ModelInput
    weight: float  # of the row, that its advantages are multiplied by


class Asking(NamedTuple):
    """How the answers of a step are sampled."""

    num_samples: int  # of each prompt
    max_tokens: int
    temperature: float


class Answer(NamedTuple):
    """A sampled answer; a log-probability for each token, of what it was sampled from, in nats."""

    tokens: list[int]
    logprobs: list[float]
    read: ReadAnswer
    turns: list[RolledTurn] | None = None  # of a conversation, whose answers these are together


def prompt_of(plan: Plan, example_id: str) -> Prompt:
    """What a row of the plan asks."""
    example = find_example(example_id, plan.train.examples, plan.pool.examples)
    assert example is not None, "steps are of rows of the plan"
    tokens = plan.rendering.prompt_of(example)
    question, reference = question_of(example), reference_of(example)
    return Prompt(example_id, question, reference, tokens, example.weight)


# --- sampling -------------------------------------------------------------------------------------


async def sampler_now(workplace: Workplace, client: tinker.TrainingClient) -> tinker.SamplingClient:
    """A watched client for the weights after all steps that were submitted."""
    return workplace.watch(await client.save_weights_and_get_sampling_client())


def seed_of(seed: int, step: int, example_id: str, attempt: int, occurrence: int = 0) -> int:
    """The seed of one request for a group. `attempt` counts from 1; `occurrence` is the number of
    times that the step had the prompt before."""
    return hashed_seed("rollout", seed, step, example_id, attempt, occurrence)


def hashed_seed(*of: str | int) -> int:
    """A seed that follows from what it is for."""
    digest = hashlib.sha256(json.dumps(of).encode()).digest()
    return int.from_bytes(digest[:8], "big") % MAX_SEED


def seeds_of(plan: Plan, step: int, prompts: Sequence[Prompt], attempt: int = 1) -> list[int]:
    """The seeds of a step's prompts, in their order."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        earlier = seen[prompt.example_id]
        seeds.append(seed_of(plan.config.seed, step, prompt.example_id, attempt, earlier))
        seen[prompt.example_id] += 1
    return seeds


async def sample_groups(
    plan: Plan,
    client: tinker.SamplingClient,
    prompts: Sequence[Prompt],
    asking: Asking,
    seeds: Sequence[int],
    journal: Journal | None = None,
) -> list[list[Answer]]:
    """Sample a group of answers for each prompt, a request for each, so many of them at once as an
    evaluation has. With a journal each is kept as it comes, and those that it holds are not asked
    for. Raises `ServiceError` where one fails: a step trains on all of its prompts."""
    import tinker

    renderer, slots = plan.renderer, asyncio.Semaphore(plan.config.evaluation.concurrency)
    stop = renderer.get_stop_sequences()

    async def ask(prompt: Prompt, seed: int) -> list[Answer]:
        params = tinker.SamplingParams(
            max_tokens=asking.max_tokens, temperature=asking.temperature, seed=seed, stop=stop
        )
        key = f"sampled/{prompt.example_id}/{seed}"
        if journal is not None and (kept := journal.get(key, _Sampled)) is not None:
            return [one.answer() for one in kept.answers]
        async with slots:
            response = await client.sample(prompt.tokens, asking.num_samples, params)
        answers = [answer_of(plan, prompt.tokens, one) for one in response.sequences]
        if journal is not None:
            made = _Sampled([kept_answer(one) for one in answers])
            num_sampled = sum(len(one.tokens) for one in answers)
            cost = {"num_prompt_tokens": prompt.tokens.length, "num_sampled_tokens": num_sampled}
            journal.add(key, asdict(made), **cost)
        return answers

    return await all_of([ask(*pair) for pair in zip(prompts, seeds, strict=True)])


async def all_of(asking: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of these give; where one fails, the others are called off."""
    asked = [asyncio.ensure_future(one) for one in asking]
    try:
        return list(await asyncio.gather(*asked))
    finally:
        for one in asked:  # where one has failed, or the run is left
            one.cancel()


@dataclass(frozen=True)
class KeptAnswer:
    """An answer as a journal holds it."""

    tokens: list[Count]
    logprobs: list[Measure]
    text: str
    said: str | None
    is_truncated: bool
    is_malformed: bool

    def answer(self, turns: list[RolledTurn] | None = None) -> Answer:
        read = ReadAnswer(self.text, self.said, self.is_truncated, self.is_malformed)
        return Answer(self.tokens, self.logprobs, read, turns)


def kept_answer(answer: Answer) -> KeptAnswer:
    return KeptAnswer(answer.tokens, answer.logprobs, **answer.read._asdict())


@dataclass(frozen=True)
class _Sampled:
    """What a journal holds of a request."""

    answers: list[KeptAnswer]


def answer_of(plan: Plan, prompt: tinker.ModelInput, sequence: tinker.SampledSequence) -> Answer:
    """What was sampled after a prompt. Raises `ServiceError` without its log-probabilities, and
    `TrainingError` where one is not finite."""
    tokens, logprobs = list(sequence.tokens), list(sequence.logprobs or ())
    if len(tokens) != len(logprobs):
        raise ServiceError(
            f"The service gave {len(logprobs)} log-probabilities for an answer of {len(tokens)} "
            "tokens, and a policy-gradient loss needs one for each. Use a service that gives them."
        )
    if not all(map(math.isfinite, logprobs)):
        raise TrainingError(
            "Start a new run with a lower learning_rate, or check the model's weights: the log-"
            "probabilities of an answer that was sampled to be trained on are not finite. The run "
            "stops here."
        )
    return Answer(tokens, logprobs, read_answer(plan.renderer, prompt, sequence))


def rolled_sample(answer: Answer, reward: float | None, advantage: float = 0.0) -> RolledSample:
    """An answer as it is kept."""
    return RolledSample(
        tokens=answer.tokens,
        logprobs=answer.logprobs,
        text=answer.read.text,
        is_truncated=answer.read.is_truncated,
        reward=reward,
        advantage=advantage,
        turns=answer.turns,
    )


def num_read_tokens(prompt: Prompt, group: RolledGroup) -> int:
    """Tokens of the prompts that a group was sampled after: each request reads its own."""
    if all(one.turns is None for one in group.samples):
        return prompt.tokens.length * group.num_tries
    return sum(len(tokens) for one in group.samples for tokens in one.prompts())


def num_sampled_tokens(groups: Sequence[RolledGroup]) -> int:
    return sum(len(one.tokens) for group in groups for one in group.samples)


def answer_measures(samples: Sequence[RolledSample]) -> dict[str, float]:
    """Of sampled answers the entropy, an estimate in nats a token, the mean length, and the share
    that was cut."""
    logprobs = [logprob for one in samples for logprob in one.logprobs]
    return {
        **({"entropy": -mean(logprobs)} if logprobs else {}),
        "answer_tokens": mean([len(one.tokens) for one in samples]),
        "truncated_share": mean([float(one.is_truncated) for one in samples]),
    }


# --- training -------------------------------------------------------------------------------------


def trajectories_of(prompt: Prompt, samples: Sequence[RolledSample]) -> TrajectoryGroup:
    """A prompt's answers as the cookbook has them, with the whole reward at the last turn; an
    answer without a reward has 0."""
    import tinker
    from tinker_cookbook.completers import TokensWithLogprobs
    from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition

    nothing = tinker.ModelInput.empty()

    def trajectory(sample: RolledSample) -> Trajectory:
        if sample.turns is None:
            asked = [(prompt.tokens, len(sample.tokens))]
        else:
            prompts = map(tinker.ModelInput.from_ints, sample.prompts())
            lengths = (turn.num_tokens for turn in sample.turns)
            asked = list(zip(prompts, lengths, strict=True))
        transitions: list[Transition] = []
        begin = 0
        for tokens, length in asked:
            part = slice(begin, begin + length)
            action = TokensWithLogprobs(sample.tokens[part], sample.logprobs[part])
            begin += length
            transitions.append(Transition(tokens, action, 0.0, episode_done=False))
        if transitions:
            transitions[-1].reward = float(sample.reward or 0.0)
            transitions[-1].episode_done = True
        return Trajectory(transitions, nothing)

    trajectories = [trajectory(one) for one in samples]
    return TrajectoryGroup(trajectories, [0.0] * len(samples), [{} for _ in samples])


def datums_of(
    prompts: Sequence[Prompt],
    groups: Sequence[RolledGroup],
    advantages: Sequence[torch.Tensor],
) -> list[tinker.Datum]:
    """A datum for each answer that has tokens; `advantages` has one tensor (G,) for each group.

    Each has, by token, `target_tokens`, `logprobs`, `advantages` and `mask`, which is 1 for the
    sampled ones; `as_sent` takes the mask off.
    """
    from tinker_cookbook.rl.data_processing import assemble_training_data

    pairs = zip(prompts, groups, strict=True)
    trajectories = [trajectories_of(prompt, group.samples) for prompt, group in pairs]
    weighted = [one * prompt.weight for one, prompt in zip(advantages, prompts, strict=True)]
    datums, _ = assemble_training_data(trajectories, weighted)
    return [one for one in datums if bool((one.loss_fn_inputs["mask"].to_torch() > 0).any())]


def as_sent(datum: tinker.Datum, loss: str) -> tinker.Datum:
    """A datum with the inputs that the service's loss takes."""
    import tinker

    inputs = dict(datum.loss_fn_inputs)
    mask = inputs.pop("mask")
    if loss == "gspo":
        inputs["sequence_ratio_mask"] = mask
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


def submit_policy_step(
    plan: Plan,
    client: tinker.TrainingClient,
    pending: StepInFlight,
    datums: Sequence[tinker.Datum],
    loss: Any,
) -> StepInFlight:
    """Submit the forward-backwards of a step in as many parts as the settings say, and its
    optimizer step. Without a datum there is neither: there is no gradient to step by."""
    if not datums:
        nothing = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return pending._replace(forward_backwards=[], optim_step=nothing)
    forward_backwards = [
        client.forward_backward([as_sent(one, loss) for one in part], loss)
        for part in parts_of(datums, plan.config.data.accumulate)
    ]
    optim_step = client.optim_step(adam_params(plan.config, pending.lr))
    return pending._replace(forward_backwards=forward_backwards, optim_step=optim_step)


class SamplerKl(NamedTuple):
    """By how much what sampled and what is trained disagree of the same tokens, in nats a token:
    the mean of their log-ratio, and half its mean square. Both are below 0.01 in healthy runs."""

    kl: float
    half_square: float


def sampler_trainer_kl(
    datums: Sequence[tinker.Datum], trained: Sequence[torch.Tensor]
) -> SamplerKl:
    from tinker_cookbook.rl.metrics import compute_kl_sample_train

    found = compute_kl_sample_train(list(datums), list(trained))
    return SamplerKl(found["optim/kl_sample_train_v1"], found["optim/kl_sample_train_v2"])


class Trained(NamedTuple):
    """What the forward-backwards of a policy step gave."""

    loss: float  # summed over all tokens
    logprobs: list[torch.Tensor]  # of each datum's targets, before the step
    nll: float  # mean over the sampled tokens


async def trained_by(pending: StepInFlight, datums: Sequence[tinker.Datum]) -> Trained:
    """Await the forward-backwards of a policy step of these datums, of which there is one."""
    import torch

    outputs = [await future for future in pending.forward_backwards]
    logprobs = [one["logprobs"].to_torch() for out in outputs for one in out.loss_fn_outputs]
    masks = [one.loss_fn_inputs["mask"].to_torch() > 0 for one in datums]
    sampled = torch.cat([lp[mask] for lp, mask in zip(logprobs, masks, strict=True)])
    loss = sum(float(out.metrics["loss:sum"]) for out in outputs)
    return Trained(loss, logprobs, -float(sampled.double().mean()))

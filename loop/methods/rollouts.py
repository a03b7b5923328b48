"""Answers sampled from the weights as they are, and what a policy-gradient loss takes of them.

A step's answers are written to the run directory whole before the step is trained, so that a step
that is taken again trains on what was paid for. They stand for the weights that gave them: each
file holds a digest of all that led to it (the settings, the step before with its answers and its
rate, the prompts), and one that does not fit is sampled anew. Seeds follow from the run's seed, the
step, the prompt and the attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from errors import RunStoreError, ServiceError
from ledger.rollouts import (
    RolledGroup,
    RolledSample,
    RolledTurn,
    read_rollouts,
    rollouts_file,
    write_rollouts,
)
from loop.methods.method import StepInFlight, Workplace, adam_params, parts_of
from loop.planning.plan import Plan
from rows.examples import find_example
from simple_eval import ReadAnswer, read_answer

if TYPE_CHECKING:
    import tinker
    import torch
    from tinker_cookbook.rl.types import TrajectoryGroup

T = TypeVar("T")

MAX_SEED = 2**31


class Prompt(NamedTuple):
    """What a row asks, up to its last answer, which is the reference."""

    example_id: str
    question: str  # the turn that is answered
    reference: str
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
    last = max(i for i, one in enumerate(example.messages) if one.role == "assistant")
    question = example.messages[last - 1].text if last else ""
    tokens = plan.rendering.prompt_of(example)
    return Prompt(example_id, question, example.messages[last].content, tokens, example.weight)


# --- sampling -------------------------------------------------------------------------------------


async def sampler_now(workplace: Workplace, client: tinker.TrainingClient) -> tinker.SamplingClient:
    """A watched client for the weights after all steps that were submitted."""
    return workplace.watch(await client.save_weights_and_get_sampling_client())


def seed_of(seed: int, step: int, example_id: str, attempt: int, occurrence: int = 0) -> int:
    """The seed of one request for a group. `attempt` counts from 1; `occurrence` is the number of
    times that the step had the prompt before."""
    said = json.dumps(["rollout", seed, step, example_id, attempt, occurrence])
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") % MAX_SEED


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
) -> list[list[Answer]]:
    """Sample a group of answers for each prompt, a request for each, so many of them at once as an
    evaluation has. Raises `ServiceError` where one fails: a step trains on all of its prompts."""
    import tinker

    renderer, slots = plan.renderer, asyncio.Semaphore(plan.config.evaluation.concurrency)
    stop = renderer.get_stop_sequences()

    async def ask(prompt: Prompt, seed: int) -> list[Answer]:
        params = tinker.SamplingParams(
            max_tokens=asking.max_tokens, temperature=asking.temperature, seed=seed, stop=stop
        )
        async with slots:
            response = await client.sample(prompt.tokens, asking.num_samples, params)
        return [answer_of(plan, prompt.tokens, one) for one in response.sequences]

    return await all_of([ask(*pair) for pair in zip(prompts, seeds, strict=True)])


async def all_of(asking: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of these give; where one fails, the others are called off."""
    asked = [asyncio.ensure_future(one) for one in asking]
    try:
        return list(await asyncio.gather(*asked))
    finally:
        for one in asked:  # where one has failed, or the run is left
            one.cancel()


def answer_of(plan: Plan, prompt: tinker.ModelInput, sequence: tinker.SampledSequence) -> Answer:
    """What was sampled after a prompt. Raises `ServiceError` without its log-probabilities."""
    tokens, logprobs = list(sequence.tokens), list(sequence.logprobs or ())
    if len(tokens) != len(logprobs):
        raise ServiceError(
            f"The service gave {len(logprobs)} log-probabilities for an answer of {len(tokens)} "
            "tokens, and a policy-gradient loss needs one for each. Use a service that gives them."
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


class Scoring:
    """A watched client as the cookbook asks for log-probabilities, so many prompts at once."""

    def __init__(self, client: tinker.SamplingClient, concurrency: int) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(concurrency)

    async def compute_logprobs_async(self, prompt: tinker.ModelInput) -> list[float | None]:
        """Of each token its log-probability in nats, of the first None."""
        async with self._slots:
            return await self._client.compute_logprobs(prompt)


# --- what is kept ---------------------------------------------------------------------------------


class _Before(NamedTuple):
    """The step that the weights had last: the digest of its answers, and its rate."""

    step: int
    digest: str
    lr: float


class KeptRollouts:
    """The answers of a run's steps on disk. `settings` are all that decides how they come about,
    as JSON: other settings do not take them."""

    def __init__(self, workplace: Workplace, settings: Mapping[str, Any]) -> None:
        self._store = workplace.store
        self._say = workplace.progress.line
        self._settings = dict(settings)
        self._round: int | None = None
        self._before: _Before | None = None

    def begin_round(self, round_no: int) -> None:
        """Where a round's weights come from is looked up in the ledger: it may be an earlier one
        than the round before, or a resumed run may begin in its middle."""
        self._round, self._before = round_no, None

    async def of_step(
        self,
        step: int,
        example_ids: Sequence[str],
        lr: float,
        sample: Callable[[], Awaitable[list[RolledGroup]]],
    ) -> list[RolledGroup]:
        """A step's groups, one for each prompt in their order: those that are kept, where they came
        about as they would now, or else what `sample` gives, which is kept.

        Raises `RunStoreError` for a damaged file.
        """
        key = self._key(step, example_ids)
        groups = self._kept(step, key, example_ids)
        if groups is None:
            groups = [replace(group, drawn_with=key) for group in await sample()]
            assert [group.example_id for group in groups] == list(example_ids), "a group each"
            write_rollouts(self._store, step, groups)
        else:
            self._say(f"step {step}: trained on the answers in {rollouts_file(step)}, as sampled")
        self._before = _Before(step, self._digest(step), lr)
        return groups

    def _kept(self, step: int, key: str, example_ids: Sequence[str]) -> list[RolledGroup] | None:
        file = self._store.run_dir / rollouts_file(step)
        try:
            groups = read_rollouts(self._store.run_dir, step)
            if groups is None or {group.drawn_with for group in groups} != {key}:
                return None  # sampled from other weights, of steps that were gone back behind
            if [group.example_id for group in groups] != list(example_ids):
                raise ValueError("it does not hold the prompts of its step")
            for group in groups:
                if any(len(one.tokens) != len(one.logprobs) for one in group.samples):
                    raise ValueError("an answer has not one log-probability for each token")
                if any(not _has_its_turns(one) for one in group.samples):
                    raise ValueError("the turns of a conversation are not those of its tokens")
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"{file}: {error}. It holds the answers that step {step} trains on, and was "
                "changed by something else. Restore it, or delete it to have them sampled again."
            ) from None
        return groups

    def _key(self, step: int, example_ids: Sequence[str]) -> str:
        before = self._before if self._before and self._before.step < step else None
        if before is None:
            before = self._before_in_ledger(step)
        origin = self._store.origin
        led_to = {
            "settings": self._settings,
            "start": None if origin is None else origin.parent.state_path,
            "before": before and [before.step, before.digest, before.lr],
            "step": step,
            "prompts": list(example_ids),
        }
        return hashlib.sha256(json.dumps(led_to, sort_keys=True).encode()).hexdigest()[:32]

    def _before_in_ledger(self, step: int) -> _Before | None:
        assert self._round is not None, "a round has begun"
        for number in (self._round, *reversed(self._store.lineage(self._round))):
            steps = [one for one in self._store.events("step", number) if one["step"] < step]
            if steps:
                last = steps[-1]["step"]
                return _Before(last, self._digest(last), steps[-1]["lr"])
        return None

    def _digest(self, step: int) -> str:
        """Of a step's answers, and through the digests in them of all before; of what is not there
        an empty one."""
        file = self._store.run_dir / rollouts_file(step)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _has_its_turns(sample: RolledSample) -> bool:
    if sample.turns is None:
        return True
    stood = 0
    for turn in sample.turns:
        if turn.num_kept > stood:
            return False
        stood = turn.num_kept + len(turn.read) + turn.num_tokens
    return sum(turn.num_tokens for turn in sample.turns) == len(sample.tokens)


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

"""Answers sampled in conversations with an environment: turn by turn, each with a seed of its own.

The cookbook's rollout runs the turns; a request's seed follows from that of its group, the
conversation and the turn, so that a step that is taken again says the same, as far as the
environment does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from evaluation.environments import Conversing, Environment, EnvironmentProblem
from ledger.rollouts import HeardMessage, RolledTurn
from loop.methods.rollouts import (
    Answer,
    Asking,
    KeptAnswer,
    Prompt,
    all_of,
    answer_of,
    hashed_seed,
    kept_answer,
)
from loop.planning.environments import environment_row
from loop.planning.plan import Plan
from rows.examples import find_example
from simple_eval import ReadAnswer
from storage.journal import Journal
from storage.stored_json import Measure
from user_code.modules import keeping_the_place
from user_code.own_graders import Verdict

if TYPE_CHECKING:
    import tinker
    from tinker_cookbook.completers import StopCondition, TokenCompleter, TokensWithLogprobs
    from tinker_cookbook.renderers import Message
    from tinker_cookbook.rl.message_env import MessageEnv


class Talking(NamedTuple):
    """How the conversations of a step are held."""

    environment: Environment
    asking: Asking
    max_turns: int
    room: int  # the most tokens of one


class Conversation(NamedTuple):
    """A conversation's answers and what they are worth together."""

    answer: Answer
    verdict: Verdict


def conversation_seed(seed: int, sample: int, turn: int) -> int:
    """The seed of one turn of a group that has `seed`; turns count from 0, and -1 is the
    environment's own."""
    return hashed_seed("turn", seed, sample, turn)


async def hold_conversations(
    plan: Plan,
    client: tinker.SamplingClient,
    prompts: Sequence[Prompt],
    talking: Talking,
    seeds: Sequence[int],
    journal: Journal,
) -> list[list[Conversation]]:
    """A group of conversations for each prompt, so many of them at once as an evaluation has
    requests; each is kept as it ends, and one that is kept is not held again.

    Raises `ServiceError` where a request fails; what fails in an environment is the verdict of its
    conversation.
    """
    slots = asyncio.Semaphore(plan.config.evaluation.concurrency)

    async def hold(prompt: Prompt, seed: int, sample: int) -> Conversation:
        key = f"held/{prompt.example_id}/{seed}/{sample}"
        if (kept := journal.get(key, _KeptConversation)) is not None:
            return Conversation(kept.answer.answer(kept.turns), Verdict(kept.score))
        async with slots:
            turns = _SeededTurns(plan, client, talking.asking, (seed, sample))
            held = await _held(plan, talking, prompt, turns)
        if held.verdict.problem is None:
            rolled = held.answer.turns or []
            made = _KeptConversation(kept_answer(held.answer), rolled, held.verdict.score)
            num_read = sum(len(one.prompt) for one in turns.asked)
            cost = {"num_prompt_tokens": num_read, "num_sampled_tokens": len(held.answer.tokens)}
            journal.add(key, asdict(made), **cost)
        return held

    pairs = list(zip(prompts, seeds, strict=True))
    size = talking.asking.num_samples
    with keeping_the_place():
        held = await all_of([hold(*pair, sample) for pair in pairs for sample in range(size)])
    return [held[start : start + size] for start in range(0, len(held), size)]


@dataclass(frozen=True)
class _KeptConversation:
    """A conversation as a journal holds it."""

    answer: KeptAnswer
    turns: list[RolledTurn]
    score: Measure


class _Asked(NamedTuple):
    prompt: list[int]
    answer: Answer


class _SeededTurns:
    """The cookbook's `TokenCompleter` of one conversation, each request with a seed; it keeps what
    was asked and answered, also where the environment fails after it."""

    def __init__(
        self, plan: Plan, client: tinker.SamplingClient, asking: Asking, seed: tuple[int, int]
    ) -> None:
        self._plan, self._client, self._asking = plan, client, asking
        self._seed = seed
        self.asked: list[_Asked] = []

    def seed_of(self, turn: int) -> int:
        return conversation_seed(*self._seed, turn)

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        import tinker
        from tinker_cookbook.completers import TokensWithLogprobs

        longest = self._asking.max_tokens
        params = tinker.SamplingParams(
            max_tokens=longest if max_tokens is None else min(longest, max_tokens),
            temperature=self._asking.temperature,
            seed=self.seed_of(len(self.asked)),
            stop=stop,
        )
        response = await self._client.sample(model_input, 1, params)
        (sequence,) = response.sequences
        answer = answer_of(self._plan, model_input, sequence)
        self.asked.append(_Asked(model_input.to_ints(), answer))
        return TokensWithLogprobs(answer.tokens, answer.logprobs, sequence.stop_reason)


async def _held(plan: Plan, talking: Talking, prompt: Prompt, turns: _SeededTurns) -> Conversation:
    from tinker_cookbook.rl.message_env import EnvFromMessageEnv
    from tinker_cookbook.rl.rollout_limits import RolloutLimits
    from tinker_cookbook.rl.rollout_runner import run_rollout

    example = find_example(prompt.example_id, plan.train.examples, plan.pool.examples)
    assert example is not None, "steps are of rows of the plan"
    row = environment_row(example, plan.rendering, turns.seed_of(-1))
    conversing, problem = None, None
    try:
        conversing = talking.environment.open(row, plan.renderer, talking.room)
        env = EnvFromMessageEnv(
            plan.renderer,
            cast("MessageEnv", conversing),
            failed_parse_reward=0.0,
            context_overflow_reward=0.0,
            terminate_on_length=False,  # where the environment goes on from it
        )
        limits = RolloutLimits(max_turns=talking.max_turns, max_trajectory_tokens=talking.room)
        await run_rollout(cast("TokenCompleter", turns), env, limits=limits)
    except EnvironmentProblem as error:
        problem = str(error)
    return _conversation(conversing, turns.asked, problem)


def _conversation(
    conversing: Conversing | None, asked: Sequence[_Asked], problem: str | None
) -> Conversation:
    """What was said, as one answer. One that ends in an answer that the environment was not told
    of, as it was cut off or malformed, or in reasoning that never ends, cannot be read."""
    rewards = [] if conversing is None else conversing.rewards
    heard = [] if conversing is None else conversing.heard
    rolled = _turns(asked, rewards, heard)
    answers = [one.answer for one in asked]
    tokens = [token for one in answers for token in one.tokens]
    logprobs = [logprob for one in answers for logprob in one.logprobs]
    is_truncated = any(one.read.is_truncated for one in answers)
    read = ReadAnswer("", None, is_truncated, is_malformed=False)
    if answers:
        last, was_heard = answers[-1].read, len(rewards) == len(answers)
        read = last._replace(is_truncated=is_truncated, said=last.said if was_heard else None)
    return Conversation(Answer(tokens, logprobs, read, rolled), Verdict(sum(rewards), problem))


def _turns(
    asked: Sequence[_Asked], rewards: Sequence[float], heard: Sequence[Sequence[Message]]
) -> list[RolledTurn]:
    from tinker_cookbook.renderers import get_text_content

    rolled: list[RolledTurn] = []
    stood: list[int] = []
    for place, (prompt, answer) in enumerate(asked):
        num_kept = _num_alike(stood, prompt)
        rolled.append(
            RolledTurn(
                heard=[HeardMessage(one["role"], get_text_content(one)) for one in heard[place]],
                num_kept=num_kept,
                read=prompt[num_kept:],
                num_tokens=len(answer.tokens),
                text=answer.read.text,
                reward=rewards[place] if place < len(rewards) else None,
            )
        )
        stood = [*prompt, *answer.tokens]
    return rolled


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin alike with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))

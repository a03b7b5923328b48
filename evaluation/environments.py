"""Environments of the user's own: a function of a Python file that is given a row and gives a
message environment of the cookbook, which says what the model hears and what its answers are worth.

What a user's code raises, or gives that is no step of a conversation, is data: the conversation has
no reward then, with the reason.
"""

from __future__ import annotations

import asyncio
import inspect
import numbers
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from errors import ConfigError, one_line
from user_code.modules import UserModules, keeping_the_place, waited_for
from user_code.own_graders import MAX_REWARD, load_file, may_be_of_the_run

if TYPE_CHECKING:
    import tinker
    from tinker_cookbook.renderers import Message, Renderer
    from tinker_cookbook.rl.message_env import MessageEnv, MessageStepResult

T = TypeVar("T")


@dataclass(frozen=True)
class EnvironmentRow:
    """What an environment is made from. `messages` are the row's up to its last answer, as the
    cookbook's renderers take them, and belong to the environment alone."""

    question: str  # the turn that is answered
    reference: str | None  # what the row answers; None where it only asks
    topic: str | None
    messages: list[Message]
    seed: int  # of this conversation, for whatever is left to chance


class EnvironmentProblem(Exception):
    """Why a conversation has come to nothing, by a fault of its environment."""


@dataclass(frozen=True)
class Environment:
    """`FILE.py@FUNCTION`, loaded."""

    name: str
    make: Callable[[EnvironmentRow], Any]
    modules: UserModules

    @property
    def code(self) -> Mapping[str, str]:
        """The user's files that it is made of, with their sha256."""
        return self.modules.code

    def open(self, row: EnvironmentRow, renderer: Renderer, room: int) -> Conversing:
        """An environment for one conversation, of at most `room` tokens. Raises
        `EnvironmentProblem`."""
        from tinker_cookbook.rl.message_env import MessageEnv

        with self.explained():
            made = self.make(row)
        if not isinstance(made, MessageEnv):
            raise self.problem(
                f"gave something of type {type(made).__name__}, and an environment is a "
                "tinker_cookbook.rl.message_env.MessageEnv"
            )
        return Conversing(self, made, renderer, room)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Around the user's code: what it raises is an `EnvironmentProblem`."""
        try:
            yield
        except SystemExit as error:
            raise self.problem(f"ended with SystemExit: {error}") from error
        except BaseException as error:  # it is anybody's code, and may raise anything
            if may_be_of_the_run(error):
                raise
            said = self.modules.in_users_words(one_line(str(error), 300))
            raise self.problem(f"raised {type(error).__name__}: {said}") from error

    def problem(self, what: str) -> EnvironmentProblem:
        return EnvironmentProblem(f"the environment {self.name} {what}")


class Conversing:
    """A user's environment in one conversation, as the cookbook's `EnvFromMessageEnv` asks it;
    what it gives is checked, and kept.

    `heard` are what each prompt adds to the conversation, and `rewards` one for each answer that
    the environment was told of.
    """

    def __init__(
        self, environment: Environment, env: MessageEnv, renderer: Renderer, room: int
    ) -> None:
        self._environment, self._env = environment, env
        self._renderer, self._room = renderer, room
        self.heard: list[list[Message]] = []
        self.rewards: list[float] = []

    async def initial_observation(self) -> list[Message]:
        messages = await self._given(self._env.initial_observation)
        prompt = await self._checked(messages)
        if prompt.length + 1 >= self._room:
            raise self._environment.problem(
                f"begins with {prompt.length} tokens, and a conversation has room for {self._room} "
                "with its answers, by max_seq_length or the model's context"
            )
        self.heard.append(list(messages))
        return messages

    async def step(self, message: Message) -> MessageStepResult:
        from tinker_cookbook.rl.message_env import MessageStepResult

        step = await self._given(lambda: self._env.step(message))
        if not isinstance(step, MessageStepResult):
            raise self._environment.problem(
                f"gave something of type {type(step).__name__} for a step, and that is a "
                "tinker_cookbook.rl.message_env.MessageStepResult"
            )
        is_number = isinstance(step.reward, numbers.Real) and abs(float(step.reward)) <= MAX_REWARD
        if not is_number:
            raise self._environment.problem(
                f"gave the reward {one_line(repr(step.reward), 80)}, and a reward is a number "
                f"between -{MAX_REWARD:,.0f} and {MAX_REWARD:,.0f}"
            )
        await self._checked(step.next_messages)
        self.rewards.append(float(step.reward))
        self.heard.append(_since_answer(step.next_messages))
        return step

    async def observe_truncated_response(self, message: Message) -> list[Message] | None:
        """Of an answer that was cut off, which most environments do not go on from."""
        messages = await self._given(lambda: self._env.observe_truncated_response(message))
        if messages is not None:
            await self._checked(messages)
            self.rewards.append(0.0)
            self.heard.append(_since_answer(messages))
        return messages

    async def _given(self, ask: Callable[[], Awaitable[T]]) -> T:
        with self._environment.explained():
            return await ask()

    async def _checked(self, messages: Any) -> tinker.ModelInput:
        """What is to be said next, as tokens. Raises `EnvironmentProblem`."""
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise self._environment.problem(
                f"gave {one_line(repr(messages), 80)} to say next, and that is a list of messages "
                'with "role" and "content"'
            )
        # In a thread, for the tokenizer's time is that of the other conversations.
        render = self._renderer.build_generation_prompt
        prompt = await self._given(lambda: asyncio.to_thread(render, messages))
        if any(not hasattr(chunk, "tokens") for chunk in prompt.chunks):
            raise self._environment.problem("says what is no text, and only text is sampled after")
        return prompt


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("role"), str) and "content" in one


def _since_answer(messages: Sequence[Message]) -> list[Message]:
    last = max((i for i, one in enumerate(messages) if one["role"] == "assistant"), default=-1)
    return list(messages[last + 1 :])


# --- before a run ---------------------------------------------------------------------------------


def load_environment(name: str, where: Path, file: Path) -> Environment:
    """The environment that the settings in `where` name; its file is run. Raises `ConfigError`."""
    loaded = load_file(where, name, file, kind="environment")
    make: Any = getattr(loaded.module, name.rpartition("@")[2], None)
    if not callable(make):
        raise ConfigError(
            f"{where}: the environment {name} is no function of that file. Correct it."
        )
    try:
        inspect.signature(make).bind(None)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: the environment {name} does not take a row alone ({error}). Give it this "
            "one parameter: def environment(row)."
        ) from None
    return Environment(name, make, loaded.modules)


def check_environment(
    environment: Environment, row: EnvironmentRow, renderer: Renderer, room: int, where: str
) -> int:
    """The tokens that an environment begins with for the row that `where` names. Raises
    `ConfigError` where it cannot begin."""

    async def begin() -> int:
        conversing = environment.open(row, renderer, room)
        messages = await conversing.initial_observation()
        return renderer.build_generation_prompt(messages).length

    try:
        with keeping_the_place():
            return waited_for(begin())
    except EnvironmentProblem as error:
        raise ConfigError(
            f"rl.environment: it cannot begin with {where}: {error}. Mend it, or name another."
        ) from None

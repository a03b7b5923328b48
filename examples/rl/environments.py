"""A conversation of at most two answers: a wrong one is told of, and a second try earns half.

An environment is made from a row, for one conversation alone: `question`, `reference`, `topic`,
`messages` (what asks for the row's answer) and `seed`, for whatever is left to chance.
"""

from __future__ import annotations

from typing import Any

from tinker_cookbook.renderers import Message, get_text_content
from tinker_cookbook.rl.message_env import MessageEnv, MessageStepResult

TRIES = {1: 1.0, 2: 0.5}  # what a right answer earns at each


class SecondTry(MessageEnv):
    """Right is what is the row's answer and nothing else."""

    def __init__(self, row: Any) -> None:
        self.reference: str | None = row.reference  # None of a row that only asks
        self.messages: list[Message] = row.messages
        self.num_tries = 0

    async def initial_observation(self) -> list[Message]:
        return self.messages

    async def step(self, message: Message) -> MessageStepResult:
        self.num_tries += 1
        self.messages.append(message)
        is_right = get_text_content(message).strip() == self.reference
        is_done = is_right or self.num_tries == len(TRIES)
        if not is_done:
            self.messages.append({"role": "user", "content": "That is wrong. Try again."})
        reward = TRIES[self.num_tries] if is_right else 0.0
        return MessageStepResult(reward, is_done, self.messages)

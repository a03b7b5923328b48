"""One question put to one checkpoint or two, and what of their answers is shown.

An answer is read as the evaluator reads one: by the renderer, without what the model thought aloud
before it, which is kept apart.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ServiceError
from rows.sources import is_text
from simple_eval import DEFAULT_MAX_TOKENS, SamplingSettings, Turn, build_prompt, said_by

if TYPE_CHECKING:
    import tinker
    from tinker_cookbook.renderers import Message, Renderer


class Unanswerable(Exception):
    """A question cannot be asked, or was refused; the others can."""


class Answer(NamedTuple):
    """What a checkpoint said. `flaw` is what an evaluation would count against it, in words."""

    text: str
    reasoning: str  # empty where it wrote none
    stop_reason: str
    num_tokens: int
    flaw: str | None = None
    tool_calls: tuple[str, ...] = ()  # as NAME(ARGUMENTS), which the renderer takes out of the text


@dataclass
class Asked:
    """Checkpoints that answer questions, by the names that their answers have: the one that was
    named, and the one beside it."""

    clients: Mapping[str, tinker.SamplingClient]
    renderer: Renderer
    settings: SamplingSettings
    context: int | None = None  # tokens of the model's; None where it is not known here
    _times: Counter[str] = field(default_factory=Counter)

    @property
    def max_tokens(self) -> int:
        return self.settings.max_tokens or DEFAULT_MAX_TOKENS

    def next_seed(self, question: str) -> int:
        """The seed of a question's next answer: asked again it is sampled anew, as where an
        evaluation repeats its questions."""
        self._times[question] += 1
        return self.settings.seed + self._times[question] - 1

    async def ask(self, question: str, seed: int) -> dict[str, Answer]:
        """The answers by name. Raises `Unanswerable`."""
        if not is_text(question):
            raise Unanswerable("it holds bytes that are not text in this terminal's encoding")
        turns, settings = [Turn("user", question)], self.settings
        try:
            prompt = build_prompt(self.renderer, turns, settings.system_prompt)
        except ValueError as error:
            raise Unanswerable(f"it cannot be asked in this chat format: {error}") from None
        if self.context is not None and prompt.length >= self.context:
            raise Unanswerable(
                f"its prompt has {prompt.length} tokens, and the model's context is {self.context}"
            )
        answers = await asyncio.gather(
            *(self._answer(client, prompt, seed) for client in self.clients.values())
        )
        return dict(zip(self.clients, answers, strict=True))

    async def _answer(
        self, client: tinker.SamplingClient, prompt: tinker.ModelInput, seed: int
    ) -> Answer:
        import tinker

        params = tinker.SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.settings.temperature,
            seed=seed,
            stop=self.renderer.get_stop_sequences(),
        )
        try:
            response = await client.sample(prompt, 1, params)
        except ServiceError as error:
            raise Unanswerable(f"the service refuses it: {error}") from None
        return read_answer(self.renderer, prompt, response.sequences[0], self.max_tokens)


def read_answer(
    renderer: Renderer,
    prompt: tinker.ModelInput,
    sequence: tinker.SampledSequence,
    max_tokens: int,
) -> Answer:
    """What a sampled sequence of at most so many tokens says, taken apart."""
    tokens = list(sequence.tokens)
    message, termination = renderer.parse_response(tokens)
    said = said_by(renderer, prompt, tokens, message)
    flaw = None
    if sequence.stop_reason == "length":
        is_asked = len(tokens) >= max_tokens
        why = "evaluation.max_tokens" if is_asked else "where the model's context ends"
        flaw = f"cut off after {len(tokens)} tokens ({why})"
    elif said is None:
        flaw = "it never ends its reasoning, so there is no answer"
    elif not termination.is_clean:
        flaw = "malformed: it does not end as its chat format does"
    return Answer(
        text=said or "",
        reasoning=_reasoning(message, said or ""),
        stop_reason=sequence.stop_reason,
        num_tokens=len(tokens),
        flaw=flaw,
        tool_calls=tuple(
            f"{call.function.name}({call.function.arguments})"
            for call in message.get("tool_calls") or ()
        ),
    )


def _reasoning(message: Message, said: str) -> str:
    """What a message holds before its answer."""
    content: Any = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [part.get("thinking") or part.get("text") or "" for part in parts]
    whole = "".join(texts)
    return (whole.rpartition(said)[0] if said else whole).strip()

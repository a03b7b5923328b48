"""A checkpoint as Inspect's tasks ask it: sampled through the SDK, and never from a cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from simple_eval import joined_prompt, said_by

if TYPE_CHECKING:
    import tinker
    from inspect_ai.model import Model
    from tinker_cookbook.renderers import Renderer

INSPECT_MAX_TOKENS = 1024  # where neither the settings nor the task say
CUT_TURNS = "turns_cut_short"  # in a sample's store: turns that ended at the limit of their tokens


class Asked(NamedTuple):
    """What a call of the bridge asked, and what came back."""

    prompt: tinker.ModelInput
    sequences: Sequence[tinker.SampledSequence]


_asked: ContextVar[Asked] = ContextVar("asked")


class _RecordingClient:
    """A sampling client as the cookbook's bridge calls it, which remembers what came back.

    The bridge reports every answer as complete; the call's own context still has the sequences.
    """

    def __init__(self, client: tinker.SamplingClient) -> None:
        self._client = client

    async def sample_async(
        self, prompt: tinker.ModelInput, sampling_params: tinker.SamplingParams, num_samples: int
    ) -> tinker.SampleResponse:
        response = await self._client.sample(prompt, num_samples, sampling_params)
        _asked.set(Asked(prompt, response.sequences))
        return response


def inspect_model(
    client: tinker.SamplingClient,
    renderer: Renderer,
    seed: int,
    name: str,
    say: Callable[[str], None] = lambda text: None,
    system_prompt: str | None = None,
) -> Model:
    """An Inspect model that samples `client`, with truncated and malformed answers marked.

    `name` is what its logs call it. A `system_prompt` is put before all that it is asked, a system
    message of the task's own in one message with it. What a model thought aloud is no part of its
    answers. Inspect's cache of answers is keyed by the name, which says nothing of the weights:
    where a task asks for it, `say` is told that it is off.
    """
    from inspect_ai.model import GenerateConfig, Model

    class Uncached(Model):
        async def generate(
            self,
            input: Any,
            tools: Any = (),
            tool_choice: Any = None,
            config: GenerateConfig = GenerateConfig(),  # noqa: B008 (as it is inherited)
            cache: Any = None,
            on_stream: Any = None,
        ) -> Any:
            if cache or (cache is None and (config.cache or self.config.cache)):
                say(
                    "Inspect's cache of answers is off: it knows a checkpoint by its name alone, "
                    "and would give the answers of other weights"
                )
            return await super().generate(input, tools, tool_choice, config, False, on_stream)

    return Uncached(
        _bridge(client, renderer, seed, name, system_prompt),
        GenerateConfig(max_tokens=INSPECT_MAX_TOKENS),
    )


def _bridge(
    client: tinker.SamplingClient,
    renderer: Renderer,
    seed: int,
    name: str,
    system_prompt: str | None,
) -> Any:
    from inspect_ai.model import ModelAPI, modelapi
    from inspect_ai.solver._task_state import sample_state
    from tinker_cookbook.eval.inspect_utils import InspectAPIFromTinkerSampling

    @modelapi(name="tinker")
    class Bridge(InspectAPIFromTinkerSampling):
        def __init__(self) -> None:
            # Not the bridge's own: it would load a directory's tokenizer with remote code allowed.
            ModelAPI.__init__(self, model_name=name)
            self.sampling_client: Any = _RecordingClient(client)
            self.renderer = renderer
            self.verbose = False
            self.include_reasoning = False
            self._num_asked: Counter[tuple[str, int, str]] = Counter()

        async def count_text_tokens(self, text: str) -> int:
            return len(renderer.tokenizer.encode(text, add_special_tokens=False))

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            # Repeats of a question get different seeds, the same ones in every evaluation, also
            # in one that goes on where another was cut short.
            sample = sample_state()
            assert sample is not None, "Inspect asks on behalf of a sample"
            input = _with_prompt(input, system_prompt)
            asked = "\n".join(f"{message.role}: {message.text}" for message in input)
            place = (str(sample.sample_id), sample.epoch, asked)
            digest = hashlib.sha256(f"{seed}:{self._num_asked[place]}:{place}".encode()).digest()
            self._num_asked[place] += 1
            # Inspect has put its system message first already; the bridge would do it once more.
            changes = {"seed": int.from_bytes(digest[:4]) // 2, "system_message": None}
            config = config.model_copy(update=changes)
            output = await super().generate(input, tools, tool_choice, config)
            _mark(output, _asked.get(), renderer)
            if any(choice.stop_reason == "max_tokens" for choice in output.choices):
                sample.store.set(CUT_TURNS, sample.store.get(CUT_TURNS, 0) + 1)
            return output

    return Bridge()  # pyright: ignore[reportCallIssue] (the decorator hides our __init__)


def _with_prompt(messages: list[Any], system_prompt: str | None) -> list[Any]:
    """Messages with a system prompt before them, in one with a system message that they have."""
    from inspect_ai.model import ChatMessageSystem

    if system_prompt is None:
        return messages
    if not messages or messages[0].role != "system":
        return [ChatMessageSystem(content=system_prompt), *messages]
    said = joined_prompt(system_prompt, messages[0].text)
    return [messages[0].model_copy(update={"content": said}), *messages[1:]]


def _mark(output: Any, asked: Asked, renderer: Renderer) -> None:
    """Mark answers that were cut short or are malformed, and take out what was thought aloud."""
    for choice, sequence in zip(output.choices, asked.sequences, strict=True):
        tokens = list(sequence.tokens)
        message, termination = renderer.parse_response(tokens)
        said, answer = choice.message.text, said_by(renderer, asked.prompt, tokens, message)
        if answer != said:
            choice.message.content = answer or ""
            output.completion = output.choices[0].message.text
            output.metadata = {**(output.metadata or {}), "with_reasoning": said}
        if sequence.stop_reason == "length":
            choice.stop_reason = "max_tokens"
        elif answer is None or not termination.is_clean:
            output.metadata = {**(output.metadata or {}), "malformed": True}

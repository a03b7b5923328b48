"""What a chat format can say, and an example's messages as the cookbook's renderers take them.

A renderer does not tell what it cannot express: some leave tool calls out, some write reasoning
where none is, some read `<think>` in plain text. So it is asked, with a few short conversations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rows.examples import Example, Message

if TYPE_CHECKING:
    import tinker
    import torch
    from tinker_cookbook.renderers import Renderer

OPEN, CLOSE = "<think>", "</think>"
_ASKED: dict[str, Any] = {"role": "user", "content": "q"}
_CALL = {"name": "probe_call", "arguments": '{"a": 1}'}
_TOOL = {"name": "probe_tool", "description": "d", "parameters": {"type": "object"}}


@dataclass(frozen=True)
class Abilities:
    """What a renderer writes of what a message may hold."""

    takes_tools: bool
    takes_reasoning: bool
    reads_think_tags: bool  # it writes reasoning as <think>, so such text in an answer is that
    has_prefill: bool  # its prompt ends with tokens of the answer's own rendering


def abilities_of(renderer: Renderer) -> Abilities:
    """Ask a renderer what it can express."""
    return Abilities(
        takes_tools=_takes_tools(renderer),
        takes_reasoning="zyx" in _reasoned(renderer),
        reads_think_tags=reads_think_tags(renderer),
        has_prefill=_has_prefill(renderer),
    )


def reads_think_tags(renderer: Renderer) -> bool:
    """Whether it writes reasoning as `<think>`, so that such text in an answer is that."""
    return all(tag in _reasoned(renderer) for tag in (OPEN, CLOSE))


def _reasoned(renderer: Renderer) -> str:
    """An answer with reasoning; empty where the format has no place for it."""
    from tinker_cookbook.renderers.qwen3 import Qwen3InstructRenderer

    if isinstance(renderer, Qwen3InstructRenderer):
        return ""  # it writes the tags, but no model whose format this is has seen them
    parts = [{"type": "thinking", "thinking": "zyx"}, {"type": "text", "text": "b"}]
    return _said(renderer, [_ASKED, {"role": "assistant", "content": parts}]) or ""


def _said(renderer: Renderer, messages: Sequence[Any]) -> str | None:
    """The text of a conversation; None where the renderer refuses it."""
    from tinker_cookbook.exceptions import RendererError

    try:
        model_input, _ = renderer.build_supervised_example(list(messages))
    except (RendererError, NotImplementedError, AssertionError, KeyError, TypeError, ValueError):
        return None
    return str(renderer.tokenizer.decode(model_input.to_ints()))


def _takes_tools(renderer: Renderer) -> bool:
    try:
        prefix = _tools_prefix(renderer, [_TOOL], "")
    except ValueError:
        return False
    call = {"role": "assistant", "content": "", "tool_calls": [_call(_CALL)]}
    said = _said(renderer, [*prefix, _ASKED, call]) or ""
    return _CALL["name"] in said and _TOOL["name"] in said


def _has_prefill(renderer: Renderer) -> bool:
    from tinker_cookbook.renderers import TrainOnWhat

    messages: list[Any] = [{**_ASKED, "trainable": False}]
    messages += [{"role": "assistant", "content": "b", "trainable": True}]
    marked = taking_marks(renderer)
    model_input, weights = marked.build_supervised_example(messages, TrainOnWhat.CUSTOMIZED)
    prompt = renderer.build_generation_prompt([_ASKED]).to_ints()  # pyright: ignore[reportArgumentType]
    is_start = model_input.to_ints()[: len(prompt)] == prompt
    return is_start and bool(weights[: len(prompt)].sum() > 0)


def taking_marks(renderer: Renderer) -> Renderer:
    """The renderer, which takes messages that say of themselves whether they are trained.

    The system turns that some formats put first (gpt-oss, Kimi, Nemotron 3) carry no such mark, and
    the cookbook's check of marks fails on them. They are never trained.
    """
    from tinker_cookbook.renderers import Renderer, TrainOnWhat

    class Marking(Renderer):
        """Stands between a format, which adds its turn, and what renders all turns."""

        def build_supervised_example(
            self, messages: list[Any], train_on_what: Any = TrainOnWhat.LAST_ASSISTANT_MESSAGE
        ) -> tuple[tinker.ModelInput, torch.Tensor]:
            if train_on_what == TrainOnWhat.CUSTOMIZED:
                messages = [{"trainable": False, **message} for message in messages]
            return super().build_supervised_example(messages, train_on_what)

    kinds: Any = type(renderer), Marking
    kind: Any = type("Marking", kinds, {})
    # Not by `copy`: the cookbook's renderers then load the model's tokenizer once more, by
    # themselves, with the code that lies beside it.
    marking = object.__new__(kind)
    marking.__dict__.update(vars(renderer))
    return marking


# --- messages -------------------------------------------------------------------------------------


def turns_of(
    example: Example, renderer: Renderer, abilities: Abilities
) -> list[tuple[dict[str, Any], float | None]]:
    """The cookbook's messages of an example, each with its weight.

    Raises `ValueError` with the reason for what the chat format cannot express.
    """
    turns = [(_turn_of(message, abilities), message.weight) for message in example.messages]
    uses_tools = example.tools is not None or any(
        message.calls or message.role == "tool" for message in example.messages
    )
    if not uses_tools:
        return turns
    if not abilities.takes_tools:
        raise ValueError(
            "it has tools or calls of them, which this chat format cannot write; choose a "
            "renderer_name that can (the qwen3 family), or leave such rows out"
        )
    if example.tools is None:
        return turns
    has_system = example.messages[0].role == "system"
    system = example.messages[0].content if has_system else ""
    prefix = _tools_prefix(renderer, json.loads(example.tools), system)
    return [*((message, None) for message in prefix), *turns[has_system:]]


def _tools_prefix(renderer: Renderer, tools: Sequence[Any], system: str) -> list[Any]:
    try:
        return list(renderer.create_conversation_prefix_with_tools(list(tools), system))
    except NotImplementedError:
        raise ValueError("this chat format has no place for tools") from None
    except KeyError as missing:
        raise ValueError(f"a tool has no {missing}, which this chat format writes") from None


def _turn_of(message: Message, abilities: Abilities) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool":
        turn |= {} if message.name is None else {"name": message.name}
        turn |= {} if message.call_id is None else {"tool_call_id": message.call_id}
        return turn
    if message.role != "assistant":
        return turn
    reasoning, content = message.reasoning, message.content
    if abilities.reads_think_tags and (OPEN in content or CLOSE in content):
        inline, content = split_thought(content)
        if reasoning is not None and inline is not None:
            raise ValueError("an answer has its reasoning twice, as a field and in its text")
        reasoning = inline if reasoning is None else reasoning
        if not content.strip() and not message.calls:
            raise ValueError("an answer is reasoning alone")
    if reasoning is not None:
        if not abilities.takes_reasoning:
            raise ValueError("it reasons, and this chat format has no place for reasoning")
        turn["content"] = [{"type": "thinking", "thinking": reasoning}]
        turn["content"] += [{"type": "text", "text": content}] if content else []
    else:
        turn["content"] = content
    if message.calls:
        turn["tool_calls"] = [_call(call._asdict()) for call in message.calls]
    return turn


def _call(call: dict[str, Any]) -> Any:
    from tinker_cookbook.renderers import ToolCall

    body = ToolCall.FunctionBody(name=call["name"], arguments=call["arguments"])
    return ToolCall(function=body, id=call.get("id"))


_LONE_CLOSE = re.compile(r"\s*(?:\n|\A)[ \t]*</think>[ \t]*(?:\n|\Z)\s*")


def split_thought(text: str) -> tuple[str | None, str]:
    """The reasoning that stands in an answer's text, and the answer, as Qwen3's template reads it.

    Raises `ValueError` where a tag is only spoken of, or the reasoning has no end.
    """
    begins = text.lstrip().startswith(OPEN)
    body = text.lstrip().removeprefix(OPEN)
    if OPEN in body:
        raise ValueError(f"an answer holds {OPEN} in its middle, where it would begin a thought")
    if begins:
        reasoning, close, answer = body.partition(CLOSE)
        if not close:
            raise ValueError(f"an answer begins with {OPEN} and its thought never ends")
    else:
        found = _LONE_CLOSE.search(text)
        if found is None:
            raise ValueError(f"an answer holds {CLOSE} in a line, where it would end a thought")
        reasoning, answer = text[: found.start()], text[found.end() :]
    if CLOSE in answer:
        raise ValueError(f"an answer holds {CLOSE} twice")
    return reasoning.strip() or None, answer.lstrip("\n")

"""How a model is asked in messages: by its run's renderer, else by its tokenizer's chat template.

A checkpoint's metadata names the renderer that it was trained with (`renderer_name`, as the
training loop and the cookbook store it). A model without one is asked by the chat template of its
tokenizer, else by the cookbook's recommendation for its name; where there is neither, it is refused
instead of guessed.
"""

from __future__ import annotations

import copy
import functools
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from local_tinker.answers import OpenAIError
from local_tinker.engine import Engine
from local_tinker.openai_text import CLOSE_THINK, OPEN_THINK, Format, Said
from local_tinker.openai_tokens import TokenNames
from local_tinker.openai_wire import ChatMessage

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Message, Renderer

logger = logging.getLogger(__name__)

RENDERER_KEY = "renderer_name"
HARMONY, HARMONY_READER = "<|channel|>", "gpt_oss_no_sysprompt"  # gpt-oss answers in channels
# What formats begin a call of a tool with, or another part that is no text of the answer.
_MARKERS = ("<tool_call>", "<|", "<\uff5c")
# What renderers raise for messages that they cannot write, and for a tokenizer that lacks their
# tokens; the cookbook's own errors are among them.
_REFUSALS = (AssertionError, LookupError, NotImplementedError, TypeError, ValueError)


class ChatFormat(Format, Protocol):
    """A format that messages can be written in."""

    def prompt(self, messages: list[ChatMessage]) -> list[int]:
        """The tokens that ask. Raises `OpenAIError` for messages that the format cannot write."""
        ...


@dataclass(frozen=True)
class PlainText:
    """Text that is continued, for models that are asked without messages."""

    tokenizer: Any
    stop_ids: frozenset[int]
    name: str = "text"
    stop_strings: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()

    @functools.cached_property
    def names(self) -> TokenNames:
        return TokenNames(self.tokenizer)

    def read(self, tokens: list[int]) -> Said:
        return Said(self.tokenizer.decode(_before_stop(tokens, self.stop_ids)))


def _ends_open(prompt: str) -> bool:
    """Whether a prompt ends inside a trace, which the answer then begins in."""
    return prompt.rstrip().endswith(OPEN_THINK)


def _is_open(text: str, began_open: bool) -> bool:
    """Whether an answer so far ends inside a trace."""
    return text.rfind(CLOSE_THINK) < text.rfind(OPEN_THINK) or (
        began_open and CLOSE_THINK not in text
    )


def _before_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens


@dataclass(frozen=True)
class Rendered:
    """The format of one of the cookbook's renderers."""

    name: str
    renderer: Renderer

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer

    @functools.cached_property
    def names(self) -> TokenNames:
        return TokenNames(self.tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(s for s in self.renderer.get_stop_sequences() if isinstance(s, int))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(s for s in self.renderer.get_stop_sequences() if isinstance(s, str))

    @property
    def markers(self) -> tuple[str, ...]:
        return (OPEN_THINK, *_MARKERS) if self._reads_traces else _MARKERS

    def prompt(self, messages: list[ChatMessage]) -> list[int]:
        try:
            return self.renderer.build_generation_prompt([_message(m) for m in messages]).to_ints()
        except _REFUSALS as error:
            raise OpenAIError(
                f"messages: the renderer {self.name} cannot write them: "
                f"{str(error) or type(error).__name__}",
                "messages",
            ) from None

    def read(self, tokens: list[int]) -> Said:
        body = _before_stop(tokens, self.stop_ids)
        end = tokens[len(body) :] or self._end
        is_open = self._reads_traces and _is_open(self.tokenizer.decode(body), self._opens_trace)
        close = self._close if is_open else []
        return self._parsed([*body, *close, *end])._replace(is_reasoning=is_open)

    @functools.cached_property
    def _end(self) -> list[int]:
        """The token that ends an answer; none where a text does, and an answer is read without."""
        return [s for s in self.renderer.get_stop_sequences() if isinstance(s, int)][:1]

    @functools.cached_property
    def _close(self) -> list[int]:
        return self.tokenizer.encode(CLOSE_THINK, add_special_tokens=False)

    @functools.cached_property
    def _opens_trace(self) -> bool:
        prompt = self.prompt([ChatMessage(role="user", content="?")])
        return _ends_open(self.tokenizer.decode(prompt))

    @functools.cached_property
    def _reads_traces(self) -> bool:
        text = self.tokenizer.encode(f"{OPEN_THINK}a{CLOSE_THINK}b", add_special_tokens=False)
        return bool(self._parsed([*text, *self._end]).reasoning)

    def _parsed(self, tokens: list[int]) -> Said:
        return _said(self.renderer.parse_response(tokens)[0])


def _said(message: Message) -> Said:
    """The parts of a parsed message; a call that cannot be read stays in the text as it is."""
    from tinker_cookbook.renderers import get_text_content

    content, text = message["content"], get_text_content(message)
    parts = [] if isinstance(content, str) else content
    unread = [call.raw_text for call in message.get("unparsed_tool_calls", [])]
    return Said(
        content=text + "".join(raw for raw in unread if raw not in text),
        reasoning="".join(part["thinking"] for part in parts if part["type"] == "thinking"),
        tool_calls=tuple(
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for number, call in enumerate(message.get("tool_calls", []))
        ),
    )


def _message(message: ChatMessage) -> Message:
    """A message as renderers take it; `developer` is OpenAI's newer name for the system's role."""
    role = "system" if message.role == "developer" else message.role
    if not message.reasoning_content:
        return {"role": role, "content": message.text}
    return {
        "role": role,
        "content": [
            {"type": "thinking", "thinking": message.reasoning_content},
            {"type": "text", "text": message.text},
        ],
    }


@dataclass(frozen=True)
class Templated:
    """The chat template in a tokenizer's files; answers end where the model itself ends."""

    tokenizer: Any
    stop_ids: frozenset[int]
    name: str = "the tokenizer's chat template"
    stop_strings: tuple[str, ...] = ()
    markers: tuple[str, ...] = (OPEN_THINK, *_MARKERS)
    reader: Rendered | None = None  # reads the answers, where they are not text between tags

    @functools.cached_property
    def names(self) -> TokenNames:
        return TokenNames(self.tokenizer)

    def prompt(self, messages: list[ChatMessage]) -> list[int]:
        return self.tokenizer.encode(self._written(messages), add_special_tokens=False)

    def _written(self, messages: list[ChatMessage]) -> str:
        from jinja2 import TemplateError

        written = [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.text,
                **({"reasoning_content": r} if (r := message.reasoning_content) else {}),
            }
            for message in messages
        ]
        try:
            return self.tokenizer.apply_chat_template(
                written, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, *_REFUSALS) as error:
            raise OpenAIError(
                f"messages: the model's chat template cannot write them: {error}", "messages"
            ) from None

    @functools.cached_property
    def _opens_trace(self) -> bool:
        return _ends_open(self._written([ChatMessage(role="user", content="?")]))

    def read(self, tokens: list[int]) -> Said:
        if self.reader is not None:
            return self.reader.read(tokens)
        text = self.tokenizer.decode(_before_stop(tokens, self.stop_ids))
        is_open = _is_open(text, self._opens_trace)
        if self._opens_trace and not text.lstrip().startswith(OPEN_THINK):
            text = OPEN_THINK + text
        return _between_tags(text + CLOSE_THINK if is_open else text)._replace(is_reasoning=is_open)


def _between_tags(text: str) -> Said:
    """An answer's parts by the tags that most families use; line breaks around a trace frame it."""
    from tinker_cookbook.renderers import ToolCall, UnparsedToolCall, parse_content_blocks

    parsed = parse_content_blocks(text)
    if parsed is None:
        return Said(text)
    parts, calls = parsed
    said = _said(
        {
            "role": "assistant",
            "content": parts,
            "tool_calls": [call for call in calls if isinstance(call, ToolCall)],
            "unparsed_tool_calls": [call for call in calls if isinstance(call, UnparsedToolCall)],
        }
    )
    begins_with_trace = text.lstrip().startswith(OPEN_THINK)
    content = said.content.lstrip("\n") if begins_with_trace else said.content
    return said._replace(content=content, reasoning=said.reasoning.strip("\n"))


class ChatFormats:
    """The chat formats of the models that were asked for; used from several threads."""

    def __init__(self) -> None:
        self._formats: dict[tuple[str, str | None], ChatFormat] = {}
        self._tokenizers: dict[str, Any] = {}
        self._plain: dict[str, PlainText] = {}
        self._max_chars: dict[str, int] = {}
        self._lock = threading.Lock()

    def plain(self, engine: Engine) -> PlainText:
        """How an engine's model is asked to continue a text."""
        with self._lock:
            if engine.name not in self._plain:
                made = PlainText(self._tokenizer(engine), engine.eos_token_ids)
                self._plain[engine.name] = made
            return self._plain[engine.name]

    def find(self, engine: Engine, renderer_name: str | None) -> ChatFormat:
        """How a model is asked in messages. Raises `OpenAIError` when nothing settles it."""
        key = (engine.name, renderer_name)
        with self._lock:
            if key not in self._formats:
                self._formats[key] = self._choose(engine, renderer_name)
            return self._formats[key]

    def check_room(self, engine: Engine, num_chars: int, param: str) -> None:
        """Refuse a text that no tokens could hold before it is cut into them, which takes minutes
        and gigabytes for what a request may bring. Raises `OpenAIError`."""
        with self._lock:
            if engine.name not in self._max_chars:
                longest = max(map(len, self._tokenizer(engine).get_vocab()))
                self._max_chars[engine.name] = engine.max_context_length * longest
        if num_chars > self._max_chars[engine.name]:
            raise OpenAIError(
                f"{param}: {num_chars} characters exceed what the model's context of "
                f"{engine.max_context_length} tokens can hold; send less",
                param,
                code="context_length_exceeded",
            )

    def _tokenizer(self, engine: Engine) -> Any:
        """A tokenizer of our own: the compute thread uses the engine's at the same time."""
        if engine.name not in self._tokenizers:
            self._tokenizers[engine.name] = copy.deepcopy(engine.tokenizer)
        return self._tokenizers[engine.name]

    def _choose(self, engine: Engine, renderer_name: str | None) -> ChatFormat:
        tokenizer = self._tokenizer(engine)
        if renderer_name is not None:
            source = "the checkpoint's metadata"
        elif getattr(tokenizer, "chat_template", None):
            logger.info("%s: messages are written by its chat template", engine.name)
            is_harmony = HARMONY in str(tokenizer.chat_template)
            reader = _build(HARMONY_READER, tokenizer, engine) if is_harmony else None
            return Templated(tokenizer, engine.eos_token_ids, reader=reader)
        else:
            renderer_name, source = _recommended(engine), "the cookbook's recommendation"
        logger.info("%s: messages are written by %s (%s)", engine.name, renderer_name, source)
        return _build(renderer_name, tokenizer, engine)


def _recommended(engine: Engine) -> str:
    from tinker_cookbook.model_info import get_recommended_renderer_name

    for name in (engine.name, *sorted(engine.aliases)):
        try:
            return get_recommended_renderer_name(name)
        except (LookupError, ValueError):
            continue
    raise OpenAIError(
        f"model: how {engine.name} is asked in messages cannot be told: its checkpoint names no "
        f"renderer, its tokenizer has no chat template, and the cookbook does not know the name. "
        f"Train with user_metadata={{'{RENDERER_KEY}': ...}}, put chat_template.jinja into the "
        "model's folder, or ask by /completions with a prompt that is written already.",
        "model",
    )


def _build(renderer_name: str, tokenizer: Any, engine: Engine) -> Rendered:
    from tinker_cookbook.renderers import get_renderer

    try:
        form = Rendered(
            renderer_name, get_renderer(renderer_name, tokenizer, model_name=engine.name)
        )
        form.prompt([ChatMessage(role="user", content="?")])
        form.read([])
    except (OpenAIError, *_REFUSALS) as error:
        raise OpenAIError(
            f"model: its renderer {renderer_name!r} cannot be built over the tokenizer of "
            f"{engine.name}: {str(error) or type(error).__name__} Ask by /completions with a "
            "prompt that is written already.",
            "model",
        ) from None
    return form

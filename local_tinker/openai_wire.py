"""The requests and answers of OpenAI's chat and text completions, as far as this service has them.

A parameter is honoured, or accepted because it changes no answer, or refused by its name; none is
passed over in silence. `null` is what clients send for "not given".
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from local_tinker.answers import OpenAIError
from local_tinker.wire import MAX_STOPS

MAX_CHOICES = 128  # of one prompt, as OpenAI allows
MAX_PROMPTS = 256
MAX_TOP_LOGPROBS = 20
MAX_SHOWN_CHARS = 80  # of a value that is refused
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for text completions


class _Harmless(NamedTuple):
    """A parameter that is not supported: values of it that ask for nothing, and why not others."""

    values: tuple[Any, ...]
    why: str


_ACCEPTED = {  # they say who asks, and change no answer
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
}
_NO_TOOLS = "tools are not called here; describe them in the prompt, or sample through the SDK"
_NO_PENALTY = "this service samples from the model's own distribution"
_TEXT_ONLY = "this service is text only"
_UNSUPPORTED = {
    "tools": _Harmless(([],), _NO_TOOLS),
    "functions": _Harmless(([],), _NO_TOOLS),
    "tool_choice": _Harmless(("none", "auto"), _NO_TOOLS),
    "function_call": _Harmless(("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": _Harmless((True, False), _NO_TOOLS),
    "response_format": _Harmless(({"type": "text"},), "answers are not held to a schema"),
    "frequency_penalty": _Harmless((0,), _NO_PENALTY),
    "presence_penalty": _Harmless((0,), _NO_PENALTY),
    "repetition_penalty": _Harmless((1,), _NO_PENALTY),
    "logit_bias": _Harmless(({},), _NO_PENALTY),
    "min_p": _Harmless((0,), _NO_PENALTY),
    "modalities": _Harmless((["text"],), _TEXT_ONLY),
    "audio": _Harmless((), _TEXT_ONLY),
    "reasoning_effort": _Harmless((), "the run's renderer settles how much the model reasons"),
    "separate_reasoning": _Harmless((True,), "reasoning is always answered apart"),
    "store": _Harmless((False,), "this service stores no answers"),
    "service_tier": _Harmless(("auto", "default"), "there is one tier"),
    "verbosity": _Harmless(("medium",), "ask for it in the prompt"),
    "prediction": _Harmless((), "no prediction is used"),
    "web_search_options": _Harmless((), "nothing outside this machine is reached"),
    "best_of": _Harmless((1,), "ask for n answers and choose among them"),
    "suffix": _Harmless(("",), "text is only continued, not filled in"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # this service pads no chunks, which only costs bytes


def _whole(text: str) -> str:
    """Text that can be written as bytes, which no tokenizer reads otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is half of a surrogate pair, {text[error.start]!a}; send "
            "whole characters"
        ) from None
    return text


def _ends_something(stop: str) -> str:
    if not stop:
        raise ValueError("an empty text would end every answer before it began; leave it out")
    return stop


Text = Annotated[str, AfterValidator(_whole)]
StopText = Annotated[Text, AfterValidator(_ends_something)]
Stop = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)]


class _Request(_Strict):
    model: str = Field(max_length=5000)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: Stop = []
    seed: int | None = None
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = -1  # no parameter of OpenAI's, but of most services of this kind
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class ChatMessage(_Strict):
    """A message; those that hold or answer tool calls are refused by their field's name."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    reasoning_content: Text = ""

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        """An assistant's may be empty: clients send answers back that were cut amid reasoning."""
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the {self.role} needs content; send a text, or ''")
        return self

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class ChatRequest(_Request):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Request):
    prompt: Text | list[Text] | list[int] | list[list[int]]
    max_tokens: int = Field(default=COMPLETION_MAX_TOKENS, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts one by one; a list of numbers is the tokens of a single one."""
        prompts: Any = self.prompt  # pydantic has checked its form
        is_one = isinstance(prompts, str) or any(isinstance(token, int) for token in prompts)
        return [prompts] if is_one else list(prompts)


R = TypeVar("R", bound=_Request)


def read_chat(body: object) -> ChatRequest:
    """Check a chat request. Raises `OpenAIError` for the first thing that is wrong with it."""
    request = _read(ChatRequest, body)
    if request.top_logprobs is not None and not request.logprobs:
        raise OpenAIError("top_logprobs needs logprobs: true", "top_logprobs")
    both = (request.max_tokens, request.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise OpenAIError(
            f"max_tokens {both[0]} and max_completion_tokens {both[1]} differ; send one of them",
            "max_tokens",
        )
    return request


def read_completion(body: object) -> CompletionRequest:
    """Check a text completion's request. Raises `OpenAIError` as `read_chat` does."""
    request = _read(CompletionRequest, body)
    if not request.prompts or len(request.prompts) > MAX_PROMPTS:
        raise OpenAIError(
            f"prompt must be 1 to {MAX_PROMPTS} prompts, found {len(request.prompts)}", "prompt"
        )
    if request.max_tokens == 0 and not request.echo:
        raise OpenAIError("max_tokens 0 asks for nothing without echo: true", "max_tokens")
    if request.stream and request.echo and (request.logprobs is not None or not request.max_tokens):
        raise OpenAIError("the prompt's own scores come in one piece; send stream: false", "stream")
    return request


def _read(kind: type[R], body: object) -> R:
    if not isinstance(body, dict):
        raise OpenAIError("the request body must be a JSON object")
    fields = {}
    for name, value in body.items():
        if value is None or name in _ACCEPTED:
            continue
        if (unsupported := _UNSUPPORTED.get(name)) is None:
            fields[name] = value
        elif value not in unsupported.values:
            shown = json.dumps(value)[:MAX_SHOWN_CHARS]
            raise OpenAIError(f"{name}: {shown} is not supported: {unsupported.why}", name)
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [_without_nothing(message) for message in fields["messages"]]
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from None
    if "stream_options" in fields and not request.stream:
        raise OpenAIError("stream_options needs stream: true", "stream_options")
    return request


def _without_nothing(message: Any) -> Any:
    """A message without fields that hold nothing; clients send their own answers' back."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value not in (None, [])}


def _explained(error: ValidationError) -> OpenAIError:
    # Of a value that may have several forms, the innermost complaint says most, and more than
    # that it should have had another form.
    first = max(
        error.errors(), key=lambda one: (len(one["loc"]), not one["type"].endswith("_type"))
    )
    place = [part for part in first["loc"] if not _is_form(part)]
    param = str(place[0]) if place else None
    where = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        return OpenAIError(f"{where} is not supported by this service", param)
    return OpenAIError(f"{where}: {first['msg'].removeprefix('Value error, ')}", param)


def _is_form(part: int | str) -> bool:
    """Whether a part of a place names one of the forms that a value may have, such as `list[str]`,
    and no field."""
    return isinstance(part, str) and (part in ("str", "constrained-str") or "[" in part)

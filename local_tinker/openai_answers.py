"""What OpenAI's clients are answered: choices with their text, log-probabilities and usage, at once
or as a stream of chunks."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from local_tinker.choosing import Choice
from local_tinker.openai_text import Delta, Format, Said, num_kept
from local_tinker.openai_tokens import TokenName, TokenNames, text_offsets
from local_tinker.wire import EMPTY_LOGPROB, IS_OLDER_SDK

LOWEST_LOGPROB = -9999.0  # what OpenAI writes for a token that cannot come; JSON has no infinity


class Scored(NamedTuple):
    """A token, its log-probability (a prompt's first has none), and the likeliest in its place."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Sampled(NamedTuple):
    """One answer as it was sampled, its stop token included."""

    tokens: list[Scored]
    is_stopped: bool

    @property
    def ids(self) -> list[int]:
        return [scored.token for scored in self.tokens]


class Response(NamedTuple):
    """The answers to one prompt, and the scores of the prompt where they were asked for."""

    answers: list[Sampled]
    prompt: list[Scored]


def read_response(message: bytes, prompt: Sequence[int]) -> Response:
    """Read the protocol's own answer to a sample request."""
    response = pb.SampleResponse.FromString(message)
    answers = [
        Sampled(
            _scored(
                np.frombuffer(sequence.tokens, "<i4").tolist(),
                np.frombuffer(sequence.logprobs, "<f4").tolist(),
                None if IS_OLDER_SDK else sequence.topk_sampled_logprobs,
            ),
            sequence.stop_reason == pb.STOP_REASON_STOP,
        )
        for sequence in response.sequences
    ]
    of_prompt = np.frombuffer(response.prompt_logprobs, "<f4").tolist()
    scored = _scored(prompt, of_prompt, response.topk_prompt_logprobs) if of_prompt else []
    return Response(answers, [s._replace(logprob=None, top=()) for s in scored[:1]] + scored[1:])


def _scored(
    tokens: Sequence[int], logprobs: Sequence[float], topk: pb.TopkLogprobs | None
) -> list[Scored]:
    if topk is None:
        return [Scored(*one, ()) for one in zip(tokens, logprobs, strict=True)]
    ids = np.frombuffer(topk.token_ids, "<i4").reshape(-1, max(topk.k, 1)).tolist()
    values = np.frombuffer(topk.logprobs, "<f4").reshape(-1, max(topk.k, 1)).tolist()
    tops = [_likeliest(*row) for row in zip(ids, values, strict=True)]
    return [
        Scored(token, logprob, tops[place] if tops else ())
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True))
    ]


def as_scored(choice: Choice) -> Scored:
    """A token on its way, as the compute thread chose it."""
    top = () if choice.topk is None else _likeliest(*(part.tolist() for part in choice.topk))
    return Scored(choice.token, choice.logprob, top)


def _likeliest(tokens: list[int], logprobs: list[float]) -> tuple[tuple[int, float], ...]:
    """Without the cells that stand for tokens which could not come."""
    return tuple(
        (token, logprob)
        for token, logprob in zip(tokens, logprobs, strict=True)
        if logprob > EMPTY_LOGPROB  # not so for NaN either
    )


# --- log-probabilities --------------------------------------------------------------------------


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def _named(name: TokenName, logprob: float) -> dict[str, Any]:
    return {"token": name.text, "logprob": _finite(logprob), "bytes": name.bytes}


def chat_logprobs(names: TokenNames, tokens: Sequence[Scored], num_sent: int) -> dict[str, Any]:
    """Log-probabilities as chat completions have them, of the tokens after those that were sent."""
    content = []
    for place, scored in enumerate(tokens[num_sent:], num_sent):
        is_first = place == 0
        top = [_named(names.name(token, is_first=is_first), value) for token, value in scored.top]
        named = _named(names.name(scored.token, is_first=is_first), scored.logprob or 0.0)
        content.append({**named, "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(
    names: TokenNames, tokens: Sequence[Scored], num_sent: int, text: str, is_with_top: bool
) -> dict[str, Any]:
    """Log-probabilities as text completions have them, of the tokens after those that were sent;
    `text` is the choice's."""
    texts, tops = [], []
    for place, scored in enumerate(tokens[num_sent:], num_sent):
        is_first = place == 0
        texts.append(names.name(scored.token, is_first=is_first).in_texts)
        named: dict[str, float] = {}
        for token, value in scored.top:  # of two with one name the likeliest is kept
            named.setdefault(names.name(token, is_first=is_first).in_texts, _finite(value))
        tops.append(named or None)
    logprobs = [scored.logprob for scored in tokens[num_sent:]]
    return {
        "tokens": texts,
        "token_logprobs": [None if value is None else _finite(value) for value in logprobs],
        "top_logprobs": tops if is_with_top else None,
        "text_offset": text_offsets(names.tokenizer, [one.token for one in tokens], num_sent, text),
    }


# --- the two kinds of answers -------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """What an answer, or each of its chunks, has around its choices."""

    kind: str  # the object's name
    prefix: str  # of its id
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def filled(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
            "usage": usage,
        }


def usage(num_prompt_tokens: int, num_sampled_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_sampled_tokens,
        "total_tokens": num_prompt_tokens + num_sampled_tokens,
    }


def finish_reason(said: Said, sampled: Sampled) -> str:
    if not sampled.is_stopped:
        return "length"
    return "tool_calls" if said.tool_calls else "stop"


class Shape(Protocol):
    """How choices look: of a chat, or of a text."""

    @property
    def head(self) -> Head: ...

    def whole(
        self, index: int, said: Said, sampled: Sampled, form: Format, prompt: Sequence[Scored]
    ) -> dict[str, Any]:
        """A choice that comes at once."""
        ...

    def scored(self, sampled: Sampled, form: Format) -> list[Scored]:
        """The tokens whose log-probabilities are shown."""
        ...

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream begins a choice with."""
        ...

    def part(
        self, index: int, delta: Delta, tokens: Sequence[Scored], num_sent: int, form: Format
    ) -> dict[str, Any]:
        """What a stream goes on with: text, and the scores of the tokens after those sent."""
        ...

    def last(self, index: int, said: Said, reason: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ChatShape:
    head: Head
    stops: tuple[str, ...]
    has_logprobs: bool

    def whole(
        self, index: int, said: Said, sampled: Sampled, form: Format, prompt: Sequence[Scored]
    ) -> dict[str, Any]:
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": said.content,
                "refusal": None,
                **({"reasoning_content": said.reasoning} if said.reasoning else {}),
                **({"tool_calls": list(said.tool_calls)} if said.tool_calls else {}),
            },
            "logprobs": self._logprobs(self.scored(sampled, form), 0, form),
            "finish_reason": finish_reason(said, sampled),
        }

    def scored(self, sampled: Sampled, form: Format) -> list[Scored]:
        return shown_tokens(sampled, form, self.stops)

    def first(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(
        self, index: int, delta: Delta, tokens: Sequence[Scored], num_sent: int, form: Format
    ) -> dict[str, Any]:
        parts = {"reasoning_content": delta.reasoning, "content": delta.content}
        return {
            "index": index,
            "delta": {name: text for name, text in parts.items() if text},
            "logprobs": self._logprobs(tokens, num_sent, form),
            "finish_reason": None,
        }

    def _logprobs(
        self, tokens: Sequence[Scored], num_sent: int, form: Format
    ) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        return chat_logprobs(form.names, tokens, num_sent)

    def last(self, index: int, said: Said, reason: str) -> dict[str, Any]:
        calls = [{"index": place, **call} for place, call in enumerate(said.tool_calls)]
        delta = {"tool_calls": calls} if calls else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


@dataclass(frozen=True)
class TextShape:
    head: Head
    stops: tuple[str, ...]
    num_top: int | None  # None: no log-probabilities
    echoed: tuple[str, ...] = ()  # the prompt of each choice, where it is asked for
    is_only_echo: bool = False  # of the sample itself nothing is shown

    def whole(
        self,
        index: int,
        said: Said,
        sampled: Sampled,
        form: Format,
        prompt: Sequence[Scored],
    ) -> dict[str, Any]:
        scored = [] if self.is_only_echo else self.scored(sampled, form)
        text = self._prompt(index) + ("" if self.is_only_echo else said.content)
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs([*prompt, *scored], 0, form, text),
            "finish_reason": "length" if self.is_only_echo else finish_reason(said, sampled),
        }

    def scored(self, sampled: Sampled, form: Format) -> list[Scored]:
        """With the token that ended the answer: programs that score prompts ask for one token, and
        take the last of the list for it."""
        shown, tokens = shown_tokens(sampled, form, self.stops), sampled.tokens
        is_whole = len(shown) == len(tokens) - 1 and tokens[-1].token in form.stop_ids
        return tokens if is_whole else shown

    def _prompt(self, index: int) -> str:
        return self.echoed[index] if self.echoed else ""

    def _logprobs(
        self, tokens: Sequence[Scored], num_sent: int, form: Format, text: str
    ) -> dict[str, Any] | None:
        if self.num_top is None:
            return None
        return text_logprobs(form.names, tokens, num_sent, text, self.num_top > 0)

    def first(self, index: int) -> dict[str, Any] | None:
        if not self.echoed:
            return None
        return {
            "index": index,
            "text": self.echoed[index],
            "logprobs": None,
            "finish_reason": None,
        }

    def part(
        self, index: int, delta: Delta, tokens: Sequence[Scored], num_sent: int, form: Format
    ) -> dict[str, Any]:
        said = form.tokenizer.decode([scored.token for scored in tokens])
        return {
            "index": index,
            "text": delta.content,
            "logprobs": self._logprobs(tokens, num_sent, form, said),
            "finish_reason": None,
        }

    def last(self, index: int, said: Said, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


def shown_tokens(sampled: Sampled, form: Format, stops: Sequence[str]) -> list[Scored]:
    """The tokens of what is shown, its reasoning included: not what ended it."""
    tokens = sampled.tokens
    if tokens and tokens[-1].token in form.stop_ids:
        tokens = tokens[:-1]
    ids = [scored.token for scored in tokens]
    return tokens[: num_kept(form.tokenizer, ids, (*stops, *form.stop_strings))]

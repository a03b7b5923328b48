"""What an answer says, and how much of it is certain while it is still being sampled.

A stream never sends what a later token could change: half a character, the beginning of a stop
string or of a marker that the chat format reads, or space that the format may take off at the end.
Sent together, its pieces are the text that comes without a stream.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from local_tinker.openai_tokens import TokenNames

UNFINISHED = "\ufffd"  # what the bytes of a character that is not whole decode to
OPEN_THINK, CLOSE_THINK = "<think>", "</think>"
# transformers may take the space out of " n't" and its like once the rest of it is there.
CLEANED_CHARS = 4


class Said(NamedTuple):
    """An answer's parts, as its chat format reads them."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    is_reasoning: bool = False  # the trace is still open


class Format(Protocol):
    """How a model is asked and its answers are read."""

    @property
    def tokenizer(self) -> Any: ...

    @functools.cached_property
    def names(self) -> TokenNames: ...

    @property
    def name(self) -> str: ...

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def stop_strings(self) -> tuple[str, ...]: ...

    @property
    def markers(self) -> tuple[str, ...]:
        """Beginnings of what the format may take out of the content."""
        ...

    def read(self, tokens: list[int]) -> Said:
        """What an answer says, as if it ended after these tokens."""
        ...


def read_answer(form: Format, tokens: list[int], stops: Sequence[str]) -> Said:
    """What an answer says up to the client's stop string, if it holds one."""
    said = form.read(tokens)
    if not stops:
        return said
    for part in ("content", "reasoning"):
        cut = _cut(getattr(said, part), stops)
        if cut is not None:
            return said._replace(**{part: cut})
    kept = num_kept(form.tokenizer, tokens, stops)
    return said if kept == len(tokens) else form.read(tokens[:kept])


def _cut(text: str, stops: Sequence[str]) -> str | None:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def num_kept(tokenizer: Any, tokens: list[int], stops: Sequence[str]) -> int:
    """How many tokens begin before the client's stop string, which can only be at the end."""
    cut = _cut(tokenizer.decode(tokens), stops)
    if cut is None:
        return len(tokens)
    kept = len(tokens)
    while kept and tokenizer.decode(tokens[: kept - 1]).startswith(cut):
        kept -= 1
    return kept


def certain(text: str, beginnings: Sequence[str], markers: Sequence[str] = ()) -> str:
    """The part of a text that stays as it is whatever follows; pure.

    `beginnings` count at the end of it alone, since they end the answer; `markers` anywhere.
    """
    places = [place for marker in markers if (place := text.find(marker)) >= 0]
    text = (text[: min(places)] if places else text).rstrip(UNFINISHED)
    held = max((_overlap(text, word) for word in (*beginnings, *markers)), default=0)
    return text[: len(text) - held].rstrip()


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of a text are the beginning of a word, not all of it."""
    return next(
        (n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0
    )


def rest(whole: str, sent: str) -> str | None:
    """What a stream has still to send; None where what it sent is not how the answer begins."""
    if whole.startswith(sent):
        return whole[len(sent) :]
    # With a tool call at its end, some formats take the space before an answer off as well.
    stripped = sent.lstrip()
    return whole[len(stripped) :] if whole.startswith(stripped) else None


class Delta(NamedTuple):
    """What a stream sends next."""

    content: str = ""
    reasoning: str = ""


@dataclass
class StreamedText:
    """One answer of a stream, and what of it has been sent."""

    form: Format
    stops: tuple[str, ...]
    _content: str = field(default="", init=False)
    _reasoning: str = field(default="", init=False)

    def advance(self, tokens: list[int]) -> Delta:
        """What has become certain with these tokens, all of the answer so far."""
        said = read_answer(self.form, tokens, self.stops)
        ends = (*self.stops, *self.form.stop_strings)
        content = certain(said.content, ends, self.form.markers)
        reasoning = said.reasoning.partition(OPEN_THINK)[0]  # a tag that is not yet read as one
        if said.is_reasoning or not content:
            reasoning = certain(reasoning, (*ends, CLOSE_THINK, OPEN_THINK))
        if getattr(self.form.tokenizer, "clean_up_tokenization_spaces", False):
            content = content[:-CLEANED_CHARS]
            reasoning = reasoning[:-CLEANED_CHARS] if said.is_reasoning else reasoning
        return self._send(content, reasoning)

    def finish(self, said: Said) -> Delta | None:
        """The rest of an answer that is complete; None where it went another way than was sent."""
        content = rest(said.content, self._content)
        reasoning = rest(said.reasoning, self._reasoning)
        return None if content is None or reasoning is None else Delta(content, reasoning)

    def _send(self, content: str, reasoning: str) -> Delta:
        """What is new; an answer that is read otherwise than before waits for its end."""
        delta = Delta(_added(content, self._content), _added(reasoning, self._reasoning))
        self._content += delta.content
        self._reasoning += delta.reasoning
        return delta


def _added(text: str, sent: str) -> str:
    return text[len(sent) :] if text.startswith(sent) else ""

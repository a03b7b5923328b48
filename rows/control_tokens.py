"""Text of rows and questions stays text: no word of it becomes a token that steers the chat format.

Many renderers tokenize a message together with its markers, so that `<|eot_id|>` in a user's text
would end the turn. A renderer that is guarded here sees such words with a mark in them, which no
token matches, and its tokenizer takes the mark out again and encodes the words letter by letter.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer

MARK = "\ue0f1"  # of the private use area: no text means anything by it
ROLE_COLON_TURNS = ("\n\nUser:", "\n\nAssistant:", "\n\nSystem:")  # of a format without tokens
SHORT = 32  # characters: what formats write between the texts of messages, the same each time
NOT_STEERING = ("<think>", "</think>")  # parts of an answer, where a template writes them


class Guarded:
    """A tokenizer that encodes marked words as plain text; in all else the one that it wraps.

    Several threads may encode and decode at once, which a fast tokenizer alone fails on.
    """

    def __init__(self, tokenizer: Any, controls: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self.controls = tuple(sorted(controls, key=lambda one: (-len(one), one)))
        vocabulary = tokenizer.get_vocab()
        self._ids = {one: vocabulary[one] for one in self.controls}
        self._numbers = frozenset(self._ids.values())
        self._pattern = re.compile("|".join(map(re.escape, self.controls)) or r"(?!)")
        self._starts = tuple({one[:2] for one in self.controls})
        self._lock = threading.RLock()
        self._of_short = functools.lru_cache(maxsize=4096)(self._encode_short)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._tokenizer(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._tokenizer.decode(*args, **kwargs)

    def controls_in(self, text: str) -> list[str]:
        """The control tokens that stand in a text, in its order."""
        if not any(start in text for start in self._starts):  # the quick way out
            return []
        return self._pattern.findall(text)

    def marked(self, text: str) -> str:
        """The text with a mark in each control token. Raises `ValueError` where it has marks."""
        if not self.controls_in(text):
            return text
        if MARK in text:
            raise ValueError(f"its text holds the character {MARK!r} beside a control token")
        return self._pattern.sub(lambda found: found[0][0] + MARK + found[0][1:], text)

    def encode(self, text: Any, **kwargs: Any) -> list[int]:
        with self._lock:
            return self._encode(text, **kwargs)

    def _encode(self, text: Any, **kwargs: Any) -> list[int]:
        if isinstance(text, str) and len(text) <= SHORT and MARK not in text:
            return list(self._of_short(text, tuple(sorted(kwargs.items()))))
        if not isinstance(text, str) or MARK not in text:
            return self._tokenizer.encode(text, **kwargs)
        if kwargs.get("split_special_tokens"):
            return self._plain(text)
        ids: list[int] = []
        position = 0
        for found in self._pattern.finditer(text):  # what the renderer itself has written
            ids += [*self._plain(text[position : found.start()]), self._ids[found[0]]]
            position = found.end()
        return ids + self._plain(text[position:])

    def _encode_short(self, text: str, options: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, **dict(options)))

    def _plain(self, marked: str) -> list[int]:
        """A text without a control token. Raises `ValueError` where the tokenizer makes one."""
        text = marked.replace(MARK, "")
        if not text:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": True}
        ids = list(self._tokenizer.encode(text, **options))
        if self._holds_control(ids):  # one that is no special token, and so is not split
            pieces = marked.split(MARK)
            ids = [one for piece in pieces for one in self._tokenizer.encode(piece, **options)]
        if (
            self._holds_control(ids)
            or self._tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text
        ):
            found = self.controls_in(text)
            raise ValueError(
                f"its text holds {found[0] if found else text[:20]!r}, a control token that this "
                "tokenizer cannot keep apart from text"
            )
        return ids

    def _holds_control(self, ids: Sequence[int]) -> bool:
        return not self._numbers.isdisjoint(ids)


def guard(renderer: Renderer) -> Guarded:
    """Let a renderer keep the text of messages apart from its markers; returns its tokenizer."""
    if isinstance(renderer.tokenizer, Guarded):
        return renderer.tokenizer
    from tinker_cookbook.renderers.role_colon import RoleColonRenderer

    tokenizer = Guarded(renderer.tokenizer, _controls_of(renderer))
    render = renderer.render_message
    turns = ROLE_COLON_TURNS if isinstance(renderer, RoleColonRenderer) else ()

    def render_marked(message: Any, ctx: Any) -> Any:
        content = message["content"]
        if found := [turn for turn in turns if isinstance(content, str) and turn in content]:
            raise ValueError(
                f"its text holds {found[0]!r}, which begins a turn in this chat format and cannot "
                "be told from one"
            )
        return render(_marked(message, tokenizer), ctx)

    renderer.tokenizer = tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    renderer.render_message = render_marked  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _controls_of(renderer: Renderer) -> set[str]:
    """The special tokens, and whatever other added ones the format itself writes."""
    probe: list[Any] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    added = renderer.tokenizer.added_tokens_decoder
    written = set(renderer.build_supervised_example(probe)[0].to_ints())
    return {
        token.content
        for number, token in added.items()
        if token.content and (token.special or number in written)
        and token.content not in NOT_STEERING
    }  # fmt: skip


def _marked(message: Any, tokenizer: Guarded) -> Any:
    """The message with all of its texts marked; itself where there is nothing to mark."""
    content = message["content"]
    if isinstance(content, str):
        marked: Any = tokenizer.marked(content)
    else:
        marked = [
            {k: tokenizer.marked(v) if k in ("text", "thinking") else v for k, v in part.items()}
            for part in content
        ]
    return message if marked == content else {**message, "content": marked}

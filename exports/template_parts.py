"""What a renderer writes around the turns of a conversation, found by asking it, as two templates.

A renderer is a program; a template is a text with gaps. The gaps are found with markers in their
place: what stands before, between and after them is the format. Whether the template then writes
the same tokens is proven elsewhere (exports/templates.py); nothing here is trusted.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errors import ExportError

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer

ROLES = SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# No word of any format, and nothing that a tokenizer joins with what is around it.
_MARKS = tuple(f"Qx{letter}zxQ" for letter in "abcde")
_SPACE = " \n"
_ESCAPES = (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"))
REFUSED_TURN = "This chat format takes a system turn first, then questions and answers."
REFUSED_TOOLS = "This chat template has no place for tools."


@dataclass(frozen=True)
class Turn:
    """What encloses the content of one role's turn, and what becomes of the content."""

    before: str
    after: str
    is_trimmed: bool


@dataclass(frozen=True)
class Parts:
    """A chat format. A conversation is opening, turns, and what the answer begins after."""

    bos: str  # the token that begins every text; empty where there is none
    opening: str  # where there is no system turn
    system: Turn  # with the opening of such a conversation
    user: Turn
    assistant: Turn  # an earlier answer
    answer: str
    drops_reasoning: bool  # of earlier answers
    date: str | None = None  # today's, as `opening` and `system` have it; the templates ask for it


def parts_of(renderer: Renderer, name: str, *, reads_think_tags: bool) -> Parts:
    """The parts that a renderer writes. Raises `ExportError`, with the reason alone, where it does
    not write in parts."""
    one, two, three, four, five = _MARKS
    day = datetime.date.today().isoformat()
    ask = _Asked(renderer, name)
    opened, after_user = ask([(USER, one)])
    first, to_user, _ = ask([(SYSTEM, one), (USER, two)])
    _, to_answer, from_answer, to_user_2, again, last = ask(
        [(USER, one), (ASSISTANT, two), (USER, three), (ASSISTANT, four), (USER, five)]
    )
    _, twice, _ = ask([(USER, one), (USER, two)])
    if (to_answer, from_answer) != (to_user_2, again) or last != after_user:
        raise ExportError(_NOT_IN_PARTS.format(name=name, what="later turns unlike the first ones"))
    specials = [str(token) for token in renderer.tokenizer.get_added_vocab()]
    before_user = _common_end([opened, to_user, from_answer, twice], specials)
    user_end = _without_end(twice, before_user)
    if not (to_answer.startswith(user_end) and after_user.startswith(user_end)):
        raise ExportError(_NOT_IN_PARTS.format(name=name, what="a question that ends in two ways"))
    bos = str(renderer.tokenizer.bos_token or "")
    has_bos = bool(bos) and opened.startswith(bos) and first.startswith(bos)
    bos = bos if has_bos else ""
    trims = {role: _trims(ask, role) for role in (SYSTEM, USER, ASSISTANT)}
    return Parts(
        bos=bos,
        opening=_without_end(opened, before_user)[len(bos) :],
        system=Turn(first[len(bos) :], _without_end(to_user, before_user), trims[SYSTEM]),
        user=Turn(before_user, user_end, trims[USER]),
        assistant=Turn(
            to_answer[len(user_end) :], _without_end(from_answer, before_user), trims[ASSISTANT]
        ),
        answer=after_user[len(user_end) :],
        drops_reasoning=reads_think_tags and _drops_reasoning(ask),
        date=day if day in first or day in opened else None,
    )


_NOT_IN_PARTS = "none can be made from {name}, which writes {what}, and not a text around each turn"


def write_prompt(renderer: Renderer, messages: list[Any]) -> list[int]:
    """The tokens that a renderer writes to sample from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a system turn beside a format's own
        return list(renderer.build_generation_prompt(messages).to_ints())


class _Asked:
    """A renderer, asked for what it writes around the contents of a conversation."""

    def __init__(self, renderer: Renderer, name: str) -> None:
        self._renderer, self._name = renderer, name

    def text(self, turns: Sequence[tuple[str, Any]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        tokens = write_prompt(self._renderer, messages)
        tokenizer: Any = self._renderer.tokenizer
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def __call__(self, turns: Sequence[tuple[str, str]]) -> list[str]:
        """The texts before, between and after the contents, one more than there are turns."""
        rest, around = self.text(turns), list[str]()
        for _, mark in turns:
            before, found, rest = rest.partition(mark)
            if not found:
                what = "a conversation without one of its turns, or not in their order"
                raise ExportError(_NOT_IN_PARTS.format(name=self._name, what=what))
            around.append(before)
        return [*around, rest]


def _trims(ask: _Asked, role: str) -> bool:
    """Whether white space around a turn's content is taken off."""
    one, two, three = _MARKS[:3]
    plain = {
        SYSTEM: [(SYSTEM, one), (USER, two)],
        USER: [(USER, one)],
        ASSISTANT: [(USER, two), (ASSISTANT, one), (USER, three)],
    }[role]
    spaced = [(r, f"{_SPACE}{c}{_SPACE}" if r == role and c == one else c) for r, c in plain]
    return ask.text(spaced) == ask.text(plain)


def _drops_reasoning(ask: _Asked) -> bool:
    one, two, three, thought = _MARKS[:4]
    parts = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": two}]
    return thought not in ask.text([(USER, one), (ASSISTANT, parts), (USER, three)])


def _common_end(texts: Sequence[str], specials: Sequence[str]) -> str:
    """The longest common end that cuts none of the special tokens."""
    shortest = min(texts, key=len)
    end = next(shortest[i:] for i in range(len(shortest) + 1) if _all_end(texts, shortest[i:]))
    while any(_cuts_token(text, len(text) - len(end), specials) for text in texts):
        end = end[1:]
    return end


def _all_end(texts: Iterable[str], end: str) -> bool:
    return all(text.endswith(end) for text in texts)


def _cuts_token(text: str, place: int, specials: Sequence[str]) -> bool:
    return any(
        text.startswith(special, start)
        for special in specials
        for start in range(max(0, place - len(special) + 1), place)
    )


def _without_end(text: str, end: str) -> str:
    return text[: len(text) - len(end)]


# --- the two languages ----------------------------------------------------------------------------


def jinja_of(parts: Parts) -> str:
    """In the constructs that transformers' sandbox and llama.cpp's own engine have in common."""
    first = _jinja_turn(parts.system, "messages[0].content", parts)
    user = _jinja_turn(parts.user, "message.content", parts)
    answered = "message.content"
    if parts.drops_reasoning:
        answered = '(message.content.split("</think>")[-1]).lstrip("\\n")'
    assistant = _jinja_turn(parts.assistant, answered, parts)
    lines = [
        f'{{%- if tools %}}{{{{- raise_exception("{REFUSED_TOOLS}") }}}}{{%- endif %}}',
        '{%- if messages[0].role == "system" %}',
        f"{{{{- {_jinja_text(parts.bos, parts) + ' + ' if parts.bos else ''}{first} }}}}",
        "{%- else %}",
        f"{{{{- {_jinja_text(parts.bos + parts.opening, parts)} }}}}",
        "{%- endif %}",
        "{%- for message in messages %}",
        "{%- if message.tool_calls %}",
        f'{{{{- raise_exception("{REFUSED_TOOLS}") }}}}',
        '{%- elif message.role == "user" %}',
        f"{{{{- {user} }}}}",
        '{%- elif message.role == "assistant" %}',
        f"{{{{- {assistant} }}}}",
        '{%- elif message.role != "system" or not loop.first %}',
        f'{{{{- raise_exception("{REFUSED_TURN}") }}}}',
        "{%- endif %}",
        "{%- endfor %}",
        "{%- if add_generation_prompt %}",
        f"{{{{- {_jinja_text(parts.answer, parts)} }}}}",
        "{%- endif %}",
    ]
    return "\n".join(lines)


def _jinja_turn(turn: Turn, content: str, parts: Parts) -> str:
    held = f"({content} | trim)" if turn.is_trimmed else content
    return " + ".join([_jinja_text(turn.before, parts), held, _jinja_text(turn.after, parts)])


def _jinja_text(text: str, parts: Parts) -> str:
    if parts.date is None or parts.date not in text:
        return f'"{escaped(text)}"'
    pieces = (f'"{escaped(piece)}"' for piece in text.split(parts.date))
    return "(" + ' + strftime_now("%Y-%m-%d") + '.join(pieces) + ")"


def go_of(parts: Parts, *, with_bos: bool) -> str | None:
    """For Ollama; `with_bos` where it does not put the token that begins a text there by itself.

    None where the prompt has the day's date, which its language is not known to have.
    """
    if parts.date is not None:
        return None
    system, user, answer = (
        f"{_go_text(turn.before)}{{{{ $m.Content }}}}{_go_text(turn.after)}"
        for turn in (parts.system, parts.user, parts.assistant)
    )
    opening = _go_text(parts.opening)
    return (
        f"{_go_text(parts.bos if with_bos else '')}"
        "{{- range $i, $m := .Messages }}"
        f'{{{{- if eq $m.Role "system" }}}}{system}'
        f"{{{{- else }}}}"
        f"{{{{- if eq $i 0 }}}}{opening}{{{{- end }}}}"
        f'{{{{- if eq $m.Role "user" }}}}{user}'
        f'{{{{- else if eq $m.Role "assistant" }}}}{answer}'
        "{{- end }}{{- end }}{{- end }}"
        f"{_go_text(parts.answer)}"
    )


def go_limits(parts: Parts) -> list[str]:
    """What Ollama's language has no word for: it cannot change a content."""
    limits = ["two turns of one role in a row are joined into one"]
    if trimmed := [role for role in ROLES if getattr(parts, role).is_trimmed]:
        whose = ", ".join(trimmed)
        limits.append(f"spaces around a message are kept, where training takes them off: {whose}")
    if parts.drops_reasoning:
        limits.append("an earlier answer that is sent back with its reasoning keeps it")
    return limits


def _go_text(text: str) -> str:
    """As an expression, so that neither trimming nor a delimiter in it matters."""
    if not text:
        return ""
    said = (c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped(text))
    return f'{{{{- "{"".join(said)}" -}}}}'


def escaped(text: str) -> str:
    """Between double quotes, in Jinja and in Go alike."""
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), *_ESCAPES):
        text = text.replace(plain, written)
    return text

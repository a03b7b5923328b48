"""The served chat template: the model's own where it agrees, else one made from the renderer.

Servers write conversations by a template, training by a renderer. A template is taken here only
after it has written sample conversations exactly as the renderer does, token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ExportError
from exports.served_template import ServedTemplate
from exports.template_parts import (
    ASSISTANT,
    SYSTEM,
    USER,
    Parts,
    go_limits,
    go_of,
    jinja_of,
    parts_of,
    write_prompt,
)
from rows.chat_formats import load_renderer, load_tokenizer
from rows.chat_templates import Pair, read_prompts, text_of
from rows.turns import OPEN, reads_think_tags, split_thought

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer

OWN, MADE = "the model's own", "made from the renderer {name}"


class Conversation(NamedTuple):
    """What both sides write: roles and contents, the last one a question.

    `plain` is what a card calls such conversations, where they may be written otherwise.
    """

    name: str
    turns: tuple[tuple[str, str], ...]
    plain: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]


_TOLD = (SYSTEM, "Answer in one word.\nBe kind.")
_FIRST = ((USER, "Which colour has a clear sky?"), (ASSISTANT, "Blue."))
_SECOND = ((USER, "And a ring of 24 carat?"), (ASSISTANT, "Gold, it's said."))
_THIRD = (USER, "3 + 4 = 7, isn't it?")
_FAR = ((USER, "Qu\u00e9 hora es? \u4f60\u597d \U0001f600"), (ASSISTANT, "\u00d1o."), _THIRD)
# A template is refused where one of these differs ...
MAIN = (
    Conversation("one question", _FIRST[:1]),
    Conversation("a system turn and a question", (_TOLD, _THIRD)),
    Conversation("two turns", (*_FIRST, _THIRD)),
    Conversation("a system turn and two turns", (_TOLD, *_FIRST, _THIRD)),
    Conversation("three turns", (*_FIRST, *_SECOND, _THIRD)),
    Conversation("words outside of ASCII", _FAR),
    Conversation("lines and lists", ((USER, "One:\n\n- a\n- b\n\n```\n x = 1\n```"),)),
)
# ... and it is said where one of these does.
FURTHER = (
    Conversation(
        "white space around a content",
        ((SYSTEM, " Be kind. \n"), (USER, " Who? \n"), (ASSISTANT, " I. "), (USER, "  Why? ")),
        "messages that begin or end with spaces or line breaks",
    ),
    Conversation(
        "line breaks before a content",
        ((USER, "\n\nWho?"),),
        "messages that begin with empty lines",
    ),
    Conversation(
        "an empty answer",
        (_FIRST[0], (ASSISTANT, ""), _THIRD),
        "conversations with an empty answer in them",
    ),
    Conversation("an empty question", ((USER, ""),), "questions without any text"),
    Conversation(
        "two questions in a row",
        (_FIRST[0], _THIRD),
        "two messages of the user with no answer between them",
    ),
    Conversation(
        "an earlier answer with its reasoning",
        (_FIRST[0], (ASSISTANT, "<think>\nThe sky is.\n</think>\n\nBlue."), _THIRD),
        "conversations that send an earlier answer back with its reasoning",
    ),
)
CONTROL_TOKENS = (
    "a control token that is spelt out in a content is read as one by a server; in training it was "
    "text"
)


class Unequal(NamedTuple):
    """Why a conversation is not written as in training: exactly, and in a reader's words."""

    exactly: str
    plainly: str


_NOT_TAKEN = Unequal("the renderer does not take it", "no training in this chat format has any")
_CUT = Unequal(
    "the same text, cut into other tokens than in training",
    "the same text, but cut into other tokens",
)


@dataclass(frozen=True)
class _Tried:
    """A template beside the renderer: why each conversation that is not equal is not."""

    jinja: str
    equal: tuple[str, ...]
    unequal: dict[str, Unequal]

    @property
    def is_proven(self) -> bool:
        return not any(one.name in self.unequal for one in MAIN)

    @property
    def num_further(self) -> int:
        return sum(one.name in self.unequal for one in FURTHER)


def served_template(base_dir: Path, renderer_name: str) -> ServedTemplate:
    """The template that writes prompts as the renderer does.

    Raises `ExportError` where neither the model's own does, nor one made from the renderer.
    """
    renderer = load_renderer(renderer_name, str(base_dir))
    tokenizer = load_tokenizer(str(base_dir))
    expected = expected_prompts(renderer)
    own = _own_template(tokenizer)
    tried_own = None if own is None else _try(own, expected, tokenizer)
    parts, problem = _parts(renderer, renderer_name)
    made = None if parts is None else _try(jinja_of(parts), expected, tokenizer)
    if made is not None and not made.is_proven:
        problem, made, parts = _first_of_main(made), None, None
    plain = None
    if made is not None:
        plain = _served(made, MADE.format(name=renderer_name), renderer, parts)
    if tried_own is not None and tried_own.is_proven:
        is_better = made is None or tried_own.num_further <= made.num_further
        if is_better:
            return replace(_served(tried_own, OWN, renderer, parts), plain=plain)
    if plain is None:
        raise ExportError(_refusal(base_dir, renderer_name, problem, tried_own))
    return plain


def _parts(renderer: Renderer, name: str) -> tuple[Parts | None, str]:
    try:
        return parts_of(renderer, name, reads_think_tags=reads_think_tags(renderer)), ""
    except ExportError as error:
        return None, str(error)
    except (ValueError, AssertionError, KeyError, TypeError) as error:
        # What a renderer raises for a conversation that it does not take; there is no list of it.
        return None, f"the renderer refuses a sample conversation: {error}"


def _own_template(tokenizer: Any) -> str | None:
    try:
        found = tokenizer.get_chat_template()
    except (AttributeError, ValueError):  # none, or several without one that is the default
        return None
    return found if isinstance(found, str) else None


def expected_prompts(renderer: Renderer) -> dict[str, list[int]]:
    """What the renderer writes for each conversation that it takes."""
    reads = reads_think_tags(renderer)
    expected: dict[str, list[int]] = {}
    for one in (*MAIN, *FURTHER):
        messages = [_as_trained(message, reads) for message in one.messages]
        try:
            expected[one.name] = write_prompt(renderer, messages)
        except ValueError:  # a conversation that it refuses is proven of no template
            continue
    return expected


def _as_trained(message: dict[str, str], reads: bool) -> Any:
    """An answer's reasoning apart from it, as rows are trained (rows/turns.py)."""
    if not reads or message["role"] != ASSISTANT or OPEN not in message["content"]:
        return message
    reasoning, answer = split_thought(message["content"])
    thinking = {"type": "thinking", "thinking": reasoning or ""}
    return {"role": ASSISTANT, "content": [thinking, {"type": "text", "text": answer}]}


def _try(jinja: str, expected: Mapping[str, Sequence[int]], tokenizer: Any) -> _Tried:
    tokenizer.chat_template = jinja
    conversations = {one.name: one.messages for one in (*MAIN, *FURTHER)}
    written, refused = read_prompts(tokenizer, conversations)
    equal: list[str] = []
    unequal: dict[str, Unequal] = {}
    for name in conversations:
        if name not in expected:
            unequal[name] = _NOT_TAKEN
        elif name not in written:
            why = f"the template does not write it: {refused[name]}"
            unequal[name] = Unequal(why, "the template refuses them")
        elif difference := Pair(written[name], list(expected[name])).difference(tokenizer):
            is_cut = text_of(tokenizer, written[name]) == text_of(tokenizer, expected[name])
            otherwise = Unequal(str(difference), "a few characters differ")
            unequal[name] = _CUT if is_cut else otherwise
        else:
            equal.append(name)
    return _Tried(jinja, tuple(equal), unequal)


def _served(tried: _Tried, origin: str, renderer: Renderer, parts: Parts | None) -> ServedTemplate:
    stops = list(renderer.get_stop_sequences())
    tokenizer: Any = renderer.tokenizer
    ids = tuple(int(one) for one in stops if not isinstance(one, str))
    texts = tuple(
        one if isinstance(one, str) else str(tokenizer.convert_ids_to_tokens(one)) for one in stops
    )
    limits = [f"{name}: {why.exactly}" for name, why in tried.unequal.items()]
    if origin != OWN:
        limits.append("calls of tools: the template refuses them")
    bos = str(tokenizer.bos_token or "")
    prompt = write_prompt(renderer, [{"role": USER, "content": "?"}])
    opens_with_bos = bool(bos) and prompt[:1] == [tokenizer.bos_token_id]
    reader_adds_bos = opens_with_bos and _adds_bos(tokenizer)
    go = None if parts is None else go_of(parts, with_bos=not reader_adds_bos)
    no_go = ""
    if go is None:
        no_go = (
            "the prompt holds the day's date"
            if parts is not None
            else "what the model's own template writes cannot be said in parts"
        )
    return ServedTemplate(
        jinja=tried.jinja,
        go=go,
        stop_texts=texts,
        stop_ids=ids,
        origin=origin,
        proven_on=tried.equal,
        limits=(*limits, CONTROL_TOKENS),
        plain_limits=_plain_limits(tried, origin),
        opens_with_bos=opens_with_bos,
        reader_adds_bos=reader_adds_bos,
        no_go=no_go,
        go_limits=() if parts is None or go is None else tuple(go_limits(parts)),
    )


def _plain_limits(tried: _Tried, origin: str) -> tuple[str, ...]:
    """The limits in the words of somebody who writes messages, and knows of no token."""
    plain = {one.name: one.plain or one.name for one in (*MAIN, *FURTHER)}
    said = [f"{plain[name]}: {why.plainly}" for name, why in tried.unequal.items()]
    if origin != OWN:
        said.append("calls of tools: the template refuses them")
    said.append(
        "messages that hold a marker of the chat format, such as the one that ends an answer: a "
        "server may take it for the marker, in training it was text"
    )
    return tuple(said)


def _adds_bos(tokenizer: Any) -> bool:
    """Whether plain text gets the token that begins one, and nothing else."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer("a")["input_ids"] == [tokenizer.bos_token_id, *plain]


def _first_of_main(tried: _Tried) -> str:
    name = next(one.name for one in MAIN if one.name in tried.unequal)
    return f"one made from it differs in {name}: {tried.unequal[name].exactly}"


def _refusal(base_dir: Path, name: str, problem: str, own: _Tried | None) -> str:
    has_own = "it has no chat template of its own"
    if own is not None:
        has_own = "its own chat template" + _first_of_main(own).removeprefix("one made from it")
    return (
        f"The renderer {name} of this checkpoint cannot be served with {base_dir} by any chat "
        f"template that was tried: {has_own}; {problem}. A server would write prompts that the "
        "model was not trained on. Train with another renderer_name, one that agrees with the "
        "model's chat template; this checkpoint can be evaluated here, with trainer_with_eval.py "
        "--evaluate."
    )

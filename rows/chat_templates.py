"""A model's own chat template, and how a renderer differs from it, token by token.

The template is what vLLM, Ollama and transformers write a conversation with, so it is run as
transformers runs it: sandboxed, by the tokenizer's `apply_chat_template`. It is somebody's program;
one that raises, or has not ended after a few seconds, is stopped and cannot be compared. Nothing
here chooses a renderer.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer

LIMIT_S = 5.0  # for all that is asked of one template
CALLED, CALL_ID = "look_up", "functions.look_up:0"
NUM_SHOWN = 40  # characters of a difference, on each side

QUESTION = "Which colour has a clear sky?"
_QUESTIONS = {"role": "user", "content": QUESTION}, {"role": "user", "content": "And a ring?"}
_ANSWERS = {"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Gold."}
_SYSTEM = {"role": "system", "content": "Answer in one word."}
TWO_TURNS = (_QUESTIONS[0], _ANSWERS[0], _QUESTIONS[1], _ANSWERS[1])
TWO_ANSWERS = (_QUESTIONS[0], *_ANSWERS)


class Probe(NamedTuple):
    """A conversation that both sides write. One that ends with the user is a prompt."""

    name: str
    messages: tuple[Mapping[str, str], ...]
    call: Mapping[str, str] | None = None  # arguments of a tool that the last message calls
    reasoning: str = ""  # before each answer

    @property
    def is_prompt(self) -> bool:
        return self.messages[-1]["role"] == "user"

    @property
    def end(self) -> str:
        """The text that it ends with, apart from what encloses it."""
        return "".join(self.call.values()) if self.call else self.messages[-1]["content"]


# A renderer agrees when these are equal, token by token ...
PROMPT = Probe("a prompt", TWO_TURNS[:1])
SECOND_PROMPT = Probe("a second prompt", TWO_TURNS[:3])
CONVERSATION = Probe("a conversation of two turns", TWO_TURNS)
DECISIVE = (PROMPT, SECOND_PROMPT, CONVERSATION)
# ... and it is said whether these are.
SYSTEM = Probe("a prompt with a system turn", (_SYSTEM, *TWO_TURNS[:1]))
SPACES = Probe("white space around a question", ({"role": "user", "content": f"\n {QUESTION} \n"},))
CALL = Probe("a tool call", TWO_TURNS[:2], {"place": "Rome"})
REASONING = Probe("reasoning", TWO_TURNS, reasoning="I thought of it.")
FURTHER = (SYSTEM, SPACES, CALL, REASONING)


class _TimeIsUp(BaseException):
    """Raised inside a template that has run for too long; no `except Exception` keeps it."""


@dataclass(frozen=True)
class Template:
    """What a chat template writes, in tokens by the probe's name, or why nothing is known of it."""

    tokens: dict[str, list[int]]
    problem: str | None = None
    refused: dict[str, str] = field(default_factory=dict)  # probe -> what the template says

    @property
    def is_known(self) -> bool:
        return self.problem is None


NO_TEMPLATE = "the model has no chat template"


def read_template(tokenizer: Any) -> Template:
    """Let a tokenizer's chat template write the probes, within `LIMIT_S` in all."""
    if not getattr(tokenizer, "chat_template", None):
        return Template({}, NO_TEMPLATE)
    tokens: dict[str, list[int]] = {}
    refused: dict[str, str] = {}
    ends_at = time.monotonic() + LIMIT_S
    for probe in (*DECISIVE, *FURTHER):
        written = _stopped_at(ends_at, lambda probe=probe: _apply(tokenizer, probe))
        if written is None:
            problem = f"it has not ended within {LIMIT_S:g} s, and was stopped"
        elif (error := written.exception()) is not None:
            problem = f"it fails with {type(error).__name__}: {_first_line(error)}"
        elif not written.result():
            problem = "it writes nothing"
        else:
            tokens[probe.name] = written.result()
            continue
        if probe in DECISIVE or written is None:
            return Template({}, f"the model's chat template cannot be compared: {problem}")
        refused[probe.name] = problem
    return Template(tokens, None, refused)


def _apply(tokenizer: Any, probe: Probe) -> list[int]:
    messages: list[dict[str, Any]] = [dict(message) for message in probe.messages]
    if probe.reasoning:
        for message in messages[1::2]:  # by the names that templates know it by
            message["reasoning_content"] = message["thinking"] = probe.reasoning
    if probe.call is None:
        return _applied(tokenizer, messages, probe)
    function: dict[str, Any] = {"name": CALLED, "arguments": dict(probe.call)}
    messages[-1]["tool_calls"] = [{"type": "function", "id": CALL_ID, "function": function}]
    try:
        return _applied(tokenizer, messages, probe)
    except TypeError:  # of a template that adds the arguments to its text, and takes them as text
        function["arguments"] = json.dumps(function["arguments"])
        return _applied(tokenizer, messages, probe)


def read_prompts(
    tokenizer: Any, conversations: Mapping[str, Sequence[Mapping[str, str]]]
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The prompts that a tokenizer's chat template writes, and of the others why it does not.

    All are written within `LIMIT_S`.
    """
    tokens: dict[str, list[int]] = {}
    refused: dict[str, str] = {}
    ends_at = time.monotonic() + LIMIT_S
    for name, turns in conversations.items():
        messages: list[dict[str, Any]] = [dict(turn) for turn in turns]
        written = _stopped_at(ends_at, lambda given=messages: _written(tokenizer, given))
        if written is None:
            refused[name] = f"it has not ended within {LIMIT_S:g} s, and was stopped"
        elif (error := written.exception()) is not None:
            refused[name] = f"it fails with {type(error).__name__}: {_first_line(error)}"
        else:
            tokens[name] = written.result()
    return tokens, refused


def _applied(tokenizer: Any, messages: list[dict[str, Any]], probe: Probe) -> list[int]:
    return _written(tokenizer, messages, is_prompt=probe.is_prompt)


def _written(
    tokenizer: Any, messages: list[dict[str, Any]], *, is_prompt: bool = True
) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=is_prompt,
            tokenize=True,
            return_dict=False,
        )
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return repr(lines[0][:100]) if lines else "no reason"


def _stopped_at(ends_at: float, work: Callable[[], list[int]]) -> Future[list[int]] | None:
    """Do Python work in a thread, and stop it there at a time of the monotonic clock.

    Returns the ended work, or None where it was stopped. No thread is left behind, also when the
    waiting is interrupted.
    """
    place: list[int] = []

    def placed() -> list[int]:
        place.append(threading.get_ident())
        return work()

    with ThreadPoolExecutor(1, "chat template") as pool:
        future = pool.submit(placed)
        try:
            wait([future], max(0.0, ends_at - time.monotonic()))
            return future if future.done() else None
        finally:
            while not future.done():
                for ident in place:
                    thread, stop = ctypes.c_ulong(ident), ctypes.py_object(_TimeIsUp)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, stop)
                wait([future], 1.0)


def write_probe(renderer: Renderer, probe: Probe) -> list[int]:
    """The tokens that a renderer writes for a probe: to sample from, or to train on."""
    from tinker_cookbook.renderers import Message, TextPart, ThinkingPart, ToolCall

    messages = [Message(role=one["role"], content=one["content"]) for one in probe.messages]
    if probe.reasoning:
        for one, message in zip(probe.messages[1::2], messages[1::2], strict=True):
            thinking = ThinkingPart(type="thinking", thinking=probe.reasoning)
            message["content"] = [thinking, TextPart(type="text", text=one["content"])]
    if probe.call is not None:
        function = ToolCall.FunctionBody(name=CALLED, arguments=json.dumps(dict(probe.call)))
        messages[-1]["tool_calls"] = [ToolCall(function=function, id=CALL_ID)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a system turn beside a format's own
        if probe.is_prompt:
            return list(renderer.build_generation_prompt(messages).to_ints())
        return list(renderer.build_supervised_example(messages)[0].to_ints())


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def ending_note(renderer: Renderer) -> str | None:
    """Why no answer ever ends, where the text that a chat format ends answers by is never written:
    a tokenizer may begin each piece of a turn with a space."""
    ends, tokens = renderer.get_stop_sequences(), write_probe(renderer, CONVERSATION)
    written = text_of(renderer.tokenizer, tokens).rpartition(CONVERSATION.end)[2]
    if not ends or any(not isinstance(end, str) or end in written for end in ends):
        return None
    return (
        f"answers end at {ends[0]!r}, and with this tokenizer the rows have {written!r} there, so "
        "all will be cut off at their longest length; set renderer_name to a format that ends "
        "them by a token"
    )


class Difference(NamedTuple):
    """Where two sequences part: the token's place from 0, and the text before it and from there."""

    place: int
    before: str
    template: str
    renderer: str

    def __str__(self) -> str:
        before = f" after {self.before!r}" if self.before else ""
        return (
            f"from token {self.place} on,{before} the template has {self.template!r} and the "
            f"renderer {self.renderer!r}"
        )


class Pair(NamedTuple):
    """A probe as the template (theirs) and the renderer (ours) write it."""

    theirs: list[int]
    ours: list[int]

    def difference(self, tokenizer: Any) -> Difference | None:
        """Where they part; None where they are equal up to what ends the last answer.

        What follows that is never trained or asked: a line break of the template's, or the words
        by which a renderer's stop sequence is completed.
        """
        place = _num_common(self.theirs, self.ours)
        if place == len(self.theirs) == len(self.ours):
            return None
        return Difference(
            place,
            text_of(tokenizer, self.ours[:place])[-NUM_SHOWN // 2 :],
            *(text_of(tokenizer, side[place:])[:NUM_SHOWN] for side in self),
        )

    def parts_before(self, text: str, tokenizer: Any) -> bool:
        """Whether all from `text` on is the same, so that the difference lies before it."""
        num = _num_common(self.theirs[::-1], self.ours[::-1])
        return text in text_of(tokenizer, self.ours[len(self.ours) - num :])


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _pair(theirs: list[int], ours: list[int], probe: Probe, tokenizer: Any) -> Pair:
    """Both sides, a conversation without what comes after its last answer has ended."""
    if probe.is_prompt:
        return Pair(theirs, ours)
    sides = theirs, ours
    lengths = [_length_with(probe.end, side, tokenizer) for side in sides]
    ends = [text_of(tokenizer, s[n : n + 1]).strip() for s, n in zip(sides, lengths, strict=True)]
    more = int(all(ends))  # both have an end token, which then has to be the same
    return Pair(*(side[: n + more] for side, n in zip(sides, lengths, strict=True)))


def _length_with(text: str, tokens: list[int], tokenizer: Any) -> int:
    """How many tokens it takes until the last time that `text` is complete; all where it is not."""
    if text not in text_of(tokenizer, tokens):
        return len(tokens)
    length = len(tokens)
    while text in text_of(tokenizer, tokens[: length - 1]):
        length -= 1
    return length


@dataclass(frozen=True)
class Comparison:
    """A renderer beside the model's chat template, by the probe's name."""

    template: Template
    differences: dict[str, Difference] = field(default_factory=dict)
    # All of the decisive probes is the same from the first question on, turn markers included.
    is_same_after_opening: bool = False
    # The last answer is the same text, cut into tokens where the prompt ends inside it.
    is_cut_by_prefill: bool = False

    @property
    def first(self) -> str | None:
        """The first of the decisive differences; None where the renderer agrees."""
        named = ((p.name, self.differences.get(p.name)) for p in DECISIVE)
        return next((f"differs in {name}: {found}" for name, found in named if found), None)

    @property
    def agrees(self) -> bool:
        return self.template.is_known and self.first is None

    @property
    def agrees_in_all(self) -> bool:
        """Also in what tells the renderers of one family apart."""
        return self.agrees and not {CALL.name, REASONING.name} & self.differences.keys()

    @property
    def num_same(self) -> int:
        """Tokens that are the same at the start of the decisive probes: how near it comes."""
        return sum(
            found.place if (found := self.differences.get(p.name)) else len(tokens)
            for p in DECISIVE
            if (tokens := self.template.tokens.get(p.name)) is not None
        )

    def __str__(self) -> str:
        """One sentence, without its end."""
        if not self.template.is_known:
            return f"{self.template.problem}, so nothing is compared"
        if (first := self.first) is None:
            names = ", ".join(probe.name for probe in DECISIVE[:-1])
            return "; ".join(
                [
                    f"equal to the renderer's, token by token, in {names} and {CONVERSATION.name}",
                    *self._notes(),
                ]
            )
        same = (
            "; from the first question on they are the same" if self.is_same_after_opening else ""
        )
        serving = "vLLM and Ollama write prompts by the template, not as they are trained here"
        return "; ".join([f"{first}{same}", serving, *self._notes()])

    def _notes(self) -> Iterator[str]:
        """What is known beyond the decisive probes."""
        if self.is_cut_by_prefill:
            yield "an answer is cut into tokens as it is sampled, after what the prompt has of it"
        for probe in (SYSTEM, CALL, REASONING):
            if probe.name in self.template.refused:
                yield f"{probe.name}: {self.template.refused[probe.name]}"
        if self.agrees and SYSTEM.name in self.differences:
            yield f"{SYSTEM.name} differs: {self.differences[SYSTEM.name]}"
        if PROMPT.name in self.differences and SYSTEM.name in self._equal:
            yield f"equal in {SYSTEM.name}"
        others = [p.name for p in (SPACES, CALL, REASONING) if p.name in self.differences]
        if self.agrees and others:
            yield f"written otherwise: {', '.join(others)}"

    @property
    def _equal(self) -> set[str]:
        return self.template.tokens.keys() - self.differences.keys()


def compare(template: Template, renderer: Renderer, tokenizer: Any) -> Comparison:
    """Hold a renderer against a template, in all that the template could write.

    Raises what the renderer raises for one of the decisive probes.
    """
    pairs: dict[str, Pair] = {}
    for probe in (*DECISIVE, *FURTHER):
        if probe.name not in template.tokens:
            continue
        try:
            ours = write_probe(renderer, probe)
        except ValueError:  # what a renderer refuses it refuses in each row as well
            if probe in DECISIVE:
                raise
            continue
        pair = _pair(template.tokens[probe.name], ours, probe, tokenizer)
        if probe in (CALL, REASONING):  # by their text, which a prompt may end inside of
            shown = probe.end if probe.call else probe.reasoning
            if shown not in text_of(tokenizer, pair.theirs) or _is_same_text(pair, tokenizer):
                continue
        pairs[probe.name] = pair
    differences = {
        name: difference
        for name, pair in pairs.items()
        if (difference := pair.difference(tokenizer)) is not None
    }
    decisive = [pairs[probe.name] for probe in DECISIVE if probe.name in pairs]
    is_same = bool(decisive) and all(pair.parts_before(QUESTION, tokenizer) for pair in decisive)
    is_cut = _is_cut(pairs, differences, tokenizer)
    if is_cut:
        del differences[CONVERSATION.name]
    return Comparison(template, differences, is_same, is_cut)


def _is_cut(
    pairs: Mapping[str, Pair], differences: Mapping[str, Difference], tokenizer: Any
) -> bool:
    """Whether the last answer differs only by where the prompt ends inside it.

    A prompt that ends in `<think>` and a line break leaves the answer to begin with another one;
    the template's whole text has both in one token.
    """
    found = differences.get(CONVERSATION.name)
    if found is None or SECOND_PROMPT.name in differences:
        return False
    prompt, both = pairs[SECOND_PROMPT.name].ours, pairs[CONVERSATION.name]
    return (
        found.place >= len(prompt) - 1
        and both.ours[: len(prompt)] == prompt
        and _is_same_text(both, tokenizer)
    )


def _is_same_text(pair: Pair, tokenizer: Any) -> bool:
    return text_of(tokenizer, pair.ours) == text_of(tokenizer, pair.theirs)

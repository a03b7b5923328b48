"""What answers say by their chat formats, and that a stream's pieces are the whole, for renderers
and chat templates of all families."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tinker_cookbook.renderers import get_renderer, get_text_content

from chat_models import SHAPES, make_tokenizer
from conftest import IS_THOROUGH
from local_tinker.answers import OpenAIError
from local_tinker.chat_formats import ChatFormat, Rendered, Templated
from local_tinker.openai_text import (
    Said,
    StreamedText,
    certain,
    num_kept,
    read_answer,
    rest,
)
from local_tinker.openai_wire import ChatMessage

TEMPLATE = "template"
FORMATS = {
    "Llama 3": ("llama3", "role_colon", TEMPLATE),
    "Qwen3": ("qwen3", "qwen3_disable_thinking", "qwen3_instruct", "qwen3_5", TEMPLATE),
    "Nemotron 3 Ultra": ("nemotron3", "nemotron3_disable_thinking", "nemotron3_ultra", TEMPLATE),
    "DeepSeek-V3.1": ("deepseekv3", "deepseekv3_thinking", TEMPLATE),
    "R1-Distill-Llama": (TEMPLATE,),
    "gpt-oss": ("gpt_oss_no_sysprompt", TEMPLATE),
    "Kimi-K2-Thinking": ("kimi_k2", "kimi_k25"),
    "GLM-5.3": ("glm5_3_low_reasoning",),
    "Gemma 2": ("role_colon", TEMPLATE),
}
CASES = [(shape, name) for shape, names in FORMATS.items() for name in names]
NUM_STREAMS = 200 if IS_THOROUGH else 12
WORDS = (" a", " small", "text\n", "\n\n", "  ", "\u00e9", "\U0001f642", "\u65e5", "STOP", "a<")
CALLS = (
    "",
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    "<tool_call>x</tool_call>",
)
STOPS = ((), ("STOP",), ("\n\n",), ("a ", "\u65e5"))
ASKED = [ChatMessage(role="user", content="What?")]


def format_of(shape: str, name: str) -> Any:
    tokenizer = make_tokenizer(SHAPES[shape])
    if name != TEMPLATE:
        return Rendered(name, get_renderer(name, tokenizer, model_name="x"))
    is_harmony = shape == "gpt-oss"
    reader = format_of(shape, "gpt_oss_no_sysprompt") if is_harmony else None
    return Templated(tokenizer, frozenset([tokenizer.eos_token_id]), reader=reader)


def sampled(form: Any, draw: random.Random, stops: tuple[str, ...]) -> list[int]:
    """Tokens that a model of this format could answer with, cut where sampling ends."""

    def words() -> str:
        return "".join(draw.choice(WORDS) for _ in range(draw.randint(0, 5)))

    tokenizer = form.tokenizer
    opens = tokenizer.decode(form.prompt(ASKED)).rstrip().endswith("<think>")
    opening = "" if opens else draw.choice(["<think>", "<think>\n", ""])
    closing = draw.choice(["\n</think>\n\n", "</think>", ""]) if opens or opening else ""
    text = opening + (words() if opens or opening else "") + closing
    if closing or not (opens or opening):
        text += words() + draw.choice(CALLS)
    if form.name.startswith("gpt_oss") or getattr(form, "reader", None):
        text = f"<|channel|>analysis<|message|>{words()}<|end|><|start|>assistant"
        text += f"<|channel|>final<|message|>{words()}"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for end in range(1, len(tokens) + 1):
        if any(stop in tokenizer.decode(tokens[:end]) for stop in (*stops, *form.stop_strings)):
            return tokens[:end]
    cut = draw.randint(0, len(tokens))
    return draw.choice([[*tokens, min(form.stop_ids)] if form.stop_ids else tokens, tokens[:cut]])


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_the_pieces_of_a_stream_are_the_whole_answer(shape: str, name: str) -> None:
    form, draw = format_of(shape, name), random.Random(f"{shape} {name}")
    for number in range(NUM_STREAMS):
        stops = STOPS[number % len(STOPS)]
        tokens = sampled(form, draw, stops)
        stream, content, reasoning = StreamedText(form, stops), "", ""
        for end in range(1, len(tokens) + 1):
            delta = stream.advance(tokens[:end])
            assert "\ufffd" not in delta.content + delta.reasoning
            content, reasoning = content + delta.content, reasoning + delta.reasoning
        whole = read_answer(form, tokens, stops)
        last = stream.finish(whole)
        assert last is not None, (tokens, whole)
        pieces = (content + last.content, reasoning + last.reasoning)
        assert pieces == (whole.content, whole.reasoning), form.tokenizer.decode(tokens)
        assert not any(stop in whole.content for stop in stops)


@pytest.mark.parametrize(("shape", "name"), [case for case in CASES if case[1] != TEMPLATE])
def test_a_finished_answer_is_read_as_the_evaluator_reads_it(shape: str, name: str) -> None:
    """Where its trace is closed, that is; one that never ends has no answer for either of them."""
    form, draw = format_of(shape, name), random.Random(name)
    for _ in range(NUM_STREAMS):
        tokens = sampled(form, draw, ())
        said, message = form.read(tokens), form.renderer.parse_response(tokens)[0]
        if "unparsed_tool_calls" in message or said.is_reasoning or not tokens:
            continue
        if tokens[-1] in form.stop_ids or not form.stop_ids:
            assert said.content == get_text_content(message)


def qwen(text: str, *, name: str = "qwen3", is_ended: bool = True) -> Said:
    form = format_of("Qwen3", name)
    ids = form.tokenizer.encode(text, add_special_tokens=False)
    return form.read([*ids, *form.stop_ids] if is_ended else ids)


def test_reasoning_comes_apart_also_where_the_answer_is_cut_short() -> None:
    assert qwen("<think>\na small\n</think>\n\ntext") == Said("text", "a small")
    assert qwen("<think>\na small", is_ended=False) == Said("", "a small", (), True)
    assert qwen("<think>\na small") == Said("", "a small", (), True)
    assert qwen("a <small> text", is_ended=False) == Said("a <small> text")


def test_calls_of_tools_are_kept_and_those_that_cannot_be_read_stay_as_text() -> None:
    said = qwen(f"text{CALLS[1]}")
    assert said.content == "text"
    (call,) = said.tool_calls
    assert call["function"] == {"name": "f", "arguments": "{}"}
    assert qwen(f"text{CALLS[2]}").content == f"text{CALLS[2]}"


def test_a_trace_is_left_in_the_text_by_formats_that_know_none() -> None:
    form = format_of("Llama 3", "llama3")
    tokens = form.tokenizer.encode("<think>a</think>text", add_special_tokens=False)
    assert form.read([*tokens, *form.stop_ids]) == Said("<think>a</think>text")


@pytest.mark.parametrize(
    ("text", "beginnings", "markers", "kept"),
    [
        ("all of it", (), (), "all of it"),
        ("a space \n", (), (), "a space"),
        ("half a \ufffd", (), (), "half a"),
        ("\ufffd in the middle", (), (), "\ufffd in the middle"),
        ("before ST", ("STOP",), (), "before"),
        ("not STO but this", ("STOP",), (), "not STO but this"),
        ("text<tool_call>{", (), ("<tool_call>",), "text"),
        ("text<too", (), ("<tool_call>",), "text"),
        ("ST\ufffd", ("STOP",), (), ""),
    ],
)
def test_what_a_later_token_could_change_is_held_back(
    text: str, beginnings: tuple[str, ...], markers: tuple[str, ...], kept: str
) -> None:
    assert certain(text, beginnings, markers) == kept


def test_what_is_left_to_send() -> None:
    assert rest("a text", "a ") == "text"
    assert rest("text", "\n\nte") == "xt"  # a format that took the space before it off
    assert rest("another", "text") is None


def test_tokens_of_a_stop_string_are_not_shown() -> None:
    tokenizer = make_tokenizer(SHAPES["Llama 3"])
    tokens = tokenizer.encode("a text STOP", add_special_tokens=False)
    kept = tokenizer.decode(tokens[: num_kept(tokenizer, tokens, ("STOP",))])
    assert kept.strip() == "a text"
    assert num_kept(tokenizer, tokens, ("nothing",)) == len(tokens)


def test_messages_that_a_format_cannot_write_are_refused() -> None:
    odd = [ChatMessage(role="assistant", content="x", reasoning_content="why")]
    form: ChatFormat = format_of("Llama 3", "llama3")
    with pytest.raises(OpenAIError, match="the renderer llama3 cannot write them"):
        form.prompt([*ASKED, *odd])
    raising = format_of("Llama 3", TEMPLATE)
    raising.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(OpenAIError, match="chat template cannot write them: no"):
        raising.prompt(ASKED)

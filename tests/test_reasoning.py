"""What a model thought aloud is not its answer."""

from __future__ import annotations

import pytest

from grading.reasoning import _BEGINNINGS, opens_reasoning, without_reasoning

# As public models write them: opened, closed.
MARKERS = [
    ("<think>", "</think>"),
    ("<Think>", "</Think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|THINK_START|>", "<|THINK_END|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
]


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_what_stands_before_a_closing_marker_is_left_out(opening: str, closing: str) -> None:
    assert without_reasoning(f"{opening}maybe 4{closing}It is 9.") == "It is 9."
    assert without_reasoning(f"maybe 4{closing}It is 9.") == "It is 9."
    assert without_reasoning(f"{opening}4{closing}5 {opening}6{closing}7") == "7"
    assert without_reasoning(f"{opening}maybe 4{closing}") == ""


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_a_trace_that_never_closes_has_no_answer(opening: str, closing: str) -> None:
    assert without_reasoning(f"{opening}maybe 4") is None
    assert without_reasoning(f"{opening}4{closing}5 {opening}no, 6") is None


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_the_prompt_may_have_opened_the_trace(opening: str, closing: str) -> None:
    assert opens_reasoning(f"<|im_start|>assistant\n{opening}\n")
    assert not opens_reasoning(f"assistant\n{opening}\n\n{closing}\n\n")
    assert without_reasoning("maybe 4", is_open=True) is None
    assert without_reasoning(f"maybe 4{closing}9", is_open=True) == "9"


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_the_quick_way_knows_how_markers_begin(opening: str, closing: str) -> None:
    assert opening.startswith(_BEGINNINGS) and closing.startswith(_BEGINNINGS)


def test_what_a_model_writes_around_its_answer_goes_too() -> None:
    text = "<|end_of_thought|>\n<|begin_of_solution|>42<|end_of_solution|>"
    assert without_reasoning(text) == "\n42"
    assert without_reasoning("<|channel|>final<|message|>42<|return|>") == "42"


@pytest.mark.parametrize(
    "text",
    ["", "It is 9.", "a < b > c", "I think that x", "x<y", "final", "[think] so", "<b>4</b>"],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert without_reasoning(text) == text
    assert not opens_reasoning(text)


def test_many_markers_take_no_longer_than_few() -> None:
    assert without_reasoning("<think>" * 50_000) is None
    assert without_reasoning("</think>" * 50_000 + "4") == "4"
    assert without_reasoning("<" * 100_000) == "<" * 100_000
    assert without_reasoning("<" + "a" * 100_000) == "<" + "a" * 100_000
    assert without_reasoning("<|channel|>final" * 20_000) is not None

"""Rows as the field ships them: each key is used, refuses the row, or is named as not used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import REPO
from data_loader import LoadedData, load_examples
from errors import DataError
from forked import run
from rows.examples import Example
from rows.forms import read_form
from rows.row_keys import guess_columns
from rows.sources import Source

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = [("user", "q"), ("assistant", "a")]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def chat(*more: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"messages": [Q, A, *more], **keys}


def reply(**keys: Any) -> dict[str, Any]:
    return {"messages": [Q, {**A, **keys}]}


def load(path: Path, rows: list[Any], **columns: str) -> LoadedData:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return load_examples([Source(path.name, path, columns=columns)])


def examples(path: Path, *rows: Any) -> list[Example]:
    return list(load(path, list(rows)).examples)


def test_no_key_of_a_public_format_is_silent() -> None:
    done = run(REPO / "benchmarks" / "rows_in_the_wild.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("silent 0\n")


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "q", "output": "a", "history": [["x", "y"]]},
         [("user", "x"), ("assistant", "y"), *TURNS]),
        ({"instruction": "q", "output": "a", "history": [{"role": "user", "content": "x"},
                                                         {"role": "assistant", "content": "y"}]},
         [("user", "x"), ("assistant", "y"), *TURNS]),
        ({"instruction": "q", "context": "c", "output": "a"},
         [("user", "q\n\nc"), ("assistant", "a")]),
        ({"prompt": "q", "input": "c", "completion": "a"},
         [("user", "q\n\nc"), ("assistant", "a")]),
        ({"instruction": "q", "input": "  ", "system": " ", "output": "a"}, TURNS),
        ({"instruction": "q", "input": float("nan"), "output": "a"}, TURNS),
        ({"instruction": "", "input": "q", "output": "a"}, TURNS),
        ({"prompt": "q", "completion": "a", "system_prompt": "s"}, [("system", "s"), *TURNS]),
        ({"messages": [{"role": "developer", "content": "s"}, Q, A]}, [("system", "s"), *TURNS]),
        ({"messages": [{"role": "Human", "content": "q"}, {"role": "GPT", "content": "a"}]}, TURNS),
        ({"messages": [{"role": None, "from": "human", "value": "q"},
                       {"role": "assistant", "content": None, "value": "a"}]}, TURNS),
        ({"messages": [], "conversations": [{"from": "human", "value": "q"},
                                            {"from": "gpt", "value": "a"}]}, TURNS),
        ({"messages": json.dumps([Q, A])}, TURNS),
        ({"messages": [json.dumps(Q), json.dumps(A)]}, TURNS),
        ({"prompt": json.dumps([Q]), "completion": json.dumps([A])}, TURNS),
        ({"prompt": [Q], "completion": [A]}, TURNS),
        ({"prompt": '{"a": 1}', "completion": "[1]"},
         [("user", '{"a": 1}'), ("assistant", "[1]")]),
        ({"prompt": [Q], "completion": "a"}, TURNS),
        (chat(context="q"), TURNS),
        ({"system": "s", "messages": [{"role": "system", "content": "s "}, Q, A]},
         [("system", "s "), *TURNS]),
        ({"messages": [Q, {**A, "content": [{"type": "text", "text": "a", "image_url": None}]}]},
         TURNS),
        ({"messages": [Q, {**A, "content": ["a"]}]}, TURNS),
        ({"prompt": "q", "completion": "a", "label": True}, TURNS),
        ({"prompt": "q", "completion": "a", "label": "1.0", "tools": "[]", "history": "null"},
         TURNS),
        ({"prompt": "q", "completion": "[]"}, [("user", "q"), ("assistant", "[]")]),
        ({"instruction": "q", "output": '[{"role": "assistant", "content": "a"}]'},
         [("user", "q"), ("assistant", '[{"role": "assistant", "content": "a"}]')]),
        ({"prompt": "q", "completion": '[{"role": "assistant", "content": "a"}]'},
         [("user", "q"), ("assistant", '[{"role": "assistant", "content": "a"}]')]),
    ],
)  # fmt: skip
def test_a_row_comes_to_its_turns(row: dict[str, Any], turns: Any) -> None:
    assert [(one.role, one.content) for one in read_form(row).record.messages] == turns


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q", "completion": "a", "label": False}, '"label" is False: it marks'),
        ({"prompt": "q", "completion": "a", "label": "False"}, '"label" is \'False\''),
        ({"prompt": "q", "completion": "a", "label": 0}, '"label" is 0'),
        ({"instruction": "q", "output": "a", "kto_tag": False}, '"kto_tag" is False'),
        ({"prompt": "q", "completion": "a", "label": "-1.0"}, '"label" is'),
        ({"prompt": "q", "completion": "a", "kto_tag": "undesirable"}, '"kto_tag" is'),
        ({"prompt": "q", "completion": "a", "is_chosen": "maybe"}, "neither true nor false"),
        (chat(context="a"), '"context" stands beside'),
        (reply(weight=1e-46), "not 0 and not a number"),
        (reply(weight="1_0"), "not 0 and not a number"),
        (reply(value="b"), '"content" and "value" of message 1'),
        (reply(**{"from": "human"}), '"role" and "from" of message 1'),
        (reply(content=["good", "bad"]), "a list of texts"),
        (reply(tool_calls=[{"name": "f", "arguments": '{"a": 1, "a": 2}'}]), "'a' twice"),
        (chat(rejected_response="b"), "preferred and a rejected answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preferred and a rejected answer"),
        (chat(images=["a.png"]), "only text is trained"),
        (reply(images=["a.png"]), '"images" of message 1'),
        (reply(refusal="No."), '"refusal" of message 1'),
        (reply(content=[{"type": "tool_use", "name": "f"}]), "a part of type 'tool_use'"),
        (reply(content=[{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "r"}]),
         "thinks after it has begun to answer"),
        (reply(channel="analysis"), '"channel" of message 1'),
        (chat(context="not in it"), '"context" stands beside the messages'),
        (chat(history=[["x", "y"]]), '"history" stands beside the messages'),
        ({"prompt": "q", "completion": "a", "documents": ["d"]}, '"documents"'),
        ({"prompt": "q", "completion": "a", "history": "earlier"}, "not a list of earlier turns"),
        ({"prompt": "q", "completion": "a", "history": [["x"]]}, "[question, answer]"),
        ({"system": "s", "messages": [{"role": "system", "content": "t"}, Q, A]},
         "hold different texts"),
        ({"prompt": "q", "completion": "a", "system": "s", "system_prompt": "t"},
         "hold different texts"),
        (reply(weight=-1), "not 0 and not a number"),
        (reply(weight=float("inf")), "not 0 and not a number"),
        (reply(weight="much"), "not 0 and not a number"),
        (reply(loss_mask=[0, 1]), "not 0 and not a number"),
        (reply(train=0.5), "neither true nor false"),
        (reply(weight=1, train=False), "say different things"),
        (reply(mask=True), "it can mean to train or not to"),
        (reply(reasoning="r", thinking="s"), "differ"),
        (reply(tool_calls=[{"function": {"name": "f", "arguments": "{broken"}}]),
         "no JSON object"),
        (reply(tool_calls=[{"type": "code", "function": {"name": "f"}}]), "of type 'code'"),
        (reply(tool_calls=[{}]), "message 1's content is empty|without a name"),
        (chat(tools=[{"description": "d"}]), "a tool without a name"),
        (chat(tools=[TOOL], functions=[TOOL["function"]]), "keep one"),
        ({"messages": [Q, {**A, "role": "critic"}]}, "has the role 'critic'"),
        ({"messages": [Q, {"content": "a"}]}, "message 1 has no role"),
        ({"messages": [Q, {"role": "assistant", "content": None}]}, "content is not a string"),
        ({"prompt": "q", "completion": " "}, '"completion" is empty'),
        ({"prompt": "q", "completion": "a", "input_ids": [1]}, "from the text here"),
    ],
)  # fmt: skip
def test_what_would_change_the_meaning_refuses_the_row(row: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_form(row)
    assert any(one in str(refused.value) for one in part.split("|")), str(refused.value)


def test_what_a_row_says_beyond_its_text_is_part_of_its_identity(tmp_path: Path) -> None:
    plain = chat()
    others = [
        reply(weight=0.5), reply(reasoning="r"), reply(tool_calls=[CALL]),
        reply(tool_calls=[{**CALL, "function": {"name": "look", "arguments": '{"a": 2}'}}]),
        chat(weight=2), chat(tools=[TOOL]), {"messages": [{**Q, "weight": 0}, A]},
    ]  # fmt: skip
    loaded = load(tmp_path / "f.jsonl", [plain, *others, *others])
    assert len(loaded.examples) == len(others) + 1
    assert loaded.dropped.counts == {"duplicate": len(others)}


def test_what_holds_nothing_new_keeps_its_identity(tmp_path: Path) -> None:
    """So that a run of an earlier version finds its rows."""
    rows = chat(), reply(weight=1), reply(train=True), chat(weight=1.0), chat(id="x", source="y")
    ids = {read_form(row).record.key.hex() for row in rows}
    assert ids == {hashlib.sha256(b'[["user", "q"], ["assistant", "a"]]').hexdigest()}


def test_everything_of_a_row_is_found_again(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            Q,
            {**A, "content": "", "tool_calls": [CALL], "reasoning_content": "r", "weight": 0.5},
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
            A,
        ],
        "functions": [TOOL["function"]],
        "weight": 2,
        "topic": 3,
    }
    (example,) = examples(tmp_path / "f.jsonl", row)
    call, tool = example.messages[2], example.messages[3]
    assert (call.content, call.reasoning, call.weight) == ("", "r", 0.5)
    assert [(one.name, one.arguments, one.id) for one in call.calls] == [("look", '{"a": 1}', "c1")]
    assert (tool.role, tool.name, tool.call_id) == ("tool", "look", "c1")
    assert json.loads(example.tools or "") == [TOOL["function"]]
    assert (example.weight, example.topic) == (2.0, "3")


def test_calls_and_their_answers_in_every_spelling() -> None:
    rows = [
        reply(function_call={"name": "look", "arguments": {"a": 1}}),
        reply(tool_calls=[{"name": "look", "arguments": {"a": 1}}]),
        reply(tool_calls=json.dumps([CALL])),
        {"conversations": [{"from": "human", "value": "q"},
                           {"from": "function_call",
                            "value": '{"name": "look", "arguments": {"a": 1}}'}]},
    ]  # fmt: skip
    for row in rows:
        (call,) = read_form(row).record.messages[-1].calls
        assert (call.name, json.loads(call.arguments)) == ("look", {"a": 1})
    wrapped = "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
    for role, said in (("tool", ["one", "two"]), ("observation", ["one", "two"])):
        row = {"messages": [Q, reply(tool_calls=[CALL, CALL])["messages"][1],
                            {"role": role, "content": wrapped}, A]}  # fmt: skip
        turns = read_form(row).record.messages
        assert [one.content for one in turns if one.role == "tool"] == said


def test_keys_that_nothing_uses_are_counted_by_file(tmp_path: Path) -> None:
    rows = [chat(id=n, lang="en" if n else None) for n in range(3)]
    rows += [{"messages": [Q, {**A, "timestamp": 1}], "score": 2}]
    loaded = load(tmp_path / "f.jsonl", [{**row, "topic": n} for n, row in enumerate(rows)])
    assert loaded.files[0].unused == {"id": 3, "lang": 2, "messages[].timestamp": 1, "score": 1}


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"instruction": "question", "input": "contxt", "output": "answer"},
         'Did you mean "columns": {"instruction": "question", "input": "context", '),
        ({"messages": "question", "prompt": "question", "completion": "answer"}, "rows cannot"),
        ({"prompt": "question", "completion": "answer", "topic": "what"}, "'what', and no row"),
        ({"prompt": "question", "completion": "answer", "tools": "context"}, "without a name"),
        ({"instruction": "question", "output": "answers"}, '"output": "answer"}?'),
    ],
)  # fmt: skip
def test_columns_that_do_nothing_are_refused_with_the_line_to_write(
    tmp_path: Path, columns: dict[str, str], part: str
) -> None:
    row = {"question": "Who wrote it?", "context": "It is by her.", "answer": "she"}
    with pytest.raises(DataError) as refused:
        load(tmp_path / "f.jsonl", [{**row, "question": f"{n}?"} for n in range(3)], **columns)
    assert part in str(refused.value)


def test_a_column_without_a_place_is_refused(tmp_path: Path) -> None:
    rows = [{"said": [Q, A], "background": "q", "question": "x"}]
    with pytest.raises(DataError, match=r"names 'prompt' \('question'\).* has no place"):
        load(tmp_path / "f.jsonl", rows, messages="said", prompt="question")


def test_without_columns_the_line_to_write_is_shown(tmp_path: Path) -> None:
    row = {"question": "q", "context": "c", "answer": "a"}
    with pytest.raises(DataError) as refused:
        load(tmp_path / "f.jsonl", [row])
    expected = '"columns": {"instruction": "question", "input": "context", "output": "answer"}'
    assert f'"data": {{{expected}}}' in str(refused.value)
    with pytest.raises(DataError) as refused:
        load(tmp_path / "g.jsonl", [{"foo": "q", "bar": "a"}])
    assert '"data": {"columns": {"instruction": "QUESTION_COLUMN", ' in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "guess"),
    [
        (("Ticket ID", "Customer question", "Agent answer"), ("Customer question", "Agent answer")),
        (("Question ID", "question_text", "Reply"), ("question_text", "Reply")),
        (("First question", "Second question", "Agent answer"), None),  # which one is not told
        (("User ID", "Text body", "Answer date"), None),
    ],
)
def test_headings_of_several_words_are_guessed_by_the_one_that_fits(
    keys: tuple[str, ...], guess: tuple[str, str] | None
) -> None:
    found = dict(zip(("instruction", "output"), guess, strict=True)) if guess else {}
    assert guess_columns(keys) == found


def test_rows_of_no_form_are_one_kind_whichever_of_their_cells_are_blank(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("Ask,Say,notes\nq1,a1,\nq2,a2,n\nq3,,n\nq4,a4,\n")
    with pytest.raises(DataError) as refused:
        load_examples([Source("rows.csv", file)])
    said = str(refused.value)
    assert "lines 2-5: expected" in said and said.count('"prompt"+"completion"') == 1
    assert "found keys: Ask, Say, notes (not each in every row). If it is" in said


def test_an_empty_cell_of_a_named_column_is_called_by_the_files_own_name(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("Ask,Say,On\nq1,a1,\nq2,,n\n  ,a3,n\nq4,a4,\nq5,,\n,,n\nq6,a6,n\nq7,a7,n\n")
    columns = {"instruction": "Ask", "output": "Say", "topic": "On"}
    loaded = load_examples([Source("rows.csv", file, columns=columns)])
    assert [(one.line_no, one.reason) for one in loaded.dropped] == [
        (3, '"Say" is missing or empty'),
        (4, '"Ask" is missing or empty'),
        (6, '"Say" is missing or empty'),  # the topic may be
        (7, '"Ask" and "Say" are missing or empty'),
    ]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_whatever_the_files_name(tmp_path: Path, indent: int | None) -> None:
    for name in ("f.jsonl", "f.json"):
        (tmp_path / name).write_text(json.dumps([chat(), chat(topic="t", weight=2)], indent=indent))
        assert len(load_examples([Source(name, tmp_path / name)]).examples) == 2


@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_one_object_over_many_lines_is_said_to_be_that(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"version": 1, "data": [chat(), chat()]}, indent=1))
    with pytest.raises(DataError, match=r"one JSON object over many lines.*'data' \(2\)"):
        load_examples([Source(name, tmp_path / name)])


def test_what_a_call_holds_is_kept_or_named_and_parquets_own_nulls_are_none(
    tmp_path: Path,
) -> None:
    from datasets import Dataset

    call = {"function": {"name": "f", "arguments": {"a": None, "b": 1}}, "weight": 0}
    read = read_form(reply(tool_calls=[call]))
    assert read.record.messages[-1].calls[0].arguments == '{"a": null, "b": 1}'
    assert read.unused == ("messages[].tool_calls[].weight",)
    rows = [
        reply(tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
        for arguments in ({"a": 1}, {"b": 2})
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "f.parquet")
    read_back = load_examples([Source("f", tmp_path / "f.parquet")]).examples
    assert [one.messages[-1].calls[0].arguments for one in read_back] == ['{"a": 1}', '{"b": 2}']


def test_parquet_with_json_columns_is_read_as_the_rows_that_were_saved(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [
        reply(tool_calls=[CALL]) | {"tools": [TOOL]},
        reply(tool_calls=[{**CALL, "function": {"name": "look", "arguments": '{"b": "x"}'}}])
        | {"tools": [TOOL]},
    ]
    as_text = [{key: json.dumps(value) for key, value in row.items()} for row in rows]
    Dataset.from_list(as_text).to_parquet(tmp_path / "f.parquet")
    from_parquet = load_examples([Source("f", tmp_path / "f.parquet")]).examples
    assert [one.id for one in from_parquet] == [one.id for one in examples(tmp_path / "g", *rows)]


@pytest.mark.parametrize("topic", [{}, {"topic": "t"}, {"topic": "\u00e9"}, {"topic": None}])
@pytest.mark.parametrize("texts", [("q", "a"), (" q\n", "[]"), ("\u00e9", "{}"), ("\u200b", "a")])
def test_the_quick_way_for_plain_rows_leads_to_the_same(
    texts: tuple[str, str], topic: dict[str, Any]
) -> None:
    for pair in (("instruction", "output"), ("prompt", "completion"), ("input", "output")):
        row = dict(zip(pair, texts, strict=True)) | topic
        assert read_form(row).record == read_form(row | {"id": 1}).record

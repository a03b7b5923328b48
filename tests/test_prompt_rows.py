"""Rows that hold what is asked alone, for the methods that sample their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_loader import load_examples
from errors import DataError
from ledger.rollouts import read_rollouts
from rows.forms import read_form
from rows.sources import Source
from test_loop import Workspace, row
from trainer_with_eval import main

ASKED = {"role": "user", "content": "Say 3"}
REWARDS = """
seen = []

def letters(answer, targets):
    seen.append(targets)
    assert targets in ([], ["7"]), targets
    return answer.count("e") - answer.count("a") / 2
"""
RL: dict[str, Any] = {
    "method": "rl",
    "rl": {"reward": "rewards.py@letters", "group_size": 3, "max_tokens": 5},
    "max_rounds": 2,
    "steps_per_round": 2,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Say 3"},
        {"instruction": "Say 3"},
        {"question": "Say 3"},
        {"input": "Say 3"},
        {"prompt": [ASKED]},
        {"prompt": json.dumps([ASKED])},
        {"messages": [ASKED]},
        {"conversations": [{"from": "human", "value": "Say 3"}]},
        {"instruction": "Say 3", "output": ""},  # blank counts as absent
        {"prompt": "Say 3", "completion": None},
    ],
)
def test_the_forms_of_a_prompt(fields: dict[str, Any]) -> None:
    reading = read_form(fields, may_ask=True)
    assert [(one.role, one.content) for one in reading.record.messages] == [("user", "Say 3")]
    assert reading.unused == ()
    with pytest.raises(ValueError, match=r"expected|is empty|not the assistant's"):
        read_form(fields)  # of sft


@pytest.mark.parametrize("may_ask", [False, True])
def test_keys_of_an_answer_beside_one_that_is_read_are_named(may_ask: bool) -> None:
    keys = {"gold": "4", "answerKey": "C", "correct_answer": "x", "reward_model": {"a": 1}}
    for answered in ({"instruction": "Say 3", "output": "3"},
                     {"messages": [ASKED, {"role": "assistant", "content": "3"}]}):  # fmt: skip
        reading = read_form({**answered, **keys}, may_ask=may_ask)
        assert reading.unused == tuple(sorted(keys))
    fields = {"prompt": "Say 3", "gold": "", "A": "x", "B": "y", "metadata": {"answer": 1}}
    assert read_form(fields, may_ask=True).unused == ("A", "B", "metadata")


def test_a_mark_beside_a_prompt_alone_marks_nothing() -> None:
    assert read_form({"prompt": "Say 3", "kto_tag": True}, may_ask=True).unused == ("kto_tag",)


@pytest.mark.parametrize(
    ("choices", "is_missing"),
    [
        (["Red", "dark  blue"], False),
        (["red", "green"], True),
        ({"A": "red", "B": "green"}, True),
        ({"text": ["red", "green"], "label": ["A", "B"]}, True),
        ('["red", "green"]', True),
        ({"temperature": 0.5}, False),
        ("red or green", False),
        ([1, 2], False),
    ],
)
def test_what_there_is_to_choose_from_stands_in_what_is_asked(
    choices: Any, is_missing: bool
) -> None:
    fields = {"instruction": "Which?\nred\nDark blue", "output": "red", "options": choices}
    if is_missing:
        with pytest.raises(ValueError, match="holds 'green', and what is asked"):
            read_form(fields)
    else:
        assert read_form(fields).unused == ("options",)


def test_what_stands_around_a_prompt_is_used() -> None:
    before = [["Say 1", "1"], ["Say 2", "2"]]
    fields = {"instruction": "Say", "input": "3", "history": before, "system": "Be short.",
              "topic": "sums", "weight": 2, "id": 7, "reasoning": "none"}  # fmt: skip
    record, unused = read_form(fields, may_ask=True)
    said = [(one.role, one.content) for one in record.messages]
    assert said[0] == ("system", "Be short.") and said[-1] == ("user", "Say\n\n3")
    assert len(said) == 6 and (record.topic, record.weight) == ("sums", 2.0)
    assert unused == ("id", "reasoning")
    tool = {"role": "tool", "content": "3", "name": "count"}
    call = {"role": "assistant", "content": "", "function_call": {"name": "count", "arguments": {}}}
    record, _ = read_form({"messages": [ASKED, call, tool]}, may_ask=True)
    assert record.messages[-1].role == "tool"


def test_answered_rows_are_what_they_are_without_the_leave() -> None:
    for fields in ({"instruction": "Say 3", "output": "3"}, {"prompt": "Say 3", "completion": "-"},
                   {"messages": [ASKED, {"role": "assistant", "content": "3"}]}):  # fmt: skip
        assert read_form(fields, may_ask=True) == read_form(fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"question": "Say 3", "answer": "3"}, '"answer" may hold the answer'),
        ({"prompt": "Say 3", "output": "3"}, '"output" may hold the answer'),
        ({"messages": [ASKED], "ground_truth": "3"}, '"ground_truth" may hold the answer'),
        ({"question": "Say 3", "answerKey": "C"}, '"answerKey" may hold the answer'),
        ({"prompt": "Say 3", "Correct Answer": "3"}, '"Correct Answer" may hold the answer'),
        ({"input": "Say 3", "ideal": ["3"]}, '"ideal" may hold the answer'),
        ({"prompt": [ASKED], "reward_model": {"ground_truth": "3"}}, '"reward_model" may hold'),
        ({"prompt": "Say 3", "label": True}, '"label" may hold the answer'),
        ({"prompt": "Say 3", "label": 0}, '"label" may hold the answer'),
        (
            {"prompt": "Say 3", "choices": ["3", "4"]},
            "holds '4', and what is asked does not",
        ),
        ({"messages": [{"role": "system", "content": "Be short."}]}, "nothing to train on"),
        ({"output": "3"}, "or what is asked alone"),
        ({"prompt": ""}, "or what is asked alone"),
        ({"prompt": "Say 3", "chosen": "3", "rejected": "4"}, "set method to dpo"),
    ],
)
def test_what_is_no_prompt(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_form(fields, may_ask=True)


def test_a_csv_of_one_column_and_its_name(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\nSay 3\nSay 3\nSay 4\n")
    source = Source("rows.csv", file, columns={"prompt": "text"})
    data = load_examples([source], holds="prompts")
    assert [one.messages[0].content for one in data.examples] == ["Say 3", "Say 4"]
    assert not data.examples[0].has_answer and data.dropped.counts["duplicate"] == 1
    with pytest.raises(DataError, match=r'Expected .*"prompt".*found keys: prompt|found keys'):
        load_examples([source])


@pytest.mark.parametrize("name", ["problem", "text", "QUERY"])
def test_a_column_of_prompts_is_named_and_the_line_helps(tmp_path: Path, name: str) -> None:
    """Also a text alone, which is no training row and may well be a prompt."""
    file = tmp_path / "rows.csv"
    file.write_text(f"{name},level\nSay 3,1\n")
    with pytest.raises(DataError) as refused:
        load_examples([Source("rows.csv", file)], holds="prompts")
    line = f'here probably "data": {{"columns": {{"prompt": "{name}"}}}}.'
    assert str(refused.value).endswith(line)
    data = load_examples([Source("rows.csv", file, columns={"prompt": name})], holds="prompts")
    assert data.examples[0].messages[0].content == "Say 3"


@pytest.fixture
def asking(workspace: Workspace) -> Workspace:
    """Rows without answers and one with, and one that an evaluation asks."""
    (workspace.folder / "rewards.py").write_text(REWARDS)
    rows: list[dict[str, Any]] = [{"prompt": f"Say {i}", "topic": "sums"} for i in range(9)]
    rows.append({"messages": [{"role": "user", "content": "Hello"},
                              {"role": "assistant", "content": "Hello."}, ASKED]})  # fmt: skip
    rows += [row(7), {"prompt": "Which word stands at place 3?"}, {"prompt": "word " * 3000}]
    workspace.write_rows("train.jsonl", rows)
    workspace.write_rows("pool.jsonl", [{"question": f"Say {i}"} for i in range(100, 112)])
    return workspace


def test_a_run_on_prompts(asking: Workspace, capsys: pytest.CaptureFixture) -> None:
    assert asking.run("run", **RL) == 0
    printed = capsys.readouterr().err
    assert "reward: rewards.py@letters; the own answer of train.jsonl line 11 is worth 0" in printed
    assert "train_file: 10 of 11 rows have no answer" in printed
    dropped = (asking.folder / "run/data_dropped.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["line_no"]: json.loads(line)["kind"] for line in dropped}
    assert kinds == {12: "contaminated", 13: "no_loss_tokens"}
    store = asking.store("run")
    groups = [one for step in range(4) for one in read_rollouts(store.run_dir, step) or ()]
    assert {one.reference for one in groups} <= {None, "7"} and None in {
        one.reference for one in groups
    }
    assert {"Hello"}.isdisjoint(one.question for one in groups)  # asked is the last turn
    assert "Say 10" in (asking.folder / "run/report.html").read_text()
    assert main(["--resume", f"{asking.folder / 'run'}@round_01"]) == 0
    capsys.readouterr()
    assert asking.run("other", "--preview", "11", **RL) == 0
    shown = capsys.readouterr().out
    assert "train.jsonl line 10" in shown and "Say 3" in shown
    assert asking.run("other", "--dry-run", **RL) == 0


@pytest.mark.parametrize("way", ["on_policy", "off_policy"])
def test_a_teacher_answers_prompts(asking: Workspace, way: str) -> None:
    distill = {"way": way, "teacher": "runs/p@round_01", "max_tokens": 4}
    asking.write_rows("taught.jsonl", [row(i) for i in range(8)])
    parent = {"train_file": "taught.jsonl", "max_rounds": 1}
    assert asking.run("runs/p", **{**parent, "mining": {"strategy": "topics"}}) == 0
    changes = {"method": "distill", "distill": distill, "steps_per_round": 1}
    assert asking.run("run", **changes) == 0
    assert asking.store("run").num_rounds == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl": {**RL["rl"], "reward": "includes"}}, "train.jsonl line 1: rl.reward is includes"),
        ({"data": {"val_share": 0.3}}, "it has no answer, and data.val_share"),
        ({"method": "sft", "rl": None}, "train.jsonl: 12 of 13 rows cannot be used"),
        ({"method": "sft", "rl": None}, "12 of them hold what is asked and no answer"),
        ({"method": "sft", "rl": None}, "rl, where a program judges"),
    ],
)
def test_where_an_answer_is_needed_the_row_is_named(
    asking: Workspace, capsys: pytest.CaptureFixture, changes: dict[str, Any], said: str
) -> None:
    assert asking.run("run", **{**RL, **changes}) == 2
    assert said in capsys.readouterr().err

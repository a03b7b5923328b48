"""One prompt with two answers: in rows that are trained on, and in questions that are graded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_loader import CleanSplit, clean_split, load_examples
from errors import DataError
from evaluation.tasks import EvalTask
from loop.planning.question_notes import describe_questions
from rows.contamination import EvalTexts
from rows.examples import ExampleTable
from rows.refused_rows import Holds
from rows.sources import Source
from simple_eval import load_questions
from test_loop import Workspace, row


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def cleaned(folder: Path, rows: Sequence[dict[str, Any]], holds: Holds = "answers") -> CleanSplit:
    source = Source("rows.jsonl", written(folder / "rows.jsonl", rows))
    table = load_examples([source], holds=holds).examples
    return clean_split(table, ExampleTable(), EvalTexts(()))


def said(asked: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"instruction": asked, "output": answer, **more}


@pytest.mark.parametrize(
    ("rows", "num_rows"),
    [
        ([said("Capital of France?", "Paris"), said("capital of  france", "Lyon")], 2),
        ([said("2 + 2?", "4"), said("2+2", "5"), said("2 + 2 =", "4")], 2),  # "=" asks otherwise
        ([said("Say it", "Paris"), said("Say it.", "paris.")], 0),  # the same answer
        ([said("Is C++ old?", "yes"), said("Is C# old?", "no")], 0),
        ([said("What is 2²?", "4"), said("What is 22?", "22")], 0),
        ([said("What is -4?", "a"), said("What is 4?", "b")], 0),
        ([said("Say 1", "1"), said("Say 1", "one", system="Use words.")], 0),
        ([said("Say 1", "1", topic="a"), said("Say 1", "2", topic="b", weight=2)], 2),
        ([said("Say 1", "1", reasoning="a"), said("Say 1", "1", reasoning="b")], 0),
        ([said("Say 1", "<think>a</think>1"), said("Say 1", "<think>b</think>2")], 2),
        ([said("Say 1", "1", tools=[{"name": "f"}]), said("Say 1", "2")], 0),
        ([said("Say 1", "1", history=[["a", "b"]]), said("Say 1", "2")], 0),
        ([said("法国的首都是哪里\uff1f", "巴黎"), said("法国的首都是哪里", "里昂。")], 2),
    ],
)
def test_which_rows_have_another_answer(
    tmp_path: Path, rows: list[dict[str, Any]], num_rows: int
) -> None:
    split = cleaned(tmp_path, rows)
    assert split.other_answers.num_rows == num_rows
    assert len(split.train) == len(rows)  # none is left out
    assert split.similar.counts["other_answer"] == (num_rows > 0)


def test_the_worst_come_first_with_both_places(tmp_path: Path) -> None:
    long = "A story of a king who went to the sea"
    rows = [
        *(said("Write a story", f"{long} {number}") for number in range(4)),
        *(said("Largest city?", city) for city in ("Rome", "Oslo", "rome")),
        *(said("Best colour?", colour) for colour in ("red", "blue", "grey")),
    ]
    split = cleaned(tmp_path, rows)
    assert split.other_answers == (3, 10, 6)
    listed = [(one.line_no, one.text) for one in split.similar]
    assert listed[:3] == [(9, "Best colour?"), (10, "Best colour?"), (6, "Largest city?")]
    assert split.similar[2].reason == "answers 'Oslo', and line 5 answers 'Rome'"
    assert len(split.similar) == 2 + 1 + 3


def test_what_answers_nothing_has_no_other_answer(tmp_path: Path) -> None:
    prompts = [{"prompt": "Say 1"}, {"messages": [{"role": "user", "content": "Say 1."}]}]
    assert cleaned(tmp_path, prompts, "prompts").other_answers.num_rows == 0
    pairs = [{"prompt": "Say 1", "chosen": "1", "rejected": one} for one in ("2", "3")]
    pairs.append({"prompt": "Say 1", "chosen": "one", "rejected": "2"})
    assert cleaned(tmp_path, pairs, "pairs").other_answers.num_rows == 0
    turns = [{"role": "user", "content": "Say 1"}]
    unweighted = [{"role": "assistant", "content": "2", "weight": 0}]
    earlier = [{"role": "assistant", "content": "1"}, {"role": "user", "content": "Again"}]
    rows = [said("Say 1", "1"), {"messages": [*turns, *earlier, *unweighted]}]
    assert cleaned(tmp_path, rows).other_answers.num_rows == 0


def test_the_plan_and_the_run_say_it(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    """Also where one of the rows is in the pool."""
    workspace.write_rows("train.jsonl", [*(row(i) for i in range(30)), said("say  3.", "three")])
    pool = [row(i) for i in range(100, 130)]
    workspace.write_rows("pool.jsonl", [*pool, said("Say 4", "four")])
    assert workspace.run("run", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = told["data"]["other_answers"]
    assert (found["num_prompts"], found["num_rows"], found["num_short"]) == (2, 4, 4)
    assert found["share"] == pytest.approx(4 / 62)
    assert {(one["file"], one["line_no"]) for one in found["worst"]} == {
        ("train.jsonl", 31),
        ("pool.jsonl", 31),
    }
    assert "contradicting_rows" in [one["name"] for one in told["risks"]]
    line = next(one for one in told["plan"] if one.startswith("other answers: "))
    assert "4 rows (6%) ask 2 prompts that other rows answer differently" in line
    page = (workspace.folder / "config.plan/plan.html").read_text()
    assert "other rows answer differently" in page and "line 5 of train.jsonl" in page
    assert workspace.run("run", max_rounds=1) == 0
    capsys.readouterr()
    store = workspace.store("run")
    assert store.manifest().num_other_answers == 4
    kinds = [
        json.loads(line)["kind"]
        for line in (store.run_dir / "data_similar.jsonl").read_text().splitlines()
    ]
    assert kinds.count("other_answer") == 2
    assert store.manifest().num_similar == kinds.count("similar")
    assert "Rows with other answers" in (store.run_dir / "report.html").read_text()
    report = (store.run_dir / "eval_report.md").read_text()
    assert "Rows whose prompt other rows answer differently: 4" in report


# --- questions ------------------------------------------------------------------------------------


def notes(folder: Path, *files: Sequence[dict[str, Any]], num_sealed: int = 0) -> list[str]:
    tasks = []
    for number, rows in enumerate(files):
        path = written(folder / f"q{number}.jsonl", rows)
        name = f"qa:{path.name}"
        tasks.append(EvalTask(name, 3, "score", 1, load_questions(name, path)))
    end = len(tasks) - num_sealed
    return list(describe_questions(tasks[:end], tasks[end:]))


def asked(question: str, answer: Any, **more: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


@pytest.mark.parametrize(
    ("rows", "is_told"),
    [
        ([asked("2 + 2?", "4", id=1), asked("2 + 2?", "5", id=2)], True),
        ([asked("2 + 2?", "4"), asked("2+2", "5")], True),
        ([asked("2 + 2?", "4"), asked("2+2", "4.0")], False),
        ([asked("Capital?", ["Rome", "Roma"]), asked("capital", "roma")], False),
        ([asked("2 + 2?", "4", grader="numeric"), asked("2+2", "5", grader="numeric")], True),
        ([asked("Metres?", "1000"), asked("metres", "1,000")], False),
        ([asked("Tower?", "Eiffel Tower"), asked("tower", "the Eiffel Tower")], False),
        ([asked("Half?", "0.5", grader="numeric"), asked("half", "1/2", grader="numeric")], False),
        ([asked("C++?", "a"), asked("C#?", "b")], False),
        ([asked("Capital?", "Rome"), asked("capital", "Oslo", grader="exact")], False),
        ([asked("Capital?", "Rome"), asked("capital", "Oslo", system="Of Norway.")], False),
    ],
)
def test_questions_whose_answers_exclude_each_other(
    tmp_path: Path, rows: list[dict[str, Any]], is_told: bool
) -> None:
    for files in ((rows,), tuple([one] for one in rows)):  # in one file, and in two
        told = notes(tmp_path, *files)
        assert bool(told) is is_told
        if told:
            assert "at most one of the two can be right" in told[0]
            assert "line 1" in told[0] and "'4' and '5'" in told[0]


def test_no_text_of_a_sealed_test_is_told(tmp_path: Path) -> None:
    rows = [asked("2 + 2?", "4"), asked("2+2", "5")]
    (told,) = notes(tmp_path, rows, num_sealed=1)
    assert "line 1 and qa:q0.jsonl line 2" in told and "2 + 2" not in told and "'4'" not in told


def test_answers_that_are_compared_whole(tmp_path: Path) -> None:
    rows = [
        asked("One?", '["a", "b"]'),
        asked("Two?", "1 + 1 = 2\n#### 2"),
        asked("Three?", "[x]"),
        asked("Four?", "2 ** 3 #### no"),
    ]
    listed, solution = notes(tmp_path, rows)
    assert "of 1 question hold a list as text" in listed and "line 1" in listed
    assert "of 1 question hold a worked solution" in solution and "line 2" in solution


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (4, ("4",)),
        (4.0, ("4.0",)),
        (1e-05, ("0.00001",)),
        (["4", 4], ("4", "4")),
        (True, "but true without quotes"),
        (None, "but nothing"),
        ([], "but an empty list"),
        (["4", None], "a list with nothing"),
        ([["4"]], "a list with a list in it"),
        ({"text": "4"}, "but an object"),
        (" ", "but a blank text"),
    ],
)
def test_what_an_answer_may_be(tmp_path: Path, answer: Any, found: tuple[str, ...] | str) -> None:
    path = written(tmp_path / "q.jsonl", [asked("2 + 2?", answer)])
    if isinstance(found, tuple):
        assert load_questions("qa:q.jsonl", path).questions[0].answers == found
    else:
        with pytest.raises(DataError, match=found):
            load_questions("qa:q.jsonl", path)

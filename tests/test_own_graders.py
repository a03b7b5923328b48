"""Graders of the user's own: asked as ours are, recorded as code, and never the end of a run."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest

from errors import ConfigError
from simple_eval import QuestionTask, load_questions
from test_loop import Workspace, start
from trainer_with_eval import main
from user_code.own_graders import Verdict, load_own_graders

GRADERS = """
import asyncio
import numpy
from rules import HALF

def same(answer, targets):
    print("on its way")
    return answer.strip() in targets

def half(answer: str, targets: list[str]) -> float:
    return HALF

async def later(answer, targets):
    await asyncio.sleep(0)
    return 1.0

def rounded(answer, targets):
    return numpy.float32(1.0000001)

def raises(answer, targets):
    raise KeyError("no such answer")

def stops(answer, targets):
    raise SystemExit("enough")

def interrupts(answer, targets):
    raise KeyboardInterrupt("not by a person")

class Odd(BaseException):
    pass

def odd(answer, targets):
    raise Odd("of its own kind")

def cancels(answer, targets):
    raise asyncio.CancelledError("by itself")

async def cancels_later(answer, targets):
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task

async def waits(answer, targets):
    await asyncio.sleep(60)

def word(answer, targets):
    return "correct"

def nothing(answer, targets):
    return None

def beyond(answer, targets):
    return 85

def undecided(answer, targets):
    return float("nan")

def alone(answer):
    return 1

VALUE = 3
"""
RULES = "HALF = 0.5\n"


def task_of(folder: Path, *names: str, code: str = GRADERS) -> QuestionTask:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine/graders.py").write_text(code)
    (folder / "mine/rules.py").write_text(RULES)
    rows = [
        {"question": f"{i}?", "answer": "x", "grader": f"mine/graders.py@{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_questions("qa:q.jsonl", folder / "q.jsonl")


def verdict(folder: Path, name: str, answer: str = "x") -> Verdict:
    task = task_of(folder, name)
    return asyncio.run(task.graders[f"mine/graders.py@{name}"].verdict(answer, ("x", "y")))


@pytest.mark.parametrize(
    ("name", "answer", "score"),
    [("same", "x", 1.0), ("same", "z", 0.0), ("half", "", 0.5), ("later", "", 1.0),
     ("rounded", "", 1.0)],
)  # fmt: skip
def test_a_function_beside_the_questions_grades(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, answer: str, score: float
) -> None:
    assert verdict(tmp_path, name, answer) == (score, None)
    assert capsys.readouterr().out == ""  # stdout is for results


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raises", "raised KeyError: 'no such answer'"),
        ("stops", "ended with SystemExit: enough"),
        ("odd", "raised Odd: of its own kind"),
        ("cancels", "raised CancelledError: by itself"),
        ("cancels_later", "raised CancelledError: "),
        ("word", "gave 'correct' of type str, and a score is a number"),
        ("nothing", "gave something of type NoneType"),
        ("beyond", "gave 85.0, and a score is from 0 to 1"),
        ("undecided", "gave nan, and a score is from 0 to 1"),
    ],
)
def test_what_goes_wrong_is_the_reason_of_a_failed_sample(
    tmp_path: Path, name: str, problem: str
) -> None:
    score, said = verdict(tmp_path, name)
    assert score == 0.0
    assert said is not None and said.startswith(f"the grader mine/graders.py@{name} {problem}")


def test_a_real_ctrl_c_and_a_real_cancelling_are_no_failed_samples(tmp_path: Path) -> None:
    """Where no event loop hears the signals, a KeyboardInterrupt may be a real one."""
    with pytest.raises(KeyboardInterrupt):
        verdict(tmp_path, "interrupts")
    task = task_of(tmp_path, "waits")

    async def cancelled() -> None:
        asked = asyncio.ensure_future(task.graders["mine/graders.py@waits"].verdict("x", ("x",)))
        await asyncio.sleep(0)
        asked.cancel()
        await asked

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("absent", GRADERS, "is no function of that file"),
        ("VALUE", GRADERS, "is no function of that file"),
        ("alone", GRADERS, "does not take an answer and a list"),
        ("same", "def same(:", "cannot be loaded from"),
        ("same", "import no_such_module", "ModuleNotFoundError"),
        ("same", "raise SystemExit(3)", "SystemExit"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_first_step(
    tmp_path: Path, name: str, code: str, part: str
) -> None:
    with pytest.raises(ConfigError, match=f"the grader mine/graders.py@{name} ") as caught:
        task_of(tmp_path, name, code=code)
    assert part in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    row = {"question": "a?", "answer": "x", "grader": "gone.py@f"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"gone\.py: FileNotFoundError"):
        load_questions("qa:q.jsonl", tmp_path / "q.jsonl")


def test_its_code_is_part_of_the_task(tmp_path: Path) -> None:
    first = task_of(tmp_path, "same", "half")
    assert {Path(file).name for file in first.code} == {"graders.py", "rules.py"}
    assert task_of(tmp_path, "same", "half").sha256 == first.sha256
    assert task_of(tmp_path, "same", "half", code=GRADERS + "#\n").sha256 != first.sha256


@pytest.fixture
def begun(workspace: Workspace) -> Workspace:
    """A run of one round whose questions two graders of the user's judge, in the folder r."""
    (workspace.folder / "graders.py").write_text(GRADERS)
    (workspace.folder / "rules.py").write_text(RULES)
    names = ["half"] * 11 + ["raises"]
    rows = [
        {"question": f"{i}?", "answer": "x", "grader": f"graders.py@{name}"}
        for i, name in enumerate(names)
    ]
    workspace.write_rows("questions.jsonl", rows)
    workspace.settings |= {"max_rounds": 1}
    return workspace


def test_a_run_counts_what_failed_and_refuses_other_code(
    begun: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert begun.run("r") == 0
    result = begun.store("r").result(1)
    assert result is not None and (result.n, result.num_failed) == (12, 1)
    given = [sample for task in result.tasks for sample in task.samples]
    assert {sample.score for sample in given if sample.error is None} <= {0.0, 0.5}
    (failed,) = [sample.error for sample in given if sample.error is not None]
    assert "raised KeyError: 'no such answer'" in failed
    manifest = json.loads((begun.folder / "r/data_manifest.json").read_text())
    assert sorted(manifest["code"]) == ["graders.py", "rules.py"]
    resume = ["--resume", str(begun.folder / "r"), "--set", "max_rounds=2"]
    for file, content in (("rules.py", RULES), ("graders.py", GRADERS)):
        (begun.folder / file).write_text("raise SystemExit('it was run')\n")
        capsys.readouterr()
        assert main(resume) == 2
        said = capsys.readouterr().err
        assert f"{file}: this Python file belongs to a task of the run" in said
        assert "it was run" not in said
        (begun.folder / file).write_text(content)
    assert main(resume) == 0


def test_a_grader_that_interrupts_itself_does_not_end_the_run(begun: Workspace) -> None:
    names = [*["half"] * 30, "interrupts", "cancels", "odd"]
    rows = [
        {"question": f"{i}?", "answer": "x", "grader": f"graders.py@{name}"}
        for i, name in enumerate(names)
    ]
    begun.write_rows("questions.jsonl", rows)
    assert begun.run("r") == 0
    result = begun.store("r").result(1)
    assert result is not None and (result.n, result.num_failed) == (33, 3)
    said = [sample.error or "" for sample in result.samples if sample.error is not None]
    kinds = ("KeyboardInterrupt: not by a person", "CancelledError: by itself", "Odd: of its own")
    assert all(f"raised {kind}" in one for kind, one in zip(kinds, said, strict=True))


def test_ctrl_c_while_a_grader_works_stops_the_run(begun: Workspace) -> None:
    rows = [{"question": f"{i}?", "answer": "x", "grader": "slow.py@grade"} for i in range(400)]
    begun.write_rows("questions.jsonl", rows)
    (begun.folder / "slow.py").write_text(
        "import pathlib, time\n"
        "def grade(answer, targets):\n"
        "    pathlib.Path('at_work').touch()\n"
        "    time.sleep(0.05)\n"
        "    return 1\n"
    )
    process = start(begun, "r")
    while not (begun.folder / "at_work").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told
    assert begun.events("r")[-1]["type"] == "interrupted"


def test_a_grader_that_always_fails_is_no_score(
    begun: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"question": f"{i}?", "answer": "x", "grader": "graders.py@word"} for i in range(4)]
    begun.write_rows("questions.jsonl", rows)
    assert begun.run("r") == 1
    assert "4 of 4 samples failed" in capsys.readouterr().err


def test_a_grader_that_changes_folder_leaves_the_run_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio
    import os

    (tmp_path / "other").mkdir()
    text = "import os\n\ndef grade(answer, targets):\n    os.chdir('other')\n    return 1\n\n"
    text += "async def later(answer, targets):\n    return grade(answer, targets)\n"
    (tmp_path / "g.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    names = ("g.py@grade", "g.py@later")
    graders, _ = load_own_graders(tmp_path / "q.jsonl", names)
    for name in names:
        assert asyncio.run(graders[name].verdict("a", ["a"])).score == 1
        assert os.getcwd() == str(tmp_path)

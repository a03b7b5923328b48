"""Whoever read the output goes away, or was never there: the run ends as an interrupted one, with
its ledger, its alert and its weights, and goes on with --resume."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import forked
from conftest import REPO, thorough_only
from test_loop import Workspace
from trainer_with_eval import main

PROGRAM = str(REPO / "trainer_with_eval.py")
# An answer that is graded only when the reader has gone, so that the evaluation is still at work.
PATIENT = """
import pathlib, time
def graded(answer, accepted):
    ends = time.monotonic() + 60
    while not pathlib.Path("gone").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    return False
"""


@pytest.fixture
def alert(tmp_path: Path) -> list[str]:
    """Arguments for an alert that keeps what it is given."""
    script = tmp_path / "keep.py"
    script.write_text(
        "import pathlib, sys\npathlib.Path('alert.json').write_text(sys.stdin.read())"
    )
    return ["--alert", shlex.join([sys.executable, str(script)])]


def leave_after(words: list[str], start: str, folder: Path, *, is_shared: bool = False) -> int:
    """Run the program and close its standard error (with `is_shared` its output goes there as well)
    at the first line that begins with `start`, of which the file `gone` tells; the exit code."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream, os.fdopen(writing, "w") as written:
        output = written if is_shared else None
        process = forked.Process(PROGRAM, *words, stdout=output, stderr=written, cwd=folder)
        written.close()
        for line in stream:
            if line.startswith(start):
                break
        else:
            raise AssertionError(f"no line begins with {start!r}")
    (folder / "gone").touch()
    with process:
        return process.wait(120)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_reader_that_leaves_in_training_interrupts_the_run(
    workspace: Workspace, alert: list[str], is_shared: bool
) -> None:
    words = [*workspace.arguments("run", steps_per_round=60, max_rounds=1), "-v", *alert]
    assert leave_after(words, "round 1 step 3", workspace.folder, is_shared=is_shared) == 130
    *_, saved, last = workspace.events("run")
    assert (saved["type"], last["type"]) == ("checkpoint", "interrupted")
    assert saved["step"] < 60
    assert "Nobody read the progress any more" in last["detail"]
    told = json.loads((workspace.folder / "alert.json").read_text())
    assert told["alert"] == "interrupted"
    assert told["run_dir"] == str(workspace.folder / "run")
    assert main(["--resume", str(workspace.folder / "run")]) == 0
    steps = [e["step"] for e in workspace.events("run") if e["type"] == "step"]
    assert steps == list(range(60))  # none was lost, none taken twice


def test_a_reader_that_leaves_in_an_evaluation_interrupts_the_run(
    workspace: Workspace, alert: list[str]
) -> None:
    (workspace.folder / "patient.py").write_text(PATIENT)
    question = {"question": "Which word is last?", "answer": "x", "grader": "patient.py@graded"}
    workspace.write_rows("last.jsonl", [question])
    changes = {"eval_tasks": ["qa:questions.jsonl", "qa:last.jsonl"], "max_rounds": 1}
    words = [*workspace.arguments("run", **changes), *alert]
    # nothing is said from here on until the evaluation is over; that line is the one that is lost
    assert leave_after(words, "run directory", workspace.folder) == 130
    assert workspace.events("run")[-1]["type"] == "interrupted"
    assert (workspace.folder / "alert.json").exists()
    assert main(["--resume", str(workspace.folder / "run")]) == 0
    events = workspace.events("run")
    assert events[-1]["type"] == "run_finished"
    baselines = [e for e in events if e["type"] == "evaluated" and e["round"] == 0]
    assert len(baselines) == 1  # what was measured is kept


def test_a_reader_that_leaves_at_the_very_end_loses_what_it_would_have_read_alone(
    workspace: Workspace,
) -> None:
    words = [*workspace.arguments("run", max_rounds=1)]
    assert leave_after(words, "round 1: 3 steps", workspace.folder) in (0, 130)
    if workspace.events("run")[-1]["type"] != "run_finished":
        assert main(["--resume", str(workspace.folder / "run")]) == 0
    assert workspace.events("run")[-1]["type"] == "run_finished"


@pytest.mark.parametrize(
    ("flags", "start"),
    [([], "run: reading"), (["--json"], '{"type": "message", "text": "run: rea')],
)
def test_a_reader_that_leaves_before_the_run_began_is_told_by_the_alert(
    workspace: Workspace, alert: list[str], flags: list[str], start: str
) -> None:
    words = [*workspace.arguments("run"), *flags, *alert]
    assert leave_after(words, start, workspace.folder) == 130
    assert json.loads((workspace.folder / "alert.json").read_text())["run_dir"] is None
    assert not (workspace.folder / "run").exists()


def test_a_reader_of_the_result_that_leaves_loses_the_result_alone(workspace: Workspace) -> None:
    """The run is finished by then; nothing is to be resumed."""
    reading, writing = os.pipe()
    os.close(reading)
    words = workspace.arguments("run", max_rounds=1)
    with (
        os.fdopen(writing, "w") as output,
        forked.Process(PROGRAM, *words, stdout=output, cwd=workspace.folder) as process,
    ):
        assert process.wait(120) == 1
    assert workspace.events("run")[-1]["type"] == "run_finished"


# As a new interpreter has it whose standard output was never open.
WITHOUT_OUTPUT = """
import os, runpy, sys
os.close(1)
sys.stdout = None
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_output_that_was_never_open_is_no_file_of_the_run(workspace: Workspace) -> None:
    words = ["-c", WITHOUT_OUTPUT, PROGRAM, *workspace.arguments("run", max_rounds=1)]
    with forked.Process(*words, cwd=workspace.folder) as process:
        assert process.wait(120) == 0
    assert_is_whole(workspace)


@thorough_only
def test_streams_that_were_never_open_are_no_file_of_the_run(workspace: Workspace) -> None:
    """Else the ledger gets the number of standard error, and what a library writes to it."""
    words = shlex.join([sys.executable, PROGRAM, *workspace.arguments("run", max_rounds=1)])
    shut = "0<&- 1>&- 2>&-"
    done = subprocess.run(["sh", "-c", f"{words} {shut}"], cwd=workspace.folder, timeout=120)
    assert done.returncode == 0
    assert_is_whole(workspace)


def assert_is_whole(workspace: Workspace) -> None:
    assert workspace.events("run")[-1]["type"] == "run_finished"
    assert os.path.getsize(workspace.folder / "run" / "eval_report.md") > 0

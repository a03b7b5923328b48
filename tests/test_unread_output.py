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

from conftest import REPO
from test_loop import Workspace
from trainer_with_eval import main

PROGRAM = [sys.executable, str(REPO / "trainer_with_eval.py")]
MANY = [{"question": f"Which word stands at line {i}?", "answer": "x"} for i in range(600)]


@pytest.fixture
def alert(tmp_path: Path) -> list[str]:
    """Arguments for an alert that keeps what it is given."""
    script = tmp_path / "keep.py"
    script.write_text(
        "import pathlib, sys\npathlib.Path('alert.json').write_text(sys.stdin.read())"
    )
    return ["--alert", shlex.join([sys.executable, str(script)])]


def leave_after(words: list[str], start: str, folder: Path, *, is_shared: bool = False) -> int:
    """Run a command and close its standard error (with `is_shared` its output goes there as well)
    at the first line that begins with `start`; the exit code."""
    out, errors = subprocess.DEVNULL, subprocess.PIPE
    if is_shared:
        out, errors = subprocess.PIPE, subprocess.STDOUT
    process = subprocess.Popen(words, stdout=out, stderr=errors, text=True, cwd=folder)
    stream = process.stdout if is_shared else process.stderr
    assert stream is not None
    for line in stream:
        if line.startswith(start):
            break
    else:
        raise AssertionError(f"no line begins with {start!r}")
    stream.close()
    return process.wait(120)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_reader_that_leaves_in_training_interrupts_the_run(
    workspace: Workspace, alert: list[str], is_shared: bool
) -> None:
    words = [*PROGRAM, *workspace.arguments("run", steps_per_round=60, max_rounds=1), "-v", *alert]
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
    workspace.write_rows("many.jsonl", MANY)
    changes = {"eval_tasks": ["qa:questions.jsonl", "qa:many.jsonl"], "max_rounds": 1}
    words = [*PROGRAM, *workspace.arguments("run", **changes), *alert]
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
    words = [*PROGRAM, *workspace.arguments("run", max_rounds=1)]
    assert leave_after(words, "round 1: 3 steps", workspace.folder) in (0, 130)
    if workspace.events("run")[-1]["type"] != "run_finished":
        assert main(["--resume", str(workspace.folder / "run")]) == 0
    assert workspace.events("run")[-1]["type"] == "run_finished"


def test_a_reader_that_leaves_before_the_run_began_is_told_by_the_alert(
    workspace: Workspace, alert: list[str]
) -> None:
    words = [*PROGRAM, *workspace.arguments("run"), *alert]
    assert leave_after(words, "run: reading", workspace.folder) == 130
    assert json.loads((workspace.folder / "alert.json").read_text())["run_dir"] is None
    assert not (workspace.folder / "run").exists()


def test_a_reader_of_the_result_that_leaves_loses_the_result_alone(workspace: Workspace) -> None:
    """The run is finished by then; nothing is to be resumed."""
    process = subprocess.Popen(
        [*PROGRAM, *workspace.arguments("run", max_rounds=1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=workspace.folder,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 1
    assert workspace.events("run")[-1]["type"] == "run_finished"


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_streams_that_were_never_open_are_no_file_of_the_run(
    workspace: Workspace, closed: tuple[int, ...]
) -> None:
    """Else the ledger gets the number of standard error, and what a library writes to it."""
    words = shlex.join([*PROGRAM, *workspace.arguments("run", max_rounds=1)])
    shut = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    done = subprocess.run(["sh", "-c", f"{words} {shut}"], cwd=workspace.folder, timeout=120)
    assert done.returncode == 0
    assert workspace.events("run")[-1]["type"] == "run_finished"
    assert os.path.getsize(workspace.folder / "run" / "eval_report.md") > 0

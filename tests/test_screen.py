"""What a person reads: lines broken at words, what is going on, where a resumed run takes up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forked
from conftest import REPO
from fake_evalops import fake_evalops
from hyperparam_utils import MAX_SANE_LR, lr_warning
from loop.reports.lines import columns_of, seconds_text, time_left, wrapped
from loop.reports.live import QUIET_S, Now
from terminal import Screen, forked_on_terminal, on_terminal
from test_loop import Workspace, start, wait_for
from trainer_with_eval import main

LONG = "/a/path/that/is/longer/than/a/narrow/terminal/and/is/to/be/copied/whole.jsonl"
TEXT = f"  weakest topics: calendar 0 of 2, {LONG} and then some more words, one after the other"


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("text", [TEXT, "one two " * 40, "x" * 200, "", "\n\n", "資料 " * 60])
def test_lines_break_at_words_and_hang(text: str, width: int) -> None:
    made = wrapped(text, width)
    assert made.split() == text.split()  # nothing is cut, doubled or lost
    for line in made.splitlines():
        assert columns_of(line) <= width or len(line.split()) == 1
    first, *others = made.splitlines() or [""]
    indent = re.match(r" *", text.split("\n")[0])
    assert indent is not None and first.startswith(indent[0])
    assert all(line.startswith(f"{indent[0]}  ") for line in others if line)


def test_what_fits_stays_as_it_is() -> None:
    assert wrapped("two  spaces stay", 80) == "two  spaces stay"
    assert wrapped("a\n  b", 80) == "a\n  b"


def test_a_command_is_a_line_that_can_be_copied() -> None:
    command = "python trainer_with_eval.py --resume runs/a --set max_rounds=5 --set seed=3"
    made = wrapped(f"Interrupted before step 3. Continue with: {command}", 40, "python ")
    assert made.splitlines()[-1].strip() == command
    assert made.splitlines()[0] == "Interrupted before step 3. Continue"


def test_times_are_told_as_far_as_they_are_known() -> None:
    assert [seconds_text(s) for s in (0.2, 12.4, 150, 86_400)] == ["1 s", "12 s", "2 min", "24 h"]
    assert time_left(0, 60, 0.0) == ""
    assert time_left(20, 60, 10.0) == "~20 s left"
    assert time_left(60, 60, 30.0) == ""
    assert time_left(61, 60, 30.0) == ""  # a task whose solver asks more than once


def test_a_live_line_says_when_nothing_comes() -> None:
    now = Now("measuring round_02 17/60", is_asking=True, since=100.0)
    assert now.shown(101.0) == "measuring round_02 17/60"
    assert now.shown(100.0 + QUIET_S + 20).endswith("17/60; waiting for the service for 25 s")
    assert Now("loading the base model", since=0.0).shown(12.0).endswith("; still at it for 12 s")


def test_on_a_terminal_a_run_says_what_it_is_doing_and_breaks_no_word(workspace: Workspace) -> None:
    columns = 40
    arguments = workspace.arguments("run", steps_per_round=6, max_rounds=1)
    words = [str(REPO / "trainer_with_eval.py"), *arguments]
    code, written = forked_on_terminal(words, columns, workspace.folder)
    assert code == 0
    text = written.decode()
    assert text.startswith("starting\r")  # before anything is imported that takes long
    assert "loading libraries" in text
    # Which of the others are drawn depends on how long each of them takes.
    lives = "loading the base model|preparing the adapter|round 1 step [1-6]/6|measuring round_0"
    assert re.search(lives, text)
    screen = Screen(10_000).feed(text)  # so wide that no row goes on in the next
    assert screen.is_cursor_shown
    lines = screen.lines
    assert lines[:2] == ["run: reading settings and data, loading", "  libraries"]
    too_long = [line for line in lines if columns_of(line) > columns and len(line.split()) > 1]
    # paths, and commands that are to be copied, stay whole
    assert all("/" in line for line in too_long), too_long
    assert "What to try next:" in lines
    assert any(line.startswith("round 1: 6 steps, loss ") for line in lines)
    # No live row is left over, and none was longer than the terminal is wide.
    assert not [line for line in lines if "measuring round" in line or " step 1/6" in line]
    live = re.findall(r"\x1b\[2K([^\x1b\r\n]+)(?=\r(?!\n))", text)
    assert live and all(columns_of(row) < columns for row in live)


def shown(words: list[str], columns: int, folder: Path) -> str:
    code, written = on_terminal(words, columns, folder)
    assert code == 0
    return written.decode()


def test_the_saved_weights_can_be_read_at_80_columns(workspace: Workspace) -> None:
    """Each path on a line of its own; in a pipe a row stays a line."""
    workspace.folder.joinpath("runs").mkdir()
    assert workspace.run("runs/run", max_rounds=2) == 0
    shutil.rmtree(workspace.folder / "runs/run/checkpoints")  # so that rows have two marks
    words = [sys.executable, str(REPO / "trainer_with_eval.py"), "--list", "runs/run"]
    saved = [one.path for one in workspace.store("runs/run").saved_weights()]
    for columns in (60, 80):
        lines = shown(words, columns, workspace.folder).splitlines()
        assert {line.strip() for line in lines} >= set(saved)
        table = [line for line in lines if not line.strip().startswith("tinker://")]
        assert any("NOT THERE)" in line for line in table)
        assert all(columns_of(line) <= max(columns, 66) for line in table)
    wide = shown(words, 200, workspace.folder)
    done = subprocess.run(words, cwd=workspace.folder, capture_output=True, text=True, check=True)
    for text in (wide, done.stdout):
        rows = [line for line in text.splitlines() if "tinker://" in line]
        assert len(rows) == len(saved) and all("NOT THERE" in row for row in rows)


# --- resuming -------------------------------------------------------------------------------------


def test_a_resumed_run_says_where_it_takes_up_and_tells_the_past_in_short(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    capsys.readouterr()
    assert main(["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2"]) == 0
    told = capsys.readouterr().err.splitlines()
    at = next(i for i, line in enumerate(told) if line.startswith("resuming "))
    assert told[at].endswith("in round 1: it is decided again, by the bounds as they are now")
    assert told[at + 1] == "  kept: the baseline, round 1, the weights after 3 steps"
    (past,) = (line for line in told if line.startswith("from the ledger"))
    assert past.startswith("from the ledger, round 0: score ")
    assert not [line for line in told if line.startswith(("round 0", "round 1: 3 steps"))]
    assert [line for line in told if line.startswith("round 2: 3 steps, loss ")]


def test_steps_that_are_taken_again_are_counted(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {"steps_per_round": 200, "max_rounds": 1, "checkpoint_every_steps": 5}
    process = start(workspace, "run", **changes)
    wait_for(process, workspace.folder / "run/ledger.jsonl", "step", 8)
    process.kill()
    process.wait(20)
    before = [e for e in workspace.events("run") if e["type"] in ("step", "checkpoint")]
    saved = max(e["step"] for e in before if e["type"] == "checkpoint")
    again = sum(e["type"] == "step" and e["step"] >= saved for e in before)
    resumed = start_resumed(workspace)
    assert f"in round 1: it trains on from step {saved} (its steps begin with 0)" in resumed
    lost = f"; {again} step{'s' * (again != 1)} after that do not count any more" if again else ""
    assert f"  kept: the baseline, the weights after {saved} steps{lost}" in resumed


def start_resumed(workspace: Workspace) -> str:
    """What a resumption says before it goes on; it is ended there."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream, os.fdopen(writing, "w") as errors:
        words = [REPO / "trainer_with_eval.py", "--resume", "run"]
        with forked.Process(*words, stderr=errors, cwd=workspace.folder):
            errors.close()
            told = ""
            for line in stream:
                told += line
                if line.startswith("run directory"):
                    break
    return told


# --- what is said once ----------------------------------------------------------------------------


def test_each_delivery_to_evalops_is_a_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("EVALOPS_API_KEY", "key-of-a-test")
    enabled = {"evalops_enabled": True, "evalops_test_suite_id": "suite-1"}
    with fake_evalops() as server:
        assert workspace.run("run", **enabled, evalops_api_url=server.url, max_rounds=1) == 0
    told = capsys.readouterr().err
    for number in (0, 1):
        assert f"EvalOps: round {number} is queued\n" in told
        assert re.search(rf"EvalOps: round {number} was posted: test run \S+\n", told)


@pytest.mark.parametrize(
    ("rate", "hidden_size", "is_warned"),
    [
        (1.0, None, True),
        (0.021, None, True),
        (MAX_SANE_LR, None, False),
        (0.003, 128, False),  # the demo
        (3e-4, 4096, False),
        (0.02, 4096, True),
        (0.01, 32, False),
        (1.0, 0, True),
    ],
)
def test_a_rate_that_breaks_the_weights_is_warned_of(
    rate: float, hidden_size: int | None, is_warned: bool
) -> None:
    warning = lr_warning(rate, hidden_size)
    assert (warning is not None) == is_warned
    if warning is not None:
        advised = re.search(r"--set learning_rate=([\d.e-]+)\.$", warning)
        assert advised is not None
        assert lr_warning(float(advised[1]), hidden_size) is None

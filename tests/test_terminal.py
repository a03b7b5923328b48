"""The live row, a round's steps, the table of rounds, and standard error for programs."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from conftest import REPO
from data_selector import Pick, Selection
from loop.reports.console import as_written, can_encode
from loop.reports.events_out import JsonLines, event_stream, for_programs
from loop.reports.lines import columns_of, cut, fitted
from loop.reports.live import Asking, Now, StepDone, Training
from loop.reports.progress import Progress, steps_text
from loop.reports.rounds_table import MAX_ROWS, RoundRow, rounds_table
from loop.reports.sparkline import BLOCKS, course_text, ends_text, five_of, sparkline
from scores.results import Measured, SampleResult, eval_result, task_result
from studies.work.screen import WORKING
from studies.work.screen import Screen as StudyScreen
from terminal import Screen, on_terminal
from test_loop import Workspace
from trainer_with_eval import main

WIDE = "\u8cc7\u6599" * 30
HUGE = [math.inf, -math.inf, math.nan, 1.7e308, -1.7e308, 5e-324, 0.0]


# --- the course of a loss -------------------------------------------------------------------------


def test_a_course_is_drawn_from_its_lowest_to_its_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 24) == BLOCKS
    assert sparkline([3.0, 3.0, 3.0], 24) == BLOCKS[0] * 3
    assert sparkline([2.0], 24) == BLOCKS[0]
    assert sparkline([], 24) == ""
    falling = sparkline([1 / (1 + step) for step in range(5000)], 10)
    assert len(falling) == 10 and falling[0] == BLOCKS[-1] and falling[-1] == BLOCKS[0]


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 24])
def test_no_number_breaks_a_course(columns: int) -> None:
    for values in (HUGE, HUGE[3:], [math.nan] * 3, [1.7e308] * 100):
        drawn = sparkline(values, columns)
        assert len(drawn) == min(len(values), columns)
        assert set(drawn) <= {*BLOCKS, "?"}


def test_figures_stand_where_nothing_can_be_drawn() -> None:
    losses = [float(value) for value in range(100, 0, -1)]
    assert five_of(losses) == [100.0, 75.0, 50.0, 26.0, 1.0]
    assert five_of([2.0]) == [2.0] and five_of([]) == [] and five_of([2.0, 1.0]) == [2.0, 1.0]
    assert course_text(losses, None) == "100 75 50 26 1"
    assert course_text(losses, 2) == course_text(losses, None)
    assert course_text([2.0], 24) == "2"
    assert ends_text([3.14159, 2.0]) == "3.142 -> 2" and ends_text([2.0, 2.00001]) == "2"


def step(loss: float, lr: float = 0.003) -> dict[str, float]:
    return {"loss": loss, "nll": loss, "lr": lr, "num_loss_tokens": 21}


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_steps_of_a_round_are_a_line(width: int) -> None:
    for number in (1, 2, 5, 700):
        steps = [step(math.exp(-place / 50)) for place in range(number)]
        told = steps_text(12, steps, width, has_blocks=True)
        assert told.startswith(f"round 12: {number} step{'s' * (number > 1)}, loss ")
        assert width < 80 or columns_of(told) <= width
        assert steps_text(12, steps, width, has_blocks=False).isascii()
    warm = steps_text(1, [step(2, 0.001), step(1, 0.003)], 80, has_blocks=False)
    assert warm == "round 1: 2 steps, loss 2 1, lr 0.001 -> 0.003, 42 loss tokens"


# --- the row --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 5, 12, 20, 40, 80])
def test_a_row_never_has_more_columns_than_there_are(width: int) -> None:
    for text in (WIDE, "x" * 1_000_000, "a\nb\n" * 50, "", "e\u0301" * 100):
        made = cut(text, width)
        assert columns_of(made) <= width and "\n" not in made
        assert columns_of(fitted(text, [(1, WIDE), (0, "~5 s left")], width)) <= width
        asking = Asking(f"measuring {text}", 12, 1_000_000, 0.0, 0.0, WIDE, 10, 5, 10**15)
        last = StepDone(1e300, 1e-300)
        training = Training(10**6, 0, 7, 10**9, 0.0, 0.0, last, 10**12, 0.0, 10**18)
        for shown in (asking, training, Now(text, since=0.0)):
            assert columns_of(shown.shown(1e6, width)) <= width


def test_what_tells_least_goes_first() -> None:
    last = StepDone(2.3456, 0.0018)
    training = Training(2, 0, 6, 60, 0.0, 29.0, last, 3_000, 27.0, 12_345)
    whole = (
        "round 2 step 7/60, loss 2.346, lr 0.0018, 100 tokens/s, oldest request 3 s, ~4 min left, "
        "12,345 tokens spent"
    )
    assert training.shown(30.0) == whole
    assert training.shown(30.0, 80) == (
        "round 2 step 7/60, loss 2.346, lr 0.0018, oldest request 3 s, ~4 min left"
    )
    assert training.shown(30.0, 38) == "round 2 step 7/60, ~4 min left"
    quiet = training.shown(50.0, 80)
    assert quiet.endswith("waiting for the service for 21 s") and "left" in quiet
    asking = Asking("measuring round_02", 20, 100, 0.0, 10.0, "simple_qa", 20, 7)
    assert (
        asking.shown(10.0, 80) == "measuring round_02 20/100, simple_qa, 7 of 20 right, ~40 s left"
    )
    assert asking.shown(10.0, 38) == "measuring round_02 20/100, ~40 s left"
    first = Asking("measuring round_02", 1, 100, 0.0, 10.0)
    assert first.shown(10.0, 80) == "measuring round_02 1/100"  # one answer tells no pace


DRAWS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/tests")
from loop.reports.progress import Progress
from terminal import resize
progress = Progress(verbose=False)
for width in (70, 40, 20, 60):
    resize(2, width)
    progress.live("measuring \\u8cc7\\u6599 [red]:cat: " * 20)
    time.sleep(float(sys.argv[2]))
    progress.line(f"line at {width}")
progress.close()
"""


def draws(folder: Path, pause_s: float = 0.3, **environment: str) -> bytes:
    """What is written to a terminal; a pause has time for some frames of the row."""
    words = [sys.executable, "-c", DRAWS, str(REPO), str(pause_s)]
    code, written = on_terminal(words, 80, folder, **environment)
    assert code == 0, written
    return written


def test_the_row_follows_the_terminal_and_never_wraps(tmp_path: Path) -> None:
    written = draws(tmp_path).decode()
    screen = Screen(80).feed(written)
    assert screen.num_wrapped == 0
    assert "?25" not in written  # a cursor that is hidden stays so where the process is killed
    assert [line for line in screen.lines if line] == [f"line at {n}" for n in (70, 40, 20, 60)]
    assert "[red]:cat:" in written  # names are no markup and no emoji
    between = written.partition("line at 40")[2].partition("line at 20")[0]
    drawn = [row for row in between.replace("\x1b[2K", "").split("\r") if "meas" in row]
    # The first may have been drawn before the terminal shrank.
    assert drawn[1:] and all(columns_of(row) < 20 for row in drawn[1:])


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "dumb"}, {"TERM": "unknown"}, {"CI": "true"}],
    ids=["dumb", "unknown", "ci"],
)
def test_a_terminal_that_is_not_redrawn_has_plain_lines(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    written = draws(tmp_path, pause_s=0, **environment)
    assert b"\x1b" not in written and b"measuring" not in written
    assert written.split(b"\r\n")[:2] == [b"line at 70", b"line at 40"]


def test_no_colours_where_none_are_wanted_and_columns_is_not_believed(tmp_path: Path) -> None:
    written = draws(tmp_path, NO_COLOR="1", COLUMNS="300").decode()
    assert "\x1b[3" not in written and "m" not in {c[-1] for c in written.split("\x1b[")[1:]}
    assert Screen(80).feed(written).num_wrapped == 0


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "ascii"])
def test_a_console_without_the_characters_has_rows_that_fit(tmp_path: Path, encoding: str) -> None:
    written = draws(tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0").decode(encoding)
    screen = Screen(80).feed(written)
    assert screen.num_wrapped == 0 and "\\u8cc7" in written
    assert [line for line in screen.lines if line][-1] == "line at 60"


def test_what_a_stream_cannot_encode_is_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp437")
    assert not can_encode(stream, BLOCKS) and can_encode(stream, "\u2588")
    assert as_written("a\u8cc7\x1b[2Jb", stream) == "a\\u8cc7?[2Jb"
    assert can_encode(io.StringIO(), BLOCKS)


# --- the table ------------------------------------------------------------------------------------


def row_of(round_no: int, share: float, n: int = 100, action: str = "continue") -> RoundRow:
    samples = [
        SampleResult(
            f"t/{i}", None, "q", ("a",), "a", float(i < share * n), i % 3 == 0, False, None
        )
        for i in range(n)
    ]
    result = eval_result(round_no, None, Measured((task_result("t", samples),)), {})
    losses = [11.6123, 3.4833] if round_no else []
    return RoundRow(round_no, result, losses, [0.003, 0.0018][: len(losses)], action, round_no == 2)


@pytest.mark.parametrize("width", [20, 40, 60, 80])
@pytest.mark.parametrize("number", [1, 3, 21, 400])
def test_the_table_of_rounds_fits(width: int, number: int) -> None:
    rows = [row_of(i, 0.5, n=20, action="stop_plateau") for i in range(number)]
    lines = rounds_table(rows, width)
    assert all(columns_of(line) <= width for line in lines), lines
    assert lines[0].split()[:2] == ["round", "score"]
    assert len(lines) <= MAX_ROWS + 2
    assert lines[1].split()[0] == "0" and lines[-1].split()[0].strip("*") == str(number - 1)
    assert number < 3 or any(line.split()[0] == "2*" for line in lines)  # the best stays
    if number > MAX_ROWS and width > 20:
        assert any("more in eval_report.md" in line for line in lines)


def test_what_the_table_says() -> None:
    rows = [row_of(0, 0.04), row_of(1, 0.45, action="rollback"), row_of(2, 0.85)]
    rows[2] = rows[2]._replace(action="stop_passed")
    head, *lines = (line.split() for line in rounds_table(rows, 100))
    assert head == ["round", "score", "95", "%", "n", "truncated", "loss", "lr", "decision"]
    assert lines[0][:3] == ["0", "0.0400", "[0.02,"] and lines[0][-1] == "baseline"
    assert lines[1][-2:] == ["go", "back"]
    middle = ["100", "34", "11.61", "->", "3.483", "0.003", "->", "0.0018"]
    assert lines[2][0] == "2*" and lines[2][4:] == [*middle, "passed"]


# --- for programs ---------------------------------------------------------------------------------


def test_whatever_is_printed_is_an_object_and_a_newline(capsys: pytest.CaptureFixture) -> None:
    with for_programs(True, lambda text: text.replace("secret", "[redacted]")):
        print("half a line, ", end="", file=sys.stderr)
        print("and its end\n\nwith a secret", file=sys.stderr)
        print("10%\r50%\r100%", file=sys.stderr)
        stream = event_stream()
        assert stream is not None and not stream.isatty()
        stream.event({"type": "step", "loss": math.nan, "secret": ["a secret", {"x": 1.5}], "n": 7})
        print("\ud800\u2028</script>\x1b[2J", file=sys.stderr)
        sys.stderr.write("not ended")
    assert event_stream() is None
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    step = {"type": "step", "loss": None, "[redacted]": ["a [redacted]", {"x": 1.5}], "n": 7}
    assert [line.get("text", line) for line in lines] == [
        "half a line, and its end",
        "with a [redacted]",
        "100%",
        step,
        "\ud800\u2028</script>\x1b[2J",
        "not ended",
    ]


BELOW = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from loop.reports.events_out import for_programs
with for_programs(True, lambda text: text.replace("secret", "[redacted]")):
    os.write(2, b"half a line of C, ")
    print("of Python", file=sys.stderr)
    os.write(2, "its end \u00e9 and a secret\\n".encode())
    for number in (2, sys.stderr):
        subprocess.run(["sh", "-c", "echo of a program >&2"], stderr=number)
    os.write(2, b"\\xff" * 3)
os.write(2, b"as before\\n")
"""


def test_what_is_written_below_python_is_a_message_too() -> None:
    done = subprocess.run([sys.executable, "-c", BELOW, str(REPO)], capture_output=True, text=True)
    *lines, last = done.stderr.splitlines()
    assert last == "as before" and done.returncode == 0
    texts = [json.loads(line)["text"] for line in lines]
    assert sorted(texts) == sorted(
        [
            *("half a line of C, its end \u00e9 and a [redacted]", "of Python"),
            *("of a program", "of a program", "\ufffd" * 3),
        ]
    )


@pytest.mark.parametrize("words", [["--bogus"], ["--preview", "x"], ["--set"]])
def test_mistakes_in_the_arguments_are_objects_too(
    words: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main([*words, "--js"]) == 2
    told = capsys.readouterr()
    error, answer = json.loads(told.err), json.loads(told.out)
    assert (error["type"], error["exit_code"]) == ("error", 2)
    assert error["message"] == answer["error"] and "--help" in error["message"]


def test_the_stream_says_when_nobody_reads_it() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        lines = JsonLines(stream, str)
        with pytest.raises(BrokenPipeError):
            lines.event({"type": "message"})
        os.dup2(os.open(os.devnull, os.O_WRONLY), lines.fileno())


def test_a_run_tells_programs_its_ledger_and_people_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Resumed as well: each event once, as it stands in the ledger, and a program's line for what a
    person would have been told."""
    assert workspace.run("run", "--json", "-v", max_rounds=1) == 0
    first = capsys.readouterr()
    assert main(["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2", "--json"]) == 0
    second = capsys.readouterr()
    told = [json.loads(line) for part in (first, second) for line in part.err.splitlines()]
    events = [line for line in told if line["type"] != "message"]
    assert events == workspace.events("run")
    assert {"run_started", "resumed", "step", "decided"} <= {event["type"] for event in events}
    texts = [line["text"] for line in told if line["type"] == "message"]
    assert texts[0] == "run: reading settings and data, loading libraries"
    assert any(text.startswith("round 2: 3 steps, loss ") for text in texts)
    assert all(json.loads(part.out)["best_round"] == 1 for part in (first, second))


def test_an_error_is_an_object_too(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    assert workspace.run("run", "--json", learning_rat=1) == 2
    (told,) = capsys.readouterr().err.splitlines()
    error = json.loads(told)
    assert (error["type"], error["exit_code"]) == ("error", 2)
    assert "learning_rat" in error["message"]


# --- a result that a console cannot encode --------------------------------------------------------


def test_a_preview_is_shown_on_a_console_of_few_characters(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write_rows("train.jsonl", [{"instruction": WIDE, "output": "\u2603 \u00e9"}])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp437"))
    assert workspace.run("run", "--preview", "1") == 0
    assert "\\u8cc7" in written.getvalue().decode("cp437")


# --- a study's table ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80])
def test_the_table_of_a_study_is_as_wide_as_the_terminal(tmp_path: Path, width: int) -> None:
    trials = {f"run_{i:03d}": f"lora_rank={i}, {WIDE}" for i in range(40)}
    screen = StudyScreen(trials, redacted=str, logs_dir=tmp_path, how_to_continue="", verbose=False)
    written = io.StringIO()
    screen._console = Console(file=written, width=width, height=24, force_terminal=False)
    screen.set("run_007", WORKING, WIDE, "0.1250")
    screen._console.print(screen.table())
    lines = written.getvalue().splitlines()
    assert all(columns_of(line.rstrip()) <= width for line in lines)
    assert any(line.startswith("run_00" if width > 20 else "run...") for line in lines)
    assert any("0.1250" in line for line in lines)
    assert len([line for line in lines if "run_" in line]) <= 20


def test_the_row_shown_of_a_selection_is_of_the_topic_that_most_are_from(
    capsys: pytest.CaptureFixture,
) -> None:
    def pick(number: int, topic: str | None) -> Pick:
        why = f"topic {topic}: why"
        return Pick(f"p{number}", "pool", topic, why, 1.0, "pool.jsonl", number, f"row {number}")

    def told(slots: dict[str, int]) -> str:
        picks = (pick(1, "known"), pick(2, None), pick(3, "hard"))
        Progress(verbose=False).selection_line(Selection(2, 0, picks, {"pool": 3}, slots, 0, {}))
        return capsys.readouterr().err

    assert "for example pool.jsonl line 3 ('row 3'): topic hard: why" in told(
        {"known": 1, "hard": 4}
    )
    assert "for example pool.jsonl line 2" in told({"": 4, "hard": 1})  # of no topic
    assert "for example pool.jsonl line 1" in told({})  # of no topics at all

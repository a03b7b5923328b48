"""`report.py`: a run's page made again, runs compared on one page, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import report
from conftest import REPO
from ledger.run_directory import is_locked
from ledger.store import RunStore
from loop.run_page.thinning import MOST_POINTS
from page_reading import Page, assert_inert
from report_runs import TASK, Made, lengthen, made_run, make_evaluation, make_run
from scores.comparisons import holm
from scores.results import EvalResult, score_difference
from scores.wording import interval_text
from study_records import HOSTILE


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, str(REPO / "report.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.fixture
def said(capsys: pytest.CaptureFixture) -> Any:
    """Run the command in this process; gives exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = report.main([str(one) for one in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b of other seeds, c whose questions were graded otherwise, d that has only begun,
    e that was stopped in round 1."""
    folder = tmp_path_factory.mktemp("compared")
    made_run(folder / "a")
    made_run(folder / "b", Made(seed=1, shares=(0.1, 0.6), settings={"learning_rate": 2e-3}))
    made_run(folder / "c", Made(protocol={"grading": 2}))
    made_run(folder / "d", Made(shares=()))
    made_run(folder / "e", Made(shares=(0.1,), is_finished=False))
    return folder


def result(run_dir: Path, number: int) -> EvalResult:
    found = RunStore.open(run_dir).result(number)
    assert found is not None
    return found


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line_is_frozen() -> None:
    """A new flag is a decision: it changes this list and docs/report.md."""
    outcome = command("--help")
    assert outcome.returncode == 0
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", outcome.stdout))
    assert flags == {"-h", "--help", "--out", "--serve", "--port", "--track", "--set", "--json"}
    page = (REPO / "docs/report.md").read_text()
    assert all(f"`{flag}" in page or f" {flag}" in page for flag in flags - {"-h", "--help"})


def test_the_page_of_a_run_is_written_again(tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "r")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    outcome = command(run_dir)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    sentence, line = outcome.stdout.splitlines()
    decision = RunStore.open(run_dir).last_decision()
    assert decision is not None and sentence == decision.sentence
    assert line == f"Page: {run_dir / 'report.html'}"
    Page((run_dir / "report.html").read_text())
    after = {path: path.read_bytes() for path in before}
    assert after == before  # nothing else of the run is touched
    answer = json.loads(command(run_dir, "--json").stdout)
    assert answer == {
        "page": str(run_dir / "report.html"),
        "run_dir": str(run_dir),
        "sentence": sentence,
    }


def test_a_run_that_is_held_is_left_alone(tmp_path: Path, said: Any) -> None:
    store = make_run(tmp_path / "r", Made(is_finished=False))
    with open(tmp_path / "r/ledger.jsonl", "a") as ledger:
        ledger.write('{"seq": ')  # an event that is being written
    ledger_before = (tmp_path / "r/ledger.jsonl").read_bytes()
    code, out, err = said(tmp_path / "r")
    assert (code, out) == (2, "")
    assert "another process is at work on this run" in err and "--out FILE" in err
    code, out, _ = said(tmp_path / "r", "--out", tmp_path / "elsewhere/now.html")
    assert code == 0 and out.endswith("elsewhere/now.html\n")
    Page((tmp_path / "elsewhere/now.html").read_text())
    assert not (tmp_path / "r/report.html").exists()
    assert (tmp_path / "r/ledger.jsonl").read_bytes() == ledger_before
    assert is_locked(tmp_path / "r")
    store.close()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and what is none or has been damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("r", "bad_ledger", "bad_order", "bad_config", "bad_evals"):
        made_run(folder / name)
    lines = (folder / "r/ledger.jsonl").read_text().splitlines()
    broken = "\n".join([*lines[:2], "{}", *lines[3:]]) + "\n"
    (folder / "bad_ledger/ledger.jsonl").write_text(broken)
    kept = [json.loads(line) for line in lines if '"type": "decided"' not in line]
    events = [json.dumps({**event, "seq": seq}) + "\n" for seq, event in enumerate(kept)]
    (folder / "bad_order/ledger.jsonl").write_text("".join(events))
    (folder / "bad_config/config.resolved.json").write_text("[]")
    (folder / "bad_evals/evals/round_02.json").write_text('{"round": 2}')
    make_evaluation(folder / "evaluation")
    for name in ("empty", "study", "study/results", "folder.html"):
        (folder / name).mkdir()
    (folder / "study/experiment.yaml").touch()
    (folder / "file.txt").touch()
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["Nothing is named"]),
        (["gone"], ["gone: there is no such directory"]),
        (["empty"], ["not a run directory, it has no config.resolved.json"]),
        (["file.txt"], ["not a run directory"]),
        (["x" * 300], ["cannot be read"]),
        (["."], ["it holds runs and is none", "--serve"]),
        (["study"], ["belongs to a study", "study.py report study"]),
        (["study/results"], ["belongs to a study", "study.py report study"]),
        (["bad_ledger"], ["bad_ledger/ledger.jsonl line 3: not a ledger event"]),
        (["bad_order", "--out", "x.html"], ["without its decided"]),
        (["bad_config"], ["bad_config/config.resolved.json: cannot be read"]),
        (["bad_evals", "r"], ["bad_evals/evals/round_02.json: cannot be read"]),
        (["r@round_01"], ["a page is of a whole run", "Give r alone"]),
        (["r", "r"], ["r is the same checkpoint as r"]),
        (["r", "r@round_02"], ["r@round_02 is the same checkpoint as r"]),
        (["r", "r/../r@best"], ["is the same checkpoint as r"]),
        (["r", "r@round_07"], ["round 7 of this run has not been evaluated", "round_02"]),
        (["r", "r@newest"], ["'newest' names no checkpoint of r"]),
        (["r", "evaluation"], ["it holds an evaluation of checkpoints, and no run"]),
        (["r", "study"], ["belongs to a study"]),
        (["r"] * 21, ["2 to 20 runs can be compared, and 21 are named"]),
        (["r", "--out", "r/ledger.jsonl"], ["ends in .html"]),
        (["r", "--out", "folder.html"], ["this is a directory"]),
        (["r", "--port", "80"], ["Give --serve as well"]),
        (["r", "--serve"], ["exclude each other"]),
        (["--track", "r", "--out", "x.html"], ["--track writes none"]),
        (["--track", "r"], ["name no tracker", "--track r --set 'tracking.trackers="]),
        (["--track", "r", "--set", "seed=3"], ["--set seed=3: only `tracking`"]),
        (["r", "--set", "tracking.project=a"], ["--set is for the trackers of --track"]),
        (["--track", "gone"], ["gone: there is no such directory"]),
        (["--serve", "gone"], ["--serve gone: there is no such directory"]),
        (["--serve", ".", "--port", "70000"], ["from 0 to 65535"]),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(
    damaged: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Any,
    arguments: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(damaged)
    before = Path("r/ledger.jsonl").read_bytes()
    code, out, err = said(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and "Traceback" not in err and err.count("\n") == 1
    for part in parts:
        assert part in err
    code, out, _ = said(*arguments, "--json")
    assert json.loads(out)["exit_code"] == 2
    assert Path("r/ledger.jsonl").read_bytes() == before
    assert not Path("comparison.html").exists()


def test_reading_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, report\n"
        "try: report.main(['gone'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'tinker', 'tinker_cookbook', 'inspect_ai', 'uvicorn'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert outcome.stdout.splitlines()[-1] == "heavy: []", outcome.stderr


# --- runs side by side ----------------------------------------------------------------------------


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The tables of a page by their captions, the titles as the first row."""
    text = page.read_text()
    assert_inert(text)
    found = {}
    for caption, body in re.findall(
        r"<caption[^>]*><span>(.*?)</span>.*?</caption>(.*?)</table>", text, re.DOTALL
    ):
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found[caption.partition(". ")[0]] = [
            [re.sub(r"<wbr>", "", c) for c in row] for row in cells
        ]
    return found


def test_what_is_compared_are_the_projects_own_numbers(runs: Path, said: Any) -> None:
    code, out, _ = said(runs / "a", runs / "b", f"{runs / 'a'}@round_01", "--json")
    assert code == 0
    answer = json.loads(out)
    results = {
        "a@round_02": result(runs / "a", 2),
        "b@round_01": result(runs / "b", 1),
        "a@round_01": result(runs / "a", 1),
    }
    assert [one["checkpoint"] for one in answer["checkpoints"]] == list(results)
    assert [one["score"] for one in answer["checkpoints"]] == [r.score for r in results.values()]
    p_values = []
    for pair in answer["pairs"]:
        moved = score_difference(results[pair["one"]], results[pair["other"]], 0.95)
        assert pair["mean"] == moved.mean >= 0
        assert tuple(pair["interval"]) == moved.interval
        assert pair["p_value"] == moved.p_value
        p_values.append(pair["p_value"])
    assert [pair["p_holm"] for pair in answer["pairs"]] == holm(p_values)
    page = Path(answer["page"])
    assert page == Path("comparison.html")
    read = tables(page)
    rows = {row[0]: row for row in read["The checkpoints that are compared"][1:]}
    for label, one in results.items():
        assert rows[label][1:4] == [f"{one.score:.4f}", interval_text(one.interval), str(one.n)]
    text = page.read_text()
    assert "It says nothing of the settings." in text
    # A run with two checkpoints is told once where runs are.
    used = read["What each run used"]
    assert [row[0] for row in used[1:]] == ["a", "b"]
    usage = RunStore.open(runs / "a").usage()
    assert used[1][3:6] == [
        f"{usage.train_tokens:,}", f"{usage.prompt_tokens:,}", f"{usage.sampled_tokens:,}"
    ]  # fmt: skip
    drawn = read["Scores by round"]
    assert [row[:3] for row in drawn[1:]] == [
        [label, str(number), f"{score:.4f}"]
        for label in "ab"
        for number, score in RunStore.open(runs / label).scores().items()
    ]


def test_which_questions_changed_is_counted_and_shown(runs: Path, said: Any) -> None:
    first, other = f"{runs / 'a'}@round_01", runs / "a"
    assert said(first, other, "--out", "two.html")[0] == 0
    read = tables(Path("two.html"))
    before, after = (result(runs / "a", n).tasks[0].scores for n in (1, 2))
    gained = [q for q in before if after[q] > before[q]]
    lost = [q for q in before if after[q] < before[q]]
    right = [q for q in before if after[q] == before[q] == 1]
    wrong = [q for q in before if after[q] == before[q] == 0]
    counts = [str(len(some)) for some in (right, gained, lost, wrong)]
    assert read["Answers against those of a@round_01"][1] == ["a@round_02", TASK, *counts]
    title = f"{TASK}: a@round_02 scored higher than a@round_01"
    assert len(read[title]) == 1 + len(gained)
    shown = [row[0] for row in read[title][1:]]
    assert shown == [f"What is {question.partition('/')[2]}?" for question in gained]


def test_what_was_asked_otherwise_is_said_and_not_compared(runs: Path, said: Any) -> None:
    code, out, _ = said(runs / "a", runs / "c", "--json")
    assert code == 0
    (pair,) = json.loads(out)["pairs"]
    assert pair["mean"] is None and "grading 3 and 2" in pair["why_not"]
    text = Path("comparison.html").read_text()
    assert "they were asked with different settings: grading 3 and 2" in text
    # Sampled answers hang on the seed; greedy ones do not, and b has another one than a.
    for seed in (0, 1):
        made_run(Path(f"s{seed}"), Made(seed=seed, protocol={"temperature": 0.7}))
    (pair,) = json.loads(said("s0", "s1", "--json")[1])["pairs"]
    assert re.search("seed (0 and 1|1 and 0)$", pair["why_not"])
    made_run(Path("fewer"), Made(num_questions=30))
    (pair,) = json.loads(said(runs / "a", "fewer", "--json")[1])["pairs"]
    assert "40 and 30 questions, of which 30 are the same" in pair["why_not"] or (
        "30 and 40 questions, of which 30 are the same" in pair["why_not"]
    )


def test_settings_that_differ_stand_apart_from_those_that_do_not(runs: Path, said: Any) -> None:
    assert said(runs / "a", runs / "b")[0] == 0
    read = tables(Path("comparison.html"))
    differing = {
        row[0]: row[2:] for row in read["What the runs differ in"][1:] if row[1] == "setting"
    }
    assert differing["learning_rate"] == ["0.0001", "0.002"]
    assert differing["seed"] == ["0", "1"]
    alike = {row[0] for row in read["What is the same for all of them"][1:]}
    assert not alike & set(differing)
    assert {"lora_rank", "torch", "train_file", "gate.alpha"} <= alike


def test_runs_that_have_not_come_far_are_shown_as_they_stand(runs: Path, said: Any) -> None:
    assert said(runs / "d", runs / "e", runs / "a")[0] == 0
    read = tables(Path("comparison.html"))
    rows = {row[0]: row[1] for row in read["The checkpoints that are compared"][1:]}
    assert rows["d (not evaluated)"] == "not measured"
    assert "e@round_00" in rows and "a@round_02" in rows
    states = {row[0]: row[1] for row in read["How each run ended, or stands"][1:]}
    assert (states["d"], states["e"], states["a"]) == ("stopped", "stopped", "finished")
    assert said(runs / "d", f"{runs / 'e'}@round_00")[1].startswith("e@round_00 alone has been")


def test_two_copies_of_a_run_are_said_to_be_one(runs: Path, tmp_path: Path, said: Any) -> None:
    shutil.copytree(runs / "a", tmp_path / "elsewhere/a")
    assert said(runs / "a", tmp_path / "elsewhere/a")[0] == 0
    text = Path("comparison.html").read_text()
    assert "are copies of one run" in text
    assert f"{tmp_path / 'elsewhere/a'}@round_02" in text  # two of one name go by their paths


def test_hostile_names_and_answers_are_text(tmp_path: Path, said: Any) -> None:
    names = [f"run{number}" for number in range(len(HOSTILE))]
    for number, (name, words) in enumerate(zip(names, HOSTILE, strict=True)):
        hostile = words.replace("\ud800", "").replace("\x00", "")
        made_run(tmp_path / name, Made(words=hostile, shares=(0.1 * number, 0.5)))
    assert said(*names)[0] == 0
    assert_inert((tmp_path / "comparison.html").read_text())
    odd = tmp_path / '</script><b> "\u202e'
    made_run(odd, Made(settings={"run_name": "odd"}))
    assert said(odd, names[0])[0] == 0
    assert_inert((tmp_path / "comparison.html").read_text())


def test_long_runs_are_thinned_and_it_is_said(tmp_path: Path, said: Any) -> None:
    for name in ("long", "other"):
        made_run(tmp_path / name, Made(shares=(0.1, 0.2), settings={"max_rounds": 3}))
    lengthen(tmp_path / "long", 3000)
    assert said("long", "other")[0] == 0
    text = Path("comparison.html").read_text()
    assert (
        "points are drawn, of each stretch the lowest and the highest; all of them are in" in text
    )
    rows = tables(Path("comparison.html"))["Training loss by step, the numbers drawn"]
    of_long = [row for row in rows if row[0] == "long"]
    assert len(of_long) <= MOST_POINTS + 1
    assert (of_long[0][1], of_long[-1][1]) == ("0", "3003")


@pytest.mark.parametrize(
    "values", [(1e40, -1e40, 0.0), (5e-324, 1e40), (1e-300, 2e-300), (0.0,), (1e-3, 1e3)]
)
def test_losses_of_any_size_are_drawn(tmp_path: Path, said: Any, values: tuple[float, ...]) -> None:
    for name in ("r", "s"):
        ledger = made_run(tmp_path / name, Made(shares=(0.1, 0.2))) / "ledger.jsonl"
        events = [json.loads(line) for line in ledger.read_text().splitlines()]
        steps = [event for event in events if event["type"] == "step"]
        for number, event in enumerate(steps):
            event["nll"] = event["lr"] = values[number % len(values)]
        ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert said("r", "s")[0] == 0
    read = tables(Path("comparison.html"))["Training loss by step, the numbers drawn"]
    assert {row[2] for row in read[1:]} == {f"{value:.6g}" for value in values}


def test_equal_scores_are_shared(tmp_path: Path, said: Any) -> None:
    for name in ("r", "s"):
        made_run(tmp_path / name, Made(shares=(0.0, 1.0)))
    made_run(tmp_path / "t", Made(shares=(0.0, 0.0), num_questions=1))
    assert said("t", "s", "r")[1].startswith(
        "Of these 3 checkpoints s@round_01 and r@round_01 share the highest score, 1.0000 "
    )
    assert "+0.0000 [" in said("r", "s")[1]
    made_run(tmp_path / "u", Made(shares=(0.0, 1.0), num_questions=1))
    assert "[unknown], p unknown, paired on 1 question" in said("t", "u")[1]


def test_twenty_runs_fit_on_one_page(tmp_path: Path, said: Any) -> None:
    names = [f"r{number}" for number in range(20)]
    for number, name in enumerate(names):
        made_run(tmp_path / name, Made(seed=number, shares=(0.1, 0.4 + number / 50)))
    code, out, _ = said(*names, "--json")
    assert code == 0
    answer = json.loads(out)
    assert len(answer["pairs"]) == 190
    assert answer["sentence"].startswith("Of these 20 checkpoints ")
    assert_inert((tmp_path / "comparison.html").read_text())

"""What a pipeline is shown of a run and an evaluation, and the workflow that docs/ci.md offers."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from commands.ci import (
    Line,
    Summary,
    document_of,
    junit_of,
    lines_of_run,
    summary_of_evaluation,
    worse_and_better,
)
from conftest import REPO
from errors import StorageError
from ledger.records import Usage
from ledger.store import RunStore
from loop.reports.comparison import compare, gate_for
from pages.markdown import inline, markdown
from scores.decision import Gate
from scores.results import (
    EvalResult,
    Measured,
    SampleResult,
    eval_result,
    score_difference,
    task_result,
)
from storage.files import append_line
from study_records import HOSTILE
from test_loop import Workspace
from trainer_with_eval import main

MAX_COMMENT_CHARS = 65_536  # what GitHub takes
GATE = Gate(0.5, max_rounds=3, max_steps=9, lr_decay=1.0)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A run of two rounds in runs/r, with what it told the pipeline."""
    made = Workspace(tmp_path_factory.mktemp("pipeline"), llama_dir)
    folder = made.folder
    flags = ["--gate", "--summary", str(folder / "run.md"), "--junit", str(folder / "run.xml")]
    assert made.run("runs/r", *flags) == 3
    return made


# --- a run, and checkpoints side by side ----------------------------------------------------------


def test_a_run_is_told_with_its_rounds(workspace: Workspace) -> None:
    store = workspace.store("runs/r")
    decision = store.last_decision()
    assert decision is not None
    text = (workspace.folder / "run.md").read_text()
    assert f"**Not passed. {inline(decision.sentence)}**" in text
    rows = re.findall(r"^\| (round .+?) \| (\d\.\d{4}) .*\| (yes|no|-) \|", text, re.MULTILINE)
    results = store.results()
    assert [float(score) for _, score, _ in rows] == [round(one.score, 4) for one in results]
    assert [name.partition(" (")[0] for name, _, _ in rows] == ["round 0", "round 1", "round 2"]
    assert [passes for _, _, passes in rows] == ["-", "no", "no"]
    assert f"{store.usage().train_tokens:,} trained" in text
    assert "eval_report.md" in text
    suite = ElementTree.parse(workspace.folder / "run.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")


def test_a_finished_run_tells_it_again(workspace: Workspace, tmp_path: Path) -> None:
    """Resumed with nothing left to do; the file that there is keeps what stood in it."""
    summary = tmp_path / "s.md"
    summary.write_text("before\n")
    run_dir = str(workspace.folder / "runs/r")
    assert main(["--resume", run_dir, "--summary", str(summary)]) == 0
    told = (workspace.folder / "run.md").read_text()
    assert summary.read_text() == f"before\n{told}"


def test_checkpoints_are_told_side_by_side(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workspace.folder)
    command = ["--config", "config.json", "--evaluate", "runs/r@round_00", "runs/r@round_02"]
    files = ["--summary", "new/evaluation.md", "--junit", "new/evaluation.xml"]
    assert main([*command, "--run-dir", "runs/e", "--gate", "--json", *files]) == 3
    outcome = json.loads(capsys.readouterr().out)
    text = Path("new/evaluation.md").read_text()
    assert "**Not passed. 0 of 1 checkpoints beside the reference pass.**" in text
    for one in outcome["checkpoints"]:
        assert f"- {inline(one['sentence'])}" in text
        assert f"| {inline(one['checkpoint'])} | {one['score']:.4f} [" in text
    store = RunStore.open(Path("runs/e"))
    before, after = store.results()
    worse, num_better = worse_and_better(before, after)
    assert f"{len(worse)} questions newly wrong or worse, {num_better} newly right" in text
    assert f"{outcome['tokens']['prompt_tokens']:,} of prompts" in text
    suite = ElementTree.parse("new/evaluation.xml").getroot()
    cases = [(case.get("name"), len(case)) for case in suite]
    assert cases == [("target", 1), ("runs/r@round_02", 1)]
    # what the run's answers say of how many questions are needed
    assert main(["--power", "0.5", "0.6", "runs/r"]) == 0
    printed = capsys.readouterr().out
    assert "as from round 0 to 2 of the run" in printed
    assert "as from round 1 to 2 of the run" in printed
    assert main(["--power", "0.5", "0.6", "runs/e"]) == 0
    assert "as from checkpoint 0 to 1 of the run" in capsys.readouterr().out


def test_what_failed_is_told_too(tmp_path: Path) -> None:
    files = ["--summary", "s.md", "--junit", "j.xml"]
    assert main(["--config", "gone*.json", *files]) == 2
    text = Path("s.md").read_text()
    assert "**No verdict: it ended early.**" in text
    assert "gone\\*.json: there is no such file" in text
    suite = ElementTree.parse("j.xml").getroot()
    assert (suite.get("errors"), suite[0][0].tag) == ("1", "error")


def test_a_failure_of_any_length_fits_a_comment(capsys: pytest.CaptureFixture) -> None:
    name = "x" * 100_000
    assert main(["--config", name, "--summary", "s.md"]) != 0
    assert name in capsys.readouterr().err
    assert 3_000 < len(Path("s.md").read_text()) < 10_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_device_that_is_full_says_so() -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        append_line(Path("/dev/full"), "a line", is_synced=False)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--summary", ""], "--summary: '.' is a folder or a device"),
        (["--junit", "."], "--junit: '.' is a folder or a device"),
        (["--junit", "/dev/null"], "--junit: '/dev/null' is a folder or a device"),
        (["--junit", "x", "--summary", "x"], "both name x"),
        (["--summary", "s.md", "--dry-run"], "leave it out of --dry-run"),
        (["--junit", "j.xml", "--preview", "2"], "leave it out of --dry-run"),
        (["--summary", "s.md", "--list", "x"], "leave it out of --dry-run"),
    ],
)
def test_what_could_not_be_written_is_refused_first(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--config", str(REPO / "demo_config.json"), *arguments]) == 2
    assert part in capsys.readouterr().err


# --- from records ---------------------------------------------------------------------------------


def result_of(scores: list[float], number: int = 0, **texts: Any) -> EvalResult:
    samples = [
        SampleResult(
            id=f"qa/{place}",
            topic=None,
            question=texts.get("question", f"Question {place}?"),
            expected=(texts.get("expected", "x"),),
            answer=texts.get("answer", f"answer of {number}"),
            score=score,
            truncated=False,
            malformed=False,
            error=None,
        )
        for place, score in enumerate(scores)
    ]
    checkpoint = None if number == 0 else f"tinker://r/sampler_weights/{number}"
    return eval_result(number, checkpoint, Measured((task_result("qa", samples),)), {})


def summary_with(lines: list[Line], sentences: list[str], run_dir: Path) -> Summary:
    judged = [line for line in lines if line.passed is not None]
    used, lost = Usage(1, 2, 3, 0.5), Usage(40, 5, 64, 0.0)
    return Summary("t: e", False, sentences, lines, judged, judged, used, lost, run_dir)


def test_what_turned_is_counted_by_question() -> None:
    before, after = result_of([1, 1, 0, 0, 1, 0.5]), result_of([0, 1, 1, 0, 0, 0.25], 1)
    worse, num_better = worse_and_better(before, after)
    assert [one.after.id for one in worse] == ["qa/0", "qa/4", "qa/5"]
    assert num_better == 1
    assert {one.before.answer for one in worse} == {"answer of 0"}
    # A question that only one of them was asked says nothing, and a repeat is no question.
    twice = [replace(one, repeat=2, score=1.0) for one in before.tasks[0].samples]
    both = task_result("qa", [*before.tasks[0].samples, *twice])
    repeated = eval_result(0, None, Measured((both,)), {})
    assert len(worse_and_better(repeated, result_of([0, 1], 1))[0]) == 1


def test_nothing_in_a_text_acts_and_a_comment_stays_short(tmp_path: Path) -> None:
    lines, sentences = [], []
    for number, text in enumerate([*HOSTILE * 15, "\u0000\ufffe" * 50_000, "`|@*" * 20_000]):
        before = result_of([1.0] * 400, question=text, expected=text, answer=text)
        after = result_of([0.0] * 400, 1, question=text, expected=text, answer=text)
        passed = None if number == 0 else False
        lines.append(Line(text, after, before, text, passed, text))
        sentences.append(text)
    summary = summary_with(lines, sentences, tmp_path)
    text = markdown(document_of(summary))
    assert len(text) < MAX_COMMENT_CHARS
    assert not re.search(r"(?<!\\)<(script|img|/)", text)
    assert not re.search(r"(?<!\\)\*\*bold", text)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {5, 7}  # cells are whole
    assert "400 questions newly wrong or worse, 0 newly right" in text
    assert "more are in the report" in text
    assert "paid for in vain: at most 40 trained, 5 prompt and 64 sampled tokens" in text
    suite = ElementTree.fromstring(junit_of(summary))
    assert suite.get("failures") == str(len(lines))


def test_hundreds_of_rounds_are_told_by_their_last_ones() -> None:
    results = [result_of([0.0, 1.0, 1.0], number) for number in range(300)]
    names = [line.name for line in lines_of_run(results, 7, GATE)]
    last = [f"round {number}" for number in range(290, 300)]
    assert names == ["round 0 (baseline)", "round 7 (best)", *last]
    assert [line.name for line in lines_of_run(results[:1], 0, GATE)] == ["round 0 (baseline)"]
    few = [line.name for line in lines_of_run(results[:3], 2, GATE)]
    assert few == ["round 0 (baseline)", "round 1", "round 2 (best)"]


def test_an_evaluation_that_passes_says_so(workspace: Workspace) -> None:
    from ledger.references import Subject

    store = workspace.store("runs/r")
    results = [result_of([0.0] * 30), result_of([1.0] * 30, 1)]
    subjects = [Subject("a", None), Subject("b", "tinker://r/sampler_weights/1")]
    comparisons = compare(subjects, results, gate_for(GATE, 2))
    summary = summary_of_evaluation(store, comparisons, "e")
    assert summary.passed
    text = markdown(document_of(summary))
    assert "**Passed. 1 of 1 checkpoints beside the reference pass.**" in text
    found = score_difference(results[1], results[0], 0.95)
    assert f"| {found.mean:+.4f} [" in text
    assert "0 questions newly wrong or worse, 30 newly right or better." in text


# --- the workflow ---------------------------------------------------------------------------------


def workflow() -> dict[Any, Any]:
    page = (REPO / "docs/ci.md").read_text()
    (found,) = re.findall(
        r"<!-- workflow -->\n```yaml\n(.*?)```\n<!-- /workflow -->", page, re.DOTALL
    )
    return yaml.safe_load(found)


def test_the_workflow_gives_away_nothing() -> None:
    parsed = workflow()
    on = next(value for key, value in parsed.items() if key is True)  # YAML 1.1's `on`
    assert set(on) == {"pull_request", "schedule", "workflow_dispatch"}
    assert parsed["permissions"] == {}
    jobs = parsed["jobs"]
    permissions = {name: job["permissions"] for name, job in jobs.items()}
    assert permissions == {
        "check": {"contents": "read"},
        "gate": {"contents": "read"},
        "comment": {"pull-requests": "write"},
    }
    assert "head.repo.full_name == github.repository" in jobs["gate"]["if"]
    for name, job in jobs.items():
        assert job["timeout-minutes"] <= 120
        assert "secrets." not in json.dumps(job) or name == "gate"
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", step["uses"])
            # What an event holds is put into a variable, and never into the text of a script.
            assert "${{" not in step.get("run", "")
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
    assert "checkout" not in json.dumps(jobs["comment"])  # it runs nothing of the pull request's
    uploaded = jobs["gate"]["steps"][-1]["with"]["path"].split()
    assert uploaded == ["summary.md", "junit.xml", "runs/evaluation"]


def expanded(script: str, folder: Path) -> list[str]:
    """The arguments that a shell gives the command in a step."""
    shown = f"python() {{ printf '%s\\0' \"$@\"; }}\nset -eu\n{script}"
    done = subprocess.run(["bash", "-c", shown], cwd=folder, capture_output=True, check=True)
    program, *arguments = done.stdout.decode().split("\0")[:-1]
    assert program == "trainer_with_eval.py"
    return arguments


def test_each_command_of_the_workflow_does_what_it_is_for(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On the weights of a run, with a threshold that every checkpoint reaches."""
    store = workspace.store("runs/r")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/r").symlink_to(workspace.folder / "runs/r")
    for name in ("train.jsonl", "pool.jsonl"):
        (tmp_path / name).write_bytes((workspace.folder / name).read_bytes())
    (tmp_path / "my_questions.jsonl").write_bytes(
        (workspace.folder / "questions.jsonl").read_bytes()
    )
    settings = {**workspace.settings, "eval_tasks": ["qa:my_questions.jsonl"], "eval_threshold": 0}
    (tmp_path / "my_config.json").write_text(json.dumps(settings))
    for file, round_no in (("in_use.txt", 1), ("candidate.txt", 2)):
        checkpoint = store.checkpoint(round_no)
        assert checkpoint is not None
        (tmp_path / file).write_text(f"{checkpoint.sampler_path}\n")
    jobs = workflow()["jobs"]
    scripts = [
        step["run"]
        for job in jobs.values()
        for step in job["steps"]
        if "trainer_with_eval.py" in step.get("run", "")
    ]
    assert len(scripts) == 3
    codes = []
    for number, script in enumerate(scripts):
        arguments = expanded(script, tmp_path)
        codes.append(main(arguments))
        if "--evaluate" in arguments:
            (tmp_path / "runs/evaluation").rename(tmp_path / f"runs/evaluation_{number}")
            text = (tmp_path / "summary.md").read_text()
            assert "\n| tinker://" in text.replace("\\", "")
            assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("errors") is None
            (tmp_path / "summary.md").unlink()
    assert codes == [0, 0, 0], capsys.readouterr().err

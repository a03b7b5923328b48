"""`--init`: a valid config with its plan, which runs once the user's rows are there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from commands.init import WRITTEN, one_pager
from commands.suites import project_config, short_name
from commands.use_cases import USE_CASES
from config_schema import load_and_validate_config, validate
from conftest import REPO
from data_loader import load_examples
from example_rows import offline
from rows.sources import Source
from simple_eval import load_questions
from trainer_with_eval import main

DEMO_MODEL = ["--set", f"base_model={REPO / 'demo_model'}", "--set", "evaluation.max_tokens=16"]


def initialised(name: str, folder: Path) -> Path:
    assert main(["--init", name, str(folder)]) == 0
    return folder


def put_rows(folder: Path) -> None:
    """What a user would put: rows and questions of the demo."""
    lines = (REPO / "demo_data.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:15]))
    (folder / "held_out.jsonl").write_text("".join(lines[15:]))
    for file, source in (("questions", "simple_qa"), ("test_questions", "simple_qa_test")):
        text = (REPO / f"evals/{source}.jsonl").read_text()
        (folder / f"{file}.jsonl").write_text(text)


def test_each_example_has_its_use_case() -> None:
    assert {file.stem for file in (REPO / "examples").glob("*.json")} == set(USE_CASES)


@pytest.mark.parametrize("name", USE_CASES)
def test_what_is_written_is_valid_and_dry_runs_once_the_rows_are_there(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = initialised(name, tmp_path / "my project \u00e9")
    printed = capsys.readouterr().out
    assert "Still open:\n  - Goal:" in printed
    config = load_and_validate_config(str(folder / "config.json")).config
    layers = {config.layer_of(task) for task in config.measured_tasks}
    assert layers == {1, 2, 3}
    assert 2 <= sum(config.layer_of(task) == 2 for task in config.measured_tasks) <= 4
    assert any("refusal" in task for task in config.measured_tasks)  # safety is probed
    dry_run = ["--config", str(folder / "config_offline.json"), "--dry-run", *DEMO_MODEL]
    assert main(dry_run) == 2  # no rows were written that could be trained on
    assert "but there is no such file" in capsys.readouterr().err
    put_rows(folder)
    assert main(dry_run) == 0
    told = capsys.readouterr()
    assert "train_file: 15 examples of 15 rows" in told.out + told.err
    assert "qa:questions.jsonl" in told.out + told.err


@pytest.mark.parametrize("name", USE_CASES)
def test_the_page_says_of_every_task_what_it_measures_and_why(name: str, tmp_path: Path) -> None:
    page = (initialised(name, tmp_path / name) / "one_pager.md").read_text()
    config = load_and_validate_config(str(tmp_path / name / "config.json")).config
    tasks = [*config.measured_tasks, *config.evaluation.test_tasks]
    rows = re.findall(r"^\| (?:\d|test) \| `(.+?)` \| (.+)$", page, re.MULTILINE)
    assert [short_name(task) for task, _ in rows] == [short_name(task) for task in tasks]
    assert all(len(cell) > 15 for _, rest in rows for cell in rest.split(" | ")[2:])
    assert page.count("- [ ] ") >= 8
    for heading in ("Still open", "Data", "Model and training", "Evaluation", "Governance"):
        assert f"\n## {heading}\n" in page
    assert str(REPO) not in page
    for row in re.findall(r"```json\n(.+)\n```", page):
        assert json.loads(row)


def test_the_whole_config_dry_runs_with_its_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With nothing replaced but what the hub would send."""
    folder = initialised("math", tmp_path / "math")
    put_rows(folder)
    offline(monkeypatch, tmp_path)
    # The made-up samples of two benchmarks are the same, and no sealed test may be asked before.
    changes = [*DEMO_MODEL, "--set", "evaluation.test_tasks=[]"]
    assert main(["--config", str(folder / "config.json"), "--dry-run", *changes]) == 0
    told = capsys.readouterr()
    assert "inspect_evals/gsm8k" in told.out + told.err


@pytest.mark.parametrize("name", USE_CASES)
def test_the_rows_that_are_shown_are_read(name: str, tmp_path: Path) -> None:
    use_case = USE_CASES[name]
    rows, questions = tmp_path / "rows.jsonl", tmp_path / "questions.jsonl"
    rows.write_text(use_case.row + "\n")
    questions.write_text(use_case.question + "\n")
    assert len(load_examples([Source("rows.jsonl", rows)]).examples) == 1
    assert len(load_questions("qa", questions).questions) == 1


def test_no_command_of_the_page_but_the_run_opens_the_sealed_test(tmp_path: Path) -> None:
    assert main(["--init", "chat", str(tmp_path / "chat")]) == 0
    assert json.loads((tmp_path / "chat" / WRITTEN[1]).read_text())["evaluation"]["test_tasks"]
    page = (tmp_path / "chat" / WRITTEN[2]).read_text()
    commands = page.partition("```bash")[2].splitlines()
    trains = [one for one in commands if "--config" in one and "--dry-run" not in one]
    (run,) = (one for one in trains if "--power" not in one)
    assert run.endswith(f" --config {WRITTEN[0]}")


def test_the_commands_of_the_page_run_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a shell would take them, once the first line names the program's folder."""
    folder = initialised("chat", tmp_path / "my chat")
    put_rows(folder)
    page = (folder / WRITTEN[2]).read_text()
    first, *commands = page.partition("```bash\n")[2].partition("```")[0].splitlines()
    assert first.startswith("export PROJECT=/path/to/") and len(commands) == 3
    monkeypatch.setenv("PROJECT", str(REPO))
    monkeypatch.chdir(folder)
    for command in commands:
        python, program, *words = shlex.split(os.path.expandvars(command), comments=True)
        assert Path(python).is_file() and Path(program) == REPO / "trainer_with_eval.py"
        assert Path(words[words.index("--config") + 1]).is_file()
        if WRITTEN[0] not in words:  # which needs the benchmarks' data
            assert main([*words, *DEMO_MODEL]) == 0, command
        capsys.readouterr()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / "train.jsonl").write_text("mine\n")
    initialised("chat", folder)
    assert "train.jsonl:" not in capsys.readouterr().out  # it is there already
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {*WRITTEN, "train.jsonl"}
    for name in ("chat", "code"):
        assert main(["--init", name, str(folder)]) == 2
        assert "nothing is overwritten" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (folder / "config.json").unlink()
    (folder / "config_offline.json").unlink()
    (folder / "one_pager.md").unlink()
    (folder / "config.json").symlink_to(tmp_path / "gone")  # would be written through, or replaced
    assert main(["--init", "chat", str(folder)]) == 2
    assert not (folder / "one_pager.md").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["chatt"], "did you mean chat?"),
        (["CHAT"], "did you mean chat?"),
        (["chat", ""], "the folder has no name"),
        (["../chat"], "no use case, which are chat, code, math, tools, safety"),
        (["chat", "a", "b"], "found 3 words"),
        (["chat", "file"], "file is no folder"),
        (["chat", "--config", "x.json"], "--config was given beside it"),
        (["chat", "--power", "0.1", "0.2"], "--power was given beside it"),
    ],
)
def test_what_is_no_use_case_is_refused(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture
) -> None:
    Path("file").write_text("")
    assert main(["--init", *arguments]) == 2
    assert part in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_programs_get_the_same(capsys: pytest.CaptureFixture) -> None:
    assert main(["--init", "tools", "--json"]) == 0  # into ./tools
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["written"] == [f"tools/{file}" for file in WRITTEN]
    files = [one["file"] for one in outcome["to_put"]]
    assert files == ["train.jsonl", "held_out.jsonl", "questions.jsonl", "test_questions.jsonl"]
    assert all(json.loads(one["form"]) for one in outcome["to_put"])
    assert all(isinstance(one, str) for one in outcome["open"])


def test_a_task_of_which_nothing_is_known_is_no_empty_cell() -> None:
    example = json.loads((REPO / "examples/chat.json").read_text())
    example["eval_tasks"].append("inspect_evals/unheard_of")
    config = validate(project_config(example, "chat", "evals"), "x")
    with pytest.raises(AssertionError, match="nothing is known of inspect_evals/unheard_of"):
        one_pager(USE_CASES["chat"], config)

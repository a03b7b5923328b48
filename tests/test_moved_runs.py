"""A project folder that is moved or copied: the same run, the same checkpoints, and no copy of a
run is taken for it. What else may change of a run that goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from config_schema import config_hash, load_and_validate_config
from errors import ConfigError, RunStoreError
from ledger.finding import newest_run
from ledger.store import RunStore
from loop.planning.resumption import changed_code
from settings.config_file import read_object
from trainer_with_eval import main

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from words import PLACE

@task
def mine():
    samples = [Sample(input=PLACE.format("Spain"), target="Madrid"), Sample(input="2?", target="5")]
    return Task(dataset=samples, solver=generate(), scorer=includes())
"""
SETTINGS: dict[str, Any] = {
    "base_model": "model",
    "train_file": "data.jsonl",
    "lora_rank": 4,
    "learning_rate": 0.001,
    "batch_size": 2,
    "max_rounds": 1,
    "eval_threshold": 0.99,
    "evaluation": {"max_tokens": 4},
    "mining": {"strategy": "topics"},
}
TASKS = {"qa": "qa:q.jsonl", "inspect": "tasks/mine.py@mine"}


@pytest.fixture
def project(tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, questions, a task's code and a config for each."""
    folder = tmp_path / "project"
    shutil.copytree(llama_dir, folder / "model")
    (folder / "tasks").mkdir()
    (folder / "tasks/mine.py").write_text(TASK)
    (folder / "tasks/words.py").write_text('PLACE = "Capital of {}?"\n')
    rows = [{"instruction": f"Say {i}", "output": str(i)} for i in range(6)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "q.jsonl").write_text(json.dumps({"question": "Which one?", "answer": "x"}))
    for name, task in TASKS.items():
        (folder / f"{name}.json").write_text(json.dumps({**SETTINGS, "eval_tasks": [task]}))
    monkeypatch.chdir(folder)
    return folder


def run(name: str, run_dir: str, *flags: str) -> int:
    return main(["--config", f"{name}.json", "--run-dir", run_dir, *flags])


def moved(project: Path, monkeypatch: pytest.MonkeyPatch, *, to: str = "elsewhere/it") -> Path:
    """The project under another name, in another folder, and nothing left where it was."""
    there = project.parent / to
    there.parent.mkdir(exist_ok=True)
    shutil.move(project, there)
    monkeypatch.chdir(project.parent)
    return there


# --- moved ----------------------------------------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize("name", TASKS)
def test_a_moved_project_goes_on_and_is_evaluated(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    assert run(name, "runs/R") == 0
    there = moved(project, monkeypatch)
    capsys.readouterr()
    # from a folder that is neither's
    assert main(["--resume", str(there / "runs/R"), "--set", "max_rounds=2"]) == 0
    said = capsys.readouterr().err
    assert f"has been moved or copied: its files are those of {there}" in said
    store = RunStore.open(there / "runs/R")
    assert store.checkpoint(2) is not None and store.begun_at == project / "runs/R"
    config = ["--config", str(there / f"{name}.json"), "--run-dir", str(there / "runs/E")]
    assert main([*config, "--evaluate", str(there / "runs/R@round_01")]) == 0
    evaluated, recorded = RunStore.open(there / "runs/E").result(0), store.result(1)
    assert evaluated is not None and recorded is not None
    assert evaluated.protocol_hash == recorded.protocol_hash
    # and the evaluation's own directory, with the run that it is of
    again = there.parent / "again"
    there.rename(again)
    assert main(["--resume", str(again / "runs/E")]) == 0
    assert "this evaluation is finished" in capsys.readouterr().err


def test_a_teacher_is_found_where_it_was_moved_to_with_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run("qa", "runs/T") == 0
    distill = {"way": "on_policy", "teacher": "runs/T@best", "max_tokens": 2}
    settings = {**SETTINGS, "method": "distill", "distill": distill, "eval_tasks": ["qa:q.jsonl"]}
    (project / "taught.json").write_text(json.dumps(settings))
    assert run("taught", "runs/S") == 0
    there = moved(project, monkeypatch)
    assert main(["--resume", str(there / "runs/S"), "--set", "max_rounds=2"]) == 0
    store = RunStore.open(there / "runs/S")
    assert store.checkpoint(2) is not None
    # without it the error says where it is to be
    shutil.move(there / "runs/T", there / "T")
    capsys.readouterr()
    assert main(["--resume", str(there / "runs/S"), "--set", "max_rounds=3"]) == 2
    said = capsys.readouterr().err
    assert f"{project / 'runs/T'}: the run of the teacher, runs/T@best" in said
    assert "Move its directory to this place" in said


def test_code_is_recorded_by_its_place_in_the_project(project: Path) -> None:
    assert run("inspect", "runs/I") == 0
    manifest = (project / "runs/I/data_manifest.json").read_text()
    assert sorted(json.loads(manifest)["code"]) == ["tasks/mine.py", "tasks/words.py"]


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_run_that_recorded_whole_paths_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, is_moved: bool
) -> None:
    """As earlier versions left it."""
    assert run("inspect", "runs/I") == 0
    file = project / "runs/I/data_manifest.json"
    manifest = json.loads(file.read_text())
    manifest["code"] = {str(project / key): sha for key, sha in manifest["code"].items()}
    file.write_text(json.dumps(manifest))
    resolved = json.loads((project / "runs/I/config.resolved.json").read_text())
    del resolved["run_dir"], resolved["run_id"]
    (project / "runs/I/config.resolved.json").write_text(json.dumps(resolved))
    there = moved(project, monkeypatch) if is_moved else project
    command = ["--resume", str(there / "runs/I"), "--set", "max_rounds=2"]
    assert main(command) == 0
    assert f"task code: {there / 'tasks/words.py'} (sha256 " in capsys.readouterr().err
    (there / "tasks/words.py").write_text('PLACE = "Something else: {}?"\n')
    assert main([*command[:-1], "max_rounds=3"]) == 2
    assert f"{there / 'tasks/words.py'}: this Python file belongs" in capsys.readouterr().err


def test_a_copied_project_goes_on_with_its_own_files(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run("inspect", "runs/I") == 0
    copy = shutil.copytree(project, project.parent / "copy")
    (copy / "tasks/words.py").write_text('PLACE = "Something else: {}?"\n')
    monkeypatch.chdir(copy)
    capsys.readouterr()
    assert main(["--resume", "runs/I", "--set", "max_rounds=2"]) == 2
    assert f"{copy / 'tasks/words.py'}: this Python file belongs" in capsys.readouterr().err


def test_what_of_code_counts_as_the_same() -> None:
    before = {"tasks/a.py": "1", "../lib/b.py": "2"}
    assert changed_code(before, dict(before)) is None
    assert changed_code(before, {"tasks/a.py": "1", "../../x/lib/b.py": "2"}) is None
    assert changed_code(before, {"tasks/a.py": "2", "../lib/b.py": "1"}) == "tasks/a.py"
    assert changed_code(before, {"tasks/a.py": "1", "../x/b.py": "3"}) == "../x/b.py"
    assert changed_code(before, {"tasks/a.py": "1"}) == "../lib/b.py"
    assert changed_code(before, {**before, "c.py": "2"}) == "c.py"


# --- copies of a run ------------------------------------------------------------------------------


def test_no_copy_is_taken_for_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run("qa", "runs/Q") == 0
    for copy in ("A_backup", "Q_backup"):
        shutil.copytree("runs/Q", f"runs/{copy}")
    Path("runs/link").symlink_to("Q")
    capsys.readouterr()
    more = ["--resume", "--config", "qa.json", "--set", "max_rounds=2"]
    assert main(more) == 0
    said = capsys.readouterr().err
    assert (
        "--resume: runs/Q, the newest run with these settings; it lies where it was begun" in said
    )
    assert "runs/A_backup, runs/Q_backup is a copy of it" in said
    numbers = {name: RunStore.open(Path("runs") / name).num_rounds for name in ("Q", "Q_backup")}
    assert numbers == {"Q": 2, "Q_backup": 1}
    # of a moved project none lies there
    there = moved(project, monkeypatch)
    monkeypatch.chdir(there)
    assert main([*more[:-1], "max_rounds=3"]) == 2
    said = capsys.readouterr().err
    assert "runs/A_backup, runs/Q, runs/Q_backup are copies of one run" in said
    for copy in ("A_backup", "Q_backup"):
        shutil.rmtree(f"runs/{copy}")
    assert main([*more[:-1], "max_rounds=3"]) == 0
    assert "and has been moved or copied since" in capsys.readouterr().err


def test_the_newest_run_is_the_one_that_began_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("older", "newer")):
        stamp = f"2026-01-0{number + 1}T00:00:00Z"
        monkeypatch.setattr("ledger.run_directory.now", lambda stamp=stamp: stamp)
        store = RunStore.create(tmp_path / name, {"config": {}, "config_hash": "abc"})
        store.record_start({}, [], "abc")
    shutil.copytree(tmp_path / "older", tmp_path / "copy")  # its files are the newest
    assert newest_run(tmp_path, ["abc"]).run_dir == tmp_path / "newer"
    shutil.rmtree(tmp_path / "newer")
    shutil.rmtree(tmp_path / "older")
    assert newest_run(tmp_path, ["abc"]).run_dir == tmp_path / "copy"
    shutil.copytree(tmp_path / "copy", tmp_path / "another")
    with pytest.raises(RunStoreError, match=r"another, .*copy are copies of one run"):
        newest_run(tmp_path, ["abc"])


# --- what may change ------------------------------------------------------------------------------


def test_concurrency_may_change_on_resumption(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("qa", "runs/Q") == 0
    plain = load_and_validate_config("qa.json")
    slow = load_and_validate_config("qa.json", ["evaluation.concurrency=2"])
    other = load_and_validate_config("qa.json", ["evaluation.max_tokens=9"])
    assert config_hash(plain.config) == config_hash(slow.config) != config_hash(other.config)
    more = ["--set", "max_rounds=2", "--set", "evaluation.concurrency=2"]
    assert main(["--resume", "runs/Q", *more]) == 0
    recorded = RunStore.open(Path("runs/Q")).settled_config()["config"]
    assert recorded["evaluation"]["concurrency"] == 2
    capsys.readouterr()
    assert main(["--resume", "runs/Q", "--set", "evaluation.max_tokens=5"]) == 2
    assert "evaluation.max_tokens was 4, is 5" in capsys.readouterr().err


def test_a_run_of_an_older_version_is_found_with_its_concurrency(project: Path) -> None:
    assert run("qa", "runs/Q", "--set", "evaluation.concurrency=7") == 0
    from settings.sameness import hash_before

    config = load_and_validate_config("qa.json", ["evaluation.concurrency=7"]).config
    file = project / "runs/Q/config.resolved.json"
    resolved = json.loads(file.read_text())
    was = resolved["config_hash"] = hash_before(config.model_dump(mode="json"))
    assert was != config_hash(config)
    file.write_text(json.dumps(resolved))
    more = ["--set", "evaluation.concurrency=7", "--set", "max_rounds=2"]
    assert main(["--resume", "--config", "qa.json", *more]) == 0


# --- time that was worked -------------------------------------------------------------------------


def test_a_machine_that_sleeps_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter(range(9))
    monkeypatch.setattr("ledger.run_directory.now", lambda: f"2026-01-01T0{next(hours)}:00:00Z")
    store = RunStore.create(tmp_path / "run", {"config": {}})
    for _ in range(4):
        store.append("diagnosed", round=0, sentence="an hour later by the clock on the wall")
    assert store.usage().minutes < 60 and store.usage(0).minutes < 60
    assert RunStore.open(tmp_path / "run").usage() == store.usage()
    # of an older version's events there is only that clock, and of a run that goes on both
    ledger = tmp_path / "run/ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    for event in events[:3]:
        del event["worked"]
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert RunStore.open(tmp_path / "run").usage().minutes == pytest.approx(120, abs=50)
    assert RunStore.open(tmp_path / "run").usage().minutes >= 120


# --- comments in a config -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "has_comment"),
    [
        ('{"base_url": "http://x", "seed": 1,}', False),
        ('{"base_url": "http://x" "seed": 1}', False),
        ('{"base_url": "http://x\n}', False),
        ('{"run_name": "a#b" "seed": 1}', False),
        ("{'base_url': 'http://x'}", False),
        ('{"base_url": "http://x", # the service\n"seed": 1}', True),
        ('{"base_url": "http://x" // the service\n}', True),
        ('# settings\n{"seed": 1}', True),
        ('{"seed": 1, /* that one */ "run_name": "a"}', True),
        ('{"seed": 1}\n# end', True),
    ],
)
def test_comments_are_told_from_urls(tmp_path: Path, text: str, has_comment: bool) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="not valid JSON") as raised:
        read_object(file)
    assert ("JSON has no comments" in str(raised.value)) == has_comment

"""Trackers: what they are told, exactly once, and that nothing of a run hangs on them."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import study
from config_schema import TrainingConfig, validate
from conftest import REPO
from errors import ConfigError, Interrupted, RunStoreError, TrackerError
from ledger.store import RunStore
from loop.planning.models import find_model_dir
from loop.tracking.following import Following, tracked
from loop.tracking.names import MAX_CHARS, with_names
from loop.tracking.playground import write_for_playground
from loop.tracking.replaying import replay
from loop.tracking.rows import ROUND, Row, by_step, params_of, rows_of, texts_of, without_secrets
from loop.tracking.telling import Telling, settings_of, standing, told_of, tracked_run
from loop.tracking.trackers import refuse_missing
from scores.decision import Decision
from scores.results import EvalResult, HeldOutLoss, Measured
from services.keys import Keys
from study_records import TASKS, Shape, measured_result
from test_loop import Workspace
from test_run_store import checkpoint, record_steps
from tracker_worker import opener
from trainer_with_eval import main

SHAPE = Shape(num_questions=5)
SETTINGS: dict[str, Any] = {
    "run_name": "made",
    "base_model": "m",
    "train_file": "train.jsonl",
    "eval_tasks": list(TASKS),
    "steps_per_round": 2,
    "tracking": {"trackers": ["trackio"]},
}


# --- a run directory without training -------------------------------------------------------------


def settings(**changes: Any) -> TrainingConfig:
    return validate({**SETTINGS, **changes}, "settings")


def begun(run_dir: Path, **changes: Any) -> RunStore:
    """A run that has measured its baseline."""
    values = {
        "renderer_name": "llama3",
        "learning_rate": 0.01,
        "warmup_steps": 0,
        "service": "compatible",
        "base_url": "https://me:secret@host/path?api_key=hidden",
    }
    resolved = {
        "config": settings(**changes).model_dump(mode="json"),
        "config_hash": "abc",
        "config_file": "config.json",
        "resolved": values,
        "files": {"base_model": "m"},
    }
    store = RunStore.create(run_dir, resolved)
    store.record_start({"files": {}, "eval_tasks": {}}, [], "abc")
    evaluate(store, 0, 0)
    decide(store, 0, 0)
    return store


def evaluate(store: RunStore, round_no: int, step: int, num_tasks: int = 2) -> EvalResult:
    shape = SHAPE if num_tasks == 2 else Shape(num_questions=5, num_tasks=num_tasks)
    result = measured_result(0.5, random.Random(round_no), shape, round_no)
    store.record_measured(round_no, Measured(result.tasks, result.held_out), step)
    store.record_result(result, step)
    return result


def decide(store: RunStore, round_no: int, step: int, action: str = "continue") -> None:
    store.record_decision(
        Decision(round_no, action, f"Round {round_no}: {action}.", 1.0, round_no, 0),  # pyright: ignore
        step,
    )


def train(store: RunStore, round_no: int, steps: range, *, is_saved: bool = True) -> None:
    store.append("selected", round=round_no, step=steps.start, file="selections/round_01.json")
    record_steps(store, round_no, steps)
    if is_saved:
        store.record_checkpoint(checkpoint(round_no, steps.stop))


def two_rounds(run_dir: Path, **changes: Any) -> RunStore:
    store = begun(run_dir, **changes)
    for number in (1, 2):
        train(store, number, range(2 * number - 2, 2 * number))
        evaluate(store, number, 2 * number)
        decide(store, number, 2 * number, "stop_rounds" if number == 2 else "continue")
    store.append("run_finished", round=2, action="stop_rounds")
    return store


def rows(store: RunStore) -> list[Row]:
    files = store.measured_files()
    return rows_of(store.effective(), files, is_evaluation=store.is_evaluation)


# --- what is told ---------------------------------------------------------------------------------


def test_each_step_and_each_evaluation_is_a_row_of_its_own(tmp_path: Path) -> None:
    store = two_rounds(tmp_path / "run")
    made = rows(store)
    assert [(row.step, row.round, "train/loss" in row.metrics) for row in made] == [
        (0, 0, False),
        *((1, 1, True), (2, 1, True), (2, 1, False)),
        *((3, 2, True), (4, 2, True), (4, 2, False)),
    ]
    assert made[1].metrics == {
        "train/lr": 0.1,
        "train/loss": 1.0,
        "train/nll": 2.0,
        "train/tokens": 100.0,
        "train/loss_tokens": 10.0,
    }
    result = store.result(2)
    assert result is not None
    told = made[-1].metrics
    assert (told["eval/score"], told["eval/stderr"], told["eval/n"], told["eval/weights_step"]) == (
        *(result.score, result.stderr, result.n),
        4,
    )
    assert {n: told[f"eval/{n}/score"] for n in TASKS} == {t.name: t.score for t in result.tasks}
    merged = by_step(made)
    assert list(merged) == [0, 1, 2, 3, 4]
    assert merged[2] == {**made[2].metrics, **made[3].metrics, ROUND: 1.0}  # nothing is lost


def test_what_is_measured_later_of_an_earlier_round_is_told_as_that(tmp_path: Path) -> None:
    store = begun(tmp_path / "run")
    train(store, 1, range(2))
    result = measured_result(0.5, random.Random(1), SHAPE, 1)
    first, second = (Measured((task,), ()) for task in result.tasks)
    store.record_measured(1, first, 2)
    store.record_result(result, 2)
    train(store, 2, range(2, 4))
    evaluate(store, 2, 4)
    store.record_measured(1, second, 2)
    store.record_result(result, 2)
    store.record_result(result, 2)  # once more, with nothing new in it
    *_, of_first, _, _, of_second, late = rows(store)
    name, other = TASKS
    assert (
        f"eval/{name}/score" in of_first.metrics and f"eval/{other}/score" not in of_first.metrics
    )
    assert late.step == of_second.step == 4
    assert all(key.startswith("of_round_01/eval/") for key in late.metrics)
    assert f"of_round_01/eval/{other}/score" in late.metrics
    assert not any(key.endswith("eval/score") for key in late.metrics)


def test_steps_never_fall_and_names_of_one_step_differ() -> None:
    """Events in any order that a ledger may have, hundreds of rounds of them."""
    chance, events, step = random.Random(5), [], 0
    loss = HeldOutLoss("nll:h", 1.0, None, float("inf"), None, 3, 30, 30, ())
    task = measured_result(0.5, chance, Shape(num_questions=2, num_tasks=1), 1).tasks[0]
    for number in range(300):
        at = {"time": "2026-01-01T00:00:00Z", "round": number, "file": f"evals/{number}.json"}
        for kind in chance.choices(("step", "held_out", "measured", "evaluated"), k=8):
            fields = {"task": "nll:h", "nll": 1.0, "tasks": ["nll:h"], "score": 0.5}
            events.append({"seq": len(events), "type": kind, "step": step, **at, **fields})
            step += kind == "step"
    files = {f"evals/{number}.json": Measured((task,), (loss,)) for number in range(300)}
    made = rows_of(events, files)
    steps = [row.step for row in made]
    assert steps == sorted(steps) and steps[-1] > 100
    assert sum(map(len, by_step(made).values())) == sum(len(row.metrics) for row in made) + len(
        set(steps)
    )
    assert any(value == float("inf") for row in made for value in row.metrics.values())
    assert rows_of([], {}) == [] and texts_of([]) == {}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("train/loss", "train/loss"),
        ("eval/tasks.py@good/score", "eval/tasks.py_good/score"),
        ("eval/nll:held out.jsonl/nll", "eval/nll:held out.jsonl/nll"),
        ("eval/qa:../../q.jsonl/n", "eval/qa:../_/q.jsonl/n"),
        ("a//b", "a/_/b"),
        ("/a", "_/a"),
        ("step", "_step"),
        ("__x", "__x"),
        ("\u00e9\u2028\ud800</script>", "____/script_"),
    ],
)
def test_names_become_what_every_tracker_takes(name: str, theirs: str) -> None:
    assert with_names({}, [name]) == {name: theirs}


def test_names_that_would_fall_together_stay_apart() -> None:
    names = ["a@b", "a#b", "a_b", "x" * 300, "x" * 300 + "y", "a@b"]
    found = with_names({}, names)
    assert len(set(found.values())) == len(set(names))
    assert max(map(len, found.values())) <= MAX_CHARS
    assert with_names(found, reversed(names)) == found  # what is known stays


def test_no_secret_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "a-secret-of-mine")
    store = begun(tmp_path / "run", evalops_api_url="https://a-secret-of-mine/x")
    config = settings_of(store)
    params = tracked_run(store, config, Keys().redacted).params
    assert params["resolved.base_url"] == "https://[redacted]@host/path?[redacted]"
    assert params["evalops_api_url"] == "https://[redacted]/x"
    assert not any(key.startswith("tracking") for key in params)
    assert params_of({"a": {"b": [1, "http://u:p@h"]}}) == {"a.b": '[1, "http://[redacted]@h"]'}
    store.append("failed", detail="https://me:hidden@host: a-secret-of-mine refused")
    file = tmp_path / "kept"
    telling = Telling(store.run_dir, "trackio", opener("keeps", file), Keys().redacted)
    telling.tell(store, config, told_of(store, is_over=True, status="failed"))
    telling.close()
    said = file.with_suffix(".said").read_text()
    assert "https://[redacted]@host: [redacted] refused" in said
    theirs = with_names({}, ["eval/a-secret-of-mine/own/x"], Keys().redacted)
    assert list(theirs.values()) == ["eval/_redacted_/own/x"]
    write_for_playground(store)
    assert "secret" not in (tmp_path / "run/config.json").read_text()


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        ({"trackers": ["wandb"]}, "'trackio' or 'mlflow'"),
        ({"trackers": ["mlflow", "mlflow"]}, "name each of them once"),
        ({"mlflow_uri": "http://me:secret@host"}, "MLFLOW_TRACKING_PASSWORD"),
        ({"mlflow_uri": "https://host?token=secret"}, "MLFLOW_TRACKING_TOKEN"),
        ({"mlflow_uri": "./mlruns"}, "sqlite:////FOLDER/mlflow.db"),
        ({"project": "a/b"}, "begins with a letter or digit"),
        ({"project": "registry-x"}, "keeps files of its own under"),
        ({"project": "x_configs"}, "keeps files of its own under"),
    ],
)
def test_settings_that_would_end_in_a_trackers_error_are_refused(tracking: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(tracking=tracking)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sqlite:////a/b.db and a@b", "sqlite:////a/b.db and a@b"),
        ("http://host:80/x and https://host/a@b", "http://host:80/x and https://host/a@b"),
        ("http://me:a@b/c?d#e@host/x?key=1", "http://[redacted]@host/x?[redacted]"),
        ("https://token@host/x", "https://[redacted]@host/x"),
        ('"http://a:b@host", "c@d"', '"http://[redacted]@host", "c@d"'),
    ],
)
def test_of_an_address_only_what_is_secret_is_left_out(text: str, told: str) -> None:
    assert without_secrets(text) == told


# --- told once, whatever happens ------------------------------------------------------------------


def tell(store: RunStore, how: str, file: Path, *, is_over: bool = True) -> Any:
    telling = Telling(store.run_dir, "trackio", opener(how, file))
    try:
        status = "finished" if is_over else "running"
        return telling.tell(
            store, settings_of(store), told_of(store, is_over=is_over, status=status)
        )
    finally:
        telling.close()


def kept(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_tracker_that_loses_its_server_is_completed_without_doubles(tmp_path: Path) -> None:
    store, file = two_rounds(tmp_path / "run"), tmp_path / "kept"
    wanted = [row.seq for row in rows(store)]
    for num in (2, 4):
        at_tracker = tell(store, "keeps two", file)
        assert "the server has gone" in at_tracker.problem
        assert [line["seq"] for line in kept(file)] == wanted[:num]
    assert tell(store, "keeps", file) == (len(wanted), wanted[-1], None)
    assert [line["seq"] for line in kept(file)] == wanted
    assert tell(store, "keeps", file) == (len(wanted), wanted[-1], None)  # nothing is told again
    assert [line["seq"] for line in kept(file)] == wanted
    state = json.loads((store.run_dir / "tracking/trackio/state.json").read_text())
    assert (
        state["names"][f"eval/{next(iter(TASKS))}/score"]
        == "eval/evals/domain_qa.py_domain_qa/score"
    )
    said = json.loads(file.with_suffix(".said").read_text())
    assert (said["verdict"], said["status"]) == ("Round 2: stop_rounds.", "finished")
    assert said["round_02.sampler_path"].startswith("tinker://")


def test_steps_wait_for_a_saved_state_and_go_back_with_the_run(tmp_path: Path) -> None:
    store, file = begun(tmp_path / "run"), tmp_path / "kept"
    train(store, 1, range(2))
    evaluate(store, 1, 2)
    decide(store, 1, 2)
    train(store, 2, range(2, 4), is_saved=False)
    tell(store, "keeps", file, is_over=False)
    assert [line["step"] for line in kept(file)] == [0, 1, 2, 2]  # a kill now takes nothing back
    tell(store, "keeps", file)  # a replay of the killed run tells all
    assert [line["step"] for line in kept(file)] == [0, 1, 2, 2, 3, 4]
    store.mark_resumed(store.resolved_config()["config"])
    tell(store, "keeps", file, is_over=False)
    assert [line["step"] for line in kept(file)] == [0, 1, 2, 2]
    train(store, 2, range(2, 4))
    tell(store, "keeps", file, is_over=False)
    assert [line["seq"] for line in kept(file)] == [row.seq for row in rows(store)]
    store.mark_resumed(store.resolved_config()["config"], back_to=0)
    assert standing(store.run_dir, "trackio").known_of(rows(store)) == 0  # it knows of later rows
    tell(store, "keeps", file, is_over=False)
    assert [line["step"] for line in kept(file)] == [0]


def test_two_processes_never_tell_one_run_at_once(tmp_path: Path) -> None:
    store, file = two_rounds(tmp_path / "run"), tmp_path / "kept"
    first = Telling(store.run_dir, "trackio", opener("keeps", file))
    told = told_of(store, is_over=True, status="finished")
    first.tell(store, settings_of(store), told)
    refused = tell(store, "keeps", file)
    assert "another process is at work on telling trackio" in refused.problem
    assert refused.known_of(rows(store)) == len(rows(store))  # as the other has written down
    first.close()
    assert tell(store, "keeps", file).problem is None


def test_a_copy_is_told_of_as_another_run(tmp_path: Path) -> None:
    store = two_rounds(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copy = RunStore.open(tmp_path / "copy")
    ids = [tracked_run(one, settings_of(one), str).run_id for one in (store, copy)]
    assert ids[1].startswith(f"{ids[0]}-copy-")
    shutil.rmtree(tmp_path / "run")
    assert tracked_run(copy, settings_of(copy), str).run_id == ids[0]  # it was moved


# --- beside a run ---------------------------------------------------------------------------------


def follow(store: RunStore, how: str, file: Path, error: BaseException | None = None) -> list[str]:
    """A run beside the worker with a tracker of the tests'; what it was said of it."""
    said: list[str] = []
    command = ("-P", str(REPO / "tests/tracker_worker.py"), how, str(file))
    following = Following(command=command, leave_s=8 if how == "keeps" else 1)

    async def work() -> None:
        async with tracked(store, settings_of(store), said.append, following):
            train(store, 1, range(2))
            evaluate(store, 1, 2)
            decide(store, 1, 2, "stop_rounds")
            if error is not None:
                raise error
            store.append("run_finished", round=1, action="stop_rounds")

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(REPO / "tests"))
        try:
            asyncio.run(work())
        finally:
            said += following.finish()
    return said


def test_the_worker_tells_what_the_ledger_has(tmp_path: Path) -> None:
    store, file = begun(tmp_path / "run"), tmp_path / "kept"
    said = follow(store, "keeps", file)
    assert said[0].startswith("tracking: trackio (")
    assert said[1:] == [f"trackio: it has all {len(rows(store))} rows of the run"]
    assert [line["seq"] for line in kept(file)] == [row.seq for row in rows(store)]


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted("now"), "interrupted"), (ValueError("odd"), "failed")]
)
def test_a_run_that_fails_is_told_of_as_well(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    store, file = begun(tmp_path / "run"), tmp_path / "kept"
    with pytest.raises(type(error)):
        follow(store, "keeps", file, error)
    assert [line["seq"] for line in kept(file)] == [row.seq for row in rows(store)]
    assert json.loads(file.with_suffix(".said").read_text())["status"] == status


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("hangs", "it had not answered when the run had to end"),
        ("dies", "its process ended with -9 (lost http://[redacted]@tracker:5000)"),
        ("raises", "ConnectionError: http://[redacted]@tracker:5000/?[redacted] refuses [31m"),
    ],
)
def test_what_a_tracker_does_is_said_at_the_end_and_changes_nothing(
    tmp_path: Path, how: str, why: str
) -> None:
    store, file = begun(tmp_path / "run"), tmp_path / "kept"
    _, warning = follow(store, how, file)
    num = len(rows(store))
    assert warning.startswith(
        f"warning: trackio: 0 of the run's {num} rows are known to be there: "
    )
    assert why in warning
    assert warning.endswith(f"report.py --track {store.run_dir}")
    undisturbed = begun(tmp_path / "other", tracking={})
    follow(undisturbed, "hangs", file)
    timeless = [[{k: v for k, v in e.items() if k not in ("time", "worked", "run_id")} for e in s]
                for s in (store.effective(), undisturbed.effective())]  # fmt: skip
    assert timeless[0] == timeless[1]
    tell(store, "keeps", file)  # the replay
    assert [line["seq"] for line in kept(file)] == [row.seq for row in rows(store)]


def test_replay_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = two_rounds(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"names no tracker .*tracking\.trackers=\[\"trackio\"\]"):
        replay(store, settings(tracking={}), Keys())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-tracking\.txt"):
        replay(store, settings(), Keys())
    monkeypatch.undo()
    write_package(tmp_path, monkeypatch, "raise ConnectionError('gone')")
    with pytest.raises(RunStoreError, match="a process is at work on this run"):
        replay(store, settings(), Keys())
    store.close()
    with pytest.raises(TrackerError, match=r"trackio: 0 of .*gone.*--track"):
        replay(store, settings(), Keys())


# --- the whole command ----------------------------------------------------------------------------


# A package of MLflow's name that takes a moment to be opened, and does not bear a second one then.
OPENED_ALONE = """
import os, time
from pathlib import Path
entities = None
class MlflowClient:
    def __init__(self, tracking_uri):
        self.mark = Path(tracking_uri.removeprefix("sqlite:///")).with_name("opening")
    def get_experiment_by_name(self, name):
        os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        time.sleep(1)
        self.mark.unlink()
        raise RuntimeError("opened alone")
"""


def write_package(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A package of Trackio's name, of which importing the storage does something else."""
    (folder / "packages/trackio").mkdir(parents=True)
    (folder / "packages/trackio/__init__.py").write_text("")
    (folder / "packages/trackio/sqlite_storage.py").write_text(body + "\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "packages"))
    monkeypatch.syspath_prepend(str(folder / "packages"))
    for name in ("trackio", "trackio.sqlite_storage"):  # put back at the end, with what is imported
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, sys))
        monkeypatch.delitem(sys.modules, name)


def test_a_missing_package_is_said_before_anything_is_made(
    workspace: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "mlflow" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    for flags in ((), ("--dry-run",)):
        assert workspace.run("run", *flags, tracking={"trackers": ["mlflow"]}) == 2
        said = capsys.readouterr().err
        assert ".venv/bin/pip install -r requirements-tracking.txt" in said
    assert not (workspace.folder / "run").exists()


def test_a_study_says_so_before_its_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(REPO / "examples/lora_rank_with_eval", tmp_path / "study")
    file = tmp_path / "study/experiment.yaml"
    text = file.read_text().replace("controls:", "controls:\n  tracking.trackers: [mlflow]", 1)
    file.write_text(re.sub("base_model: .*", f"base_model: {REPO / 'demo_model'}", text))
    found = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "mlflow" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    assert study.main(["run", str(tmp_path / "study")]) == 2
    assert "pip install -r requirements-tracking.txt" in capsys.readouterr().err
    assert not (tmp_path / "study/results").exists()


def test_a_folder_of_a_packages_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="names mlflow, and there is no such package"):
        refuse_missing(settings(tracking={"trackers": ["mlflow"]}))


def test_a_run_beside_a_broken_package_is_the_run_without(
    workspace: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_package(tmp_path, monkeypatch, "raise ConnectionError('gone')")
    assert workspace.run("plain", max_rounds=1) == 0
    capsys.readouterr()
    assert workspace.run("run", max_rounds=1, tracking={"trackers": ["trackio"]}) == 0
    said = capsys.readouterr().err
    assert "trackio: 0 of the run's" in said and "ConnectionError: gone" in said
    paths = ("state_path", "sampler_path", "paths", "parent", "expires_at", "checkpoint")
    own = ("time", "worked", "run_id", "latency_ms", "pipeline", *paths)
    ledgers = [
        [{k: v for k, v in event.items() if k not in own} for event in workspace.events(name)]
        for name in ("plain", "run")
    ]
    assert ledgers[0] == ledgers[1]
    # the form that the playground lists, of the same run
    store, folder = workspace.store("run"), workspace.folder / "run"
    saved = store.checkpoint(1)
    assert saved is not None
    (line,) = map(json.loads, (folder / "checkpoints.jsonl").read_text().splitlines())
    assert line == {
        "name": "000001",
        "batch": 3,
        "sampler_path": saved.sampler_path,
        "score": store.scores()[1],
        "state_path": saved.state_path,
    }
    shown = json.loads((folder / "config.json").read_text())
    assert (shown["lora_rank"], shown["dataset_builder"]["file_path"]) == (4, "train.jsonl")
    # and a resumption may change what is tracked, and is not disturbed by the files
    command = ["--resume", str(folder), "--set", "max_rounds=2", "--set", "tracking.trackers=[]"]
    assert main(command) == 0
    assert len((folder / "checkpoints.jsonl").read_text().splitlines()) == 2
    assert main(["--resume", f"{folder}@round_01", "--dry-run"]) == 0


def test_the_playground_gets_what_can_be_sampled(tmp_path: Path) -> None:
    store = two_rounds(tmp_path / "run")
    write_for_playground(store)
    file = tmp_path / "run/checkpoints.jsonl"
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == [
        "000001",
        "000002",
    ]
    store.record_deleted(2, ["tinker://s:train:0/sampler_weights/step_2"])
    write_for_playground(store)
    assert [json.loads(line)["batch"] for line in file.read_text().splitlines()] == [4]
    store.mark_resumed(store.resolved_config()["config"], back_to=1)
    write_for_playground(store)
    assert file.read_text() == ""


def test_a_run_directory_is_no_model_directory(tmp_path: Path) -> None:
    from config_schema import LoadedConfig

    write_for_playground(two_rounds(tmp_path / "run"))
    loaded = LoadedConfig(settings(base_model="run"), tmp_path / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"that of a run and no model.*start_from"):
        find_model_dir(loaded)


def test_the_script_for_wandb_names_what_there_is() -> None:
    """It was run with wandb 0.31.0; here it is parsed, and what it imports of ours is there."""
    page = (REPO / "docs/tracking.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"<!-- wandb -->\n```python\n(.*?)```", page, re.DOTALL)
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_a_database_on_this_machine_is_opened_by_one_process_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow makes its tables when it is first opened, and two at once would both fail."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/__init__.py").write_text(OPENED_ALONE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPO}")
    stores = [two_rounds(tmp_path / name) for name in ("a", "b")]
    words = ["--set", 'tracking.trackers=["mlflow"]']
    processes = []
    for store in stores:
        store.close()
        command = [sys.executable, str(REPO / "report.py"), "--track", str(store.run_dir), *words]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]  # not 2: nothing was wrong
    assert all("RuntimeError: opened alone" in one for one in said), said


# --- the real packages, where they are installed --------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the packages and theirs
@pytest.mark.parametrize("kind", ["trackio", "mlflow"])
def test_the_real_tracker_has_the_ledger_row_by_row(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(kind, reason=f"{kind} is not installed (requirements-tracking.txt)")
    from benchmarks.trackers import rows_at_tracker, wanted

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")  # which would store rows later
    store = two_rounds(tmp_path / "run", tracking={"trackers": [kind]})
    store.close()
    for _ in range(2):
        replay(store, settings_of(store), Keys())
        assert rows_at_tracker(kind, store) == wanted(kind, rows(store))

"""Studies at work: real trials on the embedded service, side by side, killed, changed, halved."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import forked
import local_tinker
import study
from conftest import REPO
from errors import RunStoreError
from ledger.sent import SENT
from ledger.store import RunStore
from scores.results import EvalResult
from sdk_client import KEY
from studies.work.from_trials import warnings_said
from studies.work.halving import judge_rung, rungs
from studies.work.hindsight import gate_words
from studies.work.in_flight import InFlight, allow_open_files
from studies.work.record import StudyRecord
from test_loop import SMOOTH_RATE
from trainer_with_eval import main as train

TASK = """\
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def words(first=0):
    asked = [Sample(input=f"Which word stands at place {i}?", target="x") for i in range(6)]
    return Task(dataset=MemoryDataset(asked[first:]), solver=[generate()], scorer=includes())


@task
def letters():
    asked = [Sample(input=f"Which letter is number {i}?", target="e") for i in range(4)]
    return Task(dataset=MemoryDataset(asked), solver=[generate()], scorer=includes())
"""


class StudyFolder:
    """A folder with experiment.yaml, rows and tasks for a tiny model."""

    def __init__(self, folder: Path, model_dir: Path) -> None:
        self.folder = folder
        (folder / "evals").mkdir(parents=True)
        (folder / "evals" / "tasks.py").write_text(TASK)
        rows = [{"instruction": f"Say {i}", "output": str(i)} for i in range(12)]
        (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        tasks = [{"name": n, "file": "tasks.py", "function": n} for n in ("words", "letters")]
        self.experiment: dict[str, Any] = {
            "experiment": {"name": "ranks", "framework": "tinker", "question": "How?"},
            "variables": {"lora_rank": [2, 4, 8]},
            "controls": {
                "base_model": str(model_dir),
                "renderer_name": "llama3",
                "dataset": "train.jsonl",
                "learning_rate": 0.003,
                "steps_per_round": 4,
                "batch_size": 2,
                "evaluation.max_tokens": 3,
            },
            "evaluation": {"tasks": tasks},
        }
        self.write()

    def write(self, **changes: Any) -> None:
        """Write experiment.yaml, with sections replaced or added to."""
        for section, values in changes.items():
            self.experiment[section] = {**self.experiment.get(section, {}), **values}
        (self.folder / "experiment.yaml").write_text(yaml.safe_dump(self.experiment))

    def teach_one_answer(self) -> None:
        """Rows that are all answered alike, tasks that ask for this answer, and steps enough."""
        rows = [{"instruction": f"Say {i}", "output": "yes"} for i in range(12)]
        (self.folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        asked = TASK.replace('target="x"', 'target="yes"').replace('target="e"', 'target="yes"')
        (self.folder / "evals" / "tasks.py").write_text(asked)
        self.write(controls={"learning_rate": SMOOTH_RATE, "steps_per_round": 60, "batch_size": 4})

    def break_grader_of(self, run_id: str) -> Path:
        """Have a task's grader fail in one trial, as long as the file is there that is returned."""
        broken = TASK.replace(
            "scorer=includes())\n\n\n@task\ndef letters",
            "scorer=flawed())\n\n\n@task\ndef letters",
        ).replace("\n\n@task\ndef words", FLAWED + "\n\n@task\ndef words")
        (self.folder / "evals" / "tasks.py").write_text(broken)
        flag = self.folder / "flag"
        flag.write_text(run_id)
        return flag

    def write_sealed_test(self) -> None:
        """test.jsonl, with five questions that the same answer is right for."""
        rows = [{"question": f"Sealed question {i}?", "answer": "yes"} for i in range(5)]
        (self.folder / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))

    def run(self, *flags: str) -> int:
        return study.main(["run", str(self.folder), *flags])

    def store(self, run_id: str) -> RunStore:
        return RunStore.open(self.folder / "results" / run_id)

    def record(self, *types: str) -> list[dict[str, Any]]:
        return list(StudyRecord.read(self.folder / "results").events(*types))

    def result(self, run_id: str, round_no: int) -> EvalResult:
        found = self.store(run_id).result(round_no)
        assert found is not None
        return found

    def answers(self) -> dict[str, list[tuple[str, str | None]]]:
        """By trial, every answer of every round."""
        found = {}
        for path in sorted((self.folder / "results").glob("run_*")):
            results = RunStore.open(path).results()
            found[path.name] = [(s.id, s.answer) for one in results for s in one.samples]
        return found

    def program(self, *flags: str) -> forked.Process:
        return forked.Process(
            REPO / "study.py", "run", str(self.folder), *flags,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, llama_dir: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study", llama_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> StudyFolder:
    """The same study, done; to be read only."""
    folder = StudyFolder(tmp_path_factory.mktemp("whole") / "study", llama_dir)
    assert folder.run() == 0
    return folder


def measured(store: RunStore, round_no: int) -> Iterator[dict[str, Any]]:
    return store.events("measured", round_no)


# --- the whole way --------------------------------------------------------------------------------


def test_trials_are_the_runs_that_they_would_be_alone(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    assert folder.run() == 0
    # One baseline is paid for; the others take it, log and all.
    stores = [folder.store(f"run_{number:03d}") for number in range(3)]
    paid = [[e for e in measured(store, 0) if e.get("num_prompt_tokens")] for store in stores]
    assert [len(events) for events in paid] == [1, 0, 0]
    for store in stores[1:]:
        taken = list(measured(store, 0))
        assert [e["taken_from"] for e in taken] == ["../run_000", "../run_000"]
        assert store.usage(0).tokens == 0
        baseline = store.result(0)
        assert baseline is not None and baseline.samples == folder.result("run_000", 0).samples
        assert all((store.run_dir / str(task.log)).is_file() for task in baseline.tasks)
    # A run by hand of the same config gives the same answers.
    config = folder.folder / "configs" / "train_001.json"
    assert train(["--config", str(config), "--run-dir", str(folder.folder / "alone")]) == 0
    alone = RunStore.open(folder.folder / "alone").results()
    assert [one.samples for one in alone] == [one.samples for one in stores[1].results()]
    # What was measured is laid out, and Inspect opens it.
    from inspect_ai.log import list_eval_logs

    logs = list_eval_logs(str(folder.folder / "eval_results"), recursive=True)
    assert len(logs) == 6
    of_task = json.loads((folder.folder / "eval_results/run_002/words/results.json").read_text())
    assert of_task["score"] == folder.result("run_002", 1).tasks[0].score and of_task["n"] == 6
    # Once more has nothing left to do.
    before = [(store.run_dir / "ledger.jsonl").read_bytes() for store in stores]
    assert folder.run() == 0
    assert [(store.run_dir / "ledger.jsonl").read_bytes() for store in stores] == before
    capsys.readouterr()
    assert study.main(["check", str(folder.folder)]) == 0
    assert "missing" not in (checked := capsys.readouterr().out) and "stale" not in checked
    assert study.main(["status", str(folder.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["status"] for one in told["trials"]] == ["done"] * 3
    assert told["is_at_work"] is False
    report = (folder.folder / "report.md").read_text()
    assert "the default gate, 0.85 (the study sets no eval" in report


def test_what_the_data_lost_and_trials_warned_of_is_in_the_report(folder: StudyFolder) -> None:
    asked = [f"Which letter is number {i}?" for i in (1, 2, 2)]
    rows = [{"instruction": f"Say {i % 12}", "output": str(i % 12)} for i in range(13)]
    rows += [{"instruction": one, "output": "f"} for one in asked]
    (folder.folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    folder.write(variables={"lora_rank": [2, 4]})
    assert folder.run() == 0
    report = (folder.folder / "report.md").read_text().replace("\\", "")
    lost = "Rows left out of training: 2 contaminated, which ask 2 evaluation questions and 2 that"
    assert report.count(f"- {lost} stand in the files already (all trials).") == 1
    # Three tokens cut every answer off: both trials warn, and it is told once.
    assert report.count("- A trial warned: ") == len(
        set(re.findall("- A trial warned: .*", report))
    )
    (cut,) = re.findall(r"- A trial warned: 6 of 6 answers of \S+@words .*", report)
    assert cut.endswith("(all trials).")


def test_which_gate_is_told_of() -> None:
    default, own, other = "{}", '{"eval_threshold": 0.9}', '{"eval_threshold": 0.7}'
    assert gate_words([default]) == "the default gate, 0.85 (the study sets no eval_threshold)"
    assert gate_words([own, own]) == "the gate at 0.9, the study's eval_threshold"
    assert gate_words([own, other]) == "a gate at 0.9 or 0.7, by the trial"
    assert gate_words([]) == ""


def test_warnings_of_trials_stand_once_with_whom_they_are_of(tmp_path: Path) -> None:
    logs = {
        "run_000": ["warning: 3 of 9 answers were cut", "warning: known", "a warning: no", "x"],
        "run_001": ["warning: 4 of 9 answers were cut", "warning: 4 of 9 answers were cut"],
        "run_002": ["warning: the disk is slow"],
        "run_003": ["warning: the disk is slow"],
    }
    for name, lines in logs.items():
        (tmp_path / f"{name}.log").write_text("".join(f"{line}\n" for line in lines))
    assert warnings_said(tmp_path, [*logs, "run_004"], ["known"]) == [
        "A trial warned: 3 of 9 answers were cut (run_000; with other numbers run_001).",
        "A trial warned: the disk is slow (run_002 and run_003).",
    ]
    many = [f"warning: {'x' * i}" for i in range(1, 21)]
    (tmp_path / "one.log").write_text("".join(f"{line}\n" for line in many))
    told = warnings_said(tmp_path, ["one"], [])
    assert len(told) == 13 and told[0] == "A trial warned: x (one)."
    assert told[-1] == "Trials warned of 8 more things: results/logs has each."


def test_trials_may_name_question_files_themselves(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"question": f"What is thing {i}?", "answer": "x"} for i in range(5)]
    (folder.folder / "qa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    folder.experiment["evaluation"] = {}
    folder.write(variables={"lora_rank": [2, 4]}, controls={"eval_tasks": ["qa:qa.jsonl"]})
    assert folder.run() == 0, capsys.readouterr().err
    assert [e["run"] for e in folder.record("trial_done")] == ["run_000", "run_001"]
    assert folder.record("winner") and folder.result("run_001", 1).n == 5
    # No task of the study has results of its own; the report has them all the same.
    assert not (folder.folder / "eval_results").exists()
    assert "../qa.jsonl" in (folder.folder / "results.csv").read_text()
    assert "inspect view" not in (folder.folder / "report.md").read_text()
    # Of their own Inspect tasks the logs lie with the runs.
    folder.write(controls={"eval_tasks": ["evals/tasks.py@words"]}, output={"results_dir": "own"})
    assert folder.run() == 0, capsys.readouterr().err
    report = (folder.folder / "report.md").read_text()
    assert f"{Path(sys.executable).parent.name}/inspect view --log-dir " in report
    (logs,) = re.findall(r"inspect view --log-dir (.*)", report)
    assert Path(logs).samefile(folder.folder / "own")
    assert list((folder.folder / "own" / "run_001").rglob("*.eval"))


def test_another_study_takes_what_this_one_measured(
    tmp_path: Path, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    one, other = StudyFolder(tmp_path / "one", llama_dir), StudyFolder(tmp_path / "two", llama_dir)
    far = StudyFolder(tmp_path / "elsewhere" / "three", llama_dir)
    one.write(variables={"lora_rank": [2]})
    assert one.run() == 0
    other.write(variables={"lora_rank": [4]})
    assert other.run() == 0
    assert other.store("run_000").usage(0).tokens == 0
    # What lies elsewhere is named; another protocol is measured for itself.
    far.write(variables={"lora_rank": [4]}, controls={"evaluation.max_tokens": 2})
    assert far.run("--reuse", str(one.folder)) == 0
    assert far.store("run_000").usage(0).tokens > 0
    far.write(controls={"evaluation.max_tokens": 3}, output={"results_dir": "again"})
    assert far.run("--reuse", str(one.folder)) == 0
    again = RunStore.open(far.folder / "again" / "run_000")
    assert again.usage(0).tokens == 0
    capsys.readouterr()
    assert far.run("--reuse", str(tmp_path)) == 2
    assert "neither a study" in capsys.readouterr().err
    # What a trial has cost is known, or its study does not go on.
    (one.folder / "results" / "run_000" / SENT).write_text("")
    assert one.run() == 2
    assert f"run_000/{SENT}: cannot be read" in capsys.readouterr().err
    assert other.run() == 0


def test_a_study_killed_twice_gives_the_same_table(
    whole: StudyFolder, tmp_path: Path, llama_dir: Path
) -> None:
    killed = StudyFolder(tmp_path / "killed" / "study", llama_dir)
    for run_id, wanted in (("run_000", '"type": "step"'), ("run_001", '"type": "checkpoint"')):
        with killed.program() as process:
            ledger = killed.folder / "results" / run_id / "ledger.jsonl"
            wait_for(process, ledger, wanted)
            process.kill()
            process.wait(60)
    assert killed.run() == 0
    assert killed.answers() == whole.answers()
    for run_id in whole.answers():
        assert killed.store(run_id).losses(1) == whole.store(run_id).losses(1)
    # Nothing of the baseline was paid for again.
    stores = [killed.store(run_id) for run_id in whole.answers()]
    assert sum(store.usage(0).tokens for store in stores) == whole.store("run_000").usage(0).tokens


def wait_for(process: forked.Process, file: Path, wanted: str) -> None:
    """Wait until a file holds a text."""
    deadline = time.monotonic() + 120
    while not file.exists() or wanted not in file.read_text():
        assert process.poll() is None, process.text_of("stderr")
        assert time.monotonic() < deadline, process.said_so_far("stderr")
        time.sleep(0.02)


@pytest.mark.parametrize("num_parallel", [1, 3])  # of three, two wait for their turn
def test_ctrl_c_saves_the_trial_and_says_how_to_go_on(
    folder: StudyFolder, num_parallel: int
) -> None:
    folder.write(controls={"steps_per_round": 200})
    with folder.program("--parallel", str(num_parallel)) as process:
        wait_for(process, folder.folder / "results/run_000/ledger.jsonl", '"type": "step"')
        assert study.main(["status", str(folder.folder)]) == 0
        assert folder.run() == 2  # another process is at work on it
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(120)
    assert process.returncode == 130
    assert "Interrupted before step" in said and "study.py run" in said
    assert "error:" not in said and "Traceback" not in said
    store = folder.store("run_000")
    saved = store.last_checkpoint()
    assert saved is not None and saved.step == len(list(store.events("step")))
    assert not (folder.folder / "results" / "run_001").exists()


# --- several at once ------------------------------------------------------------------------------


def test_trials_side_by_side_on_a_remote_service(
    folder: StudyFolder,
    whole: StudyFolder,
    tmp_path: Path,
    llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    with local_tinker.start([(str(llama_dir), str(llama_dir))]) as service:
        monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "kept", KEY))
        folder.write(controls={"base_url": service.base_url})
        capsys.readouterr()
        assert folder.run("--parallel", "3") == 0, capsys.readouterr().err
        assert folder.answers() == whole.answers()  # in turn
        paths = [folder.result(run_id, 1).checkpoint or "" for run_id in folder.answers()]
        runs = {path.removeprefix("tinker://").split("/")[0] for path in paths}
        assert len(runs) == 3  # of one session, which all of them share
        assert len({run.split(":")[0] for run in runs}) == 1
    paid = [folder.store(run_id).usage(0).tokens > 0 for run_id in folder.answers()]
    assert sum(paid) == 1


def test_trials_side_by_side_may_hold_their_connections_open() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = InFlight(answers=200, steps=32)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
        assert allow_open_files(3, most) is None
        raised, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised >= 2 * 200 + 2 * 32 and hard == before[1]
        assert allow_open_files(2, most) is None  # it is not lowered again
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)
        said = allow_open_files(10_000_000, most)
        assert said is not None and "(ulimit -n)" in said and "lower --parallel" in said
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- what goes wrong, and what changes ------------------------------------------------------------


def test_a_trial_that_fails_stops_no_other_and_is_tried_again(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    flag = folder.break_grader_of("run_001")
    assert folder.run("--local") == 1
    said = capsys.readouterr()
    assert "run_001: failed" in said.err and "Try it again with" in said.err
    assert said.err.rstrip().endswith("--local")
    assert [e["run"] for e in folder.record("trial_failed")] == ["run_001"]
    states = [folder.store(f"run_{n:03d}").last_decision() for n in range(3)]
    assert [d is not None and d.stops for d in states] == [True, False, True]
    flag.unlink()
    assert folder.run() == 0
    decision = folder.store("run_001").last_decision()
    assert decision is not None and decision.stops
    assert StudyRecord.read(folder.folder / "results").failures == {}


FLAWED = """

from pathlib import Path

from inspect_ai.log._samples import sample_active
from inspect_ai.scorer import accuracy, scorer


@scorer(metrics=[accuracy()])
def flawed():
    async def score(state, target):
        flag = Path(__file__).parent.parent / "flag"
        active = sample_active()
        log = "" if active is None else str(active.eval_set_id or active.log_location)
        if flag.exists() and f"/{flag.read_text()}/" in log:
            raise RuntimeError("no grade today")
        return await includes()(state, target)

    return score
"""


def test_arms_may_be_added_between_two_runs(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.write(variables={"lora_rank": [2, 8]})
    assert folder.run() == 0
    before = {path: path.read_bytes() for path in folder.folder.glob("results/*/ledger.jsonl")}
    folder.write(variables={"lora_rank": [2, 4, 8]})
    capsys.readouterr()
    assert folder.run() == 0
    assert "run_002 added: lora_rank=4" in capsys.readouterr().err
    opened = folder.record("opened")
    assert opened[-1]["changes"] == ["run_002 added: lora_rank=4"] and opened[-1]["time"]
    assert folder.store("run_002").settled_config()["config"]["lora_rank"] == 4
    assert all(path.read_bytes() == content for path, content in before.items())
    # A changed control is another trial: what was paid for is not overwritten.
    folder.write(controls={"learning_rate": 0.004})
    assert folder.run() == 2
    said = capsys.readouterr().err
    assert "trained with another learning_rate" in said and "is not thrown away" in said
    folder.write(controls={"learning_rate": 0.003, "max_rounds": 2})
    assert folder.run() == 2
    assert "trained with another max_rounds" in capsys.readouterr().err
    # Neither are results of one grader shown beside those of another.
    folder.write(controls={"max_rounds": 1})
    (folder.folder / "evals" / "tasks.py").write_text(TASK.replace("includes()", "includes(False)"))
    assert folder.run() == 2
    assert "measured before tasks.py was changed" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_budget_ends_a_study_between_trials(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.write(study={"budget": {"tokens": 10}})
    assert folder.run() == 0
    assert "Stopped for the budget" in capsys.readouterr().err
    assert not (folder.folder / "results" / "run_001").exists()
    assert folder.record("budget_reached") and not folder.record("winner")
    capsys.readouterr()
    assert study.main(["status", str(folder.folder)]) == 0
    assert "Stopped for the budget" in capsys.readouterr().out
    folder.write(study={"budget": {"tokens": 10_000_000}})
    assert folder.run() == 0
    assert [e["sentence"] for e in folder.record("winner")]
    assert len(folder.answers()) == 3


def test_what_a_study_costs_is_told_by_its_prices(
    folder: StudyFolder, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(llama_dir, folder.folder / "model")
    row = {"train": 1000, "prefill": 1000, "sample": 1000}
    prices = {"as_of": "2026-11-29", "usd_per_million_tokens": {"model": row}}
    folder.write(
        controls={"base_model": "model"},
        variables={"lora_rank": [2, 4]},
        study={"budget": {"usd": 1000, "prices": prices}},
    )
    assert folder.run() == 0
    capsys.readouterr()
    assert study.main(["status", str(folder.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for one in told["trials"]:
        num_tokens = sum(one["tokens"][k] for k in one["tokens"] if k.endswith("tokens"))
        assert one["cost_usd"] == pytest.approx(num_tokens / 1000)
    # What a kill left counts in whatever is told of the trial, as it does in the study's budget.
    sent = folder.folder / "results" / "run_001" / SENT
    totals = json.loads(sent.read_text())
    sent.write_text(json.dumps({**totals, "train_tokens": totals["train_tokens"] + 70_000}))
    assert study.main(["status", str(folder.folder), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["trials"]
    assert [one["tokens"] for one in after] == [one["tokens"] for one in told["trials"]]
    assert [one["tokens_in_vain"]["train_tokens"] for one in after] == [0, 70_000]
    costs = [one["cost_usd"] for one in told["trials"]]
    assert [one["cost_usd"] for one in after] == pytest.approx([costs[0], costs[1] + 70])
    assert study.main(["status", str(folder.folder)]) == 0
    said = capsys.readouterr().out
    assert f", ${sum(costs) + 70:,.2f}" in said and "70,000 of these tokens" in said
    assert study.main(["report", str(folder.folder)]) == 0
    report = (folder.folder / "report.md").read_text()
    (cost,) = re.findall(r"cost \\?\$([\d,.]+) by the prices", report)
    assert float(cost.replace(",", "")) == pytest.approx(sum(costs) + 70, abs=0.01)
    assert "in vain: at most 70,000 trained, 0 prompt and 0 sampled tokens" in report
    rows = csv.DictReader((folder.folder / "results.csv").read_text().splitlines())
    shown = {row["run_id"]: row for row in rows if row["task"] == "(all)"}
    used = [one["tokens"]["train_tokens"] for one in told["trials"]]
    by_trial = [shown[name] for name in ("run_000", "run_001")]
    assert [int(row["train_tokens"]) for row in by_trial] == [used[0], used[1] + 70_000]
    assert [float(row["cost_usd"]) for row in by_trial] == pytest.approx([costs[0], costs[1] + 70])


def test_a_damaged_record_is_refused_by_line(folder: StudyFolder) -> None:
    results = folder.folder / "results"
    results.mkdir()
    (results / "study.jsonl").write_text('{"seq": 0, "type": "run_begun"}\nno event\n')
    with pytest.raises(RunStoreError, match=r"study\.jsonl line 2: not an event"):
        StudyRecord.read(results)


def test_arms_are_measured_without_training(
    folder: StudyFolder, tmp_path: Path, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    old = StudyFolder(tmp_path / "elsewhere" / "old", llama_dir)
    old.write(variables={"lora_rank": [4]})
    assert old.run() == 0
    arms = [
        {"name": "untouched"},
        {"name": "prompted", "prompt": "Answer with the letter x."},
        {"name": "earlier", "checkpoint": str(old.folder / "results" / "run_000")},
    ]
    folder.write(variables={"lora_rank": [2]}, study={"arms": arms})
    assert folder.run() == 0, capsys.readouterr().err
    names = [f"arm_{arm['name']}" for arm in arms]
    results = [folder.store(name).comparable_results()[0] for name in names]
    assert [one.checkpoint for one in results[:2]] == [None, None]
    assert results[2].checkpoint == old.result("run_000", 1).checkpoint
    # The arm that is the base model is the trials' baseline, and paid for once.
    assert folder.store("run_000").usage(0).tokens == 0
    assert folder.result("run_000", 0).samples == results[0].samples
    assert results[1].protocol["system_prompt"] == "Answer with the letter x."
    assert results[1].protocol_hash != results[0].protocol_hash
    before = [(folder.folder / "results" / n / "ledger.jsonl").read_bytes() for n in names]
    assert folder.run() == 0
    after = [(folder.folder / "results" / n / "ledger.jsonl").read_bytes() for n in names]
    assert after == before
    capsys.readouterr()
    assert study.main(["status", str(folder.folder)]) == 0
    assert "arm_prompted (prompted): done" in capsys.readouterr().out
    report = (folder.folder / "report.md").read_text()
    assert "prompted" in report and "untouched" in report


# --- halving --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_rounds", "num_arms", "expected"),
    [(8, 8, [1, 2, 4]), (8, 4, [2, 4]), (8, 2, [4]), (4, 8, [1, 2]), (3, 8, [1]), (2, 5, [1]),
     (1, 8, []), (6, 8, [1, 3]), (16, 3, [4, 8]), (5, 1, [])],
)  # fmt: skip
def test_rungs_double(max_rounds: int, num_arms: int, expected: list[int]) -> None:
    assert rungs(max_rounds, num_arms) == expected


def test_halving_drops_by_what_was_measured(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.write(
        variables={"lora_rank": [1, 2, 4, 8]},
        controls={"max_rounds": 2, "steps_per_round": 1},
        study={"stop": "halving"},
    )
    assert folder.run() == 0
    judged = folder.record("rung")
    assert {e["round"] for e in judged} == {1}
    dropped = {e["arm"]: e["round"] for e in judged if not e["is_kept"]}
    for number, rank in enumerate([1, 2, 4, 8]):
        last = dropped.get(f"lora_rank={rank}", 2)
        assert folder.store(f"run_{number:03d}").num_rounds == last
    # The verdicts follow from the results alone.
    alive = {f"lora_rank={r}": f"run_{n:03d}" for n, r in enumerate([1, 2, 4, 8])}
    results = {arm: [folder.result(run_id, 1)] for arm, run_id in alive.items()}
    verdicts = {one.arm: one for one in judge_rung(1, results)}
    for event in (e for e in judged if e["round"] == 1):
        assert verdicts[event["arm"]].sentence == event["sentence"]
    # Once more changes nothing.
    assert folder.run() == 0
    assert folder.record("rung") == judged


# --- the sealed test ------------------------------------------------------------------------------


@pytest.mark.trains
def test_the_sealed_test_is_opened_for_the_winner_only(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.teach_one_answer()
    folder.write_sealed_test()
    folder.write(
        variables={"lora_rank": [4, 8]},
        controls={
            "evaluation.test_tasks": ["qa:test.jsonl"],
            "evaluation.max_tokens": 8,
            "max_rounds": 2,
        },
    )
    assert folder.run() == 0
    # No score has stopped a trial, a perfect one neither; what the usual gate would do is told.
    assert [folder.store(run_id).num_rounds for run_id in folder.answers()] == [2, 2]
    assert all(folder.result(run_id, 1).score == 1 for run_id in folder.answers())
    told = [event["gate"] for event in folder.record("trial_done")]
    assert told == [["round 1: Target met: 1.0000 >= 0.85. Stopping."]] * 2
    (winner,) = folder.record("winner")
    opened = {run_id: folder.store(run_id).test_opened() for run_id in folder.answers()}
    assert [run_id for run_id, event in opened.items() if event is not None] == [winner["run"]]
    test = folder.store(winner["run"]).test_result()
    assert test is not None and test.n == 5
    said = capsys.readouterr()
    assert f"{winner['run']}: the sealed test scores" in said.err
    # Neither it nor the baseline, which the first trial paid for, is counted as of an arm.
    stores = [folder.store(run_id) for run_id in folder.answers()]
    asked = [event for store in stores for event in store.events("test_measured")]
    common = sum(event["num_prompt_tokens"] + event["num_sampled_tokens"] for event in asked)
    common += sum(store.usage(0).tokens for store in stores)
    assert common > stores[0].usage(0).tokens > 0
    report = (folder.folder / "report.md").read_text()
    assert f"without the sealed test ({common:,} tokens in all)" in report
    # What the report names is there: from the same folder, the winner's run and its report.
    *_, place, of_run = (line for line in report.splitlines() if line.strip("`"))
    assert place.endswith(winner["run"]) and (Path(place) / "checkpoints").is_dir()
    assert Path(of_run).is_file() and Path(of_run).parent.samefile(place)
    before = {path: path.read_bytes() for path in folder.folder.glob("results/*/ledger.jsonl")}
    assert folder.run() == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert os.environ.get("TINKER_API_KEY") is None

"""The loop with every kind of evaluation: Inspect tasks, held-out loss, guards, the sealed test."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import read_eval_log

from conftest import thorough_only
from evaluation.held_out import load_held_out
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from evaluation.tasks import EvalTask
from ledger.records import Checkpoint
from ledger.store import RunStore
from model_dirs import make_model_dir
from scores.results import protocol_hash
from test_loop import SMOOTH_RATE, Workspace, row, start, wait_for
from trainer_with_eval import main

TASKS = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, includes, mean, model_graded_qa, scorer
from inspect_ai.solver import generate, solver


@solver
def crash():
    async def solve(state, generate):
        raise ValueError("this sample cannot be asked")

    return solve


def samples(number):
    return MemoryDataset(
        [
            Sample(id=f"s{i}", input=f"Name thing {i}.", target="x", metadata={"topic": "things"})
            for i in range(number)
        ],
        name="things",
    )


@task
def things(number: int = 6):
    return Task(dataset=samples(number), solver=generate(), scorer=includes())


@task
def crashing():
    return Task(dataset=samples(6), solver=crash(), scorer=includes())


@scorer(metrics={"*": [mean()]})  # which values, only its scores show
def two_values():
    async def score(state, target):
        return Score(value={"right": 1.0, "length": 0.25})

    return score


@task
def several():
    return Task(dataset=samples(6), solver=generate(), scorer=two_values())


@task
def boxed():
    return Task(dataset=samples(2), solver=generate(), scorer=includes(), sandbox="docker")


@scorer(metrics=[mean()])
def by_hand():
    async def score(state, target):
        said = (await get_model(role="grader").generate("Is it right?")).completion
        return Score(value=len(said) % 2, explanation=said)

    return score


@task
def judged_by_hand():
    return Task(dataset=samples(2), solver=generate(), scorer=by_hand())


@task
def judged():
    return Task(dataset=samples(2), solver=generate(), scorer=model_graded_qa())
"""


@pytest.fixture
def workspace(tmp_path: Path, llama_dir: Path) -> Workspace:
    made = Workspace(tmp_path, llama_dir)
    (tmp_path / "tasks.py").write_text(TASKS)
    made.write_rows("val.jsonl", [row(i) for i in range(300, 305)])
    test = [{"question": f"Which word closes line {i}?", "answer": "x"} for i in range(5)]
    made.write_rows("test.jsonl", test)
    return made


def num_optimizer_steps(workspace: Workspace, checkpoint: Checkpoint) -> int:
    folder = checkpoint.state_path.removeprefix("tinker://").replace(":", "_")
    file = workspace.folder / "run/checkpoints" / folder / "checkpoint.json"
    return json.loads(file.read_text())["num_optimizer_steps"]


def types(events: list[dict[str, Any]], *wanted: str) -> list[str]:
    return [event["type"] for event in events if event["type"] in wanted]


def test_all_layers_in_one_run(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    code = workspace.run(
        "run",
        "--json",
        eval_threshold=0.0,
        val_file="val.jsonl",
        eval_tasks=["qa:questions.jsonl", "tasks.py@things"],
        gate={"guards": {"tasks.py@things": 0.5}, "rule": "mean"},
        evaluation={
            "max_tokens": 8,
            "every": {"tasks.py@things": "end", "nll:val.jsonl": 2},
            "test_tasks": ["qa:test.jsonl"],
        },
    )
    assert code == 0
    outcome = json.loads(capsys.readouterr().out)
    store = workspace.store("run")
    baseline, last = store.result(0), store.results()[-1]
    assert baseline is not None
    # the guard is measured at the baseline and again, although not due, before the run may pass
    assert baseline.names == {"qa:questions.jsonl", "tasks.py@things", "nll:val.jsonl"}
    assert {"qa:questions.jsonl", "tasks.py@things"} <= last.names
    assert [task.role for task in last.tasks] == ["score", "guard"]
    assert last.n == 10  # the guard is not averaged in
    guard = last.task("tasks.py@things")
    assert guard is not None
    assert guard.log is not None
    log = read_eval_log(str(workspace.folder / "run" / guard.log))
    assert log.samples is not None
    ids = [f"tasks.py@things/{sample.id}" for sample in log.samples]
    assert sorted(sample.id for sample in guard.samples) == sorted(ids)
    assert {sample.topic for sample in guard.samples} == {"things"}
    assert log.eval.metadata is not None
    assert log.eval.metadata["checkpoint"] == last.checkpoint
    # whatever the recommended checkpoint lacked was measured at the end, then the test was opened
    best = store.result(outcome["best_round"])
    assert best is not None
    assert "nll:val.jsonl" in best.names
    test = store.test_result()
    assert test is not None
    assert test.checkpoint == outcome["best_sampler_path"]
    assert outcome["test_score"] == test.score
    events = workspace.events("run")
    assert types(events, "test_opened", "test_measured", "test_evaluated", "run_finished") == [
        "test_opened",
        "test_measured",
        "test_evaluated",
        "run_finished",
    ]
    assert outcome["tokens"]["sampled_tokens"] == sum(
        e.get("num_sampled_tokens", 0) for e in events
    )
    report = (workspace.folder / "run" / "eval_report.md").read_text()
    assert outcome["best_sampler_path"] in report
    assert "sealed test, round" in report
    assert "bits per byte" in report


@pytest.mark.trains
def test_held_out_loss_is_the_loss_of_an_untrained_model_and_falls_with_training(
    workspace: Workspace,
) -> None:
    """The same rows held out and trained on: a random model starts near ln(vocabulary)."""
    workspace.write_rows("val.jsonl", [row(i) for i in range(20, 24)])
    assert workspace.run("run", val_file="val.jsonl", max_rounds=1, steps_per_round=8) == 0
    store = workspace.store("run")
    before, after = store.results()
    (start,), (end,) = before.held_out, after.held_out
    assert start.n == 4
    assert start.perplexity == pytest.approx(math.exp(start.nll))
    first_step = next(store.events("step"))
    assert start.nll == pytest.approx(first_step["nll"], rel=0.1)
    assert end.nll < 0.7 * start.nll  # 0.45 of it


def test_a_held_out_loss_inside_a_round_is_the_one_that_its_weights_have(
    workspace: Workspace,
) -> None:
    """After two steps of four, by the training client; after two of two, of the saved weights."""
    measured = {"max_tokens": 4, "held_out_every_steps": 2}
    changes = {"val_file": "val.jsonl", "max_rounds": 1, "warmup_steps": 0}
    assert workspace.run("inside", **changes, steps_per_round=4, evaluation=measured) == 0
    assert workspace.run("after", **changes, steps_per_round=2) == 0
    (point,) = workspace.store("inside").held_out_points(1)
    result = workspace.store("after").result(1)
    assert result is not None
    assert (point.name, point.step) == ("nll:val.jsonl", 2)
    assert point.nll == pytest.approx(result.held_out[0].nll, rel=1e-5)


def test_held_out_rows_are_not_trained_on(workspace: Workspace) -> None:
    workspace.write_rows("val.jsonl", [row(0), row(100)])
    assert workspace.run("run", val_file="val.jsonl", max_rounds=1) == 0
    manifest = json.loads((workspace.folder / "run" / "data_manifest.json").read_text())
    dropped = [(line["file"], line["line_no"]) for line in manifest["dropped"]]
    assert dropped == [("train.jsonl", 1), ("pool.jsonl", 1)]


def test_a_held_out_share_is_measured_and_not_trained_on(
    workspace: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write_rows("train.jsonl", [row(i) for i in range(60)])
    changes: dict[str, Any] = {
        "data": {"val_share": 0.2},
        "steps_per_round": 12,
        "max_rounds": 1,
        "evaluation": {"max_tokens": 4, "held_out_every_steps": 5},
    }
    assert workspace.run("run", **changes) == 0
    store = workspace.store("run")
    result = store.result(1)
    assert result is not None
    (loss,) = result.held_out
    assert loss.name == "nll:split"
    assert 5 <= loss.n <= 20
    assert len(store.held_out_points(1)) == 2
    trained = {i for event in store.events("step") for i in event["example_ids"]}
    assert len(trained) == 48  # of the 60 that are not held out, each at the most once
    assert not trained & {one.id for one in loss.rows}
    # a row that is added leaves the others where they are
    workspace.write_rows("train.jsonl", [row(i) for i in range(70)])
    assert workspace.run("more", **changes) == 0
    more = workspace.store("more").result(1)
    assert more is not None
    assert {one.id for one in loss.rows} <= {one.id for one in more.held_out[0].rows}
    # and an evaluation outside the run measures it too
    workspace.write_rows("train.jsonl", [row(i) for i in range(60)])
    config = workspace.arguments("other", **changes)[:2]
    capsys.readouterr()
    assert main([*config, "--evaluate", str(workspace.folder / "run"), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert one["held_out_nll"] == {"nll:split": pytest.approx(loss.nll, rel=1e-6)}


LONG = " ".join(["word"] * 600)  # a question that leaves no room for an answer


def test_a_row_without_room_for_its_answer_is_left_out_also_of_the_held_out_share(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"instruction": f"{LONG} {i}", "output": f"w{i}"} for i in range(20)]
    workspace.write_rows("train.jsonl", [row(i) for i in range(60)] + rows)
    changes = {"data": {"val_share": 0.3}, "max_rounds": 1, "max_seq_length": 300}
    assert workspace.run("run", **changes) == 0
    manifest = json.loads((workspace.folder / "run" / "data_manifest.json").read_text())
    assert manifest["num_dropped"] == {"no_loss_tokens": 20}
    result = workspace.store("run").result(1)
    assert result is not None
    num_trained = manifest["examples"]["train_file"]["num_examples"]
    assert num_trained + result.held_out[0].n == 60
    # or it stops the run, with every line
    capsys.readouterr()
    assert workspace.run("stop", **{**changes, "data": {"on_bad_row": "stop"}}) == 2
    told = capsys.readouterr().err
    assert "20 rows cannot be trained on: train.jsonl line 61: no answer token" in told
    assert "line 80" in told
    assert not (workspace.folder / "stop").exists()


def test_a_source_that_has_a_share_and_no_row_left_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"instruction": f"{LONG} {i}", "output": f"w{i}"} for i in range(9)]
    workspace.write_rows("long.jsonl", rows)
    sources = [{"file": "train.jsonl", "weight": 1}, {"file": "long.jsonl", "weight": 2}]
    assert workspace.run("run", train_file=sources, max_seq_length=300) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "none of its 9 rows is left to train on (line 1: no answer token within" in told
    assert "and train_file gives it the weight 2. Correct the rows" in told


def test_contamination_can_stop_the_run(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    asked = "Tell me, which word stands at place 3?"
    workspace.write_rows("pool.jsonl", [row(100), {"instruction": asked, "output": "x"}])
    assert workspace.run("run", data={"contamination": "stop"}) == 2
    told = capsys.readouterr().err
    assert "1 of the rows hold what an evaluation asks: pool.jsonl line 2" in told
    assert f"({asked!r}) holds the question 'Which word stands at place 3?'" in told
    assert not (workspace.folder / "run").exists()


def test_questions_of_inspect_tasks_and_sealed_tests_are_not_trained_on(
    workspace: Workspace,
) -> None:
    rows = [
        {"instruction": "Name thing 3!", "output": "x"},  # of an Inspect task
        {"instruction": "So: which word closes line 2, you think?", "output": "y"},  # of the test
        {"instruction": "What word stands at place 4?", "output": "x"},  # nearly a dev question
        {"instruction": "Please, which word stands at the place 4?", "output": "z"},  # the same
    ]
    workspace.write_rows("pool.jsonl", [*rows, *(row(i) for i in range(100, 120))])
    changes = {
        "eval_tasks": ["qa:questions.jsonl", "tasks.py@things"],
        "evaluation": {"max_tokens": 4, "test_tasks": ["qa:test.jsonl"]},
    }
    assert workspace.run("run", **changes) == 0
    for name, numbers, kind in (
        ("data_dropped.jsonl", [1, 2, 4], "contaminated"),
        ("data_similar.jsonl", [3], "similar"),
    ):
        listed = map(json.loads, (workspace.folder / "run" / name).read_text().splitlines())
        assert [(row["line_no"], row["kind"]) for row in listed] == [(n, kind) for n in numbers]
    manifest = workspace.store("run").data_manifest()
    assert (manifest["num_dropped"], manifest["num_similar"]) == ({"contaminated": 3}, 1)
    report = (workspace.folder / "run/eval_report.md").read_text()
    assert "- Dropped rows: 3 contaminated (`data_dropped.jsonl`)." in report
    assert "- Similar rows, trained on: 1 (`data_similar.jsonl`)." in report
    assert "- Dropped: pool.jsonl line 1 ('Name thing 3!'): asks the question 'Name" in report
    assert manifest["examples"]["mining.pool_file"]["num_examples"] == 21


def test_a_held_out_file_with_a_bad_row_is_refused(workspace: Workspace) -> None:
    workspace.write_rows("val.jsonl", [row(0), {"instruction": "no output"}])
    with pytest.raises(Exception, match=r"val\.jsonl: 1 of 2 rows cannot be used: line 2: exp"):
        load_held_out("nll:val.jsonl", workspace.folder / "val.jsonl")


def test_a_task_whose_samples_crash_ends_the_round_as_eval_failed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {"eval_tasks": ["qa:questions.jsonl", "tasks.py@crashing"]}
    assert workspace.run("run", **changes) == 1
    assert "tasks.py@crashing: 6 of 6 samples failed" in capsys.readouterr().err
    assert workspace.events("run")[-1]["type"] == "eval_failed"
    # the run directory is usable, and what was measured is not measured again
    assert main(["--resume", str(workspace.folder / "run")]) == 1
    measured = [event["tasks"] for event in workspace.events("run") if event["type"] == "measured"]
    assert measured == [["qa:questions.jsonl"]]


def test_truncated_answers_never_pass(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    changes = {
        "eval_tasks": ["tasks.py@things"],
        "eval_threshold": 0.0,
        "max_rounds": 1,
        "learning_rate": 1e-6,
        "evaluation": {"max_tokens": 1},
    }
    assert workspace.run("run", "--gate", **changes) == 3
    printed = capsys.readouterr()
    assert "\nTarget not met: 0.5000 >= 0, but 6 of 6 answers were truncated" in printed.out


@thorough_only
def test_the_longest_answer_that_was_asked_for_is_on_record(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Of each task, where the settings leave it open; the protocol and its hash stay as before."""
    text = TASKS + (
        "\n\nfrom inspect_ai.model import GenerateConfig\n\n\n@task\ndef short():\n"
        "    made = things(2)\n    made.config = GenerateConfig(max_tokens=5)\n    return made\n"
    )
    (workspace.folder / "tasks.py").write_text(text)
    names = ["qa:questions.jsonl", "tasks.py@short"]
    once = {"steps_per_round": 1, "max_rounds": 1}
    assert workspace.run("run", eval_tasks=names, evaluation={}, **once) == 0
    file = workspace.folder / "run/evals/round_01.json"
    recorded = json.loads(file.read_text())
    assert [task["max_tokens"] for task in recorded["tasks"]] == [64, 5]
    assert max(one["num_sampled_tokens"] for one in recorded["tasks"][1]["samples"]) <= 5
    assert recorded["protocol"]["max_tokens"] is None
    result = workspace.store("run").result(1)
    assert result is not None and result.protocol_hash == protocol_hash(result.protocol)
    assert set(result.protocol) == {
        *("renderer", "temperature", "max_tokens", "num_repeats", "seed", "grader_model"),
        *("grading", "tasks"),
    }
    # a record of before is compared, and gone on from
    for task in recorded["tasks"]:
        del task["max_tokens"]
    file.write_text(json.dumps(recorded))
    run_dir = str(workspace.folder / "run")
    config = ["--config", str(workspace.folder / "config.json")]
    assert main([*config, "--evaluate", f"{run_dir}@round_01"]) == 0
    assert "against its evaluation in the run" in capsys.readouterr().out
    assert main(["--resume", run_dir, "--set", "max_rounds=2"]) == 0
    # what the settings say goes before what the task says
    assert workspace.run("set", eval_tasks=names, evaluation={"max_tokens": 3}, **once) == 0
    set_to = workspace.store("set").result(1)
    assert set_to is not None and [task.max_tokens for task in set_to.tasks] == [3, 3]
    spec = f"{workspace.folder / 'tasks.py'}@things"
    things = load_inspect_task("tasks.py@things", spec, TaskOptions())
    assert EvalTask("tasks.py@things", 3, "score", 1, things).max_tokens(None) == 1024


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"eval_tasks": ["tasks.py@judged"]}, "evaluation.grader_model is not set"),
        ({"eval_tasks": ["tasks.py@judged_by_hand"]}, "evaluation.grader_model is not set"),
        ({"eval_tasks": ["tasks.py@nothing"]}, "tasks.py@nothing: there is no task 'nothing' in"),
        ({"eval_tasks": ["inspect_evals/no_such_task"]}, "no Inspect task of this name"),
        ({"eval_tasks": ["tasks.py@boxed"]}, "`docker info` finds no engine that runs"),
        (
            {"evaluation": {"test_tasks": ["qa:questions2.jsonl"]}},
            "so the test is not sealed",
        ),
    ],
)
def test_what_a_task_lacks_is_said_before_the_first_step(
    workspace: Workspace,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    part: str,
) -> None:
    docker = workspace.folder / "bin/docker"  # a client without an engine
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    again = {"question": "which word stands at place 3", "answer": "x"}
    workspace.write_rows("questions2.jsonl", [again])
    assert workspace.run("run", **changes) == 2
    assert part in capsys.readouterr().err
    assert not (workspace.folder / "run").exists()


def test_a_run_whose_test_was_opened_is_not_trained_further(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", evaluation={"test_tasks": ["qa:test.jsonl"]}, max_rounds=1) == 0
    events = workspace.events("run")
    resume = ["--resume", str(workspace.folder / "run")]
    capsys.readouterr()
    assert main([*resume, "--set", "max_rounds=2"]) == 2
    told = capsys.readouterr().err
    assert "max_rounds cannot change any more, because the sealed test of this run has been" in told
    assert "Continue with" not in told
    assert workspace.events("run") == events  # the refusal leaves the run as it was
    assert main(resume) == 0
    assert not types(workspace.events("run")[len(events) :], "step", "test_opened", "decided")
    assert RunStore.open(workspace.folder / "run").test_result() is not None


def test_a_token_budget_ends_the_run_and_can_be_raised(workspace: Workspace) -> None:
    assert workspace.run("run", budget={"tokens": 1000}, max_rounds=3) == 0
    store = workspace.store("run")
    decision = store.decision(1)
    assert decision is not None
    assert decision.action == "stop_budget"
    assert "of budget.tokens 1,000 used" in decision.sentence
    resume = ["--resume", str(workspace.folder / "run")]
    assert main([*resume, "--set", 'budget={"tokens": 1000000}']) == 0
    assert workspace.store("run").scores().keys() == {0, 1, 2, 3}


@pytest.mark.trains
def test_a_rollback_goes_on_from_the_best_rounds_weights(workspace: Workspace) -> None:
    """Round 1 teaches the answer x, the pool unlearns it; round 3 starts from round 1 again."""
    taught = [{"instruction": f"Which word stands at spot {i}?", "output": "x"} for i in range(12)]
    spoilt = [{"instruction": f"Which word stands at spot {i}?", "output": "q"} for i in range(99)]
    questions = [{"question": f"Which word stands at place {i}?", "answer": "x"} for i in range(12)]
    questions[0]["answer"] = "unanswerable"  # so that round 1 is good and does not pass
    workspace.write_rows("train.jsonl", taught)
    workspace.write_rows("pool.jsonl", spoilt)
    workspace.write_rows("questions.jsonl", questions)
    mining = {"pool_file": "pool.jsonl", "replay_share": 0.0}
    changes = {"max_rounds": 3, "steps_per_round": 40, "lr_decay": 1.0, "mining": mining}
    assert workspace.run("run", **changes, learning_rate=SMOOTH_RATE) == 0
    store = workspace.store("run")
    assert store.scores()[1] > 0.6 > 0.3 > store.scores()[2]
    decision = store.decision(2)
    assert decision is not None
    assert (decision.action, decision.best_round) == ("rollback", 1)
    assert "Back to round 1" in decision.sentence
    steps = list(store.events("step"))
    assert [event["step"] for event in steps] == list(range(120))  # the counter goes on
    first, second, third = (store.checkpoint(number) for number in (1, 2, 3))
    assert first is not None and second is not None and third is not None
    assert (second.parent, third.parent) == (first.state_path, first.state_path)
    optimizer_steps = [num_optimizer_steps(workspace, one) for one in (first, second, third)]
    assert optimizer_steps == [40, 80, 80]  # round 1's optimizer, too, goes on
    # Round 3's first loss is the one that round 1's weights have on these rows, not round 2's.
    measured = list(store.events("losses_measured"))
    (*_, under_first), _ = store.measured_losses()
    of_rows = [under_first[example_id].now for example_id in steps[80]["example_ids"]]
    assert steps[80]["nll"] == pytest.approx(sum(of_rows) / 4, rel=1e-3)
    assert steps[80]["loss"] > 3 * steps[79]["loss"]
    # the whole pool was measured under round 1's weights before, and is not read or judged again
    assert [(one["round"], one["checkpoint_round"]) for one in measured] == [(2, 1), (3, 1)]
    assert measured[0]["num_prompt_tokens"] > measured[1]["num_prompt_tokens"] == 0
    selection = store.selection(3)
    assert selection is not None and selection.suspects == ()


def test_a_sealed_test_that_was_cut_short_is_finished_on_the_same_checkpoint(
    workspace: Workspace,
) -> None:
    """The ledger as a kill between the two files of the test leaves it."""
    other = [{"question": f"Which word opens line {i}?", "answer": "x"} for i in range(4)]
    workspace.write_rows("test2.jsonl", other)
    tests = {"max_tokens": 4, "test_tasks": ["qa:test.jsonl", "qa:test2.jsonl"]}
    assert workspace.run("run", evaluation=tests, max_rounds=1) == 0
    folder = workspace.folder / "run"
    whole = workspace.store("run").test_result()
    assert whole is not None and whole.n == 9
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds[-5:] == [
        *("test_opened", "test_measured", "test_measured", "test_evaluated", "run_finished")
    ]
    (folder / "ledger.jsonl").write_text("".join(lines[:-3]))
    measured = json.loads((folder / "evals/test.json").read_text())
    measured = {"tasks": measured["tasks"][:1], "held_out": []}
    (folder / "evals/test.json").write_text(json.dumps(measured))
    assert main(["--resume", str(folder)]) == 0
    events = workspace.events("run")
    assert len(types(events, "test_opened")) == 1
    measured = [event["tasks"] for event in events if event["type"] == "test_measured"]
    assert measured == [["qa:test.jsonl"], ["qa:test2.jsonl"]]
    assert workspace.store("run").test_result() == whole


def test_an_opened_test_is_not_asked_of_another_checkpoint(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    tests = {"max_tokens": 4, "test_tasks": ["qa:test.jsonl"]}
    assert workspace.run("run", evaluation=tests, max_rounds=1) == 0
    ledger = workspace.folder / "run/ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    opened = next(i for i, line in enumerate(lines) if '"test_opened"' in line)
    event = json.loads(lines[opened]) | {"checkpoint": "tinker://x/sampler_weights/round_09"}
    ledger.write_text("".join(lines[:opened]) + json.dumps(event) + "\n")
    assert main(["--resume", str(workspace.folder / "run")]) == 2
    assert "was opened on tinker://x/sampler_weights/round_09 and is not" in capsys.readouterr().err
    assert not types(workspace.events("run"), "test_evaluated")


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("tasks.py@several", "its scorer gives several values and none is named"),
        ("tasks.py@crashing", "1 of 1 samples failed"),
    ],
)
def test_what_is_measured_only_at_the_end_is_tried_before_the_first_step(
    workspace: Workspace, capsys: pytest.CaptureFixture, task: str, part: str
) -> None:
    changes: dict[str, Any] = {
        "eval_tasks": ["qa:questions.jsonl", task],
        "evaluation": {"max_tokens": 4, "every": {task: "end"}, "layers": {task: 2}},
    }
    assert workspace.run("run", **changes) == (2 if task.endswith("several") else 1)
    told = capsys.readouterr().err
    assert part in told
    assert ("Continue with" in told) == task.endswith("crashing")  # settings do not change
    assert not types(workspace.events("run"), "step", "evaluated")


def test_a_rehearsal_counts_nowhere_and_is_held_once(workspace: Workspace) -> None:
    task = "tasks.py@several"
    changes: dict[str, Any] = {
        "eval_tasks": ["qa:questions.jsonl", task],
        "evaluation": {
            "max_tokens": 4,
            "every": {task: "end"},
            "layers": {task: 2},
            "score_key": {task: "length"},
        },
        "max_rounds": 1,
    }
    assert workspace.run("run", **changes) == 0
    assert main(["--resume", str(workspace.folder / "run")]) == 0
    events = workspace.events("run")
    (rehearsed,) = [event for event in events if event["type"] == "rehearsed"]
    assert rehearsed["tasks"] == [task]
    assert rehearsed["num_sampled_tokens"] > 0
    baseline, last = workspace.store("run").results()
    assert baseline.task(task) is None
    measured = last.task(task)
    assert measured is not None
    assert (measured.n, measured.score, measured.role) == (6, 0.25, "report")


def test_answers_are_graded_by_the_named_model(workspace: Workspace) -> None:
    judge = make_model_dir(workspace.folder / "judge", "qwen3", context=2048)
    changes = {"eval_tasks": ["tasks.py@judged_by_hand"], "max_rounds": 1}
    grader = {"max_tokens": 8, "grader_model": str(judge)}
    assert workspace.run("run", **changes, evaluation=grader) == 0
    result = workspace.store("run").result(1)
    assert result is not None
    assert result.protocol["grader_model"] == str(judge)
    (task,) = result.tasks
    assert task.log is not None
    log = read_eval_log(str(workspace.folder / "run" / task.log))
    assert set(log.eval.model_roles or {}) == {"grader"}
    assert log.samples is not None
    for sample in log.samples:
        assert sample.scores is not None
        calls = [event for event in sample.events if event.event == "model"]
        said = calls[1].output.completion  # of random weights, which may think aloud to the end
        assert sample.scores["by_hand"].explanation == said
        assert calls[1].output.usage is not None and calls[1].output.usage.output_tokens > 0
        assert sample.scores["by_hand"].value == len(said) % 2
        assert [(call.role, call.model) for call in calls] == [
            (None, "tinker/round_01"),
            ("grader", f"tinker/{judge}"),
        ]
        # the limit on answers is not the judge's, whose reasoning comes before its grade
        assert [call.config.max_tokens for call in calls] == [8, 1024]
    assert task.num_failed == 0


def test_a_sealed_test_that_fails_leaves_a_report(workspace: Workspace) -> None:
    sealed = {"max_tokens": 4, "test_tasks": ["tasks.py@crashing"]}
    assert workspace.run("run", evaluation=sealed, max_rounds=1) == 1
    assert workspace.events("run")[-1]["type"] == "eval_failed"
    report = (workspace.folder / "run/eval_report.md").read_text()
    assert "The sealed test was opened and not completed" in report
    assert "## Recommended checkpoint" in report


def test_a_sealed_test_whose_scores_cannot_be_read_is_refused_before_the_first_step(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    sealed: dict[str, Any] = {"max_tokens": 4, "test_tasks": ["tasks.py@several"]}
    assert workspace.run("unread", evaluation=sealed, max_rounds=1) == 2
    assert "Say which one counts: evaluation.score_key" in capsys.readouterr().err
    assert not types(workspace.events("unread"), "step", "evaluated", "test_opened")
    # and no question of the test is asked to find that out
    (log,) = (workspace.folder / "unread/inspect_logs").glob("*.eval")
    (sample,) = read_eval_log(str(log)).samples or []
    assert sample.input == "This is a rehearsal."
    sealed["score_key"] = {"tasks.py@several": "length"}
    assert workspace.run("run", evaluation=sealed, max_rounds=1) == 0
    test = workspace.store("run").test_result()
    assert test is not None and (test.n, test.score) == (6, 0.25)


ALL_BUT_THE_FIRST_CRASH = TASKS.replace(
    "@task\ndef several",
    """
@solver
def crash_later():
    async def solve(state, generate):
        state = await generate(state)
        if state.sample_id != "s0":
            raise ValueError("no")
        return state

    return solve


@scorer(metrics=[mean()])
def beyond():
    async def score(state, target):
        return Score(value=0.5 if state.sample_id == "s0" else 2.0)

    return score


@task
def half():
    return Task(dataset=samples(6), solver=crash_later(), scorer=includes())


@task
def too_high():
    return Task(dataset=samples(6), solver=generate(), scorer=beyond())


@task
def several""",
)


@pytest.mark.parametrize(
    ("task", "code", "event"),
    [("tasks.py@half", 1, "eval_failed"), ("tasks.py@too_high", 1, "eval_failed")],
)
def test_a_task_that_fails_at_the_end_leaves_its_reason_a_report_and_what_it_cost(
    workspace: Workspace, capsys: pytest.CaptureFixture, task: str, code: int, event: str
) -> None:
    (workspace.folder / "tasks.py").write_text(ALL_BUT_THE_FIRST_CRASH)
    workspace.write_rows("bench.jsonl", [{"question": "What is line 9?", "answer": "x"}])
    at_end = ["qa:bench.jsonl", task]
    evaluation = {
        "max_tokens": 4,
        "every": dict.fromkeys(at_end, "end"),
        "layers": dict.fromkeys(at_end, 2),
    }
    eval_tasks = ["qa:questions.jsonl", *at_end]
    assert workspace.run("run", eval_tasks=eval_tasks, evaluation=evaluation, max_rounds=1) == code
    told = capsys.readouterr().err
    assert f"error: {task}: " in told
    last = workspace.events("run")[-1]
    assert last["type"] == event
    assert last["num_prompt_tokens"] > 0
    assert "## Recommended checkpoint" in (workspace.folder / "run/eval_report.md").read_text()
    result = workspace.store("run").result(1)
    assert result is not None
    assert result.names == {"qa:questions.jsonl", "qa:bench.jsonl"}


def test_scores_that_cannot_be_read_do_not_take_the_others_with_them(
    workspace: Workspace,
) -> None:
    (workspace.folder / "tasks.py").write_text(ALL_BUT_THE_FIRST_CRASH)
    eval_tasks = ["tasks.py@too_high", "tasks.py@things"]
    assert workspace.run("run", eval_tasks=eval_tasks) == 1
    events = workspace.events("run")
    assert [event["tasks"] for event in events if event["type"] == "measured"] == [
        ["tasks.py@things"]
    ]
    assert events[-1]["num_sampled_tokens"] > 0


@pytest.mark.parametrize("strategy", ["topics", "hybrid"])
def test_the_tokens_said_before_the_first_step_are_an_upper_bound(
    workspace: Workspace, capsys: pytest.CaptureFixture, strategy: str
) -> None:
    changes: dict[str, Any] = {
        "val_file": "val.jsonl",
        "eval_tasks": ["qa:questions.jsonl", "tasks.py@things"],
        "evaluation": {
            "max_tokens": 4,
            "held_out_every_steps": 2,
            "every": {"tasks.py@things": "end"},
            "layers": {"tasks.py@things": 2},
            "test_tasks": ["qa:test.jsonl"],
        },
        "max_rounds": 2,
        "learning_rate": 1e-5,
        "mining": {"pool_file": "pool.jsonl", "strategy": strategy, "num_candidates": 50},
    }
    assert workspace.run("run", **changes) == 0
    told = capsys.readouterr().err
    pattern = r"at most ([\d,]+) trained(?: \([^)]*\))?, ([\d,]+) prompt and ([\d,]+) sampled"
    said = re.search(pattern, told)
    assert said is not None
    trained, prompt, sampled = (int(number.replace(",", "")) for number in said.groups())
    used = workspace.store("run").usage()
    assert 0.9 * trained < used.train_tokens <= trained
    assert 0.75 * prompt < used.prompt_tokens <= prompt
    assert 0.5 * sampled < used.sampled_tokens <= sampled
    assert "in 3 evaluations and the sealed test" in told


def test_killed_before_what_the_end_measured_is_recorded_it_is_recorded(
    workspace: Workspace,
) -> None:
    """The chosen round has a result from before; what the end adds makes it another one."""
    changes: dict[str, Any] = {
        "val_file": "val.jsonl",
        "eval_tasks": ["qa:questions.jsonl"],
        "evaluation": {"max_tokens": 4, "every": {"nll:val.jsonl": "end"},
                       "test_tasks": ["qa:test.jsonl"]},
        "max_rounds": 1,
    }  # fmt: skip
    assert workspace.run("run", **changes) == 0
    run_dir = workspace.folder / "run"
    ledger = run_dir / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    types = [(json.loads(line)["type"], json.loads(line)["round"]) for line in lines]
    last = max(place for place, one in enumerate(types) if one == ("evaluated", 1))
    assert types.count(("evaluated", 1)) == 2
    ledger.write_text("".join(lines[:last]) + lines[last][:20])
    for file in ("evals/test.json", "eval_report.md"):  # as they were when it was killed
        (run_dir / file).unlink()
    assert main(["--resume", str(run_dir)]) == 0
    again = [json.loads(line) for line in ledger.read_text().splitlines()]
    told = [(event["type"], event["round"]) for event in again if event["type"] != "resumed"]
    assert told == types
    result = workspace.store("run").result(1)
    assert result is not None
    assert "nll:val.jsonl" in result.names


@thorough_only
def test_the_judge_may_be_the_untouched_model_or_a_directory_beside_the_config(
    workspace: Workspace, llama_dir: Path
) -> None:
    shutil.copytree(llama_dir, workspace.folder / "base")
    grader = {"max_tokens": 4, "grader_model": "base"}
    changes = {"base_model": "base", "eval_tasks": ["tasks.py@judged_by_hand"], "max_rounds": 1}
    assert workspace.run("run", **changes, evaluation=grader) == 0
    assert (
        workspace.run("other", **{**changes, "base_model": str(llama_dir)}, evaluation=grader) == 0
    )


def test_a_judge_that_gives_no_grade_has_failed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    judge = make_model_dir(workspace.folder / "judge", "qwen3", context=2048)
    settings = {
        "max_tokens": 8,
        "grader_model": str(judge),
    }
    assert workspace.run("run", eval_tasks=["tasks.py@judged"], evaluation=settings) == 1
    told = capsys.readouterr().err
    assert "2 of 2 samples failed" in told
    assert "the scorer gave no score: grader_failed: Grade not found" in told


@pytest.mark.trains
def test_what_is_recommended_has_its_guards_measured(workspace: Workspace) -> None:
    """Round 1 has the highest score and, as is seen when the run ends, broke a guard."""
    ask = "Which word stands at {} {}?".format
    taught = [{"instruction": ask("spot", i), "output": "q"} for i in range(12)]
    other = [{"instruction": ask("spot", i), "output": "x"} for i in range(99)]
    questions = [{"question": ask("place", i), "answer": "q"} for i in range(12)]
    questions[0]["answer"] = "unanswerable"
    workspace.write_rows("train.jsonl", taught)
    workspace.write_rows("pool.jsonl", other)
    workspace.write_rows("questions.jsonl", questions)
    workspace.write_rows("guard.jsonl", [{"question": ask("place", 3), "answer": "x"}])
    (workspace.folder / "tasks.py").write_text(TASKS.replace('target="x"', 'target=["x", "e"]'))
    guard = "tasks.py@things"
    assert (
        workspace.run(
            "run",
            eval_tasks=["qa:questions.jsonl", guard],
            evaluation={"max_tokens": 8, "every": {guard: "end"}},
            gate={"guards": {guard: 0.2}, "rollback": False},
            mining={"pool_file": "pool.jsonl", "replay_share": 0.0},
            max_rounds=2,
            steps_per_round=40,
            lr_decay=1.0,
            learning_rate=SMOOTH_RATE,
        )
        == 0
    )
    store = workspace.store("run")
    assert store.scores()[1] > 0.6 > 0.3 > store.scores()[2]
    baseline, first, second = store.results()
    before, broken, kept = (one.task(guard) for one in (baseline, first, second))
    assert before is not None and broken is not None and kept is not None
    assert broken.score == 0.0 < before.score - 0.2 < 1.0 == kept.score
    decision = store.decision(2)
    assert decision is not None
    assert (decision.action, decision.best_round) == ("stop_rounds", 2)


@pytest.mark.parametrize(
    "name", ["tasks.py@things", pytest.param("qa:many.jsonl", marks=thorough_only)]
)
def test_interrupted_in_an_evaluation_it_leaves_at_once_and_quietly(
    workspace: Workspace, name: str
) -> None:
    many = [{"question": f"Which word stands at line {i}?", "answer": "x"} for i in range(2000)]
    workspace.write_rows("many.jsonl", many)
    evaluation: dict[str, Any] = {"max_tokens": 64}
    if name.startswith("tasks"):
        evaluation["task_args"] = {name: {"number": 800}}
    process = start(workspace, "run", eval_tasks=[name], evaluation=evaluation, max_rounds=1)
    folder = workspace.folder / "run"
    wait_for(process, folder / "ledger.jsonl", "run_started", 1)
    while name.startswith("tasks") and not list(folder.glob("inspect_logs/*.eval")):
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    told = told.splitlines()
    assert told[-2] == "stopping after the steps in flight; once more to leave at once"
    assert told[-1].startswith("Interrupted ")
    assert told[-1].endswith(f"trainer_with_eval.py --resume {folder}")
    assert workspace.events("run")[-1]["type"] == "interrupted"


def test_one_task_that_fails_does_not_take_the_others_with_it(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    (workspace.folder / "tasks.py").write_text(ALL_BUT_THE_FIRST_CRASH)
    changes = {"eval_tasks": ["tasks.py@crashing", "tasks.py@things", "tasks.py@half"]}
    assert workspace.run("run", **changes) == 1
    assert "tasks.py@crashing: 6 of 6 samples failed" in capsys.readouterr().err
    assert main(["--resume", str(workspace.folder / "run")]) == 1
    events = workspace.events("run")
    measured = [event["tasks"] for event in events if event["type"] == "measured"]
    assert measured == [["tasks.py@things"]]  # once, although its evaluation failed twice
    failed = [event for event in events if event["type"] == "eval_failed"]
    assert [event["num_sampled_tokens"] > 0 for event in failed] == [True, True]
    # whose answers were sampled before they crashed, and are paid for
    assert workspace.store("run").usage().sampled_tokens == sum(
        event.get("num_sampled_tokens", 0) for event in events
    )

"""Checkpoints evaluated outside their run: by the command line, on the weights of real runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import local_tinker
from ledger.references import Subject
from ledger.store import RunStore
from loop.reports.comparison import compare, gate_for
from scores.decision import Gate
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from test_loop import SMOOTH_RATE, Workspace
from trainer_with_eval import main

LEARNED = {  # a round that teaches the answer x, and then one that unlearns it
    "learning_rate": SMOOTH_RATE,
    "lr_decay": 1.0,
    "steps_per_round": 40,
    "mining": {"pool_file": "pool.jsonl", "replay_share": 0.0},
    "gate": {"rollback": False},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """A run whose round 1 is good and whose round 2 is bad, in runs/r of a folder."""
    made = Workspace(tmp_path_factory.mktemp("evaluated"), llama_dir)
    ask = "Which word stands at {} {}?".format
    made.write_rows(
        "train.jsonl", [{"instruction": ask("spot", i), "output": "x"} for i in range(12)]
    )
    made.write_rows(
        "pool.jsonl", [{"instruction": ask("spot", i), "output": "q"} for i in range(99)]
    )
    questions = [{"question": ask("place", i), "answer": "x"} for i in range(12)]
    questions[0]["answer"] = "unanswerable"  # so that round 1 is good and does not pass
    made.write_rows("questions.jsonl", questions)
    made.settings |= LEARNED
    assert made.run("runs/r") == 0
    return made


@pytest.fixture
def evaluate(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Any:
    """Run --evaluate in the workspace's folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(workspace.folder)
    (workspace.folder / "config.json").write_text(json.dumps(workspace.settings))
    capsys.readouterr()

    def run(*arguments: str, **changes: Any) -> tuple[int, str, str]:
        command = ["--config", str(workspace.folder / "config.json"), "--evaluate", *arguments]
        for key, value in changes.items():
            command += ["--set", f"{key.replace('__', '.')}={json.dumps(value)}"]
        code = main(command)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.trains
def test_side_by_side_they_score_as_in_their_run(
    workspace: Workspace, evaluate: Any, tmp_path: Path
) -> None:
    names = ["runs/r@round_00", "runs/r@round_02", "runs/r"]
    code, out, _ = evaluate(*names, "--json", "--run-dir", str(tmp_path / "e"))
    assert code == 0
    outcome = json.loads(out)
    store = workspace.store("runs/r")
    baseline, second, best = (store.result(number) for number in (0, 2, 1))
    assert baseline is not None and second is not None and best is not None
    assert best.score > 0.6 > 0.3 > second.score
    ones = outcome["checkpoints"]
    assert [one["checkpoint"] for one in ones] == names
    assert [one["path"] for one in ones] == [None, second.checkpoint, best.checkpoint]
    assert [one["score"] for one in ones] == [baseline.score, second.score, best.score]
    assert [one["against"] for one in ones] == [None, "runs/r@round_00", "runs/r@round_00"]
    assert ones[2]["difference"]["mean"] == pytest.approx(best.score - baseline.score)
    assert ones[2]["difference"]["method"] == "exact McNemar"
    assert [one["passed"] for one in ones] == [None, False, False]
    evaluation = RunStore.open(tmp_path / "e")
    assert evaluation.is_evaluation
    for number, result in enumerate((baseline, second, best)):
        again = evaluation.result(number)
        assert again is not None
        assert [s.answer for s in again.samples] == [s.answer for s in result.samples]
        assert (tmp_path / "e/evals" / f"checkpoint_{number:02d}.json").is_file()
    assert outcome["tokens"]["prompt_tokens"] > 0
    report = (tmp_path / "e/eval_report.md").read_text()
    assert f"| runs/r | {best.checkpoint} | {best.score:.4f} " in report
    assert "runs/r does not pass: " in report
    # no training happens, and the run is left as it was
    assert not list(evaluation.events("step"))
    assert not (tmp_path / "e/checkpoints").exists()


@pytest.mark.trains
def test_as_a_regression_test_it_exits_3(evaluate: Any) -> None:
    code, out, err = evaluate("runs/r", "--gate", eval_threshold=0.5)
    assert code == 0
    first, *_ = out.splitlines()
    assert first.startswith("runs/r passes: 0.9")
    score = first.split()[2]
    assert f" {score} >= 0.5; 95% interval [" in first
    assert "; +0.0000 [" in first
    assert first.endswith("(exact McNemar, p = 1) against its evaluation in the run.")
    assert (out + err).count(score) == 1  # a score is said once
    assert "runs/r: measured, 1 of 1 checkpoints" in err
    assert "resolution: 12 questions" in err
    alert = "sh -c 'cat > alerted.json'"
    assert evaluate("runs/r", "--gate", "--alert", alert, eval_threshold=0.99)[0] == 3
    told = json.loads(Path("alerted.json").read_text())
    assert told["alert"] == "target_missed" and "runs/r does not pass" in told["detail"]
    assert evaluate("runs/r", eval_threshold=0.99)[0] == 0
    # with a reference, what is worse beyond noise fails although the threshold is met
    code, out, _ = evaluate("runs/r@best", "runs/r@round_02", "--gate", eval_threshold=0.0)
    assert code == 3
    assert "runs/r@best is the reference and passes: 0.9" in out
    assert "runs/r@round_02 does not pass: " in out
    assert "worse than runs/r@best beyond noise" in out


def test_the_training_files_are_not_needed(workspace: Workspace, evaluate: Any) -> None:
    code, _, err = evaluate("runs/r", train_file="gone.jsonl", mining__pool_file="gone.jsonl")
    assert code == 0
    assert "gone.jsonl" not in err


@pytest.mark.trains
def test_a_path_is_looked_up_below_runs(workspace: Workspace, evaluate: Any) -> None:
    checkpoint = workspace.store("runs/r").checkpoint(2)
    assert checkpoint is not None and checkpoint.sampler_path is not None
    code, out, _ = evaluate(checkpoint.sampler_path)
    assert code == 0
    assert out.startswith(f"{checkpoint.sampler_path} does not pass: 0.0")
    assert "against its evaluation in the run" in out


@pytest.mark.trains
def test_weights_on_a_compatible_service(
    workspace: Workspace,
    llama_dir: Path,
    evaluate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bare path that no run here knows is asked for at the service that the settings choose."""
    checkpoint = workspace.store("runs/r").checkpoint(1)
    assert checkpoint is not None and checkpoint.sampler_path is not None
    path = checkpoint.sampler_path
    monkeypatch.chdir(tmp_path)
    model = str(llama_dir)
    with local_tinker.start([(model, model), ("other", model)]) as service:
        key = service.open_folder(workspace.folder / "runs/r/checkpoints")
        monkeypatch.setenv("TINKER_API_KEY", key)
        code, out, err = evaluate(path, base_url=service.base_url)
        assert code == 0
        assert "service: compatible" in err
        assert re.match(f"{re.escape(path)} (passes|does not pass): 0.9", out)
        assert "against" not in out
        gone = path.replace("round_01", "round_09")
        code, _, err = evaluate(gone, base_url=service.base_url)
        assert code == 2
        assert "the service does not have it" in err
        (tmp_path / "other").symlink_to(llama_dir)
        code, _, err = evaluate(path, base_url=service.base_url, base_model="other")
        assert code == 2
        assert f"its base model is {model}, the config's is other" in err
    assert len(list(tmp_path.glob("runs/*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "changes", "parts"),
    [
        (["nowhere"], {}, ["nowhere: not a run directory"]),
        (["runs/r@round_07"], {}, ["has no weights of round 7", "those of 1, 2, and round_00"]),
        (["runs/r", "runs/r@best"], {}, ["is the same checkpoint as runs/r"]),
        (["runs/r@last"], {}, ["'last' names no checkpoint of runs/r"]),
        (["tinker://x:train:0/weights/round_01"], {}, ["tinker://x:train:0/sampler_weights/ro"]),
        (["tinker://x:train:0/sampler_weights/a"], {}, ["no run below ./runs has these weights"]),
        (["runs/r"], {"renderer_name": "role_colon"}, ["trained with the renderer llama3"]),
        (["runs/r"], {"gate__rule": "paired"}, ["Name the one that it is compared with first"]),
        (["runs/r", "--resume", "runs/r"], {}, ["--evaluate and --resume exclude each other"]),
        (["runs/r", "--run-dir", "runs/r"], {}, ["not an empty directory"]),
    ],
)
def test_what_cannot_be_evaluated_says_why(
    evaluate: Any, arguments: list[str], changes: dict[str, Any], parts: list[str]
) -> None:
    code, out, err = evaluate(*arguments, **changes)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in err


def test_another_base_model_is_refused(evaluate: Any, qwen_dir: Path) -> None:
    code, _, err = evaluate("runs/r", base_model=str(qwen_dir))
    assert code == 2
    assert "one evaluation asks checkpoints of one model" in err


def test_a_dry_run_measures_nothing(workspace: Workspace, evaluate: Any) -> None:
    before = sorted(workspace.folder.glob("runs/*"))
    code, out, _ = evaluate("runs/r@round_00", "runs/r", "--dry-run")
    assert code == 0
    assert "checkpoint: runs/r@round_00 (the untouched base model)" in out
    assert "evaluation: qa:questions.jsonl, 12 questions" in out
    assert sorted(workspace.folder.glob("runs/*")) == before


def test_a_killed_evaluation_repeats_nothing(evaluate: Any, tmp_path: Path) -> None:
    """The ledger as a kill after the first checkpoint leaves it, with a torn last line."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert evaluate("runs/r@round_00", "runs/r", "--run-dir", str(cut))[0] == 0
    assert evaluate("runs/r@round_00", "runs/r", "--run-dir", str(whole))[0] == 0
    lines = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[2])["type"] == "evaluated"
    (cut / "ledger.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    (cut / "evals/checkpoint_01.json").unlink()
    assert main(["--resume", str(cut)]) == 0
    assert main(["--resume", str(cut)]) == 0  # nothing is left to do, and nothing is done
    events = [json.loads(line) for line in (cut / "ledger.jsonl").read_text().splitlines()]
    for kind in ("measured", "evaluated", "compared"):
        assert [event["round"] for event in events if event["type"] == kind] == [0, 1]
    assert [event["type"] for event in events].count("run_finished") == 1
    for number in (0, 1):
        one, other = (RunStore.open(folder).result(number) for folder in (cut, whole))
        assert one is not None and other is not None
        assert replace(one) == replace(other)
    # an evaluation is not a run: it is neither what --resume without a directory takes, nor a
    # checkpoint, and it has neither rounds nor weights of its own
    for words in (["--resume", f"{cut}@round_01"], ["--list", str(cut)]):
        assert main(words) == 2
    code, _, err = evaluate(str(cut))
    assert code == 2
    assert "holds an earlier evaluation" in err


@pytest.mark.trains
def test_a_resumed_evaluation_stays_on_its_checkpoints(
    workspace: Workspace, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short, while the run's best round becomes another one; resumed from another folder."""
    shutil.copytree(workspace.folder / "runs/r", workspace.folder / "runs/grown")
    cut = tmp_path / "cut"
    assert evaluate("runs/grown@best", "runs/r@round_00", "--run-dir", str(cut))[0] == 0
    before = RunStore.open(cut).result(0)
    lines = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    (cut / "ledger.jsonl").write_text("".join(lines[:1]))
    ledger = workspace.folder / "runs/grown/ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    for event in events:
        if event["type"] == "decided":
            event["best_round"] = 2
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", str(cut)]) == 0
    after = RunStore.open(cut).result(0)
    assert before is not None and after is not None
    assert after.checkpoint == before.checkpoint
    assert after.score == before.score > 0.3


def test_a_resumed_evaluation_knows_weights_that_were_trained_again(
    workspace: Workspace, evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Some services give them the path of those that it began on."""
    shutil.copytree(workspace.folder / "runs/r", workspace.folder / "runs/again")
    before = workspace.store("runs/again").checkpoint(1)
    cut = tmp_path / "cut"
    assert evaluate("runs/again@round_01", "--run-dir", str(cut))[0] == 0
    lines = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    (cut / "ledger.jsonl").write_text("".join(lines[:1]))
    assert main(["--resume", f"{workspace.folder / 'runs/again'}@round_00"]) == 0
    after = workspace.store("runs/again").checkpoint(1)
    assert before is not None and before.sampler_path is not None
    assert after is not None and after.sampler_path is not None
    ledger = workspace.folder / "runs/again/ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(after.sampler_path, before.sampler_path))
    capsys.readouterr()
    assert main(["--resume", str(cut)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "was trained again since the evaluation began" in said
    shutil.rmtree(workspace.folder / "runs/again")


def test_a_damaged_run_does_not_hide_the_others(workspace: Workspace, evaluate: Any) -> None:
    damaged = workspace.folder / "runs/zz"
    damaged.mkdir()
    (damaged / "config.resolved.json").write_text("{")
    checkpoint = workspace.store("runs/r").checkpoint(2)
    assert checkpoint is not None and checkpoint.sampler_path is not None
    assert evaluate(checkpoint.sampler_path)[0] == 0
    shutil.rmtree(damaged)


def test_bare_resume_passes_over_evaluations(workspace: Workspace, evaluate: Any) -> None:
    assert evaluate("runs/r")[0] == 0  # newer than the run, with the same settings
    assert main(["--config", "config.json", "--resume"]) == 0
    assert workspace.events("runs/r")[-1]["type"] == "run_finished"


# --- comparing, by hand ---------------------------------------------------------------------------


def result(right: int, n: int = 100, name: str = "t") -> EvalResult:
    samples = [
        SampleResult(f"{name}/{i}", None, "q", ("x",), "y", float(i < right), False, False, None)
        for i in range(n)
    ]
    return eval_result(0, None, Measured((task_result(name, samples),)), {"name": name})


GATE = Gate(threshold=0.75, max_rounds=3, max_steps=100, lr_decay=1.0)


@pytest.mark.parametrize(
    ("gate", "rights", "passed"),
    [
        ({}, [80], [True]),
        ({}, [70], [False]),
        ({}, [80, 78], [None, True]),
        ({}, [95, 80], [None, False]),  # meets the threshold, and is worse beyond noise
        ({}, [60, 80, 70], [None, True, False]),
        ({"rule": "lower_bound"}, [80], [False]),
        ({"rule": "lower_bound"}, [83], [True]),  # one look spends all of alpha ...
        ({"rule": "lower_bound"}, [70, 83, 83, 83], [None, False, False, False]),  # three share it
        ({"rule": "lower_bound"}, [70, 83], [None, True]),
        ({"rule": "paired"}, [74, 76], [None, False]),
        ({"rule": "paired"}, [60, 80], [None, True]),
        ({"rule": "paired"}, [60, 74], [None, False]),
    ],
)
def test_who_passes(gate: dict[str, Any], rights: list[int], passed: list[bool | None]) -> None:
    subjects = [Subject(f"c{i}", f"tinker://{i}") for i in range(len(rights))]
    used = gate_for(replace(GATE, **gate), len(rights))
    compared = compare(subjects, [result(right) for right in rights], used)
    assert [one.passed for one in compared] == passed


def test_one_alone_is_compared_with_its_record_only_under_the_same_protocol() -> None:
    now = result(60)
    same = Subject("c", "tinker://c", recorded=result(90))
    (one,) = compare([same], [now], gate_for(replace(GATE, threshold=0.5), 1))
    assert one.passed is False
    assert "worse than its evaluation in the run beyond noise: -0.3000 [" in one.sentence
    other = Subject("c", "tinker://c", recorded=result(90, name="other questions"))
    (one,) = compare([other], [now], gate_for(replace(GATE, threshold=0.5), 1))
    assert (one.passed, one.against, one.difference) == (True, None, None)
    assert "not compared with its evaluation in the run, which had another protocol" in one.sentence


def test_a_guard_that_nothing_can_be_compared_with_does_not_pass_unseen() -> None:
    gate = gate_for(replace(GATE, guards={"g": 0.05}), 1)
    (one,) = compare([Subject("c", "tinker://c")], [result(80)], gate)
    assert one.passed is False
    assert "nothing that guard g could be compared with" in one.sentence


@pytest.mark.parametrize(("right_before", "passed"), [(90, False), (82, True)])
def test_a_guard_of_one_alone_is_held_against_the_baseline_of_its_run(
    right_before: int, passed: bool
) -> None:
    """Its own evaluation in the run says nothing of it: the guard may have fallen there already."""

    def with_guard(right: int, of_guard: int) -> EvalResult:
        tasks = result(right).tasks
        guard = replace(result(of_guard, name="g").tasks[0], role="guard")
        return eval_result(0, None, Measured((*tasks, guard)), {"name": "t"})

    now = with_guard(80, 80)
    subject = Subject("c", "tinker://c", recorded=now, baseline=with_guard(5, right_before))
    gate = gate_for(replace(GATE, guards={"g": 0.05}), 1)
    (one,) = compare([subject], [now], gate)
    assert one.passed is passed
    assert ("guard g fell by 0.1000 from 0.9000" in one.sentence) is not passed

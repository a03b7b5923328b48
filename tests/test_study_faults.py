"""Studies under hands that move, edit and delete between two runs: no number is another trial's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import study
from conftest import thorough_only
from errors import RunStoreError
from studies.work.record import StudyRecord
from test_loop import SMOOTH_RATE
from test_study_run import TASK, StudyFolder
from trainer_with_eval import main as train


@pytest.fixture
def folder(tmp_path: Path, llama_dir: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study", llama_dir)


def laid_out(folder: StudyFolder, run_id: str, task: str) -> dict[str, Any]:
    return json.loads((folder.folder / "eval_results" / run_id / task / "results.json").read_text())


@pytest.mark.trains
def test_trials_that_other_code_asked_are_not_compared(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.write(variables={"lora_rank": [2]})
    assert folder.run() == 0
    tasks = folder.folder / "evals" / "tasks.py"
    tasks.write_text(TASK.replace('target="x"', 'target="e"'))
    folder.write(variables={"lora_rank": [2, 4]})
    capsys.readouterr()
    assert folder.run() == 2
    assert "measured before tasks.py was changed" in capsys.readouterr().err
    assert study.main(["status", str(folder.folder)]) == 0
    said = capsys.readouterr().out
    assert "run_000 (lora_rank=2): not used: what lies there is measured before" in said
    tasks.write_text(TASK)
    assert folder.run() == 0
    assert folder.result("run_001", 1).n == 10


@pytest.mark.trains
def test_a_question_file_that_has_changed_is_another_study(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    questions = folder.folder / "qa.jsonl"
    rows = [{"question": f"What is thing {i}?", "answer": "x"} for i in range(5)]
    questions.write_text("".join(json.dumps(one) + "\n" for one in rows))
    folder.experiment["evaluation"] = {}
    folder.write(variables={"lora_rank": [2]}, controls={"eval_tasks": ["qa:qa.jsonl"]})
    assert folder.run() == 0, capsys.readouterr().err
    questions.write_text(questions.read_text().replace('"x"', '"e"'))
    folder.write(variables={"lora_rank": [2, 4]})
    assert folder.run() == 2
    assert "qa.jsonl has changed since" in capsys.readouterr().err


@pytest.mark.trains
def test_results_are_laid_out_as_the_study_is_now(folder: StudyFolder) -> None:
    folder.write(variables={"lora_rank": [2]}, controls={"max_rounds": 2})
    assert folder.run() == 0
    shutil.rmtree(folder.folder / "eval_results")
    folder.experiment["evaluation"]["tasks"][0]["name"] = "renamed"
    folder.write(evaluation={"checkpoint": "best"})
    assert folder.run() == 0
    decision = folder.store("run_000").last_decision()
    assert decision is not None
    found = laid_out(folder, "run_000", "renamed")
    assert found["round"] == decision.best_round
    assert found["score"] == folder.result("run_000", decision.best_round).tasks[0].score
    logs = folder.folder / "eval_results" / "run_000" / "renamed"
    assert (logs / found["log"]).is_file()


@thorough_only
@pytest.mark.trains
def test_a_winner_is_of_the_trials_that_there_are(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.teach_one_answer()
    folder.write(variables={"lora_rank": [4, 8]})
    assert folder.run() == 0
    (winner,) = folder.record("winner")
    other = {"run_000": 8, "run_001": 4}[winner["run"]]
    assert f"The winner is {winner['run']}" in (folder.folder / "report.md").read_text()
    # One that is not ready yet may be better; one that was taken out is none.
    folder.write(variables={"lora_rank": [4, 8, 2]})
    assert study.main(["report", str(folder.folder)]) == 0
    report = (folder.folder / "report.md").read_text()
    assert "The winner is" not in report and "before every trial is done" in report
    folder.write(variables={"lora_rank": [other]})
    assert folder.run() == 0
    assert folder.record("winner")[-1]["run"] != winner["run"]
    assert f"The winner is {winner['run']}" not in (folder.folder / "report.md").read_text()


@pytest.mark.trains
def test_what_was_paid_for_and_is_gone_is_measured_again(
    folder: StudyFolder, tmp_path: Path, llama_dir: Path
) -> None:
    other = StudyFolder(tmp_path / "beside", llama_dir)
    other.write(variables={"lora_rank": [2]})
    assert other.run() == 0
    shutil.rmtree(other.folder / "results" / "run_000" / "inspect_logs")
    folder.write(variables={"lora_rank": [4]})
    assert folder.run() == 0
    assert folder.store("run_000").usage(0).tokens > 0
    log = (folder.folder / "results" / "logs" / "run_000.log").read_text()
    assert "measured here, since what" in log
    # Without its own logs it still says what it scored.
    shutil.rmtree(folder.folder / "results" / "run_000" / "inspect_logs")
    shutil.rmtree(folder.folder / "eval_results")
    assert folder.run() == 0
    score = folder.result("run_000", 1).tasks[0].score
    assert laid_out(folder, "run_000", "words")["score"] == score


@pytest.mark.trains
def test_a_budget_counts_all_of_a_study_after_a_restart(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    arms = [{"name": "prompted", "prompt": "Answer with the letter x."}]
    folder.write(
        variables={"lora_rank": [2]},
        controls={"max_rounds": 4, "steps_per_round": 1},
        study={"arms": arms},
    )
    assert folder.run() == 0
    stores = [folder.store(name) for name in ("run_000", "arm_prompted")]
    used = sum(store.usage().tokens for store in stores)
    dearest = max(stores[0].usage(number).tokens for number in range(5))
    # What is left is enough for one more round like the dearest, and not for two.
    folder.write(variables={"lora_rank": [2, 4]}, study={"budget": {"tokens": used + dearest + 1}})
    capsys.readouterr()
    assert folder.run() == 0
    assert folder.store("run_001").num_rounds == 1
    assert f"{used + folder.store('run_001').usage().tokens:,.4g} of" in capsys.readouterr().err


def test_an_event_without_what_it_is_read_for_is_refused(folder: StudyFolder) -> None:
    results = folder.folder / "results"
    results.mkdir()
    (results / "study.jsonl").write_text('{"seq": 0, "type": "trial_done", "ran": "run_000"}\n')
    with pytest.raises(RunStoreError, match=r"line 1: .* it has no run"):
        StudyRecord.read(results)


@thorough_only
@pytest.mark.trains
def test_a_dropped_arm_stays_dropped_whatever_it_is_called(folder: StudyFolder) -> None:
    folder.teach_one_answer()
    del folder.experiment["controls"]["learning_rate"]
    folder.experiment["variables"] = {"learning_rate": [SMOOTH_RATE, 1e-5], "lora_rank": [8]}
    folder.write(controls={"max_rounds": 2}, study={"stop": "halving"})
    assert folder.run() == 0
    judged = folder.record("rung")
    dropped = [run for e in judged if not e["is_kept"] for run in e["runs"]]
    assert dropped == ["run_001"] and folder.store("run_001").num_rounds == 1
    # In another order the arms have other names, and another seed of a dropped one is not paid for.
    folder.experiment["variables"] = {"lora_rank": [8], "learning_rate": [1e-5, SMOOTH_RATE]}
    text = yaml.safe_dump({**folder.experiment, "study": {"stop": "halving", "seeds": 2}},
                          sort_keys=False)  # fmt: skip
    (folder.folder / "experiment.yaml").write_text(text)
    assert folder.run() == 0
    assert folder.record("rung") == judged and folder.store("run_001").num_rounds == 1
    begun = {e["run"] for e in folder.record("trial_begun")}
    (added,) = begun - {"run_000", "run_001"}
    assert folder.store(added).settled_config()["config"]["learning_rate"] == SMOOTH_RATE
    assert folder.record("winner")[-1]["run"] is not None
    # Without halving all are trained to their end.
    folder.experiment["study"] = {}
    folder.write()
    assert folder.run() == 0
    assert folder.store("run_001").num_rounds == 2


@pytest.mark.trains
def test_a_sealed_test_that_was_opened_stays_so_without_the_record(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.teach_one_answer()
    folder.write_sealed_test()
    folder.write(
        variables={"lora_rank": [4, 8]}, controls={"evaluation.test_tasks": ["qa:test.jsonl"]}
    )
    assert folder.run() == 0
    (winner,) = folder.record("winner")
    other = {"run_000": "run_001", "run_001": "run_000"}[winner["run"]]
    (folder.folder / "results" / "study.jsonl").unlink()
    folder.write(variables={"lora_rank": [{"run_000": 4, "run_001": 8}[other]]})
    capsys.readouterr()
    assert folder.run() == 0
    assert f"opened on {winner['run']}" in capsys.readouterr().err
    assert folder.store(other).test_opened() is None


@thorough_only
@pytest.mark.trains
def test_trials_are_compared_after_as_many_rounds(
    folder: StudyFolder, capsys: pytest.CaptureFixture
) -> None:
    folder.write(variables={"lora_rank": [2]}, controls={"max_rounds": 2, "steps_per_round": 1})
    assert folder.run() == 0
    # A warm-up and the steps of a round are settled when a run begins, so that one that goes on to
    # more rounds is not trained as one that begins with them.
    before = {path: path.read_bytes() for path in folder.folder.glob("results/*/ledger.jsonl")}
    folder.write(variables={"lora_rank": [2, 4]}, controls={"max_rounds": 3})
    assert folder.run() == 2
    assert "run_000: it is not what the study has now: trained with another max_rounds" in (
        capsys.readouterr().err
    )
    assert study.main(["status", str(folder.folder)]) == 0
    assert "run_000 (lora_rank=2): not used" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    # Neither is one that somebody has trained on.
    folder.write(controls={"max_rounds": 2})
    run_dir = str(folder.folder / "results" / "run_000")
    assert train(["--resume", run_dir, "--set", "max_rounds=4"]) == 0
    capsys.readouterr()
    assert folder.run() == 2
    assert "trained with another max_rounds" in capsys.readouterr().err

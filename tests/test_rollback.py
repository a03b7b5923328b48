"""Going back to what a run began with, where all that it trained is worse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import thorough_only
from ledger.store import RunStore
from test_evaluation import num_optimizer_steps
from test_loop import Workspace, same_bits
from trainer_with_eval import main

MOMENTS = ("decided", "step", "checkpoint")  # of which a kill leaves the last event
SPOILING = {"max_rounds": 2, "steps_per_round": 8, "learning_rate": 0.02, "lr_decay": 1.0}


def knows_all(workspace: Workspace, **start: Any) -> dict[str, Any]:
    """Settings of a run that is asked for what it says when it begins, and is taught something
    else, at a rate after which it says nothing of that any more."""
    rows = [{"instruction": f"Say word {i}", "output": "q" * (i % 5 + 3)} for i in range(8)]
    workspace.write_rows("train.jsonl", rows)
    asked = [{"question": f"Which word stands at {i}?", "answer": "x"} for i in range(16)]
    workspace.write_rows("questions.jsonl", asked)
    workspace.settings["mining"] = {"strategy": "topics"}
    assert (
        workspace.run("before", **SPOILING | {"max_rounds": 1, "steps_per_round": 1}, **start) == 0
    )
    result = workspace.store("before").result(0)
    assert result is not None
    said = [{"question": one.question, "answer": one.answer} for one in result.samples]
    said = [one for one in said if one["answer"].strip()]
    assert len(said) > 8
    workspace.write_rows("questions.jsonl", said)
    return {**SPOILING, **start}


def check_back_at_start(workspace: Workspace, run_dir: str) -> None:
    store = workspace.store(run_dir)
    assert store.scores()[0] == 1.0 > 0.6 > store.scores()[1]
    decision = store.decision(1)
    assert decision is not None
    assert (decision.action, decision.to_start, decision.best_round) == ("rollback", True, 1)
    assert f"Back to {store.baseline_name} (round 0, 1.0000)" in decision.sentence
    assert store.lineage(2) == [0]
    assert [event["step"] for event in store.events("step")] == list(range(16))  # goes on counting


def killed_after(workspace: Workspace, whole: str, kind: str, number: int) -> Path:
    """A copy of a run as a kill right after an event of round `number` leaves its ledger."""
    folder = workspace.folder / f"killed_{kind}"
    shutil.copytree(workspace.folder / whole, folder)
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines]
    found = [i for i, one in enumerate(events) if (one["type"], one["round"]) == (kind, number)]
    last = found[len(found) // 2] if kind == "step" else found[0]
    (folder / "ledger.jsonl").write_text("".join(lines[: last + 1]))
    return folder


def test_a_run_goes_back_to_the_untouched_model_and_ends_the_same_after_a_kill(
    workspace: Workspace,
) -> None:
    changes = knows_all(workspace)
    assert workspace.run("run", **changes) == 0
    check_back_at_start(workspace, "run")
    store = workspace.store("run")
    first, second = store.checkpoint(1), store.checkpoint(2)
    assert first is not None and second is not None
    assert (first.parent, second.parent) == (None, None)  # of a fresh adapter
    assert num_optimizer_steps(workspace, second) == 8  # not those of round 1 as well
    ends = workspace.weights("run", 2)
    for kind in MOMENTS:
        folder = killed_after(workspace, "run", kind, 1 if kind == "decided" else 2)
        assert main(["--resume", str(folder)]) == 0
        assert same_bits(ends, workspace.weights(folder.name, 2)), kind
        assert workspace.store(folder.name).decision(2) == store.decision(2)
    for page in ("eval_report.md", "report.html"):
        assert "Back to the untouched model" in (workspace.folder / "run" / page).read_text()


@pytest.mark.parametrize("with_optimizer", [pytest.param(False, marks=thorough_only), True])
def test_a_run_goes_back_to_the_weights_that_it_was_started_from(
    workspace: Workspace, with_optimizer: bool, capsys: pytest.CaptureFixture
) -> None:
    """They are read from its own round 0, and kept as long as nothing trained is as good."""
    taught = [{"instruction": f"Say word {i}", "output": "xxxx"} for i in range(8)]
    workspace.write_rows("taught.jsonl", taught)
    assert workspace.run("runs/p", train_file="taught.jsonl", max_rounds=1, steps_per_round=12) == 0
    started = {"start_from": "runs/p@round_01", "start_from_optimizer": with_optimizer}
    changes = knows_all(workspace, **started)
    assert workspace.run("run", **changes) == 0
    check_back_at_start(workspace, "run")
    store = workspace.store("run")
    start, second = store.checkpoint(0), store.checkpoint(2)
    assert start is not None and second is not None and start.sampler_path is not None
    assert second.parent == start.state_path
    assert num_optimizer_steps(workspace, second) == 8 + 12 * with_optimizer
    assert {start.state_path, start.sampler_path} <= set(store.kept_paths())
    shutil.rmtree(workspace.folder / "runs/p")  # which nothing depends on any more
    capsys.readouterr()
    folder = killed_after(workspace, "run", "step", 2)
    assert main(["--resume", str(folder)]) == 0
    assert same_bits(workspace.weights("run", 2), workspace.weights(folder.name, 2))
    capsys.readouterr()
    assert main(["--list", str(workspace.folder / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (kept,) = [line for line in lines if start.sampler_path in line]
    assert "no expiry" in kept


def test_a_ledger_of_before_goes_back_to_its_best_round(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", {})
    fields = {"sentence": "", "lr_multiplier": 1.0, "num_missed_gates": 2}
    for number, action in ((0, "continue"), (1, "continue"), (2, "rollback")):
        best = min(number, 1)
        store.append("decided", round=number, step=0, action=action, best_round=best, **fields)
    assert store.lineage(3) == [0, 1]
    store.append("decided", round=3, step=0, action="rollback", best_round=1, to_start=True,
                 **fields)  # fmt: skip
    assert store.lineage(4) == [0]
    store.close()

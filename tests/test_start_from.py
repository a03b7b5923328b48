"""A new run from the weights of an old one, and a sealed test that is opened only for a pass."""

from __future__ import annotations

import json

import pytest

from test_loop import Workspace
from trainer_with_eval import main

SEALED = {"question": "Which word is under seal?", "answer": "x"}


def errors(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err


# --- a test that is opened only for a pass --------------------------------------------------------


def test_a_missed_target_leaves_the_test_sealed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("sealed.jsonl", [SEALED])
    evaluation = {"max_tokens": 4, "test_tasks": ["qa:sealed.jsonl"], "test_on": "pass"}
    assert workspace.run("run", evaluation=evaluation, max_rounds=1) == 0
    printed = capsys.readouterr()
    assert "sealed test: qa:sealed.jsonl, 1 question, opened only when the gate" in printed.err
    for said in (printed.out, printed.err, (workspace.folder / "run/eval_report.md").read_text()):
        assert "Sealed test: it stayed sealed, since the gate has not passed" in said
    assert workspace.store("run").test_opened() is None
    # so it is extended, and opened where a round passes
    run_dir = str(workspace.folder / "run")
    assert main(["--resume", run_dir, "--set", "max_rounds=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_stayed_sealed"] is True
    assert workspace.store("run").num_rounds == 2
    passing = {"evaluation": evaluation, "max_rounds": 1, "eval_threshold": 0.0}
    assert workspace.run("passed", **passing) == 0
    assert workspace.store("passed").test_result() is not None
    assert "stayed sealed" not in capsys.readouterr().out


def test_there_must_be_a_test_to_open(workspace: Workspace, capsys: pytest.CaptureFixture) -> None:
    assert workspace.run("run", evaluation={"test_on": "pass"}) == 2
    assert "evaluation.test_on is pass, and there is no sealed test" in errors(capsys)

"""What is advised after a missed run follows from what the run shows, and promises nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from loop.reports.console import resume_command
from loop.reports.what_next import trained_in
from scores.decision import Decision, Gate
from scores.diagnosis import TopicReport
from scores.intervals import Interval
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, MethodWords
from scores.next_steps import NUM_STEPS, Missed, Trained, WaysOn, next_steps
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from test_loop import Workspace
from trainer_with_eval import main

GATE = Gate(threshold=0.9, max_rounds=2, max_steps=1000, lr_decay=0.5)
WAYS = WaysOn("python trainer_with_eval.py --resume runs/x", None)


def result(round_no: int, right: int, asked: int = 20, num_truncated: int = 0) -> EvalResult:
    samples = [
        SampleResult(f"t/{i}", None, "q?", ("x",), "y", float(i < right), is_cut, False, None)
        for i in range(asked)
        for is_cut in [i >= asked - num_truncated]
    ]
    return eval_result(round_no, None, Measured((task_result("t", samples),)), {})


def missed(*results: EvalResult, **changes: Any) -> Missed:
    trained = results or (result(0, 2), result(1, 6), result(2, 10))
    best = max(trained[1:], key=lambda one: one.score).round
    decision = Decision(trained[-1].round, "stop_rounds", "Target not met.", 1.0, best, 2)
    made = Missed(decision, GATE, trained, (), (), Trained(0.001), 64)
    return made._replace(**changes)


def test_a_round_is_held_against_what_it_went_on_from() -> None:
    """Not against a round that was gone back on."""
    results = result(0, 9), result(1, 2), result(2, 10)
    (told,) = (one for one in next_steps(missed(*results), WAYS) if "more rounds" in one)
    assert f"from {results[1].score:.4f} to {results[2].score:.4f}" in told
    back = missed(*results, went_on_from=0)
    (told,) = (one for one in next_steps(back, WAYS) if "more rounds" in one)
    assert f"from {results[0].score:.4f} to {results[2].score:.4f}" in told


def topic(name: str, score: float, n: int = 4, added: int = 0) -> TopicReport:
    return TopicReport(name, score, Interval(0, 1), n, None, added)


def test_a_run_that_met_its_target_is_advised_nothing() -> None:
    passed = Decision(2, "stop_passed", "Target met.", 1.0, 2, 1)
    assert next_steps(missed(decision=passed), WAYS) == []


def test_a_pool_that_was_never_drawn_from_is_said_to_be_so() -> None:
    passed = Decision(1, "stop_passed", "Target met.", 1.0, 1, 0)
    (step,) = next_steps(missed(decision=passed, has_unused_pool=True), WAYS)
    assert step.startswith("Train on the rows of mining.pool_file: none of them was")
    assert "the run ended with round 1" in step and "a source of train_file" in step


def test_what_the_run_began_with_is_kept_where_it_scored_higher() -> None:
    gate = replace(GATE, threshold=0.5, baseline="runs/p@best")
    passed = Decision(1, "stop_passed", "Target met.", 1.0, 1, 0)
    (step,) = next_steps(missed(result(0, 18), result(1, 12), decision=passed, gate=gate), WAYS)
    assert step.startswith("Keep runs/p@best until a run beats it: it scored 0.9000, and round 1 ")
    assert "eval_threshold above its score" in step
    plateau = Decision(1, "stop_plateau", "Target not met.", 1.0, 1, 1)
    steps = next_steps(missed(result(0, 9), result(1, 8), decision=plateau, gate=gate), WAYS)
    assert steps[0] == (
        "Keep runs/p@best until a run beats it: it scored 0.4500, and round 1 0.4000."
    )
    assert any("round 1 did not beat runs/p@best" in step for step in steps)


@pytest.mark.parametrize(
    ("changes", "ways", "first"),
    [
        ({}, WAYS, "Train more rounds: the last round raised the score from 0.3000 to 0.5000."),
        ({"kinds": ("too_high",)}, WAYS, "Lower the learning rate: the training loss rose at 0.0"),
        ({"kinds": ("stuck",)}, WAYS, "Raise the learning rate: the training loss stayed where"),
        ({"kinds": ("overfitting",)}, WAYS, "Train less on these rows, or on more of them: the"),
        ({"topics": (topic("names", 0.25),)}, WaysOn(None, None), "Add rows of the weakest topics"),
        ({"topics": (topic("one", 0, n=1),)}, WaysOn(None, None), "Read the wrong answers in ev"),
        ({}, WaysOn(None, '"runs/x@best"'), 'Go on from the best weights in a new config: "start'),
        ({}, WaysOn(None, None), "Read the wrong answers in evals/round_02.json, and add rows to"),
        (
            {"gate": replace(GATE, rule="lower_bound", threshold=0.99)},
            WAYS,
            "The gate is out of reach: no round can pass, because even right answers only would",
        ),
    ],
)  # fmt: skip
def test_what_comes_first_is_what_the_run_shows(
    changes: dict[str, Any], ways: WaysOn, first: str
) -> None:
    steps = next_steps(missed(**changes), ways)
    assert steps[0].startswith(first)
    assert 1 <= len(steps) <= NUM_STEPS
    assert len(set(steps)) == len(steps)


def test_a_rate_that_broke_the_weights_is_not_trained_on_with() -> None:
    steps = next_steps(missed(kinds=("too_high",)), WAYS)
    assert "learning_rate=0.00033" in steps[0]
    assert not any("--resume" in step for step in steps)


def test_answers_that_are_cut_off_ask_for_more_tokens_unless_training_ends_them() -> None:
    rambling = missed(result(0, 2, num_truncated=18), result(1, 4, num_truncated=8))
    assert not any("max_tokens" in step for step in next_steps(rambling, WAYS))
    long = missed(result(0, 2, num_truncated=8), result(1, 4, num_truncated=8))
    (step,) = (step for step in next_steps(long, WAYS) if "max_tokens" in step)
    assert step.startswith(
        "Let answers be longer: 8 of 20 were cut off at evaluation.max_tokens 64."
    )
    assert "--set evaluation.max_tokens=128" in step


def test_a_model_that_has_not_learned_to_stop_is_not_given_more_room() -> None:
    results = result(0, 2, num_truncated=8), result(1, 4, num_truncated=8)
    short = missed(*results, trained=Trained(0.001, answer_tokens=5.2))
    steps = next_steps(short, WAYS)
    assert steps[0].startswith(
        "Teach answers to end: 8 of 20 were cut off at evaluation.max_tokens 64, and those that "
        "were trained on have about 5 tokens"
    )
    assert not any("--set evaluation.max_tokens" in step for step in steps)
    as_long = missed(*results, trained=Trained(0.001, answer_tokens=50.0))
    assert "--set evaluation.max_tokens=128" in next_steps(as_long, WAYS)[0]


def test_the_limit_is_the_one_that_answers_were_cut_at() -> None:
    """Where the settings leave it to the task, the result has it."""
    last = result(1, 4, num_truncated=8)
    (task,) = last.tasks
    cut = replace(last, tasks=(replace(task, max_tokens=40),))
    steps = next_steps(missed(result(0, 2, num_truncated=8), cut, max_tokens=None), WAYS)
    assert "cut off at evaluation.max_tokens 40." in steps[0]
    assert "--set evaluation.max_tokens=80" in steps[0]
    unknown = missed(result(0, 2, num_truncated=8), last, max_tokens=None)
    assert (
        "cut off at evaluation.max_tokens. Start a new run with more, "
        in (next_steps(unknown, WAYS)[0])
    )


def test_rows_that_are_known_by_heart_are_not_trained_on_for_more_rounds() -> None:
    known = missed(trained=Trained(0.001, last_loss=0.012))
    steps = next_steps(known, WAYS)
    assert steps[0].startswith("Train on other rows: the training loss is down to 0.012 a token")
    assert not any("--resume" in step for step in steps)
    learning = missed(trained=Trained(0.001, last_loss=0.2))
    assert next_steps(learning, WAYS)[0].startswith("Train more rounds")


def test_no_round_is_advised_that_max_steps_would_not_let_begin() -> None:
    at_the_end = missed(trained=Trained(0.001, num_steps=1000))
    assert next_steps(at_the_end, WAYS)[0].startswith("Take more steps: the last round raised")
    assert "--resume" not in next_steps(at_the_end, WAYS)[0]


def test_what_was_trained_is_read_from_the_ledger(workspace: Workspace) -> None:
    """With a pool the start of a round tells what its next rows are like, without one the end."""
    for pool in ({"mining": {"strategy": "topics"}}, {}):
        name = "with" if not pool else "without"
        assert workspace.run(name, max_rounds=1, steps_per_round=4, **pool) == 0
        store = workspace.store(name)
        config = store.settled_config()["config"]
        trained = trained_in(store, 1, config)
        assert trained.num_steps == 4
        steps = list(store.events("step", 1))
        assert trained.last_loss == steps[-1 if pool else 0]["nll"]
        rows = [one for step in steps for one in step["example_ids"]]
        assert trained.answer_tokens == sum(s["num_loss_tokens"] for s in steps) / len(rows)


def test_more_rounds_are_not_advised_on_a_plateau_or_against_the_curves() -> None:
    plateau = Decision(2, "stop_plateau", "Target not met.", 1.0, 1, 2)
    assert not any("rounds:" in step for step in next_steps(missed(decision=plateau), WAYS))
    flat = missed(result(0, 2), result(1, 6), result(2, 6), kinds=("overfitting",))
    assert not any("rounds:" in step for step in next_steps(flat, WAYS))


def test_the_bound_that_ended_the_run_is_the_one_to_raise() -> None:
    spent = "Target not met: 0.5 < 0.9 with 90 of budget.tokens 100 used and 20 needed. Stopping."
    ended = Decision(2, "stop_budget", spent, 1.0, 2, 2)
    gate = replace(GATE, max_tokens=100)
    assert next_steps(missed(decision=ended, gate=gate), WAYS)[0].endswith("budget.tokens=200")
    large = replace(GATE, max_tokens=1_234_567)
    assert next_steps(missed(decision=ended, gate=large), WAYS)[0].endswith("tokens=2469134")
    of_steps = Decision(2, "stop_budget", "after 1000 of max_steps 1000.", 1.0, 2, 2)
    assert "max_steps over 1000" in next_steps(missed(decision=of_steps), WAYS)[0]


def test_a_missed_run_ends_with_them_on_the_screen_in_json_and_in_its_report(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run", max_rounds=1) == 0
    told = capsys.readouterr().out.splitlines()
    shown = [line[4:] for line in told[told.index("What to try next:") + 1 :]]
    assert 1 <= len(shown) <= NUM_STEPS
    report = (workspace.folder / "run" / "eval_report.md").read_text()
    assert all(f"- {step}" in report for step in shown)
    assert main(["--resume", str(workspace.folder / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["next_steps"] == shown
    # what it says is a command is one that goes on
    (command,) = (step.partition("Go on with: ")[2] for step in shown if "Go on with" in step)
    assert command.startswith(resume_command(workspace.folder / "run"))
    assert main(command.split()[2:]) == 0
    assert workspace.store("run").num_rounds == 3


def test_after_a_sealed_test_a_new_run_from_the_best_weights_is_advised(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Which the settings know; what is shown can be pasted into a config."""
    sealed = {"test_tasks": ["qa:sealed.jsonl"], "max_tokens": 4}
    workspace.write_rows("sealed.jsonl", [{"question": "Which is sealed?", "answer": "x"}])
    assert workspace.run("run", "--json", max_rounds=1, evaluation=sealed) == 0
    steps = json.loads(capsys.readouterr().out)["next_steps"]
    assert not any("--resume" in step for step in steps)
    (step,) = (step for step in steps if "start_from" in step)
    shown = json.loads("{" + step[step.index('"start_from"') : step.index(";")] + "}")
    capsys.readouterr()
    assert workspace.run("next", max_rounds=1, **shown) == 0


def pairs(round_no: int, margin: float) -> EvalResult:
    sums: dict[str, float | str] = {"chosen_logprob": margin, "rejected_logprob": 0.0}
    one = SampleResult("p", None, "q?", ("x",), "y", 0, False, False, None, other_scores=sums)
    task = task_result("pref:p", [one], metrics={"margin": margin})
    return eval_result(round_no, None, Measured((task,)), {})


def test_a_margin_that_rose_behind_a_score_that_did_not_is_told() -> None:
    told = next_steps(missed(pairs(0, -9.0), pairs(1, -4.0), method=DPO), WAYS)
    (step,) = (one for one in told if one.startswith("Look at the margin"))
    assert "are 4.0 nats less likely than" in step and "before training 9.0 nats less" in step
    told = next_steps(missed(pairs(0, -4.0), pairs(1, -9.0), method=DPO), WAYS)
    assert not any("margin" in one for one in told)


@pytest.mark.parametrize("method", [DPO, RL, ON_POLICY, OFF_POLICY])
def test_rows_that_are_not_learnt_are_not_asked_to_answer(method: MethodWords) -> None:
    told = " ".join(next_steps(missed(result(0, 2), result(1, 2), method=method), WAYS))
    assert "Compare the form" in told and "Rows should" not in told
    assert "add rows to train_file that answer" not in told

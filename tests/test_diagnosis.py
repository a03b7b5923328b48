"""What curves are called: a table of shapes, and real runs that were made to go wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from diagnosis import Curves, HeldOutPoint, diagnose
from eval_result import (
    EvalResult,
    HeldOutRow,
    Measured,
    SampleResult,
    eval_result,
    held_out_loss,
    task_result,
)
from test_loop import Workspace, row


def sample(topic: str, number: int, score: float) -> SampleResult:
    name = f"t/{topic}{number}"
    return SampleResult(name, topic, "q?", ("x",), "y", score, False, False, None)


def result(
    round_no: int,
    topics: Mapping[str, tuple[int, int]] | None = None,
    nll: Sequence[float] | None = None,
) -> EvalResult:
    """Topics as (right, asked); held-out losses of rows with 10 loss tokens each."""
    samples = [
        sample(topic, i, float(i < right))
        for topic, (right, asked) in (topics or {"all": (8, 10)}).items()
        for i in range(asked)
    ]
    rows = [HeldOutRow(f"r{i}", None, 10 * one, 10, 30) for i, one in enumerate(nll or [])]
    losses = (held_out_loss("nll:v", rows, 100),) if rows else ()
    return eval_result(round_no, None, Measured((task_result("t", samples),), losses), {})


def said(
    losses: Mapping[int, Sequence[float]],
    *results: EvalResult,
    points: Sequence[HeldOutPoint] = (),
) -> str:
    *earlier, last = results or (result(0), result(max(losses)))
    return diagnose(Curves(losses, points, 0.003, 16), earlier, last)


FALLING = [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.8]


@pytest.mark.parametrize(
    ("losses", "part"),
    [
        ({1: FALLING}, "The training loss went from 3.750 to 0.900 nats a token in this round."),
        ({1: [4.0], 2: [3.0], 3: [2.0]}, "The training loss is 2.000 nats a token, 4.000 untrain"),
        ({1: FALLING[::-1]}, "rose from 0.900 to 3.750 nats a token: the learning rate 0.003 is"),
        ({1: [4.0, 9.0]}, "rose from 4.000 untrained to 9.000 nats"),
        ({1: [4.0], 2: [2.0], 3: [7.0]}, "rose from 4.000 untrained to 7.000"),
        # the rows of a later round may be harder than those before it, which is no explosion
        ({1: FALLING, 2: [2.4, 2.2, 2.0, 1.8]}, "went from 2.400 to 1.800"),
        ({1: [0.01, 0.02, 0.03, 0.04] * 2}, "went from"),  # tiny losses do not explode
        ({1: [4.0, 4.1] * 4}, "stuck at 4.050 nats a token, 4.050 untrained: the learning rate"),
        ({1: [4.0, 4.1] * 3}, "went from 4.000 to 4.100"),  # too few steps to say
        ({1: [0.3, 0.31] * 4}, "went from"),  # low and unchanged is not stuck high
        ({1: [4.0] * 4, 2: [4.0] * 4}, "stuck at 4.000 nats a token"),
    ],
)
def test_training_losses(losses: Mapping[int, Sequence[float]], part: str) -> None:
    sentence = said(losses)
    assert part in sentence


def test_a_held_out_loss_that_rises_beyond_noise_is_overfitting() -> None:
    base, best = result(0, nll=[4.0, 4.2, 3.9, 4.1]), result(1, nll=[2.0, 2.2, 1.9, 2.1])
    worse = result(2, nll=[2.3, 2.5, 2.2, 2.4])
    noisy = result(2, nll=[2.8, 1.9, 1.6, 2.2])
    curves = {1: FALLING, 2: [0.8, 0.6, 0.4, 0.2]}
    sentence = said(curves, base, best, worse)
    assert "held-out loss of nll:v rose to 2.350 nats a token from 2.050 after round 1" in sentence
    assert "overfitting" in sentence
    assert "overfitting" not in said(curves, base, best, noisy)
    assert "overfitting" not in said({1: FALLING}, base, best)


def test_a_rise_inside_the_round_is_seen_against_its_lowest_point() -> None:
    base, after = result(0, nll=[4.0, 4.0]), result(1, nll=[2.2, 2.2])
    points = [HeldOutPoint("nll:v", 4, 1.9), HeldOutPoint("nll:v", 8, 2.1)]
    assert "from 1.900 after 4 steps: overfitting" in said({1: FALLING}, base, after, points=points)
    other = [HeldOutPoint("nll:w", 4, 1.0)]
    assert "overfitting" not in said({1: FALLING}, base, after, points=other)


def test_an_exploding_run_is_not_called_overfitting() -> None:
    base, after = result(0, nll=[2.0, 2.1]), result(1, nll=[9.0, 9.1])
    assert said({1: [2.0, 9.0]}, base, after).startswith("The training loss rose")
    assert "overfitting" not in said({1: [2.0, 9.0]}, base, after)


def test_topics_in_which_nothing_was_learned_are_named() -> None:
    base = result(0, {"rivers": (0, 8), "sums": (1, 8), "few": (0, 4), "known": (8, 8)})
    after = result(1, {"rivers": (0, 8), "sums": (7, 8), "few": (0, 4), "known": (8, 8)})
    sentence = said({1: FALLING}, base, after)
    assert sentence == "Nothing was learned in rivers (0 of 8 right, 0 untrained)."
    nothing = result(1, {"rivers": (0, 8), "sums": (1, 8), "few": (0, 4)})
    assert "nothing was learned in any of 2 topics" in said({1: FALLING}, base, nothing).lower()
    names = [f"topic{i}" for i in range(6)]
    many = dict.fromkeys(names, (0, 5))
    sentence = said({1: FALLING}, result(0, many), result(1, {**many, "topic5": (5, 5)}))
    assert "topic0 (0 of 5 right, 0 untrained), topic1" in sentence
    assert sentence.endswith("and 2 topics more.")


# --- real runs ------------------------------------------------------------------------------------


def diagnosis_of(workspace: Workspace, **changes: object) -> str:
    assert workspace.run("run", max_rounds=1, eval_tasks=["qa:one.jsonl"], **changes) == 0
    sentence = workspace.store("run").diagnosis(1)
    assert sentence is not None
    return sentence


@pytest.fixture
def workspace(tmp_path: Path, llama_dir: Path) -> Workspace:
    made = Workspace(tmp_path, llama_dir)
    made.write_rows("one.jsonl", [{"question": "Which word stands at place 1?", "answer": "x"}])
    return made


def test_a_rate_that_is_next_to_nothing_is_diagnosed(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    sentence = diagnosis_of(workspace, learning_rate=1e-9, min_lr=0.0, steps_per_round=8)
    assert "is stuck at" in sentence
    assert "learning rate 1" in sentence
    assert f"  {sentence}\n" in capsys.readouterr().err
    assert sentence in (workspace.folder / "run" / "eval_report.md").read_text()


def test_a_rate_that_is_far_too_high_is_diagnosed(workspace: Workspace) -> None:
    sentence = diagnosis_of(workspace, learning_rate=1.0, steps_per_round=8, warmup_steps=0)
    assert "rose from" in sentence
    assert "the learning rate" in sentence


def test_learning_the_rows_by_heart_is_diagnosed(workspace: Workspace) -> None:
    """Held-out rows with other answers than the training rows: their loss falls, then rises."""
    workspace.write_rows("train.jsonl", [row(i) for i in range(4)])
    workspace.write_rows("val.jsonl", [row(i) for i in range(300, 310)])
    sentence = diagnosis_of(
        workspace,
        val_file="val.jsonl",
        steps_per_round=40,
        evaluation={"max_tokens": 4, "held_out_every_steps": 5},
    )
    assert "overfitting" in sentence
    points = workspace.store("run").held_out_points(1)
    assert [point.step for point in points] == [5, 10, 15, 20, 25, 30, 35]
    lowest = min(point.nll for point in points)
    assert f"from {lowest:.3f} after" in sentence

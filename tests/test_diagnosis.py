"""What curves are called: a table of shapes, and real runs that were made to go wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scores.diagnosis import Curves, HeldOutPoint, diagnose
from scores.results import (
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


def said(losses: Sequence[float], *results: EvalResult, points: Sequence[HeldOutPoint] = ()) -> str:
    *lineage, last = results or (result(0), result(1))
    return diagnose(Curves(losses, points, 0.003, 16), lineage, last)


FALLING = [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.8]


@pytest.mark.parametrize(
    ("losses", "part"),
    [
        (FALLING, "The training loss went from 3.750 to 0.900 nats a token in this round."),
        ([3.0, 2.0, 9.0], "The training loss is 4.667 nats a token."),  # too few steps for more
        (FALLING[::-1], "rose from 0.900 to 3.750 nats a token: the learning rate 0.003 is too"),
        ([2.0, 2.1, 2.5, 9.0, 30.0], "rose from 2.000 to 30.000"),
        ([2.0, 5.0, 1.0, 4.0], "went from"),  # noise
        ([0.01, 0.02, 0.03, 0.04] * 2, "went from"),  # tiny losses do not explode
        ([4.0, 4.1] * 8, "stayed at 4.050 nats a token for 16 steps: the learning rate 0.003 or"),
        ([4.0, 4.1] * 3, "went from 4.000 to 4.100"),  # too few steps to say
        ([3.0, 5.0] * 8, "went from"),  # too noisy to say
        ([0.3, 0.31] * 8, "went from"),  # low and unchanged is not stuck high
    ],
)
def test_training_losses(losses: Sequence[float], part: str) -> None:
    assert part in said(losses)


@pytest.mark.parametrize("num_steps", [4, 5, 8, 16, 40])
@pytest.mark.parametrize("batch_noise", [0.1, 0.3])
def test_noise_between_batches_is_rarely_called_a_problem(
    num_steps: int, batch_noise: float
) -> None:
    """Rounds whose loss falls by two fifths, 500 of each kind."""
    rng = random.Random(num_steps)
    called = 0
    for _ in range(500):
        fall = [2.0 * (1 - 0.4 * step / (num_steps - 1)) for step in range(num_steps)]
        losses = [max(0.01, loss * (1 + rng.gauss(0, batch_noise))) for loss in fall]
        called += " went from " not in said(losses)
    assert called <= 10


def test_a_held_out_loss_that_rises_beyond_noise_is_overfitting() -> None:
    base = result(0, nll=[4.0, 4.2, 3.9, 4.1, 4.0])
    best = result(1, nll=[2.0, 2.2, 1.9, 2.1, 2.0])
    worse = result(2, nll=[2.3, 2.5, 2.2, 2.4, 2.3])
    noisy = result(2, nll=[2.8, 1.9, 1.6, 2.2, 2.4])
    hardly = result(2, nll=[2.01, 2.21, 1.91, 2.11, 2.01])
    sentence = said(FALLING, base, best, worse)
    assert "held-out loss of nll:v rose to 2.340 nats a token from 2.040 after round 1" in sentence
    assert "overfitting" in sentence
    for other in (noisy, hardly):
        assert "overfitting" not in said(FALLING, base, best, other)
    assert "overfitting" not in said(FALLING, base, best)
    # after a rollback to the baseline, round 1 is not what round 2 came from
    assert "overfitting" not in said(FALLING, base, worse)


def test_too_few_rows_are_not_judged() -> None:
    base, after = result(0, nll=[2.0, 2.1]), result(1, nll=[9.0, 9.1])
    assert "overfitting" not in said(FALLING, base, after, points=[HeldOutPoint("nll:v", 1, 1.0)])


def test_a_rise_inside_the_round_is_seen_against_its_lowest_point() -> None:
    base, after = result(0, nll=[4.0] * 5), result(1, nll=[2.2] * 5)
    points = [HeldOutPoint("nll:v", 4, 1.9), HeldOutPoint("nll:v", 8, 2.1)]
    assert "from 1.900 after 4 steps: overfitting" in said(FALLING, base, after, points=points)
    other = [HeldOutPoint("nll:w", 4, 1.0)]
    assert "overfitting" not in said(FALLING, base, after, points=other)


def test_an_exploding_run_is_not_called_overfitting() -> None:
    base, after = result(0, nll=[2.0] * 5), result(1, nll=[9.0] * 5)
    assert said(FALLING[::-1], base, after).startswith("The training loss rose")
    assert "overfitting" not in said(FALLING[::-1], base, after)


def test_topics_in_which_nothing_was_learned_are_named() -> None:
    base = result(0, {"rivers": (0, 8), "sums": (1, 8), "few": (0, 4), "known": (8, 8)})
    after = result(1, {"rivers": (0, 8), "sums": (7, 8), "few": (0, 4), "known": (8, 8)})
    assert said(FALLING, base, after) == (
        "Nothing was learned in rivers (0 of 8 right, 0 untrained)."
    )
    nothing = result(1, {"rivers": (0, 8), "sums": (1, 8), "few": (0, 4)})
    assert said(FALLING, base, nothing) == "Nothing was learned in any of 2 topics."
    many = dict.fromkeys([f"topic{i}" for i in range(6)], (0, 5))
    sentence = said(FALLING, result(0, many), result(1, {**many, "topic5": (5, 5)}))
    assert "topic0 (0 of 5 right, 0 untrained), topic1" in sentence
    assert sentence.endswith("and 2 topics more.")


def test_repeats_of_a_question_are_one_question() -> None:
    def repeated(round_no: int) -> EvalResult:
        samples = [replace(sample("rivers", 1, 0.0), repeat=i) for i in range(1, 6)]
        return eval_result(round_no, None, Measured((task_result("t", samples),)), {})

    assert "rivers" not in said(FALLING, repeated(0), repeated(1))


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
    sentence = diagnosis_of(workspace, learning_rate=1e-9, min_lr=0.0, steps_per_round=40)
    assert "stayed at" in sentence
    assert "the learning rate 9.96e-10 or lora_rank 4 is too low" in sentence
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

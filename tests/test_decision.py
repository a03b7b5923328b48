"""A truth table of the gate: history and result in, action and sentence out."""

import pytest

from decision import Gate, best_round, decide
from eval_stats import eval_result, task_result
from test_eval_stats import sample

GATE = Gate(threshold=0.75, max_rounds=3, max_steps=1000, lr_decay=0.6)


def result(round_no: int, percent: int):
    samples = [sample(i, float(i < percent)) for i in range(100)]
    return eval_result(round_no, None, [task_result("t", samples)], {})


@pytest.mark.parametrize(
    ("history", "round_no", "percent", "step", "action", "multiplier", "best", "missed"),
    [
        ({}, 0, 2, 0, "continue", 1.0, 0, 0),
        ({}, 0, 90, 0, "continue", 1.0, 0, 0),  # the baseline never stops a run
        ({0: 0.02}, 1, 45, 5, "continue", 0.6, 1, 1),
        ({0: 0.02}, 1, 75, 5, "stop_passed", 1.0, 1, 0),  # the threshold itself passes
        ({0: 0.02, 1: 0.45}, 2, 74, 10, "continue", 0.6, 2, 2),
        ({0: 0.02, 1: 0.45, 2: 0.7}, 3, 60, 15, "stop_rounds", 1.0, 2, 3),  # best is not the last
        ({0: 0.9, 1: 0.45}, 2, 45, 10, "continue", 0.6, 1, 2),  # a tie goes to the earlier round
        ({0: 0.02, 1: 0.45}, 2, 50, 1000, "stop_budget", 1.0, 2, 2),
        ({0: 0.02, 1: 0.45, 2: 0.7}, 3, 80, 15, "stop_passed", 1.0, 3, 2),
    ],
)
def test_gate(
    history: dict[int, float],
    round_no: int,
    percent: int,
    step: int,
    action: str,
    multiplier: float,
    best: int,
    missed: int,
) -> None:
    decision = decide(history, result(round_no, percent), step, GATE)
    assert decision.action == action
    assert decision.lr_multiplier == multiplier
    assert decision.best_round == best
    assert decision.num_missed_gates == missed


def test_sentences_carry_the_numbers() -> None:
    passed = decide({0: 0.02, 1: 0.4}, result(2, 80), 10, GATE)
    assert passed.sentence == "Target met: 0.8000 >= 0.75. Stopping."
    missed = decide({0: 0.02}, result(1, 45), 5, GATE)
    assert missed.sentence == (
        "Score below threshold: 0.4500 < 0.75. Learning rate times 0.6, preparing round 2."
    )
    ended = decide({0: 0.02, 1: 0.4, 2: 0.5}, result(3, 60), 15, GATE)
    assert ended.sentence == "Target not met: 0.6000 < 0.75 after 3 of 3 rounds. Stopping."
    already = decide({}, result(0, 90), 0, GATE)
    assert "meets the threshold already" in already.sentence


def test_baseline_is_best_only_while_nothing_is_trained() -> None:
    assert best_round({0: 0.9}) == 0
    assert best_round({0: 0.9, 1: 0.1}) == 1

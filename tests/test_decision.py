"""A truth table of the gate: history and result in, action and sentence out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scores.decision import Decision, Gate, Rule, Spent, best_round, decide, flaw_warning
from scores.intervals import wilson_interval
from scores.resolution import TaskSize, describe_gate
from scores.results import EvalResult, Measured, Role, SampleResult, eval_result, task_result

GATE = Gate(threshold=0.75, max_rounds=3, max_steps=1000, lr_decay=0.6)


def samples(name: str, num_right: int, n: int, num_truncated: int = 0) -> list[SampleResult]:
    return [
        SampleResult(
            id=f"{name}/{i}",
            topic="a",
            question=f"q{i}",
            expected=("x",),
            answer="y",
            score=float(i < num_right),
            truncated=i < num_truncated,
            malformed=False,
            error=None,
        )
        for i in range(n)
    ]


def result(
    round_no: int, num_right: int, n: int = 100, *, guard: int | None = None, truncated: int = 0
) -> EvalResult:
    """Round `round_no` with the first `num_right` of n questions right, and of 20 guard ones."""
    tasks = [task_result("t", samples("t", num_right, n, truncated))]
    if guard is not None:
        role: Role = "guard"
        tasks.append(task_result("g", samples("g", guard, 20), role=role))
    return eval_result(round_no, None, Measured(tuple(tasks)), {})


def verdict(*percents: int, gate: Gate = GATE, steps: int = 5, **spent: Any) -> Decision:
    """Decide after rounds with these percentages, the baseline first."""
    results = [result(number, percent) for number, percent in enumerate(percents)]
    return decide(results[:-1], results[-1], Spent(steps=steps, **spent), gate)


@pytest.mark.parametrize(
    ("percents", "steps", "action", "multiplier", "best", "missed"),
    [
        ([2], 0, "continue", 1.0, 0, 0),
        ([90], 0, "continue", 1.0, 0, 0),  # the baseline never stops a run
        ([2, 45], 5, "continue", 0.6, 1, 1),
        ([2, 75], 5, "stop_passed", 1.0, 1, 0),  # the threshold itself passes
        ([2, 45, 74], 10, "continue", 0.6, 2, 2),
        ([2, 45, 70, 60], 15, "stop_rounds", 1.0, 2, 3),  # best is not the last
        ([40, 45, 45], 10, "continue", 0.6, 1, 2),  # a tie goes to the earlier round
        ([90, 45, 45], 10, "rollback", 0.6, 1, 2),  # what the run began with is better than both
        ([2, 45, 50], 1000, "stop_budget", 1.0, 2, 2),
        ([2, 45, 70, 80], 15, "stop_passed", 1.0, 3, 2),
        ([2, 70, 30], 10, "rollback", 0.6, 1, 2),  # worse beyond noise
        ([2, 70, 69], 10, "continue", 0.6, 1, 2),  # worse, but not beyond noise
    ],
)
def test_gate(
    percents: list[int], steps: int, action: str, multiplier: float, best: int, missed: int
) -> None:
    decision = verdict(*percents, steps=steps)
    assert decision.action == action
    assert decision.lr_multiplier == multiplier
    assert decision.best_round == best
    assert decision.num_missed_gates == missed


def test_sentences_carry_the_numbers() -> None:
    assert verdict(2, 40, 80).sentence == "Target met: 0.8000 >= 0.75. Stopping."
    assert verdict(2, 45).sentence == (
        "Score below threshold: 0.4500 < 0.75. Learning rate times 0.6, preparing round 2."
    )
    assert verdict(2, 40, 50, 60).sentence == (
        "Target not met: 0.6000 < 0.75 after 3 of 3 rounds. Stopping."
    )
    assert "meets the threshold already" in verdict(90).sentence
    assert "Back to round 1 (0.7000), which this round is worse than beyond noise (-0.4000 [" in (
        verdict(2, 70, 30).sentence
    )


def test_what_is_recommended_below_the_start_of_the_run_is_said_to_be() -> None:
    """The gate asks for the threshold alone, and a run recommends a round that it trained."""
    passed = verdict(90, 80)
    assert (passed.action, passed.best_round) == ("stop_passed", 1)
    assert passed.sentence == (
        "Target met: 0.8000 >= 0.75; round 1 is below the untouched model (0.8000 < 0.9). Stopping."
    )
    started = replace(GATE, baseline="runs/p@best")
    assert verdict(70, 60, 50, 40, gate=started).sentence == (
        "Target not met: 0.4000 < 0.75 after 3 of 3 rounds; round 1 is below runs/p@best "
        "(0.6000 < 0.7). Stopping."
    )
    for kept in (verdict(80, 80), verdict(70, 70, 70, 70), verdict(70, 60)):
        assert "below the untouched model" not in kept.sentence


@pytest.mark.parametrize("n", [20, 100])
def test_lower_bound_passes_exactly_from_where_wilsons_bound_reaches_the_threshold(n: int) -> None:
    gate = replace(GATE, rule="lower_bound", threshold=0.85)
    baseline = result(0, 0, n)
    for num_right in range(n + 1):
        decision = decide([baseline], result(1, num_right, n), Spent(steps=5), gate)
        bound = wilson_interval(num_right, n, 1 - 2 * 0.05 / 3).low
        assert (decision.action == "stop_passed") == (bound >= 0.85)


def test_lower_bound_says_bound_level_and_n() -> None:
    sentence = verdict(2, 80, gate=replace(GATE, rule="lower_bound")).sentence
    assert sentence.startswith("Not passed: lower bound 0.70")
    assert "< 0.75 (score 0.8000, n=100, one-sided 98.3%)" in sentence


def test_one_question_gives_no_bound_and_does_not_pass() -> None:
    gate = replace(GATE, rule="lower_bound")
    decision = decide([result(0, 0, 1)], result(1, 1, 1), Spent(steps=5), gate)
    assert decision.action == "continue"
    assert "t has one question only, which gives no bound" in decision.sentence


@pytest.mark.parametrize(
    ("baseline", "score", "margin", "action"),
    [
        (40, 80, 0.0, "stop_passed"),
        (40, 74, 0.0, "continue"),  # a gain, below the threshold
        (78, 80, 0.0, "continue"),  # at the threshold, the gain is noise
        (40, 80, 0.35, "continue"),  # a gain of 0.40, not surely above 0.35
        (40, 80, 0.20, "stop_passed"),
    ],
)
def test_paired_asks_for_threshold_and_gain(
    baseline: int, score: int, margin: float, action: str
) -> None:
    decision = verdict(baseline, score, gate=replace(GATE, rule="paired", margin=margin))
    assert decision.action == action
    assert f"margin {margin:g} (paired, one-sided 98.3%)" in decision.sentence


@pytest.mark.parametrize(
    ("guard", "action", "clause"),
    [
        (17, "stop_passed", "Target met"),  # down by exactly what is allowed
        (16, "rollback", "guard g fell by 0.1000 from 0.9000 (allowed 0.05, n=20)"),
        (None, "stop_passed", "Target met"),  # the loop measures it before it lets the run stop
    ],
)
def test_a_broken_guard_keeps_a_round_from_passing(
    guard: int | None, action: str, clause: str
) -> None:
    gate = replace(GATE, guards={"g": 0.05})
    earlier = [result(0, 2, guard=18)]
    decision = decide(earlier, result(1, 80, guard=guard), Spent(steps=5), gate)
    assert decision.action == action
    assert clause in decision.sentence


def test_a_round_with_a_broken_guard_is_not_the_best_and_is_rolled_back() -> None:
    gate = replace(GATE, guards={"g": 0.05})
    history = [result(0, 2, guard=18), result(1, 60, guard=18), result(2, 80, guard=5)]
    assert best_round(history, gate) == 1
    decision = decide(history[:-1], history[-1], Spent(steps=5), gate)
    assert (decision.action, decision.best_round) == ("rollback", 1)
    kept = decide(history[:-1], history[-1], Spent(steps=5), replace(gate, rollback=False))
    assert kept.action == "continue"


@pytest.mark.parametrize(
    ("num_truncated", "action", "warns"),
    [
        (2, "stop_passed", False),
        (3, "stop_passed", True),
        (10, "stop_passed", True),
        (11, "continue", True),
    ],
)
def test_too_many_truncated_answers_never_pass(
    num_truncated: int, action: str, warns: bool
) -> None:
    passing = result(1, 80, truncated=num_truncated)
    decision = decide([result(0, 2)], passing, Spent(steps=5), GATE)
    assert decision.action == action
    assert (flaw_warning(passing) is not None) == warns
    if action == "continue":
        assert "Not passed: 0.8000 >= 0.75, but 11 of 100 answers were truncated" in (
            decision.sentence
        )


def test_a_plateau_is_no_gain_beyond_noise_for_so_many_rounds() -> None:
    gate = replace(GATE, max_rounds=9, patience=2)
    assert verdict(2, 40, 42, gate=gate).action == "continue"
    stopped = verdict(2, 40, 42, 41, gate=gate)
    assert (stopped.action, stopped.best_round) == ("stop_plateau", 2)
    assert "no round since round 1 (0.4000) was better beyond noise" in stopped.sentence
    # slow progress adds up: 0.46 beats the champion of round 1 although not the round before it
    assert verdict(2, 40, 43, 46, 49, gate=gate).action == "continue"


@pytest.mark.parametrize(
    ("limit", "spent", "part"),
    [
        ({"max_tokens": 1000}, {"tokens": 700, "round_tokens": 400}, "budget.tokens 1,000"),
        ({"max_minutes": 5.0}, {"minutes": 3.0, "round_minutes": 2.5}, "budget.minutes 5"),
        ({"max_usd": 2.0}, {"usd": 1.5, "round_usd": 0.75}, "1.5 of budget.usd 2 used and 0.75"),
    ],
)
def test_a_budget_ends_the_run_before_a_round_that_would_exceed_it(
    limit: dict[str, Any], spent: dict[str, Any], part: str
) -> None:
    gate = replace(GATE, **limit)
    decision = verdict(2, 45, gate=gate, **spent)
    assert decision.action == "stop_budget"
    assert part in decision.sentence
    assert verdict(2, 45, gate=gate).action == "continue"


def test_baseline_is_best_only_while_nothing_is_trained() -> None:
    assert best_round([result(0, 90)], GATE) == 0
    assert best_round([result(0, 90), result(1, 10)], GATE) == 1


# --- defects that an audit found ------------------------------------------------------------------


def test_what_passed_is_recommended_although_a_refused_round_scored_higher() -> None:
    history = [result(0, 2), result(1, 90, truncated=11), result(2, 86)]
    decision = decide(history[:-1], history[-1], Spent(steps=5), replace(GATE, threshold=0.85))
    assert (decision.action, decision.best_round) == ("stop_passed", 2)


def test_a_gate_that_does_not_stop_trains_all_rounds_and_recommends_what_passed() -> None:
    gate = replace(GATE, stops=False, max_rounds=3, lr_decay=0.5, rollback=False)
    threshold = round(gate.threshold * 100)
    first = verdict(10, threshold + 5, gate=gate)
    assert (first.action, first.lr_multiplier, first.num_missed_gates) == ("continue", 1.0, 0)
    assert "Target met" in first.sentence and "gate.stop is false" in first.sentence
    perfect = verdict(10, 100, gate=gate)
    assert perfect.action == "continue"
    second = verdict(10, threshold + 5, threshold - 5, gate=gate)
    assert (second.action, second.lr_multiplier, second.num_missed_gates) == ("continue", 0.5, 1)
    last = verdict(10, threshold + 5, threshold - 5, threshold + 1, gate=gate)
    assert (last.action, last.best_round, last.num_missed_gates) == ("stop_passed", 1, 1)
    assert "Target met by round 1" in last.sentence and "after 3 of 3 rounds" in last.sentence
    missed = verdict(10, threshold - 5, threshold - 9, threshold - 7, gate=gate)
    assert (missed.action, missed.best_round, missed.num_missed_gates) == ("stop_rounds", 1, 3)
    assert "would stop falsely" not in " ".join(describe_gate(gate, [TaskSize(100, 100)]))


def of_tasks(round_no: int, *rights: int, truncated: int = 0) -> EvalResult:
    """One task of 100 questions for each number of right answers; the last one's truncated."""
    last = len(rights) - 1
    tasks = [
        task_result(f"t{i}", samples(f"t{i}", right, 100, truncated if i == last else 0))
        for i, right in enumerate(rights)
    ]
    return eval_result(round_no, None, Measured(tuple(tasks)), {})


def test_exactly_the_threshold_passes_and_exact_ties_are_ties_whatever_the_rounding() -> None:
    exact = of_tasks(1, 70, 80, 90)  # their mean is a hair below 0.8
    assert exact.score < 0.8
    decision = decide([of_tasks(0, 2, 2, 2)], exact, Spent(steps=5), replace(GATE, threshold=0.8))
    assert decision.sentence == "Target met: 0.8000 >= 0.8. Stopping."
    tied = [of_tasks(0, 2, 2, 2), exact, of_tasks(2, 80, 80, 80)]
    assert best_round(tied, GATE) == 1


def test_numbers_that_would_look_equal_are_shown_longer() -> None:
    gate = replace(GATE, threshold=0.6667)
    sentence = decide([result(0, 0, 3)], result(1, 2, 3), Spent(steps=5), gate).sentence
    assert sentence.startswith("Score below threshold: 0.66666667 < 0.66670000.")


def test_a_round_that_broke_a_guard_is_no_champion_of_the_plateau() -> None:
    gate = replace(GATE, guards={"g": 0.05}, patience=2, max_rounds=9)
    rounds = [(2, 18), (30, 18), (72, 5), (50, 18), (68, 18)]
    history = [result(i, right, guard=guard) for i, (right, guard) in enumerate(rounds)]
    assert decide(history[:-1], history[-1], Spent(steps=5), gate).action == "continue"


def test_there_is_no_going_back_to_a_round_that_broke_the_guard_too() -> None:
    """Where all have, the guard holds of what the run began with alone."""
    gate = replace(GATE, guards={"g": 0.05})
    history = [result(0, 2, guard=18), result(1, 60, guard=5), result(2, 58, guard=5)]
    decision = decide(history[:-1], history[-1], Spent(steps=5), gate)
    assert (decision.action, decision.goes_on_from, decision.best_round) == ("rollback", 0, 1)
    assert "Back to the untouched model: guard g fell by" in decision.sentence


@pytest.mark.parametrize(
    ("percents", "back_to"),
    [
        ([70, 30], 0),
        ([70, 69], None),  # not beyond noise
        ([70, 50, 20], 0),  # the best of all, not the best of what was trained
        ([70, 70, 20], 1),  # as good as the start, and trained
        ([70, 72, 30], 1),
        ([70, 30, 68], None),
        ([2, 1], None),
    ],
)
@pytest.mark.parametrize("rule", ["mean", "lower_bound", "paired"])
def test_the_best_that_a_round_may_go_back_to_is_what_the_run_began_with(
    percents: list[int], back_to: int | None, rule: Rule
) -> None:
    started = replace(GATE, rule=rule, baseline="runs/p@best", threshold=0.95)
    decision = verdict(*percents, gate=started)
    if back_to is None:
        assert (decision.action, decision.goes_on_from) == ("continue", decision.round)
        return
    assert (decision.action, decision.goes_on_from) == ("rollback", back_to)
    assert decision.best_round > 0  # which is what a run recommends: a round that it trained
    if back_to == 0:
        start = "Back to runs/p@best (round 0, 0.7000), which this round is worse than beyond noise"
        assert start in decision.sentence
    kept = verdict(*percents, gate=replace(started, rollback=False))
    assert (kept.action, kept.goes_on_from) == ("continue", kept.round)


def test_unknown_noise_is_no_plateau() -> None:
    gate = replace(GATE, patience=1, max_rounds=9)
    history = [result(i, 0, 1) for i in range(3)]
    assert decide(history[:-1], history[-1], Spent(steps=5), gate).action == "continue"


def test_one_task_of_truncated_answers_keeps_all_of_them_from_passing() -> None:
    mixed = of_tasks(1, 99, 99, 99, truncated=20)
    sentence = decide([of_tasks(0, 2, 2, 2)], mixed, Spent(steps=5), GATE).sentence
    assert "20 of 100 answers of t2 were truncated, and" in sentence
    assert (flaw_warning(mixed) or "").startswith("warning: 20 of 100 answers of t2")


def test_a_slightly_worse_answer_never_makes_a_bound_pass() -> None:
    """With Student's t alone, 19 right answers and one of 0.99 had the lower bound 0.998."""
    gate = replace(GATE, rule="lower_bound", threshold=0.85)

    def graded(last: float) -> EvalResult:
        answers = samples("t", 20, 20)
        answers[-1] = replace(answers[-1], score=last)
        return eval_result(1, None, Measured((task_result("t", answers),)), {})

    for last in (1.0, 0.99, 2 / 3, 0.0):
        decision = decide([result(0, 0, 20)], graded(last), Spent(steps=5), gate)
        assert decision.action == "continue", last


@pytest.mark.parametrize(
    ("gate", "sizes", "parts"),
    [
        ({}, [(100, 100)], ["100 questions tell 0.85 from 0.74", "falsely in 33.8% of runs of 3"]),
        ({"rule": "lower_bound"}, [(100, 100)], ["falsely in less than 0.1% of runs of 3 rounds"]),
        ({"rule": "paired"}, [(100, 100)], ["stop falsely in at most 33.8%"]),
        # the plain mean of a large and a small task is as uncertain as the small one makes it
        (
            {},
            [(1000, 1000), (10, 10)],
            ["1010 questions (which may tell as little as 39, for", ") tell 0.85 from 0.6",
             "in about 52"],
        ),
        ({}, [(100, 10)], ["100 questions (which may tell as little as 10, ", "in at most 75.7%"]),
        ({"threshold": 1.0}, [(20, 20)], ["20 questions cannot tell a score of 1 from any"]),
        ({"rule": "lower_bound"}, [(20, 20)], ["warning: no round can pass", "0.8154 < 0.85"]),
        ({"rule": "lower_bound"}, [(20, 1)], ["warning: ", "task of one question or one cluster"]),
        ({"rule": "paired"}, [(1, 1)], ["warning: ", "gate.rule paired needs a bound"]),
    ],
)  # fmt: skip
def test_what_is_said_before_the_first_step(
    gate: dict[str, Any], sizes: list[tuple[int, int]], parts: list[str]
) -> None:
    used = replace(GATE, **{"threshold": 0.85, **gate})
    told = "\n".join(describe_gate(used, [TaskSize(*size) for size in sizes]))
    for part in parts:
        assert part in told
    has_warning = any(part.startswith("warning") for part in parts)
    assert ("\nwarning: no round can pass" in told) == has_warning

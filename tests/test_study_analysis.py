"""What a study's report says of made-up outcomes: numbers by hand, by simulation, and its words."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from conftest import thorough_only
from ledger.records import Usage
from scores.comparisons import (
    Parts,
    crossed,
    difference,
    groups_of,
    half_weights,
    half_width,
    holm,
    letter,
    pooled_seeds,
    trend_weights,
    weighted,
)
from scores.intervals import UNIT, Interval, paired_difference
from scores.power import needed_to_show
from scores.results import EvalResult
from studies.findings.analysis import analyse
from studies.findings.findings import Findings
from studies.findings.hypothesis import read_hypothesis
from studies.findings.outcome import ArmOutcome, StudyOutcome
from study_outcomes import PROTOCOL, arm, by_question, result, study

N = 60


def binary(num_right: int, n: int = N, start: int = 0) -> list[float]:
    """`num_right` of n questions right, from question `start` on, around the end."""
    right = {(start + i) % n for i in range(num_right)}
    return [float(i in right) for i in range(n)]


def arm_of(rank: int, *scores_S: Sequence[float], **fields: object) -> ArmOutcome:
    return arm({"lora_rank": rank}, [result(scores) for scores in scores_S], **fields)  # pyright: ignore[reportArgumentType]


def seeds_of(rng: np.random.Generator, score: float, k: int, n: int = N) -> list[list[float]]:
    return [(rng.random(n) < score).astype(float).tolist() for _ in range(k)]


# --- numbers --------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # 4 tests: 4 * 0.01, 3 * 0.02, then 2 * 0.03 = 0.06, and 1 * 0.04 not below the one before.
    assert holm([0.02, 0.01, 0.04, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("num_arms", "apart", "groups"),
    [
        (0, [], []),
        (1, [], [[0]]),
        (3, [], [[0, 1, 2]]),
        (3, [(0, 1), (0, 2), (1, 2)], [[0], [1], [2]]),
        (4, [(0, 3), (2, 0)], [[0, 1], [1, 2, 3]]),
        (5, [(0, 2), (0, 3), (0, 4), (1, 3), (1, 4)], [[0, 1], [1, 2], [2, 3, 4]]),
        (4, [(0, 1), (2, 3)], [[0, 2], [0, 3], [1, 2], [1, 3]]),
    ],
)
def test_groups_by_hand(
    num_arms: int, apart: list[tuple[int, int]], groups: list[list[int]]
) -> None:
    assert groups_of(num_arms, apart) == groups


def test_groups_are_the_largest_sets_without_a_pair_apart() -> None:
    chance = random.Random(3)
    for _ in range(100):
        n = chance.randrange(1, 7)
        apart = [p for p in itertools.combinations(range(n), 2) if chance.random() < 0.5]
        sets = [
            set(members)
            for size in range(1, n + 1)
            for members in itertools.combinations(range(n), size)
            if not any(set(pair) <= set(members) for pair in apart)
        ]
        largest = sorted(sorted(one) for one in sets if not any(one < other for other in sets))
        assert groups_of(n, apart) == largest


def test_groups_are_not_counted_without_end() -> None:
    assert groups_of(60, [(2 * i, 2 * i + 1) for i in range(30)]) is None  # 2^30 of them


def test_letters() -> None:
    assert [letter(i) for i in (0, 25, 26, 51, 52)] == ["a", "z", "A", "Z", "[53]"]


def test_crossed_variance_by_hand() -> None:
    """Three seeds, four questions, scores that can be added up on paper."""
    table = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    found = crossed([{"t": by_question(row)} for row in table], {}, UNIT)
    assert found.parts is not None
    # Seeds: 0.5, 0.25, 0.75, variance 0.0625. Questions: 1, 2/3, 1/3, 0, variance 5/27.
    assert found.mean == pytest.approx(0.5)
    assert found.parts.seeds == pytest.approx(0.0625 / 3)
    assert found.parts.questions == pytest.approx(5 / 27 / 4)
    # What is left: total 3.0 less seeds 4 * 0.125 less questions 3 * 5/9, over 2 * 3 degrees.
    assert found.parts.residual == pytest.approx((3.0 - 0.5 - 5 / 3) / 6 / 12)
    half = math.hypot(
        stats.t.ppf(0.975, 2) * math.sqrt(0.0625 / 3), stats.t.ppf(0.975, 3) * math.sqrt(5 / 108)
    )
    assert half_width(found.parts, 0.05) == pytest.approx(half)
    assert found.interval == (0.0, 1.0)  # cut to where scores are
    assert half_width(found.parts, found.p_value or 0) == pytest.approx(0.5, rel=1e-5)


def test_one_and_two_seeds_leave_the_seeds_out() -> None:
    rows = [by_question(binary(30)), by_question(binary(40))]
    one, two = (crossed([{"t": row} for row in rows[:k]], {}, UNIT) for k in (1, 2))
    assert one.parts is not None and two.parts is not None
    assert (one.parts.seeds, two.parts.seeds) == (0.0, 0.0)
    assert not one.is_of_setting and not two.is_of_setting


def test_several_tasks_are_averaged() -> None:
    seeds = [{"t": by_question([1, 0]), "u": by_question([1, 1, 1, 0])} for _ in range(3)]
    found = crossed(seeds, {}, UNIT)
    assert found.parts is not None
    assert found.mean == pytest.approx((0.5 + 0.75) / 2)
    assert found.parts.questions == pytest.approx((0.5 / 2 + 0.25 / 4) / 4)


def test_one_seed_and_task_is_exact_mcnemar() -> None:
    after, before = by_question(binary(40)), by_question(binary(28))
    found = difference([{"t": after}], [{"t": before}], {})
    expected = paired_difference(after, before)
    assert (found.p_value, found.interval) == (expected.p_value, expected.interval)
    assert found.method == "exact McNemar"
    assert found.p_value == pytest.approx(2 * 0.5**12)


def test_identical_answers_are_never_sure() -> None:
    rows = [{"t": by_question([1.0] * 20)}] * 3
    found = crossed(rows, {}, UNIT)
    assert found.interval is not None and found.interval.low < 0.9 and found.interval.high == 1.0
    same = difference(rows, rows, {})
    assert same.p_value == pytest.approx(1.0)
    assert same.interval is not None and same.interval.low < -0.1 and same.interval.high > 0.1


def test_pooled_seeds_by_hand() -> None:
    pool = pooled_seeds([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2], [0.3, 0.2, 0.1]])
    # Every seed has the mean 0.2, so what is left are the deviations themselves: 4 * 0.01 over 4.
    assert pool is not None
    assert (pool.between, pool.df) == (pytest.approx(0.01), 4)
    assert pool.own == pytest.approx((0.01 + 0 + 0.01) / 3)
    assert pooled_seeds([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]]) is None
    assert pooled_seeds([[0.1, 0.2]] * 3) is None
    shifted = pooled_seeds([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7]])
    assert shifted is None  # two seeds


def test_contrast_weights_by_hand() -> None:
    assert trend_weights([3, 4, 5, 6]) == pytest.approx([-0.9, -0.3, 0.3, 0.9])
    assert trend_weights([1, 2]) == [-1, 1]
    lower, diminished = half_weights([1, 2, 4])
    assert lower == [-1, 1, 0]
    # 1 added below gains y2 - y1; 1 added above, half of y3 - y2.
    assert diminished == pytest.approx([-1, 1.5, -0.5])
    straight = [2.0 * x for x in (8, 16, 32, 64)]
    weights = half_weights([8, 16, 32, 64])[1]
    assert math.fsum(w * y for w, y in zip(weights, straight, strict=True)) == pytest.approx(0)


def test_needed_has_the_power_it_promises() -> None:
    parts = Parts(seeds=0.0, questions=0.004, residual=0.0, questions_df=59)
    found = needed_to_show(0.1, parts, 60, 1)
    # By hand: 60 * 0.004 * (2.8 / 0.1)^2 = 188 questions.
    assert found.questions is not None and 180 <= found.questions <= 210
    rng = np.random.default_rng(4)
    values = rng.normal(0.1, math.sqrt(60 * 0.004), (2000, found.questions))
    t = values.mean(axis=1) / (values.std(axis=1, ddof=1) / math.sqrt(found.questions))
    power = float((np.abs(t) > stats.t.ppf(0.975, found.questions - 1)).mean())
    assert 0.77 <= power <= 0.88
    # Seeds alone are too large a part: no number of questions helps, more seeds do.
    seeds = needed_to_show(0.1, Parts(0.004, 0.0002, 0.0, 59, 2), 60, 3)
    assert seeds.questions is None and seeds.seeds is not None and 8 <= seeds.seeds <= 20
    none = needed_to_show(1e-6, Parts(0.004, 0.002, 0.0, 59, 2), 60, 3)
    assert none == (None, None, None)


# --- what chance does -----------------------------------------------------------------------------


def simulated(
    rng: np.random.Generator, num_arms: int, luck: float, k: int, n: int = N
) -> list[list[dict[str, dict[str, float]]]]:
    """Answers of arms that are alike: difficulty, luck of a seed, and what is left, on the probit
    scale; the expected score is a half."""
    difficulty = rng.normal(size=n)
    arms = []
    for _ in range(num_arms):
        shift = difficulty + rng.normal(0, luck, (k, 1)) + rng.normal(size=(k, n))
        right = (rng.normal(size=(k, n)) < shift).astype(float)
        arms.append([{"t": by_question(row)} for row in right])
    return arms


@pytest.mark.parametrize(("k", "luck"), [(3, 0.1), (3, 0.5), (5, 0.1), (5, 0.5)])
def test_coverage_of_a_setting(k: int, luck: float) -> None:
    rng, covered, runs = np.random.default_rng(k), 0, 400
    for _ in range(runs):
        (seeds,) = simulated(rng, 1, luck, k)
        interval = crossed(seeds, {}, UNIT).interval
        assert interval is not None
        covered += interval.low <= 0.5 <= interval.high
    assert covered / runs >= 0.93


LONGER = [pytest.param(k, luck, marks=thorough_only) for k, luck in ((3, 0.0), (5, 0.4))]


@pytest.mark.parametrize(("k", "luck"), [(1, 0.0), (3, 0.4), *LONGER])
def test_a_null_study_of_four_arms(k: int, luck: float) -> None:
    rng, alarms, runs = np.random.default_rng(k + 10), 0, 80
    for _ in range(runs):
        arms = simulated(rng, 4, luck, k)
        trained = [
            arm_of(rank, *(list(one["t"].values()) for one in seeds))
            for rank, seeds in zip((1, 2, 3, 4), arms, strict=True)
        ]
        alarms += any(pair.is_told_apart for pair in analyse(study(trained)).pairs)
    assert alarms / runs <= 0.07


# --- the whole ------------------------------------------------------------------------------------


def planted(k: int = 3, base: float = 0.3) -> StudyOutcome:
    rng = np.random.default_rng(8)
    first = result(*seeds_of(rng, base, 1, 120), checkpoint=None)
    arms = [
        arm_of(
            rank,
            *seeds_of(rng, score, k, 120),
            baseline=first,
            num_lora_params=1000 * rank,
            cost_usd=0.5,
        )
        for rank, score in ((8, 0.4), (16, 0.65), (32, 0.72), (64, 0.74))
    ]
    return study(
        arms, hypothesis="Higher ranks will improve performance but with diminishing returns"
    )


def as_sets(found: Findings) -> dict[str, object]:
    """What is found, without the order of what has none."""
    return {
        "headline": found.headline,
        "control": found.control,
        "best": found.best,
        "arms": [
            (a.name, round(a.score, 9), a.interval and [round(x, 9) for x in a.interval], a.groups)
            for a in found.arms
        ],
        "pairs": {(p.one, p.other, round(p.mean, 9), round(p.p_holm or 0, 9)) for p in found.pairs},
        "claims": [(c.claim, c.verdict, round(c.effect or 0, 9)) for c in found.claims],
        "verdict": found.verdict_sentence,
        "groups": found.groups,
    }


@pytest.mark.parametrize("k", [1, 2, 3])
def test_order_changes_nothing(k: int) -> None:
    outcome = planted(k)
    expected = as_sets(analyse(outcome))
    chance = random.Random(5)
    for _ in range(3):
        order = list(range(120))
        chance.shuffle(order)
        arms = []
        for one in chance.sample(list(outcome.arms), len(outcome.arms)):
            trials = [
                dataclasses.replace(trial, result=shuffled(trial.result, order))
                for trial in chance.sample(list(one.trials), len(one.trials))
            ]
            arms.append(dataclasses.replace(one, trials=trials))
        assert as_sets(analyse(dataclasses.replace(outcome, arms=arms))) == expected


def shuffled(one: EvalResult | None, order: Sequence[int]) -> EvalResult | None:
    if one is None:
        return None
    scores = list(one.tasks[0].scores.items())
    named = {scores[i][0].removeprefix("t/"): scores[i][1] for i in order}
    return result(named, checkpoint=one.checkpoint)


def test_a_constant_added_moves_no_difference() -> None:
    rng = np.random.default_rng(6)
    scores = {rank: [rng.random(N) * 0.4 for _ in range(3)] for rank in (8, 16, 32)}
    plain, moved = (
        analyse(study([arm_of(r, *((s + add).tolist() for s in t)) for r, t in scores.items()]))
        for add in (0.0, 0.3)
    )
    for one, other in zip(plain.pairs, moved.pairs, strict=True):
        assert (one.one, one.other) == (other.one, other.other)
        assert one.mean == pytest.approx(other.mean)
        assert one.p_holm == pytest.approx(other.p_holm)
        assert one.interval == pytest.approx(other.interval)


def test_a_planted_rise_is_found_and_answered() -> None:
    found = analyse(planted(5))
    assert found.control == "base model"
    assert found.best == "lora_rank=64"
    assert [c.verdict for c in found.claims] == ["supported", "supported"]
    assert found.verdict == "supported"
    assert "Read as: the score rises with lora_rank;" in found.verdict_sentence
    assert all(a.is_of_setting for a in found.arms if a.name != "base model")
    table = {a.name: a for a in found.arms}
    assert table["base model"].groups not in table["lora_rank=64"].groups
    gain = next(d.mean for d in found.against_control if d.one == "lora_rank=64")
    assert table["lora_rank=64"].tokens_per_point == pytest.approx(5 * 1600 / (100 * gain))
    assert table["lora_rank=64"].usd_per_point == pytest.approx(2.5 / (100 * gain))
    assert table["base model"].tokens_per_point is None
    assert "better" not in found.headline
    assert any("alpha / rank" in remark for remark in found.remarks)


@pytest.mark.parametrize("k", [1, 2])
def test_few_seeds_say_nothing_of_settings(k: int) -> None:
    found = analyse(planted(k))
    assert found.verdict == "undecided"
    assert not any(a.is_of_setting for a in found.arms)
    assert not any(pair.is_of_setting for pair in found.pairs)
    for pair in found.pairs:
        assert "these two checkpoints" in pair.sentence or "these checkpoints" in pair.sentence
        assert "higher than" not in pair.sentence
    for claim in found.claims:
        assert claim.verdict == "undecided" and "checkpoints" in claim.sentence
        assert claim.needed is not None and "3 seeds" in claim.needed
    assert "as far as these checkpoints go" in found.headline
    assert any("one seed" in r or "two seeds" in r for r in found.remarks)


def test_against_is_seen_from_the_reference() -> None:
    found = analyse(planted(3))
    assert {d.other for d in found.against_control} == {"base model"}
    assert {d.other for d in found.against_best} == {found.best}
    for one in found.against_best:
        assert one.mean <= 0
        assert one.interval is None or one.interval.low <= one.mean <= one.interval.high
        assert "scores higher" not in one.sentence


def test_only_shared_seeds_and_questions_are_paired() -> None:
    one = arm_of(8, binary(30), binary(32), binary(34))
    other = arm(
        {"lora_rank": 16},
        [result(binary(40)), result(binary(41)[:50]), None],
    )
    found = analyse(study([one, other]))
    (pair,) = found.pairs
    assert (pair.num_seeds, pair.n, pair.num_left_out) == (2, 50, 10)
    assert any("different numbers of seeds" in remark for remark in found.remarks)
    assert any("left out" in remark for remark in found.remarks)
    assert [one.run_id for one in found.not_run] == ["lora_rank=16#2"]
    assert {a.name: a.num_seeds for a in found.arms} == {"lora_rank=8": 3, "lora_rank=16": 2}


def test_arms_without_a_shared_seed_are_not_compared() -> None:
    one = arm({"lora_rank": 8}, [result(binary(30)), None])
    other = arm({"lora_rank": 16}, [None, result(binary(50))])
    found = analyse(study([one, other]))
    assert not found.pairs
    assert any("no seed or no question in common" in remark for remark in found.remarks)
    assert "undecided" not in found.headline


# --- odd studies ----------------------------------------------------------------------------------


def test_nothing_measured() -> None:
    found = analyse(study([arm({"lora_rank": 8}, [None]), arm({"lora_rank": 16}, [None])]))
    assert found.control is None and found.best is None and not found.arms and not found.pairs
    assert found.headline == "No trial is done, so nothing was found."
    assert len(found.not_run) == 2
    assert analyse(study([])).headline.startswith("No trial is done")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scores", [[0.0] * N, [1.0] * N, binary(30)])
def test_the_same_score_everywhere(k: int, scores: list[float]) -> None:
    arms = [arm_of(rank, *[scores] * k) for rank in (8, 16, 32)]
    found = analyse(study(arms, expects={"lora_rank": ["rises", "same", "differs", "diminishing"]}))
    assert found.headline.startswith("All 3 arms scored the same")
    assert not any(pair.is_told_apart for pair in found.pairs)
    assert {a.groups for a in found.arms} == {"a"}
    assert [a.name for a in found.arms] == ["lora_rank=8", "lora_rank=16", "lora_rank=32"]
    assert all(pair.mean == 0 and pair.p_value == pytest.approx(1) for pair in found.pairs)
    assert all(c.verdict == "undecided" for c in found.claims)
    assert any("All arms scored the same" in remark for remark in found.remarks)


@pytest.mark.parametrize("k", [1, 3])
def test_one_question_or_one_cluster_tells_nothing(k: int) -> None:
    for scores, clusters in (
        ([1.0], None),
        (binary(3, 6), dict.fromkeys(by_question([0] * 6), "c")),
    ):
        results = [result(scores, clusters=clusters)] * k
        other = [result([0.0] * len(scores), clusters=clusters)] * k
        arms = [arm({"lora_rank": 8}, results), arm({"lora_rank": 16}, other)]
        found = analyse(study(arms, expects={"lora_rank": ["rises", "same"]}))
        (pair,) = found.pairs
        assert (pair.interval, pair.p_value, pair.p_holm) == (None, None, None)
        assert not pair.is_told_apart and "unknown" in pair.sentence
        assert all(a.interval is None for a in found.arms)
        assert all(c.verdict == "undecided" for c in found.claims)
        assert any("nothing of chance" in remark for remark in found.remarks)


def test_clustered_questions_widen_the_interval() -> None:
    clusters = {question: f"c{i // 10}" for i, question in enumerate(by_question([0] * N))}
    plain, clustered = (
        analyse(
            study(
                [
                    arm({"lora_rank": 8}, [result(binary(30 + s), clusters=c) for s in range(3)]),
                    arm({"lora_rank": 16}, [result(binary(20 + s), clusters=c) for s in range(3)]),
                ]
            )
        ).pairs[0]
        for c in (None, clusters)
    )
    assert plain.interval is not None and clustered.interval is not None
    assert clustered.interval.low < plain.interval.low


def test_dropped_arms_are_shown_and_not_compared() -> None:
    dropped = arm_of(64, binary(59), status="dropped", why="halving", round_no=2)
    found = analyse(study([arm_of(8, binary(30)), arm_of(16, binary(40)), dropped]))
    assert [a.name for a in found.arms] == ["lora_rank=16", "lora_rank=8", "lora_rank=64"]
    assert found.best == "lora_rank=16"
    assert found.arms[-1].groups == "" and "fewer rounds" in found.arms[-1].note
    assert all("lora_rank=64" not in (p.one, p.other) for p in found.pairs)
    assert any("Dropped early: lora_rank=64" in remark for remark in found.remarks)
    assert not found.not_run


def test_trials_without_a_result_are_listed() -> None:
    arms = [
        arm_of(8, binary(30)),
        arm({"lora_rank": 16}, [result(binary(40))], status="failed", why="out of memory"),
        arm({"lora_rank": 32}, [None], status="done"),
    ]
    found = analyse(study(arms))
    assert [(n.status, n.why) for n in found.not_run] == [
        ("failed", "out of memory"),
        ("done", "it has no result"),
    ]
    assert found.headline.startswith("lora_rank=8 alone was measured")
    assert any("Without any result" in remark for remark in found.remarks)


def test_the_untrained_arm_is_the_control() -> None:
    base = arm({}, [result(binary(20), checkpoint=None)], name="plain", is_trained=False)
    prompt = arm(
        {"prompt": "Think."},
        [result(binary(24), checkpoint=None)],
        name="prompted",
        is_trained=False,
    )
    trained = arm_of(8, binary(30), binary(31), binary(35))
    found = analyse(study([prompt, trained, base]))
    assert found.control == "plain"
    pairs = {frozenset((p.one, p.other)): p for p in found.pairs}
    assert pairs[frozenset(("plain", "lora_rank=8"))].num_seeds == 3
    assert pairs[frozenset(("plain", "lora_rank=8"))].is_of_setting
    assert "checkpoints" not in pairs[frozenset(("plain", "prompted"))].sentence


def test_other_beginnings_have_no_common_control() -> None:
    small, large = (
        arm({"base_model": name}, [result(binary(30))], baseline=result(binary(n), checkpoint=None))
        for name, n in (("small", 10), ("large", 20))
    )
    found = analyse(study([small, large]))
    assert found.control == "base_model=small"
    assert any("no common control" in remark for remark in found.remarks)
    started = [
        arm_of(8, binary(30), baseline=result(binary(10), checkpoint="tinker://a")),
        arm_of(16, binary(30), baseline=result(binary(10), checkpoint="tinker://b")),
    ]
    assert any("no common control" in r for r in analyse(study(started)).remarks)
    same = [
        arm_of(rank, binary(30 + rank), baseline=result(binary(10), checkpoint="tinker://a"))
        for rank in (8, 16)
    ]
    assert analyse(study(same)).control == "start (tinker://a)"


def test_other_protocols_and_tasks_are_named() -> None:
    hot = {**PROTOCOL, "temperature": 1.0, "tasks": {"t": {"sha256": "bb"}}}
    arms = [
        arm({"lora_rank": 8}, [result(binary(30), binary(20))]),
        arm({"lora_rank": 16}, [result(binary(40), protocol=hot)]),
    ]
    found = analyse(study(arms))
    text = " ".join(found.remarks)
    assert "different temperature: 0.0 (lora_rank=8); 1.0 (lora_rank=16)" in text
    assert "domain was not the same for all arms" in text
    assert "t2 was not asked of lora_rank=16" in text


def test_a_grid_is_averaged_over_its_other_variables() -> None:
    rng = np.random.default_rng(2)
    arms = [
        arm(
            {"lora_rank": rank, "learning_rate": rate},
            [result(s) for s in seeds_of(rng, 0.3 + gain + lift, 4, 200)],
        )
        for rank, gain in ((8, 0.0), (32, 0.25))
        for rate, lift in ((1e-4, 0.0), (1e-3, 0.1))
    ]
    found = analyse(study(arms, expects={"lora_rank": ["rises"], "learning_rate": ["falls"]}))
    rank, rate = found.claims
    assert rank.verdict == "supported" and rank.effect == pytest.approx(0.25, abs=0.06)
    assert rate.verdict == "not supported" and rate.effect == pytest.approx(-0.1, abs=0.06)
    assert found.verdict == "not supported"
    lone = analyse(study(arms[:3], expects={"learning_rate": ["rises"]})).claims[0]
    assert lone.effect is not None  # from the rank that has both rates
    crossed_out = analyse(study([arms[0], arms[3]], expects={"lora_rank": ["rises"]})).claims[0]
    assert crossed_out.verdict == "undecided" and "all else equal" in crossed_out.sentence


def levels(*shares: float, variable: str = "learning_rate", k: int = 3) -> list[ArmOutcome]:
    """Trained arms by a variable's values 1, 2, 4, ..., with these shares right of N questions."""
    base = arm({}, [result(binary(6), checkpoint=None)], name="base", is_trained=False)
    trained = [
        arm({variable: 2**i}, [result(binary(round(share * N) + seed % 2)) for seed in range(k)])
        for i, share in enumerate(shares)
    ]
    return [base, *trained]


def test_the_answer_stands_by_itself() -> None:
    found = analyse(study(levels(0.3, 0.82, 0.85)))
    first, worse, alike, tell = found.answer
    assert first.startswith(
        "learning_rate=4 scored highest, 0.8556 of 1, which is 0.7556 more than"
    )
    assert "than base, the control that all are compared with (95% interval of that [+0.6" in first
    assert worse == "Clearly worse than learning_rate=4: learning_rate=1 and base."
    assert alike.endswith("does not make them equal: learning_rate=2.")
    assert tell.startswith("To tell learning_rate=2 from learning_rate=4 it takes, if they differ")
    assert "questions with as many seeds" in tell and "for 8 of 10 tries" in tell
    assert "hypothesis" not in found.headline and "over base" in found.headline


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (study([]), "no answer yet"),
        (study(levels(0.1)[:1]), "no answer yet"),
        (study([arm_of(8, binary(30)), arm_of(16, binary(30))]), "All 2 arms scored 0.5000"),
        (study(levels(0.02, 0.03)), "it is the control, which the others are compared with"),
        (study(levels(0.12, 0.13)), "no more than chance may bring"),
        (study(levels(0.4, 0.8, k=1)), "That is of these checkpoints"),
        (study(levels(0.4, 0.41, k=2)), "it takes at least 3 seeds of each arm"),
        (study([arm_of(8, [0.0]), arm_of(16, [1.0])]), "how sure that is, is unknown"),
    ],
)
def test_the_answer_says_how_far_it_goes(outcome: StudyOutcome, words: str) -> None:
    answer = analyse(outcome).answer
    assert words in " ".join(answer) and len(answer) <= 4


def test_a_fitted_line_is_called_so_and_is_a_difference_of_scores() -> None:
    rising = analyse(study(levels(0.0, 0.0, 0.95, 0.95), expects={"learning_rate": ["rises"]}))
    (claim,) = rising.claims
    assert claim.effect == 1.0 and claim.interval is not None and claim.interval.high == 1.0
    assert claim.verdict == "supported" and claim.caveat == ""
    assert "its fitted line from 1 to 8 (over log2 of learning_rate) changes by" in claim.sentence
    assert "the scores at these ends differ by +0.95" in claim.sentence
    two = analyse(study(levels(0.2, 0.6), expects={"learning_rate": ["rises"]})).claims[0]
    assert "from 1 to 2 the score changes by +0.4" in two.sentence


def test_a_best_value_inside_of_the_range_is_told() -> None:
    hill = analyse(study(levels(0.5, 0.95, 0.1), expects={"learning_rate": ["falls"]}))
    told = "the best value, 2, lies inside the range; the scores do not follow a line"
    assert hill.claims[0].caveat == told and hill.claims[0].sentence.endswith(f" But {told}.")
    assert hill.verdict_sentence.endswith(f" But {told}.")
    # One end alone is told apart, and the value from the line between both.
    bent = analyse(study(levels(0.1, 0.9, 0.88), expects={"learning_rate": ["rises"]})).claims[0]
    assert bent.caveat.startswith("the best value, 2,")
    valley = analyse(study(levels(0.9, 0.1, 0.6), expects={"learning_rate": ["falls"]})).claims[0]
    assert valley.caveat.startswith("the worst value, 2,")
    for flat in (levels(0.5, 0.52, 0.5), levels(0.5, 0.95, 0.1, k=1), levels(0.1, 0.5, 0.9)):
        assert not analyse(study(flat, expects={"learning_rate": ["rises"]})).claims[0].caveat


def test_advice_keeps_the_sign_of_what_was_observed() -> None:
    arms = [
        arm({"learning_rate": i}, [result(binary(n, start=15 * i + seed)) for seed in range(3)])
        for i, n in ((1, 33), (2, 30))
    ]
    found = analyse(study(arms, expects={"learning_rate": ["rises", "falls"]}))
    rises, falls = found.claims
    assert rises.verdict == falls.verdict == "undecided"
    assert rises.needed is not None and falls.needed is not None
    assert rises.needed.startswith("as observed it falls by 0.0500; seeds and questions enough")
    assert "enough to exclude a rise of 0.02 or more: about" in rises.needed
    assert falls.needed.startswith("to show an effect as large as this one (+0.0500)")


def test_values_without_a_finished_trial_are_named() -> None:
    arms = [*levels(0.2, 0.4), arm({"learning_rate": 4}, [None]), arm({"learning_rate": 8}, [None])]
    told = "No trial with learning_rate 4 or 8 is finished, so they are left out."
    assert (
        analyse(study(arms, expects={"learning_rate": ["rises"]})).claims[0].sentence.endswith(told)
    )
    one = "No trial with learning_rate 4 is finished, so it is left out."
    found = analyse(study(arms[:-1], expects={"learning_rate": ["rises"]}))
    assert found.claims[0].sentence.endswith(one)


def test_claims_that_cannot_be_tested_say_why() -> None:
    arms = [
        arm({"mode": mode}, [result(binary(20 + n + s)) for s in range(3)])
        for n, mode in enumerate(("x", "y"))
    ]
    claims = analyse(
        study(arms, expects={"mode": ["rises", "diminishing", "grows"], "other": ["same"]})
    ).claims
    assert [c.verdict for c in claims] == ["undecided"] * 4
    assert "no numbers" in claims[0].sentence and "study.expects knows" in claims[2].sentence
    assert "fewer than two values" in claims[3].sentence


def test_same_is_equivalence_and_differs_is_its_contrary() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 2, 4000).astype(float)

    def near(share: float) -> list[list[float]]:
        found = []
        for _ in range(4):
            flip = rng.random(4000) < share
            found.append(np.where(flip, 1 - base, base).tolist())
        return found

    alike = [arm_of(rank, *near(0.001)) for rank in (8, 16)]
    both = {"lora_rank": ["same", "differs", "rises"]}
    assert [c.verdict for c in analyse(study(alike, expects=both)).claims] == [
        "supported",
        "not supported",
        "not supported",
    ]
    apart = [arm_of(8, *seeds_of(rng, 0.3, 4, 400)), arm_of(16, *seeds_of(rng, 0.6, 4, 400))]
    assert [c.verdict for c in analyse(study(apart, expects=both)).claims] == [
        "not supported",
        "supported",
        "supported",
    ]


def test_no_gain_has_nothing_to_diminish() -> None:
    rng = np.random.default_rng(3)
    arms = [arm_of(rank, *seeds_of(rng, 0.5, 3)) for rank in (8, 16, 32)]
    (claim,) = analyse(study(arms, expects={"lora_rank": ["diminishing"]})).claims
    assert claim.verdict == "undecided" and "no gain to diminish" in claim.sentence
    assert claim.needed is not None
    falling = [
        arm_of(rank, *seeds_of(rng, score, 5, 200))
        for rank, score in ((8, 0.8), (16, 0.4), (32, 0.3))
    ]
    (claim,) = analyse(study(falling, expects={"lora_rank": ["diminishing"]})).claims
    assert claim.verdict == "not supported"


def test_needed_never_names_an_absurd_number() -> None:
    rng = np.random.default_rng(12)
    for k, spread in ((3, 0.0), (3, 0.15), (5, 0.05)):
        arms = []
        for rank in (8, 16, 32):
            luck = rng.normal(0, spread, k)
            arms.append(arm_of(rank, *(seeds_of(rng, 0.5 + shift, 1)[0] for shift in luck)))
        for claim in analyse(study(arms, expects={"lora_rank": ["rises", "same"]})).claims:
            if claim.verdict != "undecided":
                continue
            assert claim.needed is not None
            numbers = [int(n.replace(",", "")) for n in re.findall(r"\b\d[\d,]*\b", claim.needed)]
            assert max(numbers, default=0) <= 1_000_000


def test_the_winner_is_chosen_by_its_own_score() -> None:
    sealed = result(binary(33))
    arms = [arm_of(8, binary(30)), arm_of(16, binary(45))]
    text = " ".join(analyse(study(arms, winner="lora_rank=16#0", sealed=sealed)).remarks)
    assert "optimistic" in text and "sealed test" in text and "0.5500" in text
    text = " ".join(analyse(study(arms, checkpoint="best")).remarks)
    assert "flatters" in text


def test_weighted_takes_what_all_have() -> None:
    found = weighted([(2.0, {"t": {"a": 1.0, "b": 0.0}}), (-1.0, {"t": {"a": 0.5}, "u": {"a": 1}})])
    assert found == {"t": {"a": 1.5}}


def test_levels_of_difference_are_inside_its_bounds() -> None:
    found = difference([{"t": by_question([1.0] * 5)}] * 3, [{"t": by_question([0.0] * 5)}] * 3, {})
    assert found.interval is not None and found.interval.high == 1.0
    assert isinstance(found.interval, Interval)


def mixed(chance: random.Random) -> StudyOutcome:
    """A study with whatever may be odd: few questions, other questions for each, trials of any
    status, values of any kind."""
    ids = [f"q{i}" for i in range(chance.choice([2, 3, 4, 30]))]
    num_clusters = chance.choice([0, 1, 3])
    clusters = {q: f"c{i % num_clusters}" for i, q in enumerate(ids)} if num_clusters else None
    values = chance.choice([[8], [8, 16], [8, 16, 32], [0, 1, 2], [-1, 0.5, 3], ["a", "b"], [True]])
    name = chance.choice(["lora_rank", "dropout"])

    def evaluation() -> EvalResult:
        asked = [chance.sample(ids, len(ids) - chance.choice([0, 0, 1])) for _ in range(2)]
        share = chance.random()
        tasks = [{q: float(chance.random() < share) for q in questions} for questions in asked]
        return result(*tasks[: chance.choice([1, 2])], clusters=clusters)

    arms = []
    for value in values:
        results = [evaluation() for _ in range(chance.choice([1, 2, 3, 4]))]
        made = arm({name: value}, results, baseline=evaluation() if values[0] == 8 else None)
        statuses = chance.choices(["done", "dropped", "failed", "begun"], [6, 1, 1, 1], k=4)
        trials = [
            dataclasses.replace(trial, status=status)
            for trial, status in zip(made.trials, statuses, strict=False)
        ]
        arms.append(dataclasses.replace(made, trials=trials))
    return study(arms, expects={name: ["rises", "falls", "diminishing", "differs", "same"]})


def test_every_mixture_gives_numbers_that_fit_together() -> None:
    for seed in range(300):
        found = analyse(mixed(random.Random(seed)))
        for one in found.arms:
            assert one.interval is None or one.interval.low <= one.score + 1e-9, seed
            assert one.interval is None or one.score - 1e-9 <= one.interval.high, seed
        for pair in found.pairs:
            assert pair.p_holm is None or (pair.p_value or 0) <= pair.p_holm <= 1, seed
            assert pair.is_told_apart == (pair.p_holm is not None and pair.p_holm < 0.05), seed
        for claim in found.claims:
            if claim.verdict == "undecided" and claim.effect is not None:
                assert claim.needed, seed
            assert all(one.num_seeds == len(one.run_ids) for one in found.arms if one.run_ids)


# --- what a report must not claim -----------------------------------------------------------------


def test_only_a_gain_that_is_told_apart_has_a_price() -> None:
    base = arm({}, [result(binary(20))], name="base", is_trained=False, seed=None)
    found = analyse(study([base, arm_of(8, binary(55)), arm_of(16, binary(22))]))
    by_name = {one.name: one for one in found.arms}
    assert by_name["lora_rank=8"].tokens_per_point == pytest.approx(1600 / (35 / N * 100))
    assert by_name["lora_rank=16"].tokens_per_point is None
    assert by_name["lora_rank=16"].score > by_name["base"].score


def test_what_all_begin_with_and_the_sealed_test_are_no_price_of_an_arm() -> None:
    common = {"common_usage": Usage(0, 300, 100, 0.0), "common_cost_usd": 0.25, "cost_usd": 1.0}
    payer = arm_of(8, binary(50), baseline=result(binary(10)), **common)
    other = arm_of(16, binary(50), baseline=result(binary(10)), cost_usd=1.0)
    by_name = {one.name: one for one in analyse(study([payer, other])).arms}
    assert (by_name["lora_rank=8"].num_tokens, by_name["lora_rank=8"].cost_usd) == (1200, 0.75)
    assert (by_name["lora_rank=16"].num_tokens, by_name["lora_rank=16"].cost_usd) == (1600, 1.0)


def test_what_was_measured_elsewhere_is_not_called_free() -> None:
    base = arm({}, [result(binary(5))], name="base", is_trained=False, seed=None)
    taken = arm_of(8, binary(55), usage=Usage(0, 0, 0, 0.0), cost_usd=0.0)
    by_name = {one.name: one for one in analyse(study([base, taken])).arms}
    assert by_name["lora_rank=8"].usd_per_point is None


def test_dropped_arms_are_no_arms_that_the_best_is_told_apart_from() -> None:
    base = arm({}, [result(binary(5))], name="base", is_trained=False, seed=None)
    dropped = arm_of(16, binary(58), status="dropped")
    found = analyse(study([base, arm_of(8, binary(55)), dropped]))
    assert "told apart from every other arm compared" in found.headline
    assert "1 arm was dropped early and not compared" in found.headline


def test_the_headline_says_what_is_lacking() -> None:
    base = arm({}, [result(binary(5))], name="base", is_trained=False, seed=None)
    begun = arm({"lora_rank": 8}, [result(binary(55)), None], cost_usd=0.5)
    without = dataclasses.replace(begun.trials[1], usage=Usage(0, 0, 0, 0.0), cost_usd=None)
    begun = dataclasses.replace(begun, trials=[begun.trials[0], without])
    found = analyse(study([base, begun, arm({"lora_rank": 16}, [None, None])]))
    assert "3 of 5 trials have no result" in found.headline
    # A trial that has not begun has cost nothing: it makes no cost unknown.
    assert next(one.cost_usd for one in found.arms if one.name == "lora_rank=8") == 0.5


def test_an_arm_that_was_asked_otherwise_says_so_in_its_row() -> None:
    base = arm({}, [result(binary(5))], name="base", is_trained=False, seed=None)
    asked = result(binary(9), protocol={**PROTOCOL, "system_prompt": "Be brief."})
    prompted = arm({"prompt": "Be brief."}, [asked], name="prompted", is_trained=False, seed=None)
    found = analyse(study([base, prompted, arm_of(8, binary(50))]))
    notes = {one.name: one.note for one in found.arms}
    assert notes["prompted"] == "asked with another system_prompt than base"
    assert notes["lora_rank=8"] == notes["base"] == ""
    assert any("system_prompt: none (" in one for one in found.remarks)


def test_the_sealed_test_is_told_of_whom_it_was_asked() -> None:
    outcome = dataclasses.replace(
        planted(3), sealed=result(binary(30)), sealed_of="run_001", winner="run_002"
    )
    (said,) = (one for one in analyse(outcome).remarks if "sealed test" in one)
    assert "asked of run_001 alone" in said and "run_002" not in said
    assert "best of its seeds" in said and "of other questions" in said


def test_no_p_is_written_smaller_than_is_known() -> None:
    twice = [result(binary(2), binary(2)), result(binary(58), binary(57))]
    found = analyse(study([arm({"lora_rank": 8 * i}, [one]) for i, one in enumerate(twice, 1)]))
    assert (found.pairs[0].p_value or 1) < 1e-12
    assert "p < 0.0001 by Holm" in found.pairs[0].sentence


# --- the hypothesis -------------------------------------------------------------------------------

READ = {
    "Higher ranks will improve performance but with diminishing returns": ["rises", "diminishing"],
    "Higher LoRA ranks improve accuracy.": ["rises"],
    "Larger ranks give better results": ["rises"],
    "The higher the rank, the better.": ["rises"],
    "Higher is better": ["rises"],
    "Bigger ranks are better than smaller ones": ["rises"],
    "We expect higher ranks to raise the score": ["rises"],
    "Smaller ranks hurt performance": ["rises"],
    "Lowering the rank lowers the score": ["rises"],
    "Performance improves with rank": ["rises"],
    "Accuracy increases as rank increases": ["rises"],
    "Accuracy is higher with higher rank": ["rises"],
    "Lower ranks perform better": ["falls"],
    "Smaller is better than larger": ["falls"],
    "As the rank grows, the score falls": ["falls"],
    "Higher ranks perform worse than lower ranks": ["falls"],
    "Gains diminish as rank increases": ["diminishing"],
    "Increasing rank improves the score, with diminishing returns at higher ranks": [
        "rises",
        "diminishing",
    ],
    "Larger ranks result in better performance, though with diminishing marginal gains": [
        "rises",
        "diminishing",
    ],
    "Accuracy is better at higher ranks": ["rises"],
    "Diminishing returns with higher rank": ["diminishing"],
    "Rank has no effect on performance": ["same"],
    "The rank does not matter": ["same"],
    "Rank doesn't affect the score": ["same"],
    "No difference between ranks": ["same"],
    "All ranks perform the same": ["same"],
    "lora_rank matters": ["differs"],
    "Performance depends on rank": ["differs"],
    "LoRA rank affects downstream task performance": ["differs"],
}
NOT_READ = [
    # What says more than is tested: that gains end, which is best, how steadily, by how much.
    "Increasing the rank improves the score and then levels off",
    "Higher ranks improve performance. Then it saturates.",
    "Performance plateaus with increasing rank",
    "Performance is best with small ranks",
    "The highest rank is best",
    "Higher ranks improve results on all tasks",
    "Higher ranks improve results on both tasks",
    "All tasks benefit from higher rank",
    "Higher ranks substantially improve performance",
    "Higher ranks slightly improve performance",
    "Higher ranks consistently improve performance",
    "Performance rises monotonically with rank",
    "There is an optimal rank",
    "The score rises with rank then falls",
    "Higher ranks overfit",
    "Higher ranks beat the base model",
    "Higher ranks improve results at higher cost",
    "Higher ranks improve the worst results",
    "Higher ranks do not improve performance",
    "Higher ranks won't help",
    "Higher ranks can't hurt",
    "Higher ranks never hurt",
    "Higher ranks are no worse than lower ranks",
    "A higher rank is not better",
    "It is false that higher ranks improve performance",
    "Higher ranks are unlikely to improve performance",
    "Higher ranks fail to improve performance",
    "Higher ranks improve performance up to 32",
    "Higher ranks improve performance only if trained longer",
    "Higher ranks improve or hurt performance",
    "Higher ranks improve performance and hurt performance",
    "Higher ranks improve performance; higher ranks hurt performance",
    "Higher ranks improve performance on domain",
    "Higher ranks reduce the loss",
    "Higher ranks improve training speed",
    "Higher ranks improve performance but cost more",
    "Higher learning rates improve performance",
    "Higher ranks and learning rates improve performance",
    "More data improves performance",
    "Larger models improve performance",
    "More training improves performance",
    "More tasks improve performance",
    "Rank 32 is better than rank 8",
    "Do higher ranks help?",
    "Rank improves performance",
    "Higher ranks are better than higher ranks",
    "Lower ranks improve performance with diminishing returns",
    "Higher ranks improve performance less",
    "H\u00f6here R\u00e4nge sind besser",
    "rank " * 500,
    "...",
]


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    for words in (text, text.upper(), f"  {text}  "):
        found = read_hypothesis(words, ["lora_rank"], ["arithmetic", "domain"])
        assert found == ([("lora_rank", claim) for claim in READ[text]], None)


@pytest.mark.parametrize("text", NOT_READ)
def test_what_is_left_to_be_stated(text: str) -> None:
    found = read_hypothesis(text, ["lora_rank"], ["arithmetic", "domain"])
    assert not found.claims and found.why_not
    outcome = dataclasses.replace(planted(3), hypothesis=text)
    answer = analyse(outcome)
    assert answer.verdict is None and not answer.claims
    assert "study.expects" in answer.verdict_sentence


def test_variables_have_to_be_told_apart() -> None:
    two = ["lora_rank", "learning_rate"]
    assert read_hypothesis("Higher learning rates hurt", two).claims == [("learning_rate", "falls")]
    assert "none of the study's" in (read_hypothesis("Higher is better", two).why_not or "")
    both = read_hypothesis("Higher ranks and learning rates help", two)
    assert "several variables" in (both.why_not or "")
    dotted = read_hypothesis("A higher mining.hard_share improves the score", ["mining.hard_share"])
    assert dotted.claims == [("mining.hard_share", "rises")]


def test_what_is_expected_goes_before_the_words() -> None:
    outcome = dataclasses.replace(planted(3), expects={"lora_rank": ["falls"]})
    found = analyse(outcome)
    assert [c.claim for c in found.claims] == ["falls"]
    assert found.verdict == "not supported"
    assert "As stated in study.expects" in found.verdict_sentence
    none = analyse(dataclasses.replace(planted(3), hypothesis=None))
    assert none.verdict is None and none.verdict_sentence == "The study states no hypothesis."

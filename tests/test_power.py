"""`--power`: how many questions tell two scores apart, held against other people's statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats
from statsmodels.stats.proportion import samplesize_proportions_2indep_onetail

from commands.power import needed_for, table_lines
from conftest import REPO
from loop.reports.lines import wrapped
from scores.decision import Gate
from scores.intervals import gate_difference
from scores.power import (
    possible_changes,
    questions_needed_paired,
    questions_needed_unpaired,
)
from scores.resolution import TaskSize, gain_chance, pass_chance
from trainer_with_eval import main

PAIRS = [(0.8, 0.85), (0.5, 0.6), (0.1, 0.3), (0.9, 0.99)]
DEMO = str(REPO / "demo_config.json")


@pytest.mark.parametrize(("low", "high"), PAIRS)
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_unpaired_questions_are_those_of_statsmodels(low: float, high: float, alpha: float) -> None:
    theirs = samplesize_proportions_2indep_onetail(
        high - low, low, 0.8, alpha=alpha, alternative="larger"
    )
    assert questions_needed_unpaired(low, high, alpha) == pytest.approx(theirs, abs=1)


@pytest.mark.parametrize(("low", "high"), PAIRS)
@pytest.mark.parametrize("place", [0.2, 0.5, 1.0])
def test_paired_questions_give_the_score_test_its_power(
    low: float, high: float, place: float
) -> None:
    """Exactly: sum over how many answers change, and how many of these for the better."""
    possible = possible_changes(low, high)
    changed = possible.least + place * (possible.independent - possible.least)
    n = questions_needed_paired(low, high, changed)
    share_better = (changed + high - low) / 2 / changed
    z = stats.norm.ppf(0.95)
    power = 0.0
    for num_changed in range(1, n + 1):
        better = (num_changed + z * num_changed**0.5) / 2  # (b - c) / sqrt(b + c) >= z
        found = stats.binom.sf(int(-(-better // 1)) - 1, num_changed, share_better)
        power += stats.binom.pmf(num_changed, n, changed) * found
    assert 0.77 <= power <= 0.93  # where few answers change it errs on the safe side


def test_paired_questions_suffice_for_the_gates_own_interval() -> None:
    low, high, changed = 0.5, 0.75, 0.35
    n = questions_needed_paired(low, high, changed)
    share_better = (changed + high - low) / 2 / changed
    power = 0.0
    for num_changed in range(n + 1):
        for better in range(num_changed + 1):
            before = {str(number): float(better <= number < num_changed) for number in range(n)}
            after = {str(number): float(number < better) for number in range(n)}
            interval = gate_difference(after, before, None, 0.9)
            assert interval is not None
            if interval.low > 0:
                chance = stats.binom.pmf(num_changed, n, changed)
                power += chance * stats.binom.pmf(better, num_changed, share_better)
    assert 0.7 <= power <= 0.9


def test_what_may_change() -> None:
    """By hand: 0.8 to 0.9 gains 0.1 at least, and 0.1 more may be lost and gained again."""
    possible = possible_changes(0.8, 0.9)
    assert possible == pytest.approx((0.1, 0.8 * 0.1 + 0.9 * 0.2, 0.3))
    for low, high in [(0.0, 0.4), (0.4, 1.0)]:  # nothing that was right can be lost
        assert possible_changes(low, high) == pytest.approx((high - low,) * 3)


@pytest.mark.parametrize("rule", ["mean", "lower_bound", "paired"])
def test_chances_of_a_round(rule: str) -> None:
    gate = Gate(0.75, max_rounds=3, max_steps=9, lr_decay=1, rule=rule)  # pyright: ignore
    one, two = [TaskSize(100, 100)], [TaskSize(50, 50)] * 2
    exact, about = (pass_chance(gate, sizes, 0.8) for sizes in (one, two))
    assert exact == pytest.approx(about, abs=0.08)

    def bound(num_correct: int) -> float:
        if rule != "lower_bound":
            return num_correct / 100
        return stats.binomtest(num_correct, 100).proportion_ci(gate.level, method="wilson").low

    smallest = next(k for k in range(101) if bound(k) >= 0.75)
    assert exact == pytest.approx(stats.binom.sf(smallest - 1, 100, 0.8))
    assert pass_chance(gate, two, 1.0) == 1
    assert pass_chance(gate, two, 0.0) == 0
    needed = questions_needed_paired(0.6, 0.75, 0.25, gate.alpha_per_look)
    found = gain_chance(gate, [TaskSize(needed, needed)], 0.6, 0.75, 0.25)
    assert found == pytest.approx(0.8, abs=0.06)


# --- the command ----------------------------------------------------------------------------------


def test_a_table_that_fits_the_terminal(capsys: pytest.CaptureFixture) -> None:
    assert main(["--power", "0.80", "0.85"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[1:])) <= 80
    rows = [line.split() for line in printed.splitlines()]
    assert ["368", "531", "one", "checkpoint,", "against", "the", "threshold", "0.8"] in rows


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_table_in_fewer_columns_has_its_texts_below(width: int) -> None:
    lines = [wrapped(line, width) for line in table_lines(needed_for(0.8, 0.85, 0.05, 3), 3, width)]
    assert max(len(row) for line in lines for row in line.splitlines()) <= width
    told = " ".join(" ".join(lines).split())
    texts = ["368", "531", "one checkpoint, against the threshold 0.8", "3 looks"]
    assert all(text in told for text in texts)


def test_what_a_config_can_tell(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Also where its guards and benchmarks could only be loaded with the network."""
    for name in ("chat", "tools"):
        assert main(["--power", "0.5", "0.9", "--config", str(REPO / f"examples/{name}.json")]) == 0
        printed = capsys.readouterr().out
        assert "100 questions; enough, at all looks, for: one checkpoint" in printed
        assert "Its other half, a gain above margin 0, shows in" in printed
    overrides = ["--set", "gate.rule=lower_bound", "--set", "eval_threshold=0.99"]
    assert main(["--power", "0.75", "0.85", "--config", DEMO, "--json", *overrides]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in outcome["needed"]] == ["threshold", "unpaired", *["paired"] * 3]
    assert outcome["looks"] == 3
    assert outcome["own"]["n"] == 100
    assert "no round can pass" in outcome["own"]["out_of_reach"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["0.85", "0.80"], "the scores fall"),
        (["0.8", "0.8"], "differ by less than 0.0001"),
        (["0.8", "0.8000001"], "differ by less than 0.0001"),
        (["80", "85"], "'80': no score between 0 and 1"),
        (["80%", "85%"], "'80%': no score"),
        (["nan", "0.5"], "'nan': no score"),
        (["0.1", "inf"], "'inf': no score"),
        (["-0.1", "0.5"], "'-0.1': no score"),
        (["0.1"], "found 1 word. Give"),
        (["0.1", "0.2", "a", "b"], "found 4 words"),
        (["0.1", "0.2", "nothing"], "nothing: not a run directory"),
        (["0.1", "0.2", "--gate", "--local"], "--local, --gate was given beside it"),
        (["0.1", "0.2", "--set", "seed=3"], "--config, which is missing"),
    ],
)
def test_what_is_no_question_is_refused(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--power", *arguments]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("pair", [("0", "1"), ("0", "0.0001"), ("0.9999", "1"), ("0.5", "0.5001")])
def test_extreme_scores_have_an_answer(
    pair: tuple[str, str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["--power", *pair, "--json"]) == 0
    needed = json.loads(capsys.readouterr().out)["needed"]
    assert all(1 <= one["one_look"] <= one["all_looks"] for one in needed)

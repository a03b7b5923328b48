"""What a number is said to be has to be seen to be true: beside its bound, and of what it is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import run_records as records
from ledger.glance import LedgerWatch, measured_of
from ledger.records import Batch, Usage
from ledger.store import RunStore
from loop.plan_page.earlier import newest_alike
from loop.reports.lines import money
from loop.reports.progress import Progress, steps_text
from loop.reports.rounds_table import rounds_of
from loop.reports.run_report import stayed_sealed, write_report
from loop.run_page.page import page_of
from loop.run_page.viewed import viewed
from page_reading import Page, Tables
from run_records import Shape
from scores.decision import Gate, broken_guard, decide
from scores.diagnosis import topic_reports
from scores.intervals import estimate
from scores.results import (
    EvalResult,
    Measured,
    SampleResult,
    eval_result,
    task_result,
    topic_scores,
)
from scores.wording import beside, p_digits, share_text


def asked(
    score: float, number: int = 1, *, repeat: int = 1, cluster: str | None = None, task: str = "t"
) -> SampleResult:
    return SampleResult(
        f"{task}/{number}", "sums", "q?", ("x",), "y", score, False, False, None, repeat, cluster
    )


def round_of(number: int, samples: list[SampleResult], guard: float | None = None) -> EvalResult:
    tasks = [task_result("t", samples)]
    if guard is not None:
        of_guard = [asked(guard, one, task="g") for one in range(4)]
        tasks.append(task_result("g", of_guard, role="guard"))
    return eval_result(number, None, Measured(tuple(tasks)), {})


def page_in(store: RunStore) -> str:
    store.close()
    return page_of(viewed(RunStore.open(store.run_dir)))


# --- beside a bound -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "bound", "how", "shown"),
    [
        (0.85, 0.85, operator.ge, ("0.8500", "0.85")),
        (0.74996, 0.75, operator.ge, ("0.74996000", "0.75000000")),
        (0.75004, 0.750032, operator.ge, ("0.75004000", "0.75003200")),
        (0.05 + 1e-10, 0.05, operator.gt, ("0.050000000100000004", "0.050000000000000003")),
        (0.00002, 0.0, operator.gt, ("0.00002000", "0.00000000")),
    ],
)
def test_a_number_and_its_bound_do_not_contradict_each_other(
    value: float, bound: float, how: Callable[[float, float], bool], shown: tuple[str, str]
) -> None:
    assert beside(value, bound, is_met=how(value, bound), how=how) == shown


def test_a_guard_that_fell_by_a_hair_too_much_is_seen_to_have() -> None:
    gate = Gate(threshold=0.5, max_rounds=3, max_steps=10, lr_decay=1, guards={"g": 0.05})
    before, after = (round_of(n, [asked(1.0)], share) for n, share in ((0, 0.9), (1, 0.84998)))
    said = broken_guard(after, before, gate)
    assert said == "guard g fell by 0.05002000 from 0.9000 (allowed 0.05000000, n=4)"


def test_a_round_that_passes_by_a_hair_is_seen_to_reach_its_threshold(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run", shape := Shape((0.1, 0.75), threshold=0.7499999))
    records.rounds(store, shape)
    store.append("run_finished", round=1, action="stop_passed")
    assert "reaches the 0.75 that was asked for" in page_in(store)
    store = records.begun(tmp_path / "hair", replace(shape, threshold=0.749999))
    records.rounds(store, replace(shape, threshold=0.749999))
    store.append("run_finished", round=1, action="stop_passed")
    assert "0.7500 [0.53, 0.89] reaches the 0.749999 that was asked for" in page_in(store)


def test_a_p_just_below_the_bound_is_not_written_as_the_bound() -> None:
    shown = [p_digits(p) for p in (0.0499, 0.04999, 0.05, 0.0501, 0.031, 1.0, 0.0)]
    assert shown == ["0.0499", "0.04999", "0.05", "0.05", "0.031", "1", "0"]


@pytest.mark.parametrize(
    ("part", "whole", "digits", "shown"),
    [
        (0, 10, 0, "0%"),
        (10, 10, 0, "100%"),
        (1, 10_000, 1, "less than 0.1%"),
        (1, 10_000, 0, "less than 1%"),
        (9_999, 10_000, 1, "more than 99.9%"),
        (996, 1_000, 0, "more than 99%"),
        (99, 100, 0, "99%"),
        (1, 3, 1, "33.3%"),
    ],
)
def test_a_little_is_no_nothing_and_nearly_all_not_all(
    part: int, whole: int, digits: int, shown: str
) -> None:
    assert share_text(part, whole, digits=digits) == shown


def test_the_live_row_counts_what_a_step_has_read_and_sampled() -> None:
    progress = Progress(verbose=False)
    progress.num_spent = lambda: 100
    steps = progress.steps(1, 0, 4)
    step = Batch(1, (), 10, 5, 0.1, num_prompt_tokens=30, num_sampled_tokens=7)
    steps.done(step, 1.0)
    assert steps._now.num_spent == 147
    steps.done(replace(step, counted_before=True), 1.0)  # its answers were kept from before
    assert steps._now.num_spent == 157


def test_answers_that_a_resumption_went_back_behind_are_counted_once(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run")
    records.trained(store, 1, Shape())
    (saved,) = store.events("checkpoint")
    before = store.usage()
    journal = store.eval_journal(1, saved["sampler_path"])
    journal.add("t/1", {"score": 1.0}, num_prompt_tokens=20, num_sampled_tokens=6)
    with_these = before.plus(Usage(0, 20, 6, 0.0))[:3]
    assert store.usage()[:3] == with_these
    told = {"tasks": ["t"], "file": "evals/round_01.json"}
    tokens = {"num_prompt_tokens": 20, "num_sampled_tokens": 6}
    store.append("measured", round=1, step=3, **told, **tokens)
    assert store.usage()[:3] == with_these
    store.append("resumed", durable_seq=0)
    store.close()
    store = RunStore.open(store.run_dir)
    assert not list(store.events("measured"))
    assert store.usage()[:3] == with_these


def test_little_money_is_not_shown_as_none() -> None:
    shown = [money(0.0), money(0.004), money(0.41), money(0.00002, 4), money(0.4141, 4)]
    assert shown == ["$0.00", "$0.004", "$0.41", "$2e-05", "$0.4141"]


# --- of questions ---------------------------------------------------------------------------------


def test_a_question_that_was_asked_twice_is_one_question_of_its_topic() -> None:
    samples = [asked(1.0), asked(0.0, repeat=2), asked(0.0, 2), asked(0.0, 2, repeat=2)]
    assert topic_scores(samples) == {"sums": (2, 1.5)}


def test_the_interval_of_a_topic_knows_of_clusters() -> None:
    samples = [asked(float(n < 8), n, cluster=f"c{n // 4}") for n in range(16)]
    (report,) = topic_reports(round_of(1, samples), None, {})
    names = [n // 4 for n in range(16)]
    assert report.interval == estimate([one.score for one in samples], names).interval
    assert report.interval != estimate([one.score for one in samples]).interval


# --- of a run -------------------------------------------------------------------------------------


def test_resumptions_and_failures_stay_told_when_later_ones_go_further_back(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run")
    records.rounds(store, num=2)
    store.append("failed", detail="The disk was full.")
    store.mark_resumed(store.resolved_config()["config"])
    records.trained(store, 2, Shape(), num_steps=2)
    store.append("interrupted", detail="By hand.")
    store.mark_resumed(store.resolved_config()["config"], back_to=0)
    page = page_in(store)
    told = "The run was resumed 2 times; 5 steps taken before do not count any more"
    assert told in page
    failures = Tables(page).named("Failures and interruptions")
    assert [row[1] for row in failures] == ["failed: The disk was full.", "interrupted: By hand."]
    assert "Steps" not in Tables(page).found  # none of them is shown as the run's
    used = Tables(page).named("Used")
    assert used[-1][1] == "200"  # of five steps, which were paid for


def test_a_run_that_went_back_is_not_told_to_stand_where_it_was(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run")
    records.rounds(store, num=3)
    watch = LedgerWatch(store.run_dir)
    assert (watch.look().round, watch.look().step) == (2, 5)
    before = watch.look().last_page_seq
    store.mark_resumed(store.resolved_config()["config"], back_to=1)
    now = watch.look()
    assert (now.round, now.step, sorted(now.scores)) == (1, None, [0, 1])
    assert now.last_page_seq > before  # the page is another one
    store.close()


def test_what_is_no_loss_is_not_shown_as_one_at_a_glance() -> None:
    step = {"nll": 2.0, "measures": {"reward": 0.25, "entropy": 1.0}}
    bare = {"nll": 2.0, "measures": {}}
    assert measured_of(step, {"method": "rl"}) == ("reward", 0.25)
    assert measured_of(bare, {"method": "rl"}) == (None, None)
    assert measured_of(bare, {"method": "distill", "distill": {}}) == (None, None)
    assert measured_of(bare, {}) == ("loss", 2.0)
    assert measured_of(None, {}) == (None, None)


def test_the_median_of_an_even_number_of_losses_is_the_middle_of_both(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")  # 1 to 6, before round 2
    rows = Tables(page_in(store)).named("Examples by round")
    assert [cell for row in rows for cell in row if cell == "3.5000"]


def test_terminal_and_page_have_one_loss(tmp_path: Path) -> None:
    store = records.finished(tmp_path / "run")
    (_, first, *_) = rounds_of(store)
    steps = list(store.events("step", 1))
    by_token = [step["nll"] for step in steps]
    assert list(first.losses) == by_token != [step["loss"] for step in steps]
    assert "2 1 0.6667" in steps_text(1, steps, 80, has_blocks=False)
    (row, *_) = Tables(page_in(store)).named("Loss a token by round")
    assert row[2:4] == ["2.0000", "0.6667"]


def test_a_round_that_passed_over_its_limits_is_not_good_enough(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run", shape := Shape((0.1, 0.9), is_sealed=False))
    records.rounds(store, shape)
    store.append("limits_checked", round=1, step=3, fails=True, violations=[], warnings=[])
    config: dict[str, Any] = viewed(store).config
    decision = store.last_decision()
    assert decision is not None and decision.action == "stop_passed"
    write_report(store, viewed(store).gate, config, decision, None)
    store.append("run_finished", round=1, action="stop_passed")
    assert Page(page := page_in(store)).text_of("strong") == ["Not within its limits."]
    assert "it violates a limit of evalops_budget_file" in page
    assert "limit of evalops_budget_file" in (store.run_dir / "eval_report.md").read_text("utf-8")


def test_a_sealed_test_of_repeats_is_not_said_to_be_asked_once(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run", shape := Shape((0.1, 0.9)))
    records.rounds(store, shape)
    store.record_test_opened(1, "tinker://s:train:0/sampler_weights/round_01", "h")
    samples = [asked(1.0, n, repeat=again, task="s") for n in range(3) for again in (1, 2)]
    test = eval_result(1, None, Measured((task_result("s", samples),)), {})
    store.record_test_measured(1, Measured(test.tasks), 1)
    store.record_test(test, 1)
    store.append("run_finished", round=1, action="stop_passed")
    page = page_in(store)
    assert "asked once" not in page
    assert "3 new ones, opened once, each asked 2 times" in page


def test_checkpoints_have_one_number_on_their_page(tmp_path: Path) -> None:
    store = records.begun(tmp_path / "run", evaluated=["a", "b"])
    for number in range(2):
        records.evaluated(store, number, 0.5, Shape())
    tables = Tables(page_in(store))
    assert [row[0] for row in tables.named("Scores")] == ["1", "2"]
    assert [row[0] for row in tables.named("Used")][:2] == ["1", "2"]
    assert {row[1] for row in tables.named("Evaluations")} <= {"of each checkpoint", "sealed test"}


def test_a_gain_by_a_hair_is_seen_to_exceed_its_margin() -> None:
    gate = Gate(threshold=0.1, max_rounds=1, max_steps=9, lr_decay=1, rule="paired", alpha=0.3)
    base = round_of(0, [asked(0.0, n) for n in range(10)])
    after = round_of(1, [asked(float(n < 4), n) for n in range(10)])
    low = decide([base], after, records.Spent(3), gate).sentence.partition("at least +")[2][:6]
    tight = replace(gate, margin=float(low))
    said = decide([base], after, records.Spent(3), tight).sentence
    shown, sign, margin = said.partition("at least ")[2].partition(" (")[0].split(" ", 2)
    holds = operator.gt if sign == ">" else operator.le
    assert holds(float(shown), float(margin.removeprefix("margin ")))


def test_what_passed_below_its_start_is_not_called_good_enough(tmp_path: Path) -> None:
    shape = Shape((0.5, 0.3), is_sealed=False, threshold=0.25)
    store = records.begun(tmp_path / "run", shape)
    records.rounds(store, shape)
    store.append("run_finished", round=1, action="stop_passed")
    page = page_in(store)
    assert Page(page).text_of("strong") == ["Passed, but below its start."]
    assert "Use the weights" not in page


def test_a_test_that_was_not_come_to_is_not_said_to_be_kept_sealed(tmp_path: Path) -> None:
    assert stayed_sealed("end") == "Sealed test: it has not been asked"
    store = records.begun(tmp_path / "run")
    records.rounds(store)
    assert "evaluation.test_on is pass" not in page_in(store)


def test_a_score_of_other_questions_is_not_told_of_the_plan(tmp_path: Path) -> None:
    records.finished(tmp_path / "run").close()
    config = records.settings_of(Shape())
    same = newest_alike(tmp_path, config, "m", {})
    changed = newest_alike(tmp_path, config, "m", {records.TASK: "another sha256"})
    assert same is not None and same.baseline == pytest.approx(0.1)
    assert changed is not None and (changed.speed, changed.baseline) == (same.speed, None)

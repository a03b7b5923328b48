"""What people see of a run's method: in the plan, on the console, in reports and at trackers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from errors import RunStoreError
from ledger.records import Batch
from ledger.rollouts import RolledGroup, RolledSample, rollouts_file
from ledger.run_directory import Event
from ledger.store import RunStore
from loop.plan_page.capacity import METHODS, capacity, describe
from loop.reports.lines import columns_of
from loop.reports.live import Training
from loop.reports.progress import Progress, steps_text
from loop.reports.rounds_table import rounds_of, rounds_table
from loop.reports.run_report import write_report
from loop.run_page.page import page_of
from loop.run_page.sampled import (
    FEWEST_SAMPLES,
    MOST_ANSWERS,
    MOST_GROUPS,
    MOST_ROUNDS,
    MOST_SAMPLES,
    chosen_of,
    room_of,
)
from loop.run_page.side_by_side import find_named, side_by_side
from loop.run_page.viewed import viewed
from loop.tracking.rows import rows_of
from page_reading import Page, is_shown, outside_of_code, tables_in
from pages.charts import LineChart
from pages.document import Figure, Section
from report_runs import Made, lengthen, made_run, make_run
from scores.diagnosis import teacher_course
from scores.measures import DPO, KNOWN, OFF_POLICY, ON_POLICY, RL, SFT, method_words, names_in
from study_records import HOSTILE
from test_loop import Workspace, row
from test_pages import ACTING
from test_plan_page import planned, risks_in

DPO_MEASURES = {
    "margin": 0.01,
    "accuracy": 0.5,
    "kl": 0.0,
    "chosen_logprob": -1.0,
    "rejected_logprob": -2.0,
}
RL_MEASURES = {
    "reward": 0.25,
    "truncated_share": 0.1,
    "kl_start": 0.001,
    "kl_sampler_trainer": 1e-5,
    "constant_share": 0.4,
    "entropy": 1.5,
}


def sample(number: int, text: str) -> RolledSample:
    return RolledSample([1] * (number + 1), [-0.5] * (number + 1), text, False, 1.0, number / 10)


def group(number: int, num_samples: int = 4, text: str = "Oslo", used: bool = True) -> RolledGroup:
    samples = [sample(one, f"{text} {one}") for one in range(num_samples)]
    return RolledGroup(f"id{number}", f"Question {number}?", f"reference {number}", samples, used)


def of_method(name: str, measures: Mapping[str, float], **group_settings: Any) -> Made:
    settings = {"method": name, name: group_settings}
    return Made(settings=settings, measures=dict(measures))


DPO_RUN = of_method("dpo", DPO_MEASURES)
RL_RUN = of_method("rl", RL_MEASURES, group_size=4)


# --- the console ----------------------------------------------------------------------------------


def steps(measures: Mapping[str, float], number: int = 40) -> list[Event]:
    return [
        {
            "step": one,
            "round": 1,
            "nll": 2.0,
            "lr": 0.001,
            "num_loss_tokens": 10,
            "measures": {name: value * (1 + one / 90) for name, value in measures.items()},
        }
        for one in range(number)
    ]


class Line(NamedTuple):
    measures: Mapping[str, float]
    shown: tuple[str, ...]


LINES = [
    Line(DPO_MEASURES, ("margin ", "accuracy ")),
    Line(RL_MEASURES, ("reward ", "truncated ", "KL ")),
    Line({"reverse_kl": 0.5, "truncated_share": 0.0, "entropy": 1.0}, ("KL to teacher ",)),
    Line({"forward_kl": 0.5, "answer_tokens": 3.0}, ("KL to teacher ", "length ")),
    Line({"answer_tokens": 3.0, "truncated_share": 0.25}, ("loss ", "truncated ")),
    Line({"a measure of tomorrow": 1.0}, ("loss ", "a measure of tomorrow ")),
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.shown[0].strip())
def test_a_rounds_line_has_the_methods_own_measures(line: Line) -> None:
    for has_blocks in (True, False):
        told = steps_text(12, steps(line.measures), 80, has_blocks=has_blocks)
        assert columns_of(told) <= 80
        assert told.startswith(f"round 12: 40 steps, {line.shown[0]}")
    told = steps_text(12, steps(line.measures), 80, has_blocks=True)
    assert all(one in told for one in line.shown), told


def test_a_supervised_rounds_line_is_of_its_loss() -> None:
    told = steps_text(1, [{**one, "measures": {}} for one in steps({})], 80, has_blocks=False)
    assert told == "round 1: 40 steps, loss 2 2 2 2 2, lr 0.001, 400 loss tokens"


def test_each_step_is_told_by_its_measures(capsys: pytest.CaptureFixture) -> None:
    progress = Progress(verbose=True)
    running = progress.steps(1, 0, 3)
    running.done(Batch(0, ("a",), 10, 4, 0.001, {"entropy": 1.5, "reward": 0.25}), nll=9.0)
    assert "round 1 step 0: reward 0.25, entropy 1.5, lr 0.001" in capsys.readouterr().err
    assert isinstance(running._now, Training)
    assert "reward 0.25" in running._now.shown(0.0, 80)
    running.done(Batch(1, ("a",), 10, 4, 0.001, {"answer_tokens": 3.0}), nll=9.0)
    assert "step 1: loss 9.0000, length 3, lr" in capsys.readouterr().err


def test_the_table_of_rounds_has_the_measure_that_leads(tmp_path: Path) -> None:
    with closing(make_run(tmp_path / "run", RL_RUN)) as store:
        head, _, first, *_ = rounds_table(rounds_of(store), 80)
    assert "reward" in head and "loss" not in head
    assert "0.25 -> 0.28" in first


# --- words ----------------------------------------------------------------------------------------


def test_methods_are_told_by_their_settings() -> None:
    assert method_words({}) is SFT  # of runs before there were others
    assert method_words({"method": "dpo", "dpo": {}}) is DPO
    assert method_words({"method": "rl", "rl": {}}) is RL
    assert method_words({"method": "distill", "distill": {"way": "on_policy"}}) is ON_POLICY
    assert method_words({"method": "distill", "distill": {"way": "off_policy"}}) is OFF_POLICY


def test_known_measures_come_in_their_order_and_others_after_them() -> None:
    found = names_in([{"measures": {"zebra": 1.0, "entropy": 1.0}}, {"measures": {"reward": 1.0}}])
    assert found == ["reward", "entropy", "zebra"]
    assert all(len(words.short) <= 20 for words in KNOWN.values())


# --- the page and the report ----------------------------------------------------------------------


def page(run_dir: Path) -> str:
    return page_of(viewed(RunStore.open(run_dir)))


def test_a_page_has_curves_of_the_measures_and_some_sampled_groups(tmp_path: Path) -> None:
    groups = [group(number, num_samples=16, text=HOSTILE[0]) for number in range(9)]
    made = Made(settings=RL_RUN.settings, measures=RL_RUN.measures, rollouts=groups)
    text = page(made_run(tmp_path / "run", made))
    assert all(one not in text for one in HOSTILE)
    shown = Page(text)
    headings = shown.text_of("h2")
    assert "What training measured" in headings and "Sampled answers" in headings
    assert "Reward by step" in text and "In the table alone" not in text
    assert text.count("Round 1, step 0: 9 groups, mean reward ") == 1
    assert text.count("The row answers: reference ") == 2 * MOST_GROUPS  # of two rounds
    assert f"{MOST_SAMPLES} of 16 answers" in text
    assert f'href="./{rollouts_file(0)}"' in text
    assert "which is no measure of right answers" in text and "training loss" not in text


def test_a_supervised_page_has_neither(tmp_path: Path) -> None:
    headings = Page(page(made_run(tmp_path / "run"))).text_of("h2")
    assert not {"What training measured", "Sampled answers"} & set(headings)


def test_of_preference_pairs_the_page_says_what_is_marked_and_whose_loss_is_drawn(
    tmp_path: Path,
) -> None:
    text = page(made_run(tmp_path / "run", DPO_RUN))
    assert "Margin by step" in text and "loss of the chosen answers" in text
    assert "Sampled answers" not in Page(text).text_of("h2")


def test_a_page_of_many_steps_stays_small(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shares = (0.1,) * 41
    groups = [group(number, num_samples=16, text="word " * 200) for number in range(8)]
    settings = {**RL_RUN.settings, "max_rounds": 41}
    rl = Made(shares, 0, 4, 1, settings, {}, measures=RL_RUN.measures, rollouts=groups)
    made_run(run_dir, rl)
    before = len(page(run_dir))
    lengthen(run_dir, 1000)
    after = page(run_dir)
    assert len(after) - before < 150_000  # of a thousand steps
    assert len(after) < 600_000
    assert "Of the first step of each round" in after
    assert len(re.findall(r"Round \d+, step \d+: 8 groups", after)) == len(shares) - 1
    assert after.count("16 answers.") == (len(shares) - 1) * MOST_GROUPS


@pytest.mark.parametrize("num_rounds", [1, 10, 40, 300, 5000])
def test_all_rounds_together_keep_to_one_size(num_rounds: int) -> None:
    room = room_of(min(num_rounds, MOST_ROUNDS))
    assert room.groups >= 1 and room.samples >= FEWEST_SAMPLES
    assert min(num_rounds, MOST_ROUNDS) * room.groups * room.samples <= MOST_ANSWERS


def test_the_groups_that_say_most_are_shown() -> None:
    """A trained one by its spread, one that is worth least, a trained one that is worth most."""

    def of(name: str, rewards: list[float], *, is_used: bool = True) -> RolledGroup:
        made = [RolledSample([1], [-1.0], name, False, one, one) for one in rewards]
        return RolledGroup(name, name, "", made, is_used)

    middling, worst, best = of("mid", [0.4, 0.6]), of("low", [0.0, 0.1]), of("high", [0.9, 1.0])
    widest, all_wrong = of("wide", [0.0, 1.0]), of("wrong", [0.0, 0.0], is_used=False)
    chosen = [one.group.question for one in chosen_of([middling, worst, all_wrong, best, widest])]
    assert chosen == ["wide", "wrong", "high"]
    assert [one.group.question for one in chosen_of([all_wrong, best])] == ["high", "wrong"]
    assert chosen_of([]) == []


def test_a_damaged_file_of_answers_is_named(tmp_path: Path) -> None:
    made = Made(settings=RL_RUN.settings, measures=RL_RUN.measures, rollouts=[group(0)])
    run_dir = made_run(tmp_path / "run", made)
    (run_dir / rollouts_file(0)).write_text('{"example_id": 3}\n')
    with pytest.raises(RunStoreError, match=r"step_000000\.jsonl: these are no sampled answers"):
        page(run_dir)


@pytest.mark.parametrize("name", ["a|b\n## head", "<script>x</script>", "m" * 500])
def test_a_foreign_measure_is_shown_as_text(tmp_path: Path, name: str) -> None:
    made = Made(settings=RL_RUN.settings, measures={name: 1.0})
    with closing(make_run(tmp_path / "run", made)) as store:
        decision = store.last_decision()
        assert decision is not None
        view = viewed(store)
        write_report(store, view.gate, view.config, decision, None)
    assert "<script>x" not in page(tmp_path / "run")
    report = (tmp_path / "run" / "eval_report.md").read_text()
    head = next(
        line
        for line in report.splitlines()
        if line.startswith("| round | ") and "score" not in line
    )
    assert len(re.findall(r"(?<!\\)\|", head)) == 3 and len(head) < 80
    assert "\n## head" not in report


def test_the_report_tells_the_method_and_its_measures(tmp_path: Path) -> None:
    with closing(make_run(tmp_path / "run", RL_RUN)) as store:
        decision, view = store.last_decision(), viewed(store)
        assert decision is not None
        write_report(store, view.gate, view.config, decision, None)
    report = (tmp_path / "run" / "eval_report.md").read_text()
    assert "## What training measured, first to last step of a round" in report
    assert "| 1 | 0.25 -> 0.28 | 0.1 -> 0.13 |" in report
    assert "- Reinforcement learning from verifiable rewards: reward includes" in report
    assert "of 8 prompts; learning rate" in report


@pytest.mark.parametrize("text", ACTING)
def test_the_report_keeps_its_shape_whatever_a_row_holds(tmp_path: Path, text: str) -> None:
    """Questions, answers and topics are anybody's, and so are the names of measures."""
    reports = []
    for name, words in (("plain", "plain"), ("acting", text.replace("\ud800", ""))):
        made = Made(settings=RL_RUN.settings, measures={"reward": 0.5}, words=words)
        with closing(make_run(tmp_path / name / "run", made)) as store:
            decision, view = store.last_decision(), viewed(store)
            assert decision is not None
            write_report(store, view.gate, view.config, decision, None)
        reports.append((tmp_path / name / "run" / "eval_report.md").read_text(encoding="utf-8"))
    plain, acting = reports
    assert [len(rows) for rows in tables_in(acting)] == [len(rows) for rows in tables_in(plain)]
    assert len(acting.splitlines()) == len(plain.splitlines())
    assert not re.search(r"(?<!\\)<", outside_of_code(acting)) and is_shown(acting)


def test_runs_of_two_methods_are_laid_beside_each_other(tmp_path: Path) -> None:
    made_run(tmp_path / "rl", RL_RUN)
    made_run(tmp_path / "sft")
    told = side_by_side(find_named([str(tmp_path / "rl"), str(tmp_path / "sft")]))
    curves = next(
        one for one in told.document.blocks if isinstance(one, Section) and one.anchor == "curves"
    )
    named = {
        one.title: [series.name for series in one.chart.series]
        for one in curves.blocks
        if isinstance(one, Figure) and isinstance(one.chart, LineChart)
    }
    assert named["Training loss by step"] == ["sft"]  # the other's is of its own answers
    assert named["Reward by step"] == ["rl"]
    assert named["Learning rate by step"] == ["rl", "sft"]


def test_trackers_get_the_measures(tmp_path: Path) -> None:
    with closing(make_run(tmp_path / "run", RL_RUN)) as store:
        rows = rows_of(list(store.events("step")), {})
    first = next(one for one in rows if "train/loss" in one.metrics)
    assert first.metrics["train/reward"] == 0.25
    assert first.metrics["train/entropy"] == 1.5


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_counts_sampled_answers_and_says_what_is_trained(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("train.jsonl", [row(i) for i in range(4)])
    workspace.write_rows("pool.jsonl", [row(i) for i in range(4, 8)])
    mining = {"pool_file": "pool.jsonl", "strategy": "topics"}  # which measures no losses
    settings: dict[str, Any] = {"steps_per_round": 30, "max_rounds": 2, "mining": mining}
    plain = planned(workspace, capsys, **settings)
    rl = {"group_size": 3, "max_tokens": 5}
    plan = planned(workspace, capsys, **settings, method="rl", rl=rl)
    tokens, before = plan["cost"]["tokens"], plain["cost"]["tokens"]
    answers = 60 * 4 * 3  # steps, prompts, answers to each
    assert tokens["sampled_to_train"] == 2 * answers * 5  # a group that is all wrong comes twice
    assert tokens["sampled"] == before["sampled"] + tokens["sampled_to_train"]
    prompt_tokens = tokens["prompt_to_train"] / (2 * 60 * 4)  # a request for each group
    assert tokens["trained"] == 2 * answers * (prompt_tokens + 4)  # the last one is no input
    held = planned(workspace, capsys, **settings, method="rl", rl={**rl, "kl_coef": 0.1})
    read = held["cost"]["tokens"]["prompt_to_train"] - tokens["prompt_to_train"]
    assert read == 2 * answers * (prompt_tokens + 5)  # by the weights that it started from,
    sampled = held["cost"]["tokens"]["sampled"] - tokens["sampled"]
    assert sampled == 2 * answers  # each with a token that is sampled
    lines = "\n".join(plan["plan"])
    assert plan["model"]["method"] == "rl" and plan["model"]["method_settings"]["group_size"] == 3
    assert plan["model"]["train_on"] is None and plain["model"]["train_on"] is not None
    assert "method: rl, reinforcement learning from verifiable rewards: reward includes" in lines
    assert "4 prompts with 3 sampled answers each" in plan["summary"]
    assert plan["capacity"]["verdict"] == "low_rank_is_enough"
    assert "loss tokens" not in lines
    # Prompts are not learnt by heart: each pass samples other answers.
    assert any("learnt by heart" in line for line in plain["warnings"])
    assert not any("learnt by heart" in line for line in plan["warnings"])
    assert "few_rows_many_passes" not in risks_in(plan)
    html = (workspace.folder / "config.plan" / "plan.html").read_text(encoding="utf-8")
    assert "which is not trained on, is marked" in html and "carry loss" not in html


def test_room_is_judged_by_the_method() -> None:
    verdicts = {method: capacity(1, 10**6, 8, "", name).verdict for method, name in METHODS.items()}
    assert verdicts == {
        SFT: "far_below",
        DPO: "no_rule",
        RL: "low_rank_is_enough",
        ON_POLICY: "low_rank_is_enough",
        OFF_POLICY: "no_rule",
    }
    (told,) = describe(capacity(1, 10**6, 8, "", "dpo"))
    assert "cannot be told" in told


def test_rated_answers_are_refused_with_the_command_that_takes_them(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("rated.jsonl", [{"prompt": "Say 1", "response": "2", "score": 0}])
    for method in ("sft", "rl"):
        flags = ["--dry-run", "--json"]
        assert workspace.run("run", *flags, train_file="rated.jsonl", method=method) == 2
        said = json.loads(capsys.readouterr().out)["error"]
        assert "registry.py feedback" in re.sub(r"\s+", " ", json.dumps(said))
        assert "data.columns" not in json.dumps(said)


def test_a_round_of_distillation_is_told_by_its_distance_to_the_teacher() -> None:
    assert teacher_course([2.0, 1.0]) == (
        "the reverse KL of the student's answers to the teacher went from 2.000 to 1.000 nats a "
        "token in this round"
    )
    assert teacher_course([2.0, 2.0, 3.0, 3.0, 1.0, 1.0, 1.0, 0.0]) == (
        "the reverse KL of the student's answers to the teacher went from 2.000 to 0.500 nats a "
        "token in this round, means of its first and last 2 steps"
    )

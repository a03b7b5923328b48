"""Learning from rewards: what is sampled, judged, trained on, kept, drawn and said."""

from __future__ import annotations

import asyncio
import json
import runpy
import shutil
import signal
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from config_schema import load_and_validate_config
from conftest import REPO
from data_selector import Mining, Rows, Selection, Signals, select_first, select_next
from errors import ConfigError
from evaluation.rewards import Reward, check_reward, load_reward
from ledger.rollouts import RolledGroup, read_rollouts
from loop.methods.rl import measures_of
from loop.methods.rollouts import seed_of
from rows.examples import Example, ExampleTable, Message
from scores.learnable import Group, PassRate, is_resting, pass_rate, promise
from test_loop import Workspace, row, same_bits, start, wait_for
from trainer_with_eval import main

REWARDS = """
from pathlib import Path

calls = 0

def letters(answer, targets):
    return answer.count("e") - answer.count("a") / 2

def nothing(answer, targets):
    return 0

def later_more(answer, targets):
    global calls
    calls += 1
    return float(calls > 24) + calls % 2 / 100

def sometimes(answer, targets):
    global calls
    calls += 1
    if calls > 1:
        raise KeyError("no such answer")
    return 1.0

def with_luck(answer, targets):
    if Path("broken").exists() and answer not in targets:
        raise KeyError("broken")
    return letters(answer, targets)

def wrong(answer):
    return 1.0

def infinite(answer, targets):
    return float("inf")
"""
SCORERS = """
import asyncio
from inspect_ai.scorer import Score, accuracy, scorer

@scorer(metrics=[accuracy()])
def has_letter():
    async def score(state, target):
        await asyncio.sleep(len(state.output.completion) % 3 / 1000)
        print("scored")
        return Score(value="C" if "e" in state.output.completion else "I")
    return score
"""
CONFIGS = ("start.json", "rl.json")
RL: dict[str, Any] = {
    "method": "rl",
    "rl": {"reward": "rewards.py@letters", "group_size": 3, "max_tokens": 5},
}


@pytest.fixture
def space(workspace: Workspace) -> Workspace:
    (workspace.folder / "rewards.py").write_text(REWARDS)
    return workspace


def groups_of(space: Workspace, run_dir: str, step: int) -> list[RolledGroup]:
    groups = read_rollouts(space.folder / run_dir, step)
    assert groups is not None
    return groups


def steps_of(space: Workspace, run_dir: str) -> list[dict[str, Any]]:
    return list(space.store(run_dir).events("step"))


BOTH = ("killed", "whole")


def ever(space: Workspace, run_dir: str) -> list[dict[str, Any]]:
    """All steps of a run, those too that were taken again."""
    steps = [one for one in space.events(run_dir) if one["type"] == "step"]
    return [{"num_sampled_tokens": 0, **one} for one in steps]


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_is_what_its_files_say_and_goes_on_as_the_same(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    asked = "Which word stands at place 3?"
    taught = [row(i) for i in range(10)] + [{"instruction": asked, "output": "x"}]
    space.write_rows("train.jsonl", taught)
    assert space.run("run", **RL) == 0
    steps = steps_of(space, "run")
    assert len(steps) == 6
    for step in steps:
        groups = groups_of(space, "run", step["step"])
        check_groups(groups)
        assert [group.example_id for group in groups] == step["example_ids"]
        assert asked not in {group.question for group in groups}
        assert step["measures"].items() >= measures_of(groups, 3).items()
        assert abs(step["measures"]["kl_sampler_trainer"]) < 1e-3
        sampled = [len(one.tokens) for group in groups for one in group.samples]
        assert step["num_sampled_tokens"] == sum(sampled)
        assert step["num_loss_tokens"] == sum(
            len(one.tokens) for group in groups if group.is_used for one in group.samples
        )
    assert not list(space.store("run").events("losses_measured"))
    selection = space.store("run").selection(2)
    assert selection is not None
    drawn = [pick.reason for pick in selection.picks if pick.source == "pool"]
    assert drawn and all(reason.endswith("not tried yet") for reason in drawn)
    going_back(space, capsys)


def check_groups(groups: list[RolledGroup]) -> None:
    for group in groups:
        rewards = [one.reward for one in group.samples]
        assert rewards == [one.text.count("e") - one.text.count("a") / 2 for one in group.samples]
        assert group.is_used == (len(set(rewards)) > 1)
        firsts = rewards[:3]
        is_all_wrong = len(set(firsts)) == 1 and (firsts[0] or 0) < 1
        assert len(group.samples) == (6 if is_all_wrong else 3) == 3 * group.num_tries
        if is_all_wrong:
            tries = [
                [one.tokens for one in part] for part in (group.samples[:3], group.samples[3:])
            ]
            assert tries[0] != tries[1]
        centre = mean(one or 0 for one in rewards) if group.is_used else None
        for one in group.samples:
            expected = 0.0 if centre is None else (one.reward or 0) - centre
            assert one.advantage == pytest.approx(expected, abs=1e-5)
            assert len(one.tokens) == len(one.logprobs)


def going_back(space: Workspace, capsys: pytest.CaptureFixture) -> None:
    """Answers of the same weights are trained on again; of others they are not; damaged files are
    refused."""
    run, back = space.folder / "run", space.folder / "back"
    shutil.copytree(run, back)
    files = {step: back / f"rollouts/step_{step:06d}.jsonl" for step in (3, 4, 5)}
    whole = {step: file.read_text() for step, file in files.items()}
    key = groups_of(space, "run", 4)[0].drawn_with
    files[4].write_text(whole[4].replace(key, "0" * 32).replace('"text": "', '"text": "other '))
    files[5].write_text(whole[5][:-40])
    capsys.readouterr()
    resume = ["--resume", f"{back}@round_01"]
    assert main(resume) == 2
    said = capsys.readouterr().err
    assert f"{files[5]}:" in said and "delete it to have them sampled again" in said
    assert "step 3: trained on the answers in rollouts/step_000003.jsonl" in said
    assert "step 4: trained on" not in said
    assert files[4].read_text() == whole[4]
    files[5].write_text(whole[5].replace('"reward": 0', '"reward": 1'))
    assert main(resume) == 2
    said = capsys.readouterr().err
    assert f"{files[5]}: its sha256 is not" in said
    files[5].unlink()
    assert main(resume) == 0
    assert files[5].read_text() == whole[5]
    assert same_bits(space.weights("back", 2), space.weights("run", 2))


def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {**RL, "max_rounds": 1, "steps_per_round": 5, "checkpoint_every_steps": 2}
    changes["rl"] = {**RL["rl"], "kl_coef": 0.1}
    process = start(space, "killed", **changes)
    wait_for(process, space.folder / "killed/ledger.jsonl", "step", 3)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert main(["--resume", str(space.folder / "killed")]) == 0
    assert "trained on the answers in rollouts/" in capsys.readouterr().err
    assert space.run("whole", **changes) == 0
    assert same_bits(space.weights("killed", 1), space.weights("whole", 1))
    killed, whole = space.store("killed"), space.store("whole")
    assert any(step.get("counted_before") for step in killed.events("step"))
    assert killed.usage()[1:3] == whole.usage()[1:3]  # nothing is paid twice, or said to be
    for step in range(5):
        assert groups_of(space, "killed", step) == groups_of(space, "whole", step)
    assert all(step["measures"].keys() >= {"kl_start"} for step in steps_of(space, "whole")[1:])


def test_answers_are_kept_as_they_come(
    space: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(space.folder)
    rl = {**RL["rl"], "kl_coef": 0.1, "reward": "rewards.py@with_luck"}
    changes = {**RL, "rl": rl, "max_rounds": 2, "steps_per_round": 1}
    assert space.run("whole", **changes) == 0
    (space.folder / "broken").touch()
    assert space.run("run", **changes) == 1
    (space.folder / "broken").unlink()
    run_dir, journal = space.folder / "run", "rollouts/step_000000.partial.jsonl"
    waiting = space.store("run").usage()
    shutil.copytree(run_dir, space.folder / "marked")
    marked = space.folder / "marked" / journal
    marked.write_text(marked.read_text().replace('"text": "', '"text": "kept '))
    assert main(["--resume", str(run_dir)]) == 0
    assert space.store("run").usage()[1:3] == space.store("whole").usage()[1:3]
    assert waiting.sampled_tokens > space.store("run").usage(0).sampled_tokens
    assert not list(run_dir.glob("*/*.partial.jsonl"))
    assert same_bits(space.weights("run", 2), space.weights("whole", 2))
    assert groups_of(space, "run", 1) == groups_of(space, "whole", 1)
    (run_dir / "rollouts/step_000000.jsonl").unlink()
    assert main(["--resume", f"{run_dir}@round_01"]) == 0
    said = capsys.readouterr().err
    assert f"(the first: {run_dir / 'rollouts/step_000000.jsonl'})" in said
    assert main(["--resume", str(space.folder / "marked"), "--set", "max_rounds=1"]) == 0
    samples = [one for group in groups_of(space, "marked", 0) for one in group.samples]
    assert all(one.text.startswith("kept ") for one in samples[:3])


@pytest.mark.parametrize(
    "rl",
    [
        {"loss": "ppo"},
        {"loss": "cispo", "reward": "includes"},
        {"loss": "gspo", "reward": "inspect_ai/includes"},
        {"temperature": 0.7},
    ],
    ids=["ppo", "cispo", "gspo", "tempered"],
)
def test_each_loss_takes_what_was_sampled(space: Workspace, rl: dict[str, Any]) -> None:
    changes = {**RL, "rl": {**RL["rl"], **rl}, "steps_per_round": 1, "max_rounds": 1}
    assert space.run("run", data={"accumulate": 2}, **changes) == 0
    (step,) = steps_of(space, "run")
    assert ("kl_sampler_trainer" in step["measures"]) == (
        "temperature" not in rl and step["measures"]["learnable_groups"] > 0
    )


def test_stdout_stays_what_it_is_beside_a_scorer_that_waits(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    (space.folder / "scorers.py").write_text(SCORERS)
    rl = {**RL["rl"], "reward": "scorers.py@has_letter"}
    stdout = sys.stdout
    assert space.run("run", **{**RL, "rl": rl}, steps_per_round=1, max_rounds=1) == 0
    assert sys.stdout is stdout
    said = capsys.readouterr()
    assert "scored" in said.err and "scored" not in said.out.splitlines()
    assert "Best checkpoint" in said.out


def test_without_variance_there_is_no_step_and_the_round_says_so(space: Workspace) -> None:
    changes = {**RL, "rl": {**RL["rl"], "reward": "rewards.py@nothing"}, "max_rounds": 1}
    assert space.run("run", **changes) == 0
    for step in steps_of(space, "run"):
        assert (step["loss"], step["nll"], step["num_loss_tokens"]) == (0, 0, 0)
        assert step["measures"]["constant_share"] == 1
        assert all(group.num_tries == 2 for group in groups_of(space, "run", step["step"]))
    weights = space.weights("run", 1)
    assert all(not one.any() for name, one in weights.items() if "lora_B" in name)
    sentence = space.store("run").diagnosis(1)
    assert sentence is not None and sentence.startswith("No group of answers had any variance")


def test_a_reward_that_rises_without_the_score_is_told_of(space: Workspace) -> None:
    changes = {**RL, "rl": {**RL["rl"], "reward": "rewards.py@later_more"}, "max_rounds": 1}
    assert space.run("run", steps_per_round=4, **changes) == 0
    (found,) = space.store("run").events("diagnosed", 1)
    assert "reward_only" in found["kinds"]
    assert "the held-out score did not: it was 0.0000 and is 0.0000" in found["sentence"]
    first, last = (found["rewards"][half] for half in ("first", "last"))
    assert first["mean"] < 0.3 and last["mean"] > 0.9  # which later rounds go on by
    assert first["num_prompts"] == last["num_prompts"] == 8


def test_too_many_answers_without_a_reward_stop_the_run(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert space.run("run", **{**RL, "rl": {**RL["rl"], "reward": "rewards.py@sometimes"}}) == 1
    said = capsys.readouterr().err
    assert "12 of the 12 answers of step 0 have no reward, more than 10%" in said
    assert "the reward rewards.py@sometimes raised KeyError" in said
    assert not steps_of(space, "run")


# --- rewards --------------------------------------------------------------------------------------


def reward(folder: Path, name: str) -> Reward:
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "scorers.py").write_text(SCORERS)
    file = folder / name.partition("@")[0] if ".py@" in name else None
    return load_reward(name, folder / "c.json", file)


@pytest.mark.parametrize(
    ("name", "answer", "worth"),
    [
        ("includes", "it is 4, I think", 1.0),
        ("exact", "it is 4", 0.0),
        ("numeric", "4.0", 1.0),
        ("rewards.py@letters", "eea", 1.5),
        ("scorers.py@has_letter", "eh", 1.0),
        ("inspect_ai/match", "the answer is 4", 1.0),
    ],
)
def test_rewards_of_each_kind(tmp_path: Path, name: str, answer: str, worth: float) -> None:
    made = reward(tmp_path, name)

    async def judged() -> float:
        return (await made.judge("2 + 2?", answer, "4")).score

    assert asyncio.run(judged()) == worth
    assert bool(made.code) == (".py@" in name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inclusive", "there is none of this name. Known are includes"),
        ("inspect_ai/nothing", "there is none of this name"),
        ("rewards.py@absent", "is no function of that file"),
        ("rewards.py@wrong", "def reward(answer, targets)"),
        ("rewards.py@infinite", "a reward is between -1,000,000 and 1,000,000"),
        ("inspect_ai/model_graded_qa", "gives nothing for the row's own answer in f line 1"),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_reward(reward(tmp_path, name), "2 + 2?", "4", "f line 1")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl": {"temperature": 0.5, "kl_coef": 0.1}}, "rl.kl_coef is 0.1 at rl.temperature 0.5"),
        ({"rl": {"temperature": 0.5, "loss": "ppo"}}, "clips around the ratio 1"),
        ({"mining": {"noise_cap": 0.1}}, "mining.noise_cap is set, and method is rl"),
        ({"data": {"train_on": "all_messages"}}, "data.train_on is set, and method is rl"),
    ],
)
def test_settings_that_mean_nothing_with_rewards(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    settings = {"base_model": "m", "train_file": "t", "eval_tasks": ["qa:q"], "method": "rl"}
    (tmp_path / "c.json").write_text(json.dumps({**settings, **changes}))
    with pytest.raises(ConfigError, match=said):
        load_and_validate_config(str(tmp_path / "c.json"))


def test_rows_that_cannot_be_prompts_are_refused(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rl = {**RL["rl"], "reward": "numeric"}
    space.write_rows("pool.jsonl", [row(1), {"instruction": "Say it", "output": "it"}])
    assert space.run("run", method="rl", rl=rl) == 2
    assert "pool.jsonl line 2: rl.reward is numeric" in capsys.readouterr().err
    assert space.run("run", method="rl", rl={**RL["rl"], "max_tokens": 4000}) == 2
    assert "train.jsonl line 1: the prompt of this row" in capsys.readouterr().err


# --- the example ----------------------------------------------------------------------------------


def test_the_example_is_made_of_the_demo() -> None:
    folder = REPO / "examples" / "rl"
    configs = {name: load_and_validate_config(str(folder / name)) for name in CONFIGS}
    assert [one.config.method for one in configs.values()] == ["sft", "rl"]
    settings = configs["rl.json"].config.rl
    assert settings is not None and settings.reward is not None
    load_reward(settings.reward, folder / "rl.json", folder / "rewards.py")
    made = runpy.run_path(str(folder / "questions.py"))["question_lines"]()
    assert (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines() == made


# --- seeds, pass rates, selection -----------------------------------------------------------------


def test_seeds_differ_by_all_that_they_are_of() -> None:
    asked = [(0, 0, "a", 1, 0), (1, 0, "a", 1, 0), (0, 1, "a", 1, 0), (0, 0, "b", 1, 0)]
    asked += [(0, 0, "a", 2, 0), (0, 0, "a", 1, 1)]
    seeds = [seed_of(*one) for one in asked]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == seed_of(0, 0, "a", 1) < 2**31


def test_promise_is_highest_where_it_is_open_and_never_nothing() -> None:
    half, never, always = (PassRate(n, 8, 0, 1) for n in (4, 0, 8))
    assert promise(half) == pytest.approx(25 / 110)
    assert promise(None) == pytest.approx(1 / 6)
    assert promise(never) == promise(always) == pytest.approx(9 / 110)
    assert promise(half) > promise(None) > promise(never) > promise(PassRate(0, 80, 0, 1)) > 0


def test_solved_prompts_rest_and_come_back() -> None:
    solved, wrong = [1.0] * 4, [0.0] * 4
    rate = pass_rate([Group(1, wrong), Group(2, solved), Group(3, solved)])
    assert (rate.num_right, rate.num_tried, rate.num_solved) == (8, 8, 2)
    assert [is_resting(rate, number) for number in (4, 5, 6)] == [True, True, False]
    assert not is_resting(pass_rate([Group(3, solved)]), 4)
    assert not is_resting(pass_rate([Group(2, solved), Group(3, wrong)]), 4)
    assert str(pass_rate([Group(1, [0.5, 7.0, -3.0])])) == (
        "1 of 3 answers right, 1.5 with partial credit"
    )
    # None is right, though the parts come to a whole number.
    halves = str(pass_rate([Group(1, [0.5, 0.5])]))
    assert halves == "0 of 2 answers right, 1 with partial credit"
    assert str(pass_rate([Group(1, [1.0, -1.0])])) == "1 of 2 answers right"


@pytest.mark.parametrize("strategy", ["loss", "hybrid", "topics", "similar", "uniform"])
def test_a_round_draws_by_what_was_answered_right(strategy: Any) -> None:
    table = ExampleTable(
        Example("", (Message("user", f"q{i}"), Message("assistant", "a")), "f", i, None)
        for i in range(60)
    )
    ids = list(table.ids)
    mining = Mining(strategy, replay_share=0, by_rewards=True)
    assert not mining.needs_losses and not mining.needs_losses_before
    rates = {one: PassRate(4 if i < 10 else 0, 10**6 if i >= 10 else 8, 0, 1)
             for i, one in enumerate(ids)}  # fmt: skip
    signals = Signals(rates=rates, resting=frozenset(ids[:5]))
    first: Selection = select_first(table, num_slots=4, seed=0)
    second = select_next(first, Rows(table, ExampleTable()), signals, mining, num_slots=5)
    drawn = [pick.example_id for pick in second.picks]
    assert not set(drawn) & set(ids[:5])
    if strategy in ("loss", "hybrid"):
        assert set(drawn) == set(ids[5:10])
        assert {pick.reason for pick in second.picks} == {"4 of 8 answers right"}


# --- what is said ---------------------------------------------------------------------------------


def test_what_a_scorer_does_is_data_and_a_study_may_ask_it(tmp_path: Path) -> None:
    """A study plans its runs while an event loop is at work."""
    scorers = (
        SCORERS
        + """
import sys

@scorer(metrics=[accuracy()])
def exits():
    async def score(state, target):
        sys.exit(3)
    return score

@scorer(metrics=[accuracy()])
def huge():
    async def score(state, target):
        return Score(value=10**400)
    return score
"""
    )
    (tmp_path / "scorers.py").write_text(scorers)

    async def worth(name: str) -> float:
        where = tmp_path / "c.json"
        found = load_reward(f"scorers.py@{name}", where, tmp_path / "scorers.py")
        return check_reward(found, "q", "e", "f line 1")

    assert asyncio.run(worth("has_letter")) == 1
    for name, said in (("exits", "ended with SystemExit: 3"), ("huge", "OverflowError")):
        with pytest.raises(ConfigError, match=said):
            asyncio.run(worth(name))


COUNTED = """
import asyncio
now, most = 0, 0

async def counted(answer, accepted):
    global now, most
    now, most = now + 1, max(most, now + 1)
    for _ in range(100):  # turns of the event loop, in which the others begin
        await asyncio.sleep(0)
    now -= 1
    with open("most.txt", "w") as file:
        file.write(str(most))
    return sum(ord(one) for one in answer) % 7

def alone(answer, accepted):
    return sum(ord(one) for one in answer) % 7
"""


def test_answers_are_judged_at_once_and_stay_in_their_order(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as requests are under way, whosever answers they are; each gets its own reward."""
    monkeypatch.chdir(space.folder)
    (space.folder / "counted.py").write_text(COUNTED)
    changes: dict[str, Any] = {"max_rounds": 1, "steps_per_round": 1, "batch_size": 3}
    changes["evaluation"] = {"max_tokens": 4, "concurrency": 5}
    for name in ("counted", "alone"):
        rl = {**RL["rl"], "reward": f"counted.py@{name}", "group_size": 2}
        assert space.run(name, method="rl", rl=rl, **changes) == 0
    assert (space.folder / "most.txt").read_text() == "5"
    rewards = [
        [[one.reward for one in group.samples] for group in groups_of(space, name, 0)]
        for name in ("counted", "alone")
    ]
    assert rewards[0] == rewards[1]

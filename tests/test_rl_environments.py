"""Learning from conversations with an environment: what is said, kept, trained on and refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from tinker_cookbook.renderers import Renderer

from config_schema import load_and_validate_config
from conftest import REPO
from errors import ConfigError
from evaluation.environments import EnvironmentRow, check_environment, load_environment
from ledger.rollouts import HeardMessage, RolledGroup, RolledSample, RolledTurn, read_rollouts
from loop.methods.conversations import conversation_seed
from loop.methods.rollouts import Prompt, datums_of
from rows.chat_formats import load_renderer
from rows.control_tokens import guard
from test_loop import Workspace, same_bits
from trainer_with_eval import main

ENVIRONMENTS = """
import random
from tinker_cookbook.rl.message_env import MessageEnv, MessageStepResult

print("loaded")
num_steps = 0

class Digits(MessageEnv):
    # What it says hangs on the seed, and it goes on from what is cut off.
    def __init__(self, row):
        self.said, self.chance, self.num_turns = row.messages, random.Random(row.seed), 0
    async def initial_observation(self):
        return self.said
    def answered(self, message):
        self.num_turns += 1
        again = {"role": "user", "content": f"Say {self.chance.randrange(1000)}"}
        self.said = [*self.said, message, again]
        return self.said
    async def step(self, message):
        print("stepped")
        said = self.answered(message)
        reward = 1 + sum(one.isdigit() for one in message["content"]) / 4
        return MessageStepResult(reward, self.num_turns == 3, said)
    async def observe_truncated_response(self, message):
        return self.answered(message)

class Failing(Digits):
    async def step(self, message):
        raise KeyError("no such step")
    observe_truncated_response = step

class Silent(Digits):
    async def initial_observation(self):
        return ["Say 3"]

class Long(Digits):
    async def initial_observation(self):
        return [{"role": "user", "content": "many words " * 2000}]

class Odd(Digits):
    async def initial_observation(self):
        raise OSError("no such place")

def two(row, other):
    return Digits(row)

def nothing(row):
    return None

constant = 3
"""
RL: dict[str, Any] = {
    "method": "rl",
    "rl": {"environment": "envs.py@Digits", "max_turns": 2, "group_size": 4, "max_tokens": 40},
}


@pytest.fixture
def space(workspace: Workspace) -> Workspace:
    (workspace.folder / "envs.py").write_text(ENVIRONMENTS)
    return workspace


def groups_of(space: Workspace, run_dir: str, step: int) -> list[RolledGroup]:
    groups = read_rollouts(space.folder / run_dir, step)
    assert groups is not None
    return groups


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_is_what_was_said_and_goes_on_as_the_same(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {**RL, "steps_per_round": 2, "batch_size": 2}
    assert space.run("run", **changes) == 0
    said = capsys.readouterr()
    assert "environment: envs.py@Digits; it begins with" in said.err
    assert not {"loaded", "stepped"} & set(said.out.splitlines())
    steps = list(space.store("run").events("step"))
    assert len(steps) == 4
    assert any(step["num_loss_tokens"] for step in steps)  # one answer in ten ends
    for step in steps:
        groups = groups_of(space, "run", step["step"])
        samples = [one for group in groups for one in group.samples]
        for sample in samples:
            check_conversation(sample)
        assert any(len(one.turns or ()) == 2 for one in samples)
        assert step["num_sampled_tokens"] == sum(len(one.tokens) for one in samples)
        assert step["num_prompt_tokens"] == sum(map(len, (p for s in samples for p in s.prompts())))
        assert step["num_loss_tokens"] == sum(
            len(one.tokens) for group in groups if group.is_used for one in group.samples
        )
        assert 1 <= step["measures"]["turns"] <= 2
    assert "[user: Say " in (space.folder / "run/report.html").read_text()
    going_back(space)


def check_conversation(sample: RolledSample) -> None:
    assert sample.turns
    assert sum(turn.num_tokens for turn in sample.turns) == len(sample.tokens)
    assert len(sample.tokens) == len(sample.logprobs)
    assert all(turn.num_tokens <= 40 for turn in sample.turns)
    assert sample.text == sample.turns[-1].text
    for turn in sample.turns:
        assert turn.heard[-1].role == "user" and turn.heard[-1].text.startswith("Say ")
    if all(turn.reward is not None for turn in sample.turns):
        assert sample.reward == pytest.approx(sum(turn.reward or 0 for turn in sample.turns))


def going_back(space: Workspace) -> None:
    """Conversations of the same weights are trained on again, or held again to the letter."""
    run, back = space.folder / "run", space.folder / "back"
    shutil.copytree(run, back)
    (back / "rollouts/step_000003.jsonl").unlink()
    assert main(["--resume", f"{back}@round_01"]) == 0
    for step in (2, 3):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert (back / name).read_text() == (run / name).read_text()
    assert same_bits(space.weights("back", 2), space.weights("run", 2))


def test_an_environment_that_fails_stops_the_run(
    space: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {**RL, "rl": {**RL["rl"], "environment": "envs.py@Failing"}}
    assert space.run("run", **changes) == 1
    said = capsys.readouterr().err
    assert "rl.environment: 16 of the 16 answers of step 0 have no reward" in said
    assert "the environment envs.py@Failing raised KeyError: 'no such step'" in said
    assert not list(space.store("run").events("step"))


# --- what is kept and trained on ------------------------------------------------------------------


def conversation(num_kept: int, read: list[int]) -> RolledSample:
    """An answer of tokens 5 and 6 to the prompt 1 2 3, and an answer 9 after it."""
    heard = [HeardMessage("user", "q")]
    turns = [
        RolledTurn(heard, 0, [1, 2, 3], 2, "a", 0.0),
        RolledTurn(heard, num_kept, read, 1, "b", 0.5),
    ]
    return RolledSample([5, 6, 9], [-0.1, -0.2, -0.3], "b", False, 0.5, 0.25, turns=turns)


@pytest.mark.parametrize(
    ("num_kept", "read", "targets"),
    [
        (5, [7, 8], [[2, 3, 5, 6, 7, 8, 9]]),
        (3, [7, 8], [[2, 3, 5, 6], [2, 3, 7, 8, 9]]),
    ],
    ids=["goes on", "is told otherwise"],
)
def test_turns_are_trained_as_they_were_sampled(
    num_kept: int, read: list[int], targets: list[list[int]]
) -> None:
    sample = conversation(num_kept, read)
    assert sample.prompts() == [[1, 2, 3], [*[1, 2, 3, 5, 6][:num_kept], *read]]
    prompt = Prompt("a", "q", "r", tinker.ModelInput.from_ints([1, 2, 3]), weight=2.0)
    group = RolledGroup("a", "q", "r", [sample])
    datums = datums_of([prompt], [group], [torch.tensor([0.25])])
    inputs = [one.loss_fn_inputs for one in datums]
    assert [one["target_tokens"].to_numpy().tolist() for one in inputs] == targets
    trained = [
        (int(token), round(float(logprob), 3), float(advantage))
        for one in inputs
        for token, logprob, advantage, mask in zip(
            *(one[k].to_numpy() for k in ("target_tokens", "logprobs", "advantages", "mask")),
            strict=True,
        )
        if mask
    ]
    assert trained == [(5, -0.1, 0.5), (6, -0.2, 0.5), (9, -0.3, 0.5)]


def test_files_with_and_without_turns_are_read(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    groups = [RolledGroup("a", "q", "r", [conversation(5, [7])])]
    fields = asdict(groups[0])
    (tmp_path / "rollouts/step_000000.jsonl").write_text(json.dumps(fields) + "\n")
    assert read_rollouts(tmp_path, 0) == groups
    del fields["samples"][0]["turns"]
    (tmp_path / "rollouts/step_000001.jsonl").write_text(json.dumps(fields) + "\n")
    (group,) = read_rollouts(tmp_path, 1) or []
    assert group.samples[0].turns is None and group.samples[0].tokens == [5, 6, 9]


def test_seeds_differ_by_conversation_and_turn() -> None:
    asked = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, -1)]
    assert len({conversation_seed(*one) for one in asked}) == len(asked)
    assert conversation_seed(1, 0, 0) == conversation_seed(1, 0, 0)


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renderer(llama_dir: Path) -> Renderer:
    made = load_renderer("llama3", str(llama_dir))
    guard(made)
    return made


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "is no function of that file"),
        ("constant", "is no function of that file"),
        ("two", "Give it this one parameter: def environment(row)"),
        ("nothing", "gave something of type NoneType, and an environment is a tinker_cookbook"),
        ("Silent", "gave ['Say 3'] to say next, and that is a list of messages"),
        ("Long", "and a conversation has room for 100 with its answers"),
        ("Odd", "it cannot begin with f line 1: the environment envs.py@Odd raised OSError"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(
    tmp_path: Path, renderer: Renderer, name: str, said: str
) -> None:
    file = tmp_path / "envs.py"
    file.write_text(ENVIRONMENTS)
    row = EnvironmentRow("Say 3", "3", None, [{"role": "user", "content": "Say 3"}], 0)
    with pytest.raises(ConfigError) as error:
        made = load_environment(f"envs.py@{name}", tmp_path / "c.json", file)
        check_environment(made, row, renderer, 100, "f line 1")
    assert said in str(error.value)


def test_an_environment_is_tried_where_a_study_plans_its_runs(
    tmp_path: Path, renderer: Renderer
) -> None:
    """Inside of an event loop, where no other one can be run."""
    file = tmp_path / "envs.py"
    file.write_text(ENVIRONMENTS)
    row = EnvironmentRow("Say 3", "3", None, [{"role": "user", "content": "Say 3"}], 0)
    made = load_environment("envs.py@Digits", tmp_path / "c.json", file)

    async def plan() -> int:
        return check_environment(made, row, renderer, 100, "f line 1")

    assert asyncio.run(plan()) > 1


@pytest.mark.parametrize(
    ("rl", "said"),
    [
        ({"environment": "e.py@E", "reward": "exact"}, "rl.reward is 'exact' beside"),
        ({"environment": "exact"}, "rl.environment is 'exact', and no FILE.py@FUNCTION"),
        ({"max_turns": 2}, "rl.max_turns is 2, and there is no rl.environment"),
        ({"reward": None}, "rl.reward is null, and there is no rl.environment"),
        ({"environment": "e.py@E", "max_turns": 0}, "rl.max_turns"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, rl: dict[str, Any], said: str
) -> None:
    settings = {"base_model": "m", "train_file": "t", "eval_tasks": ["qa:q"], "method": "rl"}
    (tmp_path / "c.json").write_text(json.dumps({**settings, "rl": rl}))
    with pytest.raises(ConfigError, match=said):
        load_and_validate_config(str(tmp_path / "c.json"))


# --- the example ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [(["Paris"], [1.0]), (["Rome", " Paris"], [0.0, 0.5]), (["Rome", "Oslo"], [0.0, 0.0])],
)
def test_the_example_gives_a_second_try(answers: list[str], rewards: list[float]) -> None:
    folder = REPO / "examples" / "rl"
    config = load_and_validate_config(str(folder / "second_try.json")).config
    assert config.rl is not None and config.rl.environment is not None
    assert (config.rl.reward, config.rl.max_turns) == (None, 2)
    environment = load_environment(
        config.rl.environment, folder / "second_try.json", folder / "environments.py"
    )
    asked: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    env = environment.make(EnvironmentRow("", "Paris", None, asked, 0))

    async def held() -> list[Any]:
        await env.initial_observation()
        return [await env.step({"role": "assistant", "content": one}) for one in answers]

    steps = asyncio.run(held())
    assert [one.reward for one in steps] == rewards
    assert [one.episode_done for one in steps] == [False] * (len(answers) - 1) + [True]

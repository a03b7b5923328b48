"""What a run pays is no more than its plan says, by every method, and nothing is paid for twice."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from conftest import thorough_only
from ledger.records import Usage
from local_tinker.engine import Engine
from local_tinker.sample_rows import Row
from local_tinker.training import ForwardResult, TrainingRun
from local_tinker.wire import ForwardBackward
from test_distill import TEACHER, steps_of, taught, teacher_dir  # noqa: F401
from test_loop import Workspace, row
from test_rl_environments import ENVIRONMENTS
from trainer_with_eval import main

REWARD = """
def digits(answer, accepted):
    return sum(one.isdigit() for one in answer) / 4
"""
RL: dict[str, Any] = {"reward": "reward.py@digits", "group_size": 2, "max_tokens": 5}
ENVIRONMENT = {"environment": "envs.py@Digits", "max_turns": 2, "group_size": 2, "max_tokens": 5}
PAIRS = [
    {"prompt": f"Say {n}", "chosen": f"{n} it is" * (1 + n % 3), "rejected": "no"} for n in range(8)
]
HELD_OUT = [
    {"instruction": f"What comes after {n} apples?", "output": f"{n} pears"} for n in range(4)
]
HELD_PAIRS = [
    {"prompt": f"Which is best of {n} pears?", "chosen": "the last", "rejected": "none"}
    for n in range(4)
]


class Most(NamedTuple):
    """The plan's figures."""

    trained: int
    prompt: int
    sampled: int


def most_of(told: str) -> Most:
    found = re.search(
        r"tokens: at most ([\d,]+) trained(?: \([\d,]+ with mean rows\))?, ([\d,]+) prompt and "
        r"([\d,]+) sampled",
        told,
    )
    assert found is not None, told
    return Most(*(int(one.replace(",", "")) for one in found.groups()))


class Taken:
    """What the embedded service has computed in this process, in tokens."""

    def __init__(self) -> None:
        self.trained = self.read = 0
        self.rows: list[Row] = []

    def check(self, used: Usage) -> None:
        """What the ledger counts is what the service took, to the token."""
        asked = {id(row.request): row.request for row in self.rows}
        prompts = sum(len(request.prompt) for request in asked.values())
        sampled = sum(len(row.tokens) for row in self.rows)
        assert used[:3] == (self.trained, prompts + self.read, sampled)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    taken, forward_backward, begin_row = Taken(), Engine.forward_backward, Row.__init__

    def counted(engine: Engine, run: TrainingRun, request: ForwardBackward) -> ForwardResult:
        number = sum(len(one.input_tokens_N) for one in request.data)
        if request.forward_only:
            taken.read += number
        else:
            taken.trained += number
        return forward_backward(engine, run, request)

    def noted(row: Row, *args: Any) -> None:
        begin_row(row, *args)
        taken.rows.append(row)

    monkeypatch.setattr(Engine, "forward_backward", counted)
    monkeypatch.setattr(Row, "__init__", noted)
    yield taken


@pytest.fixture
def spread_rows(taught: Workspace) -> Workspace:  # noqa: F811
    """A workspace with rows of many lengths, and with all that the methods need."""
    rows = [{**row(n), "output": "12345 " * (1 + n % 5)} for n in range(12)]
    taught.write_rows("train.jsonl", rows)
    asked = [{"question": f"Which word stands at {n}?", "answer": "x"} for n in range(3)]
    taught.write_rows("questions.jsonl", asked)
    taught.write_rows("test.jsonl", [{"question": "Which word is the last?", "answer": "y"}])
    taught.write_rows("pairs.jsonl", PAIRS)
    taught.write_rows("held.jsonl", HELD_OUT)
    taught.write_rows("held_pairs.jsonl", HELD_PAIRS)
    (taught.folder / "reward.py").write_text(REWARD)
    (taught.folder / "envs.py").write_text(ENVIRONMENTS)
    taught.settings |= {
        "method": "sft",
        "distill": None,
        "batch_size": 2,
        "mining": {"pool_file": "pool.jsonl", "strategy": "uniform"},
        "evaluation": {"max_tokens": 4, "num_repeats": 1, "concurrency": 3},
    }
    return taught


DPO = {"method": "dpo", "train_file": "pairs.jsonl", "mining": {"strategy": "loss"}}
WAYS: dict[str, dict[str, Any]] = {
    "sft": {"evaluation": {"max_tokens": 4, "test_tasks": ["qa:test.jsonl"]}},
    "sft by loss": {"mining": {"strategy": "loss", "replay_share": 0.25}},
    "dpo": {**DPO, "eval_tasks": ["qa:questions.jsonl", "pref:held_pairs.jsonl"]},
    "rl": {"method": "rl", "rl": RL},
    "rl held back": {"method": "rl", "rl": {**RL, "kl_coef": 0.1}},
    "rl in turns": {"method": "rl", "rl": {**ENVIRONMENT, "kl_coef": 0.1}, "max_seq_length": 200},
    "on policy": {"method": "distill", "distill": TEACHER},
    "off policy, soft": {"method": "distill", "distill": {**TEACHER, "way": "off_policy"}},
    "off policy, hard": {
        "method": "distill",
        "distill": {**TEACHER, "way": "off_policy", "targets": "hard"},
    },
}
RARER = ("sft by loss", "rl held back", "off policy, hard")


@pytest.mark.trains
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=thorough_only if way in RARER else []) for way in WAYS]
)
def test_a_run_pays_no_more_than_its_plan_says_and_counts_what_the_service_took(
    spread_rows: Workspace, taken: Taken, capsys: pytest.CaptureFixture, way: str
) -> None:
    assert spread_rows.run("run", **WAYS[way]) == 0
    most, used = most_of(capsys.readouterr().err), spread_rows.store("run").usage()
    assert 0 < used.train_tokens <= most.trained
    assert 0 < used.prompt_tokens <= most.prompt
    assert 0 < used.sampled_tokens <= most.sampled
    taken.check(used)
    assert spread_rows.store("run").spent() == used  # nothing was sent that is not recorded
    if way != "rl in turns":  # whose conversations may fill their room, and do not
        assert most.trained <= 6 * used.train_tokens and most.prompt <= 4 * used.prompt_tokens


def without_finite_gradients(model_dir: Path, folder: Path) -> str:
    """A model whose losses are finite, and whose gradients are not: what its first attention adds
    is nothing, times more than a float holds."""
    shutil.copytree(model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.0."
    for name in "qkv":
        tensors[f"{layer}self_attn.{name}_proj.weight"].zero_()
    tensors[f"{layer}self_attn.o_proj.weight"] *= 1e12
    tensors[f"{layer}input_layernorm.weight"].fill_(1e36)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.trains
@pytest.mark.parametrize(
    "way",
    [
        "sft",
        "dpo",
        "on policy",
        pytest.param("rl held back", marks=thorough_only),
        pytest.param("off policy, soft", marks=thorough_only),
    ],
)
def test_what_is_in_flight_behind_a_bad_step_is_counted_once(
    spread_rows: Workspace, taken: Taken, way: str
) -> None:
    """With what was read and sampled for it, and the held-out losses between; a resumption trains
    on the answers that it finds, and fails in the same way."""
    folder = spread_rows.folder
    changes = {"eval_tasks": ["qa:questions.jsonl", "nll:held.jsonl"], **WAYS[way]}
    changes["eval_tasks"] = ["qa:questions.jsonl", "nll:held.jsonl"]
    changes["evaluation"] = {"max_tokens": 4, "held_out_every_steps": 1}
    base_model = without_finite_gradients(Path(spread_rows.settings["base_model"]), folder / "bad")
    changes |= {"base_model": base_model, "steps_per_round": 2, "max_rounds": 1}
    assert spread_rows.run("run", **changes) == 1
    failed = spread_rows.events("run")[-1]
    assert "the service refused the optimizer step in round 1, step 0" in failed["detail"]
    assert failed["num_tokens"] > 0 and failed["num_prompt_tokens"] > 0
    taken.check(spread_rows.store("run").usage())
    assert main(["--resume", str(folder / "run")]) == 1
    again = spread_rows.events("run")[-1]
    assert again["num_tokens"] == failed["num_tokens"]
    if "rollouts" in failed:
        assert again["rollouts"] == failed["rollouts"]
        assert again.get("num_sampled_tokens", 0) == 0 < failed["num_sampled_tokens"]
    used = spread_rows.store("run").usage()
    assert used.train_tokens == taken.trained
    taken.check(used)


@pytest.mark.trains
@pytest.mark.parametrize(
    "changes",
    [
        {"eval_tasks": ["qa:questions.jsonl", "nll:held.jsonl"]},
        {"train_file": ["train.jsonl", "pool.jsonl"], "mining": {"replay_share": 1}},
    ],
    ids=["a round of the shuffle", "two of two files"],
)
def test_what_is_known_before_is_planned_to_the_token(
    spread_rows: Workspace, capsys: pytest.CaptureFixture, changes: dict[str, Any]
) -> None:
    """Where nothing is mined, and rows and questions are read."""
    num_rounds = 2 if "mining" in changes else 1
    assert spread_rows.run("run", **changes, max_rounds=num_rounds) == 0
    most, used = most_of(capsys.readouterr().err), spread_rows.store("run").usage()
    assert (used.train_tokens, used.prompt_tokens) == (most.trained, most.prompt)


@pytest.mark.trains
def test_each_scoring_request_counts_the_token_that_it_samples(spread_rows: Workspace) -> None:
    """By the ledger's events, each by the number of its requests."""
    changes: dict[str, Any] = {**DPO, "eval_tasks": ["qa:questions.jsonl", "nll:held.jsonl"]}
    changes |= {"evaluation": {"max_tokens": 4, "test_tasks": ["pref:held_pairs.jsonl"]}}
    assert spread_rows.run("run", **changes) == 0
    events = spread_rows.events("run")
    for one in events:
        if one["type"] == "reference_measured":
            assert one["num_sampled_tokens"] > 0 and one["num_sampled_tokens"] % 2 == 0
        elif one["type"] == "test_measured":
            assert one["num_sampled_tokens"] == 2 * len(HELD_PAIRS)
        elif one["type"] == "measured" and one["tasks"] == ["nll:held.jsonl"]:
            assert one["num_sampled_tokens"] == len(HELD_OUT)
    pairs = sum(one["num_pairs"] for one in events if one["type"] == "reference_measured")
    assert pairs

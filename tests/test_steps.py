"""Epochs and passes: how many steps a run takes, and how often it goes through its rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from config_schema import LoadedConfig, config_hash, validate
from errors import ConfigError
from hyperparam_utils import RunSteps, steps_for_epochs
from loop.planning.steps import passes_of, settle_steps
from rows.examples import Example, ExampleTable, Message
from settings.sameness import ADDED_SINCE, CHANGEABLE_ON_RESUME
from test_loop import Workspace, row
from trainer_with_eval import main

pytestmark = pytest.mark.core


def loaded(**settings: Any) -> LoadedConfig:
    raw = {"base_model": "m", "train_file": "t.jsonl", "eval_tasks": ["simple_qa"], **settings}
    return LoadedConfig(validate(raw, "c.json"), Path("c.json"), Path())


def table(**sizes: int) -> ExampleTable:
    return ExampleTable(
        Example("", (Message("user", f"{name} {i}"), Message("assistant", "x")), name, i, None)
        for name, size in sizes.items()
        for i in range(size)
    )


def described(workspace: Workspace, capsys: pytest.CaptureFixture, **changes: Any) -> str:
    capsys.readouterr()
    assert workspace.run("run", "--dry-run", **changes) == 0
    return capsys.readouterr().out


# --- from epochs to steps -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_epochs", "num_rows", "batch_size", "max_rounds", "steps"),
    [
        (2, 1000, 8, 4, 63),  # 2,000 examples are 250 steps, 62.5 a round
        (1, 8, 8, 1, 1),
        (1, 9, 8, 1, 2),
        (0.7, 30, 3, 1, 7),  # 7.000000000000001 in floats
        (0.001, 1, 8, 3, 1),  # a round has a step
        (3, 10**6, 128, 10, 2344),
    ],
)
def test_steps_of_a_round_are_enough_for_the_epochs(
    num_epochs: float, num_rows: int, batch_size: int, max_rounds: int, steps: int
) -> None:
    assert steps_for_epochs(num_epochs, num_rows, batch_size, max_rounds) == steps


def test_epochs_or_steps_are_given_and_not_both() -> None:
    assert loaded(num_epochs=3).config.steps_per_round is None
    assert loaded().config.steps_per_round == 1
    again = loaded(num_epochs=3).config.model_dump(mode="json")
    assert validate(again, "c.json") == loaded(num_epochs=3).config
    for settings, part in (
        ({"num_epochs": 3, "steps_per_round": 2}, "num_epochs 3 and steps_per_round 2 are both"),
        ({"steps_per_round": None}, "num_epochs is not given either"),
        ({"num_epochs": 0}, "num_epochs: input should be greater than 0"),
        ({"num_epochs": "2"}, "num_epochs: input should be a valid number"),
    ):
        with pytest.raises(ConfigError, match=part):
            loaded(**settings)


def test_a_setting_that_is_not_used_leaves_the_hash_of_older_runs() -> None:
    kept = loaded().config.model_dump(mode="json")
    for added in ADDED_SINCE:
        group, _, leaf = added.rpartition(".")
        del (kept[group] if group else kept)[leaf]
    del kept["data"]["max_steps_in_flight"]  # it changes no number
    kept = {key: kept[key] for key in kept if key not in CHANGEABLE_ON_RESUME}
    before = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    assert config_hash(loaded().config) == before
    assert config_hash(loaded(num_epochs=1).config) != before


def test_what_does_not_fit_the_steps_of_the_epochs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"c.json: num_epochs 1 comes to 3 steps.*Set it to 3"):
        settle_steps(loaded(num_epochs=1, warmup_steps=40), {}, 50, 1e-4)
    evaluation = {"held_out_every_steps": 9}
    config = loaded(num_epochs=1, val_file="v.jsonl", evaluation=evaluation)
    with pytest.raises(ConfigError, match="held_out_every_steps is 9, but the run takes at most 9"):
        settle_steps(config, {}, 50, 1e-4)
    # what a run has settled once is not settled again
    kept = {"steps_per_round": 7, "warmup_steps": 40}
    settled = settle_steps(loaded(num_epochs=1, warmup_steps=40), kept, 50, 1e-4)
    assert (settled.steps.per_round, settled.schedule.warmup_steps) == (7, 40)


# --- passes ---------------------------------------------------------------------------------------


def test_passes_count_each_source_by_what_it_is_drawn_for() -> None:
    config = loaded(mining={"pool_file": "p.jsonl", "replay_share": 0.25}).config
    steps = RunSteps(3, 2, 1000)
    found = passes_of(config, steps, table(t=12), table(p=36), {})
    # 24 slots in round 1; of 24 in round 2 a quarter is replayed
    assert [(one.source, one.number) for one in found] == [("t", 30 / 12), ("p", 18 / 36)]
    without_pool = passes_of(config, steps, table(t=12), table(), {})
    assert [(one.source, one.number) for one in without_pool] == [("t", 4.0)]
    weighted = passes_of(config, steps, table(a=10, b=30), table(p=36), {"a": 3, "b": 1})
    assert [one.number for one in weighted] == pytest.approx([30 * 0.75 / 10, 7.5 / 30, 0.5])
    cut = passes_of(config, RunSteps(3, 2, 4), table(t=12), table(p=36), {})
    assert [one.number for one in cut] == pytest.approx([26 / 12, 6 / 36])


def test_the_dry_run_says_how_often_each_source_is_gone_through(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    printed = described(workspace, capsys)
    assert (
        "passes: at most 1.5 through the 10 rows of train.jsonl, 0.3 through the 30 rows of "
        "pool.jsonl\n" in printed
    )
    assert "warning: batch_size" not in printed and "learnt by heart" not in printed
    printed = described(workspace, capsys, batch_size=16, steps_per_round=20, max_rounds=1)
    assert "warning: batch_size 16 is larger than the 10 rows of train_file" in printed
    assert "warning: 32.0 passes through train.jsonl are more than 20" in printed
    assert "Lower steps_per_round, or add rows." in printed


def test_epochs_count_the_rows_that_can_be_trained_on(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {"steps_per_round": None, "num_epochs": 4, "max_steps": 4}
    printed = described(workspace, capsys, **changes)
    assert "max_rounds 2 x steps_per_round 5 from num_epochs 4, max_steps 4" in printed
    assert "warning: num_epochs 4 comes to 10 steps, and the run ends after max_steps 4" in printed
    # five rows whose answers lie beyond the window are rendered, and not counted
    long = [{"instruction": f"Say {'a' * 200} {i}", "output": "x"} for i in range(5)]
    workspace.write_rows("train.jsonl", [row(i) for i in range(5)] + long)
    printed = described(workspace, capsys, **changes, max_seq_length=128)
    assert "dropped in rendering: 5 rows" in printed
    assert "steps_per_round 3 from num_epochs 4" in printed


@pytest.mark.trains
def test_a_resumed_run_keeps_the_steps_that_its_epochs_came_to(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    changes = {"steps_per_round": None, "num_epochs": 1, "max_rounds": 1}
    assert workspace.run("run", **changes) == 0
    run_dir = workspace.folder / "run"
    recorded = json.loads((run_dir / "config.resolved.json").read_text())
    assert recorded["config"]["steps_per_round"] is None
    assert recorded["resolved"]["steps_per_round"] == 3
    capsys.readouterr()
    assert main(["--resume", str(run_dir), "--set", "max_rounds=2"]) == 0
    assert "max_rounds 2 x steps_per_round 3 from num_epochs 1" in capsys.readouterr().err
    steps = [event for event in workspace.events("run") if event["type"] == "step"]
    assert [event["round"] for event in steps] == [1, 1, 1, 2, 2, 2]
    refused = ["--resume", str(run_dir), "--set", "max_rounds=3", "--set", "num_epochs=2"]
    assert main(refused) == 2
    assert "num_epochs was 1.0, is 2.0" in capsys.readouterr().err

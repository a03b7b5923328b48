"""Settings: every shipped config loads, and every mistake is named with file, key and remedy."""

import json
from pathlib import Path

import pytest

from commands.opening import refuse_other_config
from config_schema import (
    TrainingConfig,
    config_hash,
    describe_settings,
    load_and_validate_config,
    settings_table,
)
from conftest import REPO
from errors import ConfigError

SHIPPED = sorted(REPO.glob("*config*.json"))
MINIMAL = {"base_model": "m", "train_file": "t.jsonl", "eval_tasks": ["simple_qa"]}


def write(tmp_path: Path, config: object) -> Path:
    file = tmp_path / "c.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def refusal(tmp_path: Path, config: object, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_and_validate_config(write(tmp_path, config), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_load_and_name_files_that_exist(path: Path) -> None:
    loaded = load_and_validate_config(path)
    assert isinstance(loaded.config.train_file, str)
    assert loaded.find("train_file", loaded.config.train_file).is_file()


def test_all_shipped_configs_were_found() -> None:
    names = {path.name for path in SHIPPED}
    assert names == {"eval_loop_config.json", "demo_config.json", "demo_config.tinker.json"}


def test_the_seeds_values_are_kept() -> None:
    config = load_and_validate_config(REPO / "eval_loop_config.json").config
    assert config.model_dump(include={"lora_rank", "learning_rate", "max_steps", "batch_size"}) == {
        "lora_rank": 16,
        "learning_rate": 1e-4,
        "max_steps": 1000,
        "batch_size": 8,
    }
    assert (config.steps_per_round, config.eval_threshold, config.max_rounds) == (1, 0.85, 3)
    tinker = load_and_validate_config(REPO / "demo_config.tinker.json").config
    assert (tinker.learning_rate, tinker.steps_per_round, tinker.batch_size) == (3e-4, 5, 4)
    assert (tinker.eval_threshold, tinker.lr_decay, tinker.max_rounds) == (0.75, 0.6, 3)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"lora_rnk": 8}, ["c.json", "lora_rnk is not a setting", "did you mean lora_rank?"]),
        ({"mining": {"replay": 0.1}}, ["mining.replay is", "did you mean mining.replay_share?"]),
        ({"lora_rank": "many"}, ["lora_rank", "integer", '"many"', "a string"]),
        ({"lora_rank": 0}, ["lora_rank", "greater than or equal to 1", "found 0"]),
        ({"lora_rank": 8.5}, ["lora_rank", "8.5"]),
        ({"eval_tasks": "simple_qa"}, ["eval_tasks", "list", "a string"]),
        ({"eval_tasks": []}, ["eval_tasks", "at least 1"]),
        ({"eval_tasks": ["gsm8k"]}, ["eval_tasks names 'gsm8k'", "qa:FILE.jsonl"]),
        ({"eval_tasks": ["simple_qa", "simple_qa"]}, ["twice"]),
        ({"min_lr": 0.01}, ["min_lr 0.01 is above learning_rate 0.0001"]),
        ({"warmup_steps": 2}, ["warmup_steps 2", "3 steps", "max_rounds 3 x steps_per_round 1"]),
        (
            {"evaluation": {"held_out_every_steps": 5}},
            ["evaluation.held_out_every_steps", "Set val_file, or add an nll: task"],
        ),
        ({"data": {"accumulate": 9}}, ["data.accumulate 9", "batch_size 8"]),
        ({"train_attn": False, "train_mlp": False, "train_unembed": False}, ["nothing would"]),
        ({"evalops_enabled": True}, ["evalops_test_suite_id is not set"]),
        ({"learning_rate": 0}, ["learning_rate", "greater than 0"]),
        ({"run_name": "../up"}, ["run_name", "../up"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict, parts: list[str]) -> None:
    message = refusal(tmp_path, {**MINIMAL, **change})
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not valid JSON"),
        ("{", "line 1 column 2"),
        ('{"a": 1} // no', "JSON has no comments"),
        ("[1]", "a config is one JSON object, found a list"),
        ('{"seed": 1, "seed": 2}', "'seed' stands twice"),
        ("[" * 100_000, "recursion"),
        (
            '{"learning_rate": NaN, "base_model": "m", "train_file": "t", '
            '"eval_tasks": ["simple_qa"]}',
            "nan",
        ),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, part: str) -> None:
    assert part in refusal(tmp_path, text).lower() or part in refusal(tmp_path, text)


def test_missing_config_file_and_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: there is no such file"):
        load_and_validate_config(tmp_path / "nowhere.json")
    assert "train_file is missing" in refusal(
        tmp_path, {"base_model": "m", "eval_tasks": ["simple_qa"]}
    )


def test_two_mistakes_are_both_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, {**MINIMAL, "lora_rnk": 8, "seed": -1})
    assert "lora_rnk" in message
    assert "seed" in message


def test_a_named_file_that_is_missing_shows_both_places(tmp_path: Path) -> None:
    loaded = load_and_validate_config(write(tmp_path / "..", MINIMAL))
    with pytest.raises(ConfigError) as caught:
        loaded.find("train_file", "t.jsonl")
    assert str(loaded.directory / "t.jsonl") in str(caught.value)
    assert str(tmp_path / "t.jsonl") in str(caught.value)


def test_files_beside_the_config_come_before_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "t.jsonl").write_text("x")
    loaded = load_and_validate_config(write(tmp_path / "sub", MINIMAL))
    assert loaded.find("train_file", "t.jsonl") == (tmp_path / "sub" / "t.jsonl").resolve()


def test_overrides_reach_flat_and_nested_keys_as_json_or_text(tmp_path: Path) -> None:
    overrides = ["seed=7", "mining.replay_share=0.5", "base_model=other", "warmup_steps=null"]
    config = load_and_validate_config(write(tmp_path, MINIMAL), overrides).config
    assert (config.seed, config.mining.replay_share, config.base_model) == (7, 0.5, "other")
    assert config.warmup_steps is None
    assert "expected KEY=VALUE" in refusal(tmp_path, MINIMAL, ["seed"])
    assert "not a group" in refusal(tmp_path, MINIMAL, ["base_model.x=1"])


def test_hash_leaves_out_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    base = TrainingConfig.model_validate(MINIMAL)
    longer = TrainingConfig.model_validate({**MINIMAL, "max_rounds": 9})
    other = TrainingConfig.model_validate({**MINIMAL, "seed": 9})
    assert config_hash(base) == config_hash(longer) != config_hash(other)
    loaded = load_and_validate_config(write(tmp_path, {**MINIMAL, "seed": 9, "max_rounds": 9}))
    with pytest.raises(ConfigError, match=r"^runs/a: .*seed was 0, is 9") as caught:
        refuse_other_config(base.model_dump(mode="json"), loaded, "runs/a")
    assert "max_rounds was" not in str(caught.value)


def test_resolved_config_round_trips() -> None:
    config = TrainingConfig.model_validate(MINIMAL)
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_setting_has_an_explanation_and_a_row() -> None:
    rows = list(describe_settings())
    assert all(row.description for row in rows)
    assert len(settings_table().splitlines()) == len(rows) + 2
    assert {"base_model", "data.accumulate", "mining.pool_file"} <= {row.key for row in rows}

"""A config in YAML, by the keys of the skill's template, as the settings that they mean.

    loaded = load_settings("templates/training-config.yaml", ["seed=3"])

It describes plain supervised training: a round is `eval_every` steps, the rows are gone through in
their order whatever was answered wrong, and all `num_steps` are taken. Every key is a setting or
follows from one; what has no meaning here is refused. JSON configs are read as ever.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from config_schema import (
    MAX_ROUNDS,
    LoadedConfig,
    TrainingConfig,
    check,
    load_and_validate_config,
)
from errors import ConfigError
from settings.config_file import with_overrides
from settings.groups import MAX_COUNT
from settings.price_file import with_prices
from settings.yaml_file import YamlFile, as_value, read_yaml, shown

YAML_SUFFIXES = (".yaml", ".yml")
HELD_OUT_SHARE = 0.1  # of train_file, where no val_file is named
SETTINGS = {  # the template's key -> the setting that it is
    "base_model": "base_model",
    "run_name": "run_name",
    "train_file": "train_file",
    "val_file": "val_file",
    "eval_file": "eval_tasks",
    "lora_rank": "lora_rank",
    "train_mlp": "train_mlp",
    "train_attn": "train_attn",
    "train_unembed": "train_unembed",
    "max_seq_len": "max_seq_length",
    "train_batch_size": "batch_size",
    "num_steps": "max_steps",
    "eval_every": "steps_per_round",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "seed": "seed",
    "renderer_name": "renderer_name",
    "base_url": "base_url",
}
NEEDED = ("base_model", "train_file", "num_steps", "eval_every")
RESOLVED_FROM_NULL = ("val_file", "eval_file", "learning_rate", "renderer_name", "base_url")
ONE_LENGTH = (
    "num_steps says how long the run is: num_steps x train_batch_size / rows are its passes "
    "through train_file, which --dry-run shows. Leave num_epochs out, or null."
)
# What makes rounds out of one stretch of training: nothing but its end stops it, and what a round
# trains on does not depend on what the one before had answered.
PLAIN: dict[str, Any] = {
    "lr_decay": 1.0,
    "checkpoint_names": "steps",
    "gate": {"stop": False, "rollback": False},
    "mining": {"replay_share": 1.0},
}


def load_settings(path: str | Path, overrides: list[str] | None = None) -> LoadedConfig:
    """Read a config, in YAML where its name says so, with `KEY=VALUE` overrides of its settings.

    Raises `ConfigError`, one paragraph with file and line.
    """
    if Path(path).suffix.lower() not in YAML_SUFFIXES:
        return load_and_validate_config(path, overrides)
    file = read_yaml(Path(path), "a training config")
    folder = file.path.resolve().parent
    raw = with_overrides(settings_of(file), overrides or [])
    if raw.get("num_epochs") is not None:
        raise ConfigError(f"--set num_epochs={as_value(raw['num_epochs'])}: {ONE_LENGTH}")
    if file.content.get("learning_rate") is None:  # an override is as good as the key
        raw.setdefault("use_recommended_lr", "learning_rate" not in raw)
    steps, every = raw.get("max_steps"), raw.get("steps_per_round")
    is_open = "max_rounds" not in raw
    if is_open and isinstance(steps, int) and isinstance(every, int) and steps > 0 < every:
        raw["max_rounds"] = math.ceil(steps / every)
        _refuse_many(file, raw["max_rounds"], steps)
    checked = check(with_prices(raw, folder, str(file.path)))
    if isinstance(checked, TrainingConfig):
        return LoadedConfig(checked, file.path, folder)
    told = dict.fromkeys(_told(file, one.key, one.sentence) for one in checked.told)
    raise ConfigError(f"{file.path} {' '.join(told)}")


def settings_of(file: YamlFile) -> dict[str, Any]:
    """The settings that a file's keys mean. Raises `ConfigError`."""
    given = file.content
    _check_keys(file)
    raw = {SETTINGS[key]: value for key, value in given.items() if value is not None}
    raw |= {key: dict(one) if isinstance(one, dict) else one for key, one in PLAIN.items()}
    if given.get("val_file") is None:
        raw["data"] = {"val_share": HELD_OUT_SHARE}
    raw["eval_tasks"] = [f"qa:{given.get('eval_file') or given.get('val_file')}"]
    return raw


def _check_keys(file: YamlFile) -> None:
    """Raise `ConfigError` for a key that is unknown, missing, or empty where nothing follows."""
    given = file.content
    for key in given:
        if key == "num_epochs":
            _refuse_epochs(file)
        elif key not in SETTINGS:
            raise file.error((key,), f"{shown(key)} is no key of a training config; {_hint(key)}")
        elif given[key] is None and key not in RESOLVED_FROM_NULL:
            raise file.error(
                (key,), f"{key} is null, and nothing says what it is then. Give a value."
            )
    if missing := [key for key in NEEDED if key not in given]:
        raise ConfigError(
            f"{file.path}: {', '.join(missing)} is missing. The template that comes with the "
            "skill has all keys."
        )
    for key in ("val_file", "eval_file"):
        value = given.get(key)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise file.error((key,), f"{key} is the name of a file; found {as_value(value)}.")
    if given.get("val_file") is None and given.get("eval_file") is None:
        raise file.error(
            ("eval_file",),
            "val_file and eval_file are both null, so there are no questions that a checkpoint "
            "could be judged by. Name a file of questions in eval_file; the held-out loss is then "
            f"that of {HELD_OUT_SHARE:.0%} of train_file.",
        )


def _hint(key: str) -> str:
    """What to write in the place of a key that is unknown: a key, an option, or any of the keys."""
    if key == "data":
        return (
            "what a file calls its columns stands with its name, as in train_file: [{file: "
            "data/rows.csv, columns: {instruction: QUESTION_COLUMN, output: ANSWER_COLUMN}}]; "
            "other settings of data are options, as in --set data.near_duplicates=0.8."
        )
    keys = {setting: ours for ours, setting in SETTINGS.items()}
    if key in keys:
        return f"here it is called {keys[key]}."
    if key in TrainingConfig.model_fields:
        return f"it is a setting, given as an option: --set {key}=VALUE, or --set {key}.NAME=VALUE."
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(SETTINGS)}."


def _refuse_epochs(file: YamlFile) -> None:
    """Two lengths of one run, of which the shorter would hold without a word."""
    if file.content["num_epochs"] is not None:
        raise file.error(
            ("num_epochs",),
            f"num_epochs is {as_value(file.content['num_epochs'])}, and {ONE_LENGTH}",
        )


def _refuse_many(file: YamlFile, num_rounds: int, steps: int) -> None:
    """Raise `ConfigError` for more evaluations than a run has rounds, by the key that is given."""
    if num_rounds > MAX_ROUNDS and steps <= MAX_COUNT:
        raise file.error(
            ("eval_every",),
            f"{steps:,} steps are {num_rounds:,} times eval_every, and losses and score are "
            f"measured at most {MAX_ROUNDS:,} times. Raise eval_every to "
            f"{math.ceil(steps / MAX_ROUNDS):,} or more.",
        )


def _told(file: YamlFile, place: str, sentence: str) -> str:
    """A problem with a setting, by the key and the line that it came from."""
    keys = {setting: key for key, setting in SETTINGS.items()}
    setting = place.partition(".")[0]
    key = keys.get(setting)
    if key is None or key not in file.content:
        return sentence
    if sentence.startswith(setting) and key != setting:
        sentence = f"{key}{sentence.removeprefix(setting)}"
    return f"line {file.line_of((key,))}: {sentence}"

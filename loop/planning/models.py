"""The models that a config names: a directory beside it, or the hub's; and which one it is.

A model directory is the model that its files hold, wherever it lies: which one it is tells the
sha256 of all that the model is loaded from, in full. Headers, sizes and times would be quicker, and
would take changed weights for the same ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hyperparam_utils
from config_schema import LoadedConfig, TrainingConfig
from errors import ConfigError
from ledger.records import Origin
from ledger.run_directory import CONFIG as RUN_CONFIG


def find_model_dir(loaded: LoadedConfig) -> Path | None:
    """The directory that `base_model` names, beside the config file or in the working directory."""
    return find_model(loaded, "base_model", loaded.config.base_model)


def lora_param_count(
    config: TrainingConfig, model_dir: Path | None, origin: Origin | None = None
) -> int | None:
    """Parameters of the adapter that is trained; None where the base model's sizes are not known.
    An adapter that another program wrote, which the run starts from, says its own.

    Raises `ConfigError` for a directory whose sizes are none.
    """
    if origin is not None and origin.num_params is not None:
        return origin.num_params
    flags = {
        "train_attn": config.train_attn,
        "train_mlp": config.train_mlp,
        "train_unembed": config.train_unembed,
    }
    if model_dir is None:
        return hyperparam_utils.known_lora_param_count(config.base_model, config.lora_rank, **flags)
    sizes = model_config(model_dir, "base_model")
    try:
        return hyperparam_utils.lora_param_count(sizes, config.lora_rank, **flags)
    except (TypeError, ValueError, ZeroDivisionError):
        raise ConfigError(
            f"{model_dir / 'config.json'}: its sizes are not all positive numbers. Give "
            "base_model a complete model directory."
        ) from None


def find_grader_path(loaded: LoadedConfig) -> str | None:
    """What the grader is loaded from: a directory that its setting names, or the hub name."""
    name = loaded.config.evaluation.grader_model
    if name is None:
        return None
    return str(find_model(loaded, "evaluation.grader_model", name) or name)


def find_model(loaded: LoadedConfig, key: str, name: str) -> Path | None:
    """The directory that a setting names, beside the config file or in the working directory; None
    for the name of a hub's. Raises `ConfigError` for what is no model."""
    for base in (loaded.directory, Path.cwd()):
        candidate = base / name
        is_directory = is_file = False
        with contextlib.suppress(OSError, ValueError):  # a name that no directory can have
            is_directory, is_file = candidate.is_dir(), candidate.is_file()
        if is_file:
            raise ConfigError(
                f"{loaded.file}: {key} names the file {candidate}, and a model is a directory. "
                "Give a Hugging Face model directory, or the name of a hub model."
            )
        if is_directory:
            if (candidate / RUN_CONFIG).is_file():
                raise ConfigError(
                    f"{loaded.file}: {key} names the directory {candidate}, which is that of a run "
                    "and no model. Name the model that it was made from; to train on from a run's "
                    "weights set start_from to it."
                )
            if not (candidate / "config.json").is_file():
                raise ConfigError(
                    f"{loaded.file}: {key} names the directory {candidate}, which holds no "
                    "config.json. Give a Hugging Face model directory, with weights and tokenizer."
                )
            model_config(candidate, key)
            return candidate.resolve()
    return None


def model_config(directory: Path, key: str) -> dict[str, Any]:
    """A model directory's config.json. Raises `ConfigError` where that is no JSON object."""
    file = directory / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"{file}: not a JSON object. Give {key} a complete model directory."
        ) from None
    return found


# --- which model it is ----------------------------------------------------------------------------

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
)


def model_files(directory: Path) -> list[Path]:
    """The files that a model directory is loaded from: config, weights and tokenizer, by name."""
    patterns = ("config.json", *TOKENIZER_FILES)
    found = {path for pattern in patterns for path in directory.glob(pattern)}
    return sorted(path for path in found | _weight_files(directory) if path.is_file())


def _weight_files(directory: Path) -> set[Path]:
    """As transformers chooses them: safetensors before pickles, the shards of an index before
    what else lies there."""
    for suffix in ("safetensors", "bin"):
        shards = set(directory.glob(f"*.{suffix}"))
        for index in directory.glob(f"*.{suffix}.index.json"):
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
                named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                return {index, *(directory / Path(name).name for name in named)}
        single = {path for path in shards if path.stem in ("model", "pytorch_model")}
        if shards:
            return single or shards
    return set()


def model_digests(directory: Path) -> dict[str, str]:
    """The sha256 of each file that a model directory is loaded from, by its name.

    Raises `ConfigError` where one cannot be read.
    """
    digests: dict[str, str] = {}
    try:
        for path in model_files(directory):
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: this file of the base model cannot be read: {error.strerror}. Give "
            "base_model a complete model directory."
        ) from None


def model_change(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What differs between the digests of two model directories; None where nothing does."""
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if not changed:
        return None
    name = changed[0]
    was, is_now = (digests.get(name, "not there") for digests in (before, now))
    more = f", and {len(changed) - 1} more differ" if len(changed) > 1 else ""
    return f"{name} (sha256 was {was}, is {is_now}{more})"

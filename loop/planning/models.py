"""The models that a config names: a directory beside it, or the hub's."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from config_schema import LoadedConfig
from errors import ConfigError


def find_model_dir(loaded: LoadedConfig) -> Path | None:
    """The directory that `base_model` names, beside the config file or in the working directory."""
    return _model_dir(loaded, "base_model", loaded.config.base_model)


def find_grader_path(loaded: LoadedConfig) -> str | None:
    """What the grader is loaded from: a directory that its setting names, or the hub name."""
    name = loaded.config.evaluation.grader_model
    if name is None:
        return None
    return str(_model_dir(loaded, "evaluation.grader_model", name) or name)


def _model_dir(loaded: LoadedConfig, key: str, name: str) -> Path | None:
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

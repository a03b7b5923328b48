"""The config that torchtune trials start from, and the `${...}` references of such configs.

A stock config is found by the list of files of the installed distribution; torchtune itself is not
imported, since it cannot share an environment with what is pinned here.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settings.yaml_file import YamlFile, read_yaml, shown
from studies.design.experiment import Study, nearest
from studies.design.paths import is_file

STOCK = "recipes/configs/"
VERSION = "0.6.1"
MAX_REFERENCES = 20  # that lead to one another
_INNERMOST = re.compile(r"\$\{([^{}]*)\}")
# A key, one beside it, or a call of a resolver; which of these there are, only a run tells.
_ALLOWED = re.compile(r"\s*(\.*[\w.\-\[\]]+|[\w.]+:.*)\s*")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.\-]*)\}")


def base_of(study: Study) -> YamlFile:
    """The base config of a study. Raises `ConfigError` where none, or both kinds, are named."""
    framework, error = study.experiment.framework_config, study.file.error
    if (framework.base_config is None) == (framework.base_config_file is None):
        raise error(
            ("framework_config",),
            "framework: torchtune needs one of framework_config.base_config (a name of `tune ls`, "
            "such as llama3_2/1B_lora_single_device) and base_config_file (a YAML file of yours). "
            "Give one.",
        )
    if framework.base_config_file is not None:
        file = study.folder / framework.base_config_file
        if not is_file(file):
            raise error(
                ("framework_config", "base_config_file"),
                f"framework_config.base_config_file: there is no {file}. A path starts at the "
                "study's folder.",
            )
        return read_yaml(file, "a torchtune config")
    return read_yaml(_stock_file(study, str(framework.base_config)), "a torchtune config")


def _stock_file(study: Study, name: str) -> Path:
    place = ("framework_config", "base_config")
    try:
        distribution = importlib.metadata.distribution("torchtune")
    except importlib.metadata.PackageNotFoundError:
        raise study.file.error(
            place,
            f"framework_config.base_config {shown(name)}: torchtune is not installed here. Install "
            f"its files alone (pip install --no-deps torchtune=={VERSION}), or copy the config "
            f"where it is (tune cp {shown(name)} base.yaml) and name it as base_config_file.",
        ) from None
    stock = {
        file.as_posix().removeprefix(STOCK).removesuffix(".yaml"): file
        for file in distribution.files or []
        if file.as_posix().startswith(STOCK) and file.suffix == ".yaml"
    }
    if name not in stock:
        raise study.file.error(
            place,
            f"framework_config.base_config: torchtune {distribution.version} has no config "
            f"{shown(name)}; {_near(name, sorted(stock))}",
        )
    return Path(str(distribution.locate_file(stock[name])))


def _near(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did") else "`tune ls` lists them."


def check_references(config: dict[str, Any], file: YamlFile) -> None:
    """Raise `ConfigError` for a `${...}` that leads nowhere, or back to itself."""
    for place, text in _texts(config, ()):
        dotted = ".".join(place)
        if (wrong := _malformed(text)) is not None:
            raise file.error(
                ("controls", "_override", *place),
                f"{shown(dotted)} is {shown(text)}: {wrong} Write ${{key}} or ${{group.key}}.",
            )
        try:
            referred(config, text)
        except KeyError as error:
            raise file.error(
                ("controls", "_override", *place),
                f"{shown(dotted)} is {shown(text)}, but the config has no {error.args[0]}; "
                f"{nearest(str(error.args[0]), list(config))}",
            ) from None
        except RecursionError:
            raise file.error(
                ("controls", "_override", *place),
                f"{shown(dotted)} is {shown(text)}, which leads back to itself. Write a value.",
            ) from None


def _malformed(text: str) -> str | None:
    if text.count("${") > text.count("}"):
        return "a ${ is not closed."
    wrong = [inner for inner in _INNERMOST.findall(text) if not _ALLOWED.fullmatch(inner)]
    return f"${{{wrong[0]}}} names nothing." if wrong else None


def referred(config: dict[str, Any], value: Any, depth: int = 0) -> Any:
    """A value with its references followed; those that call a resolver (`${oc.env:X}`) stay.

    Raises `KeyError` with the name of what is not there, `RecursionError` for a circle.
    """
    if not isinstance(value, str):
        return value
    if depth > MAX_REFERENCES:
        raise RecursionError
    whole = _REFERENCE.fullmatch(value)
    if whole is not None:
        return referred(config, _at(config, whole[1]), depth + 1)
    return _REFERENCE.sub(
        lambda found: str(referred(config, _at(config, found[1]), depth + 1)), value
    )


def _at(config: dict[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            raise KeyError(dotted)
    return value


def _texts(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str) and "${" in value:
        yield place, value
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from _texts(inner, (*place, str(key)))

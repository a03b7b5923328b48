"""EvalOps' budget.yaml as it is read: one file of limits, with the changes of an environment."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from config_schema import LoadedConfig
from errors import ConfigError
from scores.limits import (
    Actions,
    Budget,
    Check,
    CostLimits,
    MetricLimits,
    PerformanceLimits,
    QualityLimits,
    judge,
)

KNOWN_NAMES = {
    name
    for model in (Budget, QualityLimits, CostLimits, PerformanceLimits, MetricLimits, Actions)
    for name in model.model_fields
}


def load_budget(path: str | Path, environment: str | None = None) -> Budget:
    """Read a budget, with an environment's changes put in, key by key at every depth.

    Raises `ConfigError`, naming file and key, for a file that cannot be read, holds something
    unknown or contradictory, has no such environment, or has no limit at all.
    """
    where, raw = str(path), _read_mapping(Path(path))
    budget = _validated(raw, where)
    if environment is not None:
        if environment not in budget.environments:
            known = ", ".join(budget.environments) or "none"
            raise ConfigError(f"{where}: no environment {environment!r}; known: {known}.")
        where += f" with environments.{environment}"
        budget = _validated(_deep_merge(raw, raw["environments"][environment]), where)
    if not budget.checks:
        raise ConfigError(
            f"{where}: the budget has no limit and no warning level, so it would pass whatever was "
            "measured. Give it one, for example quality_score: {min: 0.8}."
        )
    _refuse_contradiction(budget.checks, where)
    return budget


def _refuse_contradiction(checks: list[Check], where: str) -> None:
    """Every level of a metric has to be within every limit of it."""
    for one, other in itertools.product(checks, checks):
        levels = (other.limit, other.warning) if one[:2] == other[:2] else ()
        for level in levels:
            wrong = level is not None and judge(one._replace(warning=None), level)
            if wrong:
                raise ConfigError(f"{where}: one level of {wrong.message} Change one.")


def _validated(raw: dict[str, Any], where: str) -> Budget:
    try:
        return Budget.model_validate(raw)
    except ValidationError as error:
        problems = dict.fromkeys(map(_explain, error.errors()))
        raise ConfigError(f"{where}: {' '.join(problems)}") from None


def _explain(problem: Any) -> str:
    """Turn one pydantic error into a sentence with key, what was found and what to do."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key.rpartition(".")[2], KNOWN_NAMES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else "docs/evalops.md shows its format."
        return f"{key} is not part of a budget. {hint}"
    should = problem["msg"].partition(" or instance of ")[0].lower()
    message = f"{key}: {should}; found {problem['input']!r:.60}."
    is_text = problem["type"] == "float_type" and isinstance(problem["input"], str)
    return message + (" A number has no quotes, and 1e5 is written 1.0e+5." if is_text else "")


def _deep_merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            value = _deep_merge(before, value)
        merged[key] = value
    return merged


class _UniqueKeys(yaml.SafeLoader):
    """Plain types only; a key that stands twice is refused, of which YAML would drop the first."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"the key {key!r} stands twice in the mapping of line {line}")
        return node


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{path}: no budget can be read from it: {words}. Mend the file."
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a budget is a mapping of sections; found {raw!r:.60}.")
    return raw


def load_limits(loaded: LoadedConfig) -> Budget | None:
    """The limits of `evalops_budget_file`, where one is named."""
    config = loaded.config
    if config.evalops_budget_file is None:
        return None

    path = loaded.find("evalops_budget_file", config.evalops_budget_file)
    return load_budget(path, config.evalops_environment)

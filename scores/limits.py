"""Quality gates as EvalOps' command line writes them: `budget.yaml`, read and checked here.

    budget = load_budget("budget.yaml", "production")
    verdict = check(budget, Metrics(quality_score=0.81, cost_usd=4.2))

A value at its limit is within it. What has a limit has to have been measured: a missing value is a
violation, never a pass. EvalOps has no known endpoint for gates, so nothing is sent; and nothing is
notified or filed, whatever `actions` asks for (`Budget.not_acted_on` says so).
Pure, but for `load_budget`.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from errors import ConfigError

Share = Annotated[float | None, Field(ge=0, le=1)]
NotNegative = Annotated[float | None, Field(ge=0)]

# What has a maximum: category, metric, unit, and what its keys `max_...` and `warning_...` end in.
MAXIMA = (
    ("cost", "cost_usd", " USD", "usd"),
    ("cost", "tokens_used", " tokens", "tokens"),
    ("performance", "avg_latency_ms", " ms", "latency_ms"),
    ("performance", "total_execution_time_ms", " ms", "execution_time_ms"),
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class QualityLimits(Section):
    """Scores in [0, 1]; `warning` is on the side of `min`."""

    min: Share = None
    warning: Share = None
    max: Share = None


class CostLimits(Section):
    max_usd: NotNegative = None
    warning_usd: NotNegative = None
    max_tokens: NotNegative = None
    warning_tokens: NotNegative = None


class PerformanceLimits(Section):
    max_latency_ms: NotNegative = None
    warning_latency_ms: NotNegative = None
    max_execution_time_ms: NotNegative = None
    warning_execution_time_ms: NotNegative = None


class MetricLimits(Section):
    """Limits of a metric of one's own; `warning` is on the side of `max` only where `min` is not.

    With neither, a value below `warning` warns, as a quality does.
    """

    min: float | None = None
    warning: float | None = None
    max: float | None = None


class Actions(Section):
    """What a verdict does; the last two are read and not acted on."""

    fail_on_violation: bool = True
    fail_on_warning: bool = False
    notify_channels: list[str] = []
    create_issue: bool = False


class Limits(Section):
    """What the file holds at its top, and once more, in part, for each environment."""

    quality_score: QualityLimits = QualityLimits()
    cost: CostLimits = CostLimits()
    performance: PerformanceLimits = PerformanceLimits()
    metrics: dict[str, MetricLimits] = {}
    actions: Actions = Actions()


class Budget(Limits):
    """The file, with the changes of the environment that holds put in."""

    version: Annotated[Literal["1.0"], BeforeValidator(str)] = "1.0"  # YAML may take it for a float
    environments: dict[str, Limits] = {}

    @property
    def checks(self) -> list[Check]:
        """Everything that is compared, in the order of the file format."""
        quality = self.quality_score
        found = [
            Check("quality", "quality_score", "", "below", quality.min, quality.warning),
            Check("quality", "quality_score", "", "above", quality.max, None),
        ]
        for category, metric, unit, end in MAXIMA:
            limits = getattr(self, category)
            levels = getattr(limits, f"max_{end}"), getattr(limits, f"warning_{end}")
            found.append(Check(category, metric, unit, "above", *levels))
        for name, one in self.metrics.items():
            warns_above = one.min is None and one.max is not None
            below, above = (None, one.warning) if warns_above else (one.warning, None)
            found.append(Check("custom", name, "", "below", one.min, below))
            found.append(Check("custom", name, "", "above", one.max, above))
        return [one for one in found if (one.limit, one.warning) != (None, None)]

    @property
    def not_acted_on(self) -> str | None:
        """A sentence on what the file asks for and this program does not do; None for nothing."""
        if not (self.actions.notify_channels or self.actions.create_issue):
            return None
        return "actions: nobody is notified and no issue is filed, though the budget asks for it."


KNOWN_NAMES = {
    name
    for model in (Budget, QualityLimits, CostLimits, PerformanceLimits, MetricLimits, Actions)
    for name in model.model_fields
}


class Check(NamedTuple):
    """One metric and one side of it on which it is bad; None where there is no such level."""

    category: str
    metric: str
    unit: str
    side: Literal["below", "above"]
    limit: float | None
    warning: float | None


@dataclass(frozen=True)
class Metrics:
    """What was measured; None, or a name that is absent from `custom`, was not.

    `quality_score` is in [0, 1].
    """

    quality_score: float | None = None
    cost_usd: float | None = None
    tokens_used: float | None = None
    avg_latency_ms: float | None = None
    total_execution_time_ms: float | None = None
    custom: Mapping[str, float] = field(default_factory=dict)

    def value(self, one: Check) -> float | None:
        """A number that is not finite is no measurement."""
        is_custom = one.category == "custom"
        value = self.custom.get(one.metric) if is_custom else getattr(self, one.metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Violation:
    """One level that was not kept; `actual` is None where nothing was measured."""

    type: str  # "error" or "warning"
    category: str
    metric: str
    actual: float | None
    threshold: float
    message: str

    @property
    def relative_distance(self) -> float:
        """How far off, in thresholds, so that dollars compare with tokens.

        Infinite for a threshold of 0; -1, behind all others, where nothing was measured.
        """
        if self.actual is None:
            return -1.0
        distance = abs(self.actual - self.threshold)
        return distance / abs(self.threshold) if self.threshold else math.inf


@dataclass(frozen=True)
class BudgetVerdict:
    """`passed`: no limit was broken. `fails`: what `actions` makes of limits and warnings.

    `worst` is the violation that is relatively farthest off, or None; ties go to the first.
    """

    passed: bool
    fails: bool
    violations: tuple[Violation, ...]
    warnings: tuple[Violation, ...]
    worst: Violation | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(budget: Budget, metrics: Metrics) -> BudgetVerdict:
    """Compare what was measured with every level of a budget."""
    judged = [_judge(one, metrics.value(one)) for one in budget.checks]
    found = [one for one in judged if one is not None]
    violations = tuple(one for one in found if one.type == "error")
    warnings = tuple(one for one in found if one.type == "warning")
    return BudgetVerdict(
        passed=not violations,
        fails=(budget.actions.fail_on_violation and bool(violations))
        or (budget.actions.fail_on_warning and bool(warnings)),
        violations=violations,
        warnings=warnings,
        worst=max(violations, key=lambda one: one.relative_distance, default=None),
    )


def _judge(one: Check, actual: float | None) -> Violation | None:
    """Return what is wrong on one side of a metric; a broken limit is not warned of as well."""
    limit = "minimum" if one.side == "below" else "maximum"
    levels = (("error", limit, one.limit), ("warning", "warning level", one.warning))
    for kind, name, level in levels:
        if level is None:
            continue
        said = f"the {name} of {_number(level)}{one.unit}."
        if actual is None:
            said = f"was not measured, so it cannot be held against {said}"
        elif actual < level if one.side == "below" else actual > level:
            said = f"is {_number(actual)}{one.unit}, {one.side} {said}"
        else:
            continue
        return Violation(kind, one.category, one.metric, actual, level, f"{one.metric} {said}")
    return None


def _number(value: float) -> str:
    """Every digit: rounded, a value just off its limit would read like the limit."""
    return f"{value:,.0f}" if value == int(value) else repr(value)


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
            wrong = level is not None and _judge(one._replace(warning=None), level)
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

"""Quality gates as EvalOps' command line writes them: `budget.yaml`, read and checked here.

    budget = load_budget("budget.yaml", "production")
    verdict = check(budget, Metrics(quality_score=0.81, cost_usd=4.2))

A value at its limit is within it. What has a limit has to have been measured: a missing value is a
violation, never a pass. EvalOps has no known endpoint for gates, so nothing is sent; and nothing is
notified or filed, whatever `actions` asks for (`Budget.not_acted_on` says so).
Pure, but for `load_budget`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
    judged = [judge(one, metrics.value(one)) for one in budget.checks]
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


def judge(one: Check, actual: float | None) -> Violation | None:
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

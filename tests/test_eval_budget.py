"""budget.yaml: what is refused, what is merged, and each level against values on both sides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from errors import ConfigError
from loop.planning.limits_file import load_budget
from scores.limits import BudgetVerdict, Metrics, Violation, check

FULL = """
version: '1.0'
quality_score: {min: 0.6, warning: 0.7, max: 0.99}
cost: {max_usd: 10, warning_usd: 8, max_tokens: 100000, warning_tokens: 80000}
performance:
  max_latency_ms: 500
  warning_latency_ms: 400
  max_execution_time_ms: 60000
  warning_execution_time_ms: 50000
metrics:
  f1: {min: 0.5, warning: 0.6}
  toxicity: {max: 0.1, warning: 0.05}
environments:
  production:
    cost: {max_usd: 5, warning_usd: 4}
    metrics: {f1: {min: 0.55}, refusals: {max: 0}}
    actions: {fail_on_warning: true}
  development:
    actions: {fail_on_violation: false}
    quality_score: {max: null}
"""
GOOD = {
    "quality_score": 0.8,
    "cost_usd": 3.0,
    "tokens_used": 70_000.0,
    "avg_latency_ms": 300.0,
    "total_execution_time_ms": 40_000.0,
    "custom": {"f1": 0.7, "toxicity": 0.01, "refusals": 0.0},
}


def verdict(
    folder: Path, text: str, environment: str | None = None, **measured: Any
) -> BudgetVerdict:
    file = folder / "budget.yaml"
    file.write_text(text, encoding="utf-8")
    return check(load_budget(file, environment), Metrics(**measured))


def messages(found: tuple[Violation, ...]) -> list[str]:
    return [one.message for one in found]


def refusal(folder: Path, text: str, environment: str | None = None) -> str:
    file = folder / "budget.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_budget(file, environment)
    message = str(caught.value)
    assert message.startswith(str(file)) and "\n" not in message
    return message.removeprefix(str(file)).removeprefix(": ")


# What is compared


@pytest.mark.parametrize("environment", [None, "production", "development"])
def test_good_values_pass_everywhere(tmp_path: Path, environment: str | None) -> None:
    assert verdict(tmp_path, FULL, environment, **GOOD) == BudgetVerdict(True, False, (), (), None)


@pytest.mark.parametrize(
    ("changed", "kind", "category", "message"),
    [
        (
            {"quality_score": 0.59},
            "error",
            "quality",
            "quality_score is 0.59, below the minimum of 0.6.",
        ),
        (
            {"quality_score": 0.69},
            "warning",
            "quality",
            "quality_score is 0.69, below the warning level of 0.7.",
        ),
        (
            {"quality_score": 1.0},
            "error",
            "quality",
            "quality_score is 1, above the maximum of 0.99.",
        ),
        (
            {"cost_usd": 10.5},
            "error",
            "cost",
            "cost_usd is 10.5 USD, above the maximum of 10 USD.",
        ),
        (
            {"cost_usd": 8.000001},
            "warning",
            "cost",
            "cost_usd is 8.000001 USD, above the warning level of 8 USD.",
        ),
        (
            {"tokens_used": 100_001},
            "error",
            "cost",
            "tokens_used is 100,001 tokens, above the maximum of 100,000 tokens.",
        ),
        (
            {"tokens_used": 80_001},
            "warning",
            "cost",
            "tokens_used is 80,001 tokens, above the warning level of 80,000 tokens.",
        ),
        (
            {"avg_latency_ms": 501.0},
            "error",
            "performance",
            "avg_latency_ms is 501 ms, above the maximum of 500 ms.",
        ),
        (
            {"avg_latency_ms": 401.0},
            "warning",
            "performance",
            "avg_latency_ms is 401 ms, above the warning level of 400 ms.",
        ),
        (
            {"total_execution_time_ms": 60_001.0},
            "error",
            "performance",
            "total_execution_time_ms is 60,001 ms, above the maximum of 60,000 ms.",
        ),
        (
            {"total_execution_time_ms": 50_001.0},
            "warning",
            "performance",
            "total_execution_time_ms is 50,001 ms, above the warning level of 50,000 ms.",
        ),
        (
            {"custom": {"f1": 0.49, "toxicity": 0.0}},
            "error",
            "custom",
            "f1 is 0.49, below the minimum of 0.5.",
        ),
        (
            {"custom": {"f1": 0.59, "toxicity": 0.0}},
            "warning",
            "custom",
            "f1 is 0.59, below the warning level of 0.6.",
        ),
        (
            {"custom": {"f1": 0.7, "toxicity": 0.2}},
            "error",
            "custom",
            "toxicity is 0.2, above the maximum of 0.1.",
        ),
        (
            {"custom": {"f1": 0.7, "toxicity": 0.06}},
            "warning",
            "custom",
            "toxicity is 0.06, above the warning level of 0.05.",
        ),
    ],
)
def test_each_level_is_checked(
    tmp_path: Path, changed: dict[str, Any], kind: str, category: str, message: str
) -> None:
    found = verdict(tmp_path, FULL, **{**GOOD, **changed})
    (one,) = found.violations + found.warnings
    assert (one.type, one.category, one.message) == (kind, category, message)
    assert found.passed is (kind == "warning") and found.fails is (kind == "error")
    assert found.worst == (one if kind == "error" else None)


def test_a_value_at_its_level_is_within_it(tmp_path: Path) -> None:
    at_limit = {
        "quality_score": 0.99,
        "cost_usd": 8,
        "tokens_used": 80_000,
        "avg_latency_ms": 400,
        "total_execution_time_ms": 50_000,
        "custom": {"f1": 0.6, "toxicity": 0.05},
    }
    assert verdict(tmp_path, FULL, **at_limit) == BudgetVerdict(True, False, (), (), None)


@pytest.mark.parametrize(
    ("limit", "measured"),
    [
        ("cost: {max_usd: 0}", {"cost_usd": 0.01}),
        ("cost: {max_tokens: 0}", {"tokens_used": 1}),
        ("performance: {max_latency_ms: 0}", {"avg_latency_ms": 0.5}),
        ("performance: {max_execution_time_ms: 0}", {"total_execution_time_ms": 1}),
        ("metrics: {refusals: {max: 0}}", {"custom": {"refusals": 1}}),
        ("metrics: {gain: {min: 0}}", {"custom": {"gain": -0.1}}),
    ],
)
def test_a_limit_of_zero_counts(tmp_path: Path, limit: str, measured: dict[str, Any]) -> None:
    assert not verdict(tmp_path, limit, **measured).passed
    zero: dict[str, Any] = {
        key: {"refusals": 0, "gain": 0} if key == "custom" else 0 for key in measured
    }
    assert verdict(tmp_path, limit, **zero).passed


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_is_a_violation(tmp_path: Path, value: float | None) -> None:
    found = verdict(tmp_path, "cost: {max_usd: 10, warning_usd: 8}", cost_usd=value)
    assert found.violations == (
        Violation(
            "error",
            "cost",
            "cost_usd",
            None,
            10,
            "cost_usd was not measured, so it cannot be held against the maximum of 10 USD.",
        ),
    )
    assert found.warnings == () and found.fails


def test_every_missing_metric_is_named_and_a_warning_level_only_warns(tmp_path: Path) -> None:
    found = verdict(tmp_path, FULL)
    assert [one.metric for one in found.violations] == [
        "quality_score",
        "quality_score",
        "cost_usd",
        "tokens_used",
        "avg_latency_ms",
        "total_execution_time_ms",
        "f1",
        "toxicity",
    ]
    found = verdict(tmp_path, "metrics: {f1: {warning: 0.5}}")
    assert (found.passed, found.fails) == (True, False)
    assert messages(found.warnings) == [
        "f1 was not measured, so it cannot be held against the warning level of 0.5."
    ]


def test_a_warning_level_alone_is_a_lower_one_unless_there_is_only_a_maximum(
    tmp_path: Path,
) -> None:
    alone, with_max = "metrics: {m: {warning: 0.5}}", "metrics: {m: {warning: 0.5, max: 0.9}}"
    both = "metrics: {m: {min: 0.1, warning: 0.5, max: 0.9}}"
    warned = [
        [bool(verdict(tmp_path, text, custom={"m": value}).warnings) for value in (0.4, 0.6)]
        for text in (alone, with_max, both)
    ]
    assert warned == [[True, False], [False, True], [True, False]]


# What follows from it


@pytest.mark.parametrize(
    ("actions", "cost", "passed", "fails"),
    [
        ("", 11, False, True),
        ("actions: {fail_on_violation: false}", 11, False, False),
        ("actions: {fail_on_warning: true}", 9, True, True),
        ("", 9, True, False),
        ("actions: {fail_on_violation: false, fail_on_warning: true}", 11, False, False),
        ("actions: {fail_on_violation: false, fail_on_warning: true}", 9, True, True),
        ("actions: {fail_on_violation: true, fail_on_warning: true}", 8, True, False),
    ],
)
def test_actions_decide_whether_it_fails_and_not_whether_it_passed(
    tmp_path: Path, actions: str, cost: float, passed: bool, fails: bool
) -> None:
    found = verdict(tmp_path, f"cost: {{max_usd: 10, warning_usd: 8}}\n{actions}", cost_usd=cost)
    assert (found.passed, found.fails) == (passed, fails)


def test_the_worst_violation_is_the_relatively_farthest(tmp_path: Path) -> None:
    # 1,000 tokens over are 1 %, 0.2 of quality missing are a third, 4 dollars over are two fifths
    measured = {**GOOD, "quality_score": 0.4, "cost_usd": 14.0, "tokens_used": 101_000}
    found = verdict(tmp_path, FULL, **measured)
    assert [one.metric for one in found.violations] == ["quality_score", "cost_usd", "tokens_used"]
    distances = [one.relative_distance for one in found.violations]
    assert distances == pytest.approx([1 / 3, 0.4, 0.01])
    assert found.worst is found.violations[1]


def test_anything_over_a_limit_of_zero_is_worst_and_the_unmeasured_comes_last(
    tmp_path: Path,
) -> None:
    text = "quality_score: {min: 0.5}\ncost: {max_usd: 1, max_tokens: 0}"
    found = verdict(tmp_path, text, cost_usd=1000, tokens_used=1)
    assert found.worst is not None and found.worst.metric == "tokens_used"
    found = verdict(tmp_path, text, cost_usd=1.001, tokens_used=0)
    assert found.worst is not None and found.worst.metric == "cost_usd"
    found = verdict(tmp_path, text, cost_usd=1, tokens_used=0)
    assert found.worst is not None and found.worst.actual is None


def test_the_verdict_as_json(tmp_path: Path) -> None:
    found = verdict(tmp_path, "cost: {max_usd: 1, warning_tokens: 5}", cost_usd=2, tokens_used=6)
    violation = {
        "type": "error",
        "category": "cost",
        "metric": "cost_usd",
        "actual": 2,
        "threshold": 1.0,
        "message": "cost_usd is 2 USD, above the maximum of 1 USD.",
    }
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text) == {
        "passed": False,
        "fails": True,
        "violations": [violation],
        "warnings": [
            {
                **violation,
                "type": "warning",
                "metric": "tokens_used",
                "actual": 6,
                "threshold": 5,
                "message": "tokens_used is 6 tokens, above the warning level of 5 tokens.",
            }
        ],
        "worst": violation,
    }


# Environments


def test_an_environment_changes_only_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text(FULL)
    budget = load_budget(tmp_path / "budget.yaml", "production")
    assert budget.cost.model_dump() == {
        "max_usd": 5,
        "warning_usd": 4,
        "max_tokens": 100_000,
        "warning_tokens": 80_000,
    }
    assert budget.quality_score.min == 0.6
    assert budget.metrics["f1"].model_dump() == {"min": 0.55, "max": None, "warning": 0.6}
    assert sorted(budget.metrics) == ["f1", "refusals", "toxicity"]
    assert (budget.actions.fail_on_violation, budget.actions.fail_on_warning) == (True, True)
    development = load_budget(tmp_path / "budget.yaml", "development")
    assert development.quality_score.max is None  # null takes a limit away
    assert development.quality_score.min == 0.6
    assert development.actions.fail_on_violation is False


def test_environments_are_not_invented(tmp_path: Path) -> None:
    assert refusal(tmp_path, FULL, "prodution") == (
        "no environment 'prodution'; known: production, development."
    )
    assert refusal(tmp_path, "cost: {max_usd: 1}", "production") == (
        "no environment 'production'; known: none."
    )


def test_an_environment_is_checked_where_it_stands_and_after_the_merge(tmp_path: Path) -> None:
    base = "cost: {max_usd: 10, warning_usd: 8}\nenvironments: "
    assert refusal(tmp_path, base + "{dev: {cost: {max_usdd: 1}}}") == (
        "environments.dev.cost.max_usdd is not part of a budget. Did you mean max_usd?"
    )
    assert refusal(tmp_path, base + "{dev: {cost: {max_usd: 5}}}", "dev").endswith(
        "with environments.dev: one level of cost_usd is 8 USD, above the maximum of 5 USD. "
        "Change one."
    )
    assert verdict(tmp_path, base + "{dev: {cost: {max_usd: 5}}}", cost_usd=1).passed


# The file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cst: {max_usd: 1}", "cst is not part of a budget. Did you mean cost?"),
        (
            "quality_score: {minimum: 1}",
            "quality_score.minimum is not part of a budget. Did you mean min?",
        ),
        ("cost: {xyz: 1}", "cost.xyz is not part of a budget. docs/evalops.md shows its format."),
        ("metrics: {f1: {mn: 1}}", "metrics.f1.mn is not part of a budget. Did you mean min?"),
        ("cost: {max_usd: '1'}", "cost.max_usd: input should be a valid number; found '1'."),
        ("cost: {max_usd: true}", "cost.max_usd: input should be a valid number; found True."),
        ("cost: {max_usd: .nan}", "cost.max_usd: input should be a finite number; found nan."),
        ("cost: {max_usd: .inf}", "cost.max_usd: input should be a finite number; found inf."),
        (
            "cost: {max_tokens: 1e5}",
            "cost.max_tokens: input should be a valid number; found '1e5'. A number has no quotes, "
            "and 1e5 is written 1.0e+5.",
        ),
        (
            "cost: {max_usd: -1}",
            "cost.max_usd: input should be greater than or equal to 0; found -1.",
        ),
        (
            "quality_score: {min: 80}",
            "quality_score.min: input should be less than or equal to 1; found 80.",
        ),
        (
            "quality_score: {min: 0.8, warning: 0.7}",
            "one level of quality_score is 0.7, below the minimum of 0.8. Change one.",
        ),
        (
            "metrics: {m: {warning: 0.9, max: 0.5}}",
            "one level of m is 0.9, above the maximum of 0.5. Change one.",
        ),
        ("metrics: {m: {min: 0.9, max: 0.5}}", "one level of m is 0.5, below the minimum of 0.9."),
        (
            "quality_score: {warning: 0.9, max: 0.5}",
            "one level of quality_score is 0.9, above the maximum of 0.5.",
        ),
        (
            "performance: {max_latency_ms: 1.5, warning_latency_ms: 2.5}",
            "one level of avg_latency_ms is 2.5 ms, above the maximum of 1.5 ms. Change one.",
        ),
        ("cost:", "cost: input should be a valid dictionary; found None."),
        ("version: '2.0'", "version: input should be '1.0'; found '2.0'."),
        (
            "cost: {max_usd: 1, max_usd: 100}",
            "no budget can be read from it: the key 'max_usd' stands twice in the mapping of line "
            "1. Mend the file.",
        ),
        (
            "cost: [",
            "no budget can be read from it: while parsing a flow node expected the node content",
        ),
        ("", "a budget is a mapping of sections; found None."),
        ("&a [*a]", "a budget is a mapping of sections; found [[...]]."),
        (
            "actions: {fail_on_violation: false}",
            "the budget has no limit and no warning level, so it would pass whatever was measured.",
        ),
        (
            "!!python/object/apply:os.getcwd []",
            "no budget can be read from it: could not determine a constructor",
        ),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "cost: {max_usd: x}\nquality_score: {mim: 1}")
    assert "cost.max_usd: " in message and "quality_score.mim is not part of a budget." in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no budget can be read from it: .* No such"):
        load_budget(tmp_path / "gone.yaml")


@pytest.mark.parametrize("version", ["version: '1.0'", "version: 1.0", ""])
def test_the_version_may_be_quoted_or_absent(tmp_path: Path, version: str) -> None:
    assert verdict(tmp_path, f"{version}\ncost: {{max_usd: 1}}", cost_usd=1).passed


def test_a_merge_key_is_no_double(tmp_path: Path) -> None:
    text = (
        "cost: &cost {max_usd: 1, max_tokens: 5}\n"
        "environments: {dev: {cost: {<<: *cost, max_usd: 3}}}"
    )
    found = verdict(tmp_path, text, "dev", cost_usd=4, tokens_used=6)
    assert [one.threshold for one in found.violations] == [3, 5]


@pytest.mark.parametrize(
    ("actions", "is_said"),
    [("{}", False), ("{notify_channels: [slack, mail]}", True), ("{create_issue: true}", True)],
)
def test_what_is_not_acted_on_is_said(tmp_path: Path, actions: str, is_said: bool) -> None:
    (tmp_path / "budget.yaml").write_text(f"cost: {{max_usd: 1}}\nactions: {actions}")
    sentence = "actions: nobody is notified and no issue is filed, though the budget asks for it."
    found = load_budget(tmp_path / "budget.yaml").not_acted_on
    assert found == (sentence if is_said else None)

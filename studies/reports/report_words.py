"""How the report writes numbers: one format for each kind, and a word for what is not known."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from errors import one_line
from pages.document import Column, Table
from scores.intervals import Interval
from scores.results import LEVEL, EvalResult, TaskResult
from scores.wording import ROLE_NAMES, interval_text
from studies.findings.findings import ArmFinding, Difference
from studies.findings.measured import p_text
from studies.findings.outcome import StudyOutcome

UNKNOWN = "unknown"
NOT_RUN = "not run"
OF_WEIGHTS = "these weights"  # what an interval is of where nothing is trained
NONE = "n/a"  # a cell that has no meaning in its row
INTERVAL = f"{LEVEL:.0%} interval"


def score_words(score: float | None) -> str:
    return UNKNOWN if score is None else f"{score:.4f}"


def change_words(change: float | None) -> str:
    """A change of score with its sign; what is rounded to nothing has no minus."""
    return UNKNOWN if change is None else f"{change:+z.4f}"


def ends_words(interval: Interval | None, *, signed: bool = False) -> str:
    return UNKNOWN if interval is None else interval_text(interval, signed=signed)


def p_words(p_value: float | None) -> str:
    """A p in a column of its own."""
    return p_text(p_value).removeprefix("p ").removeprefix("= ")


def count_words(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:,.0f}"


def usd_words(usd: float | None) -> str:
    """Cents, and finer below a cent, so that little is not shown as nothing."""
    if usd is None:
        return UNKNOWN
    return f"${usd:,.2f}" if usd == 0 or usd >= 0.01 else f"${usd:.2g}"


def costs_words(costs: Sequence[float | None]) -> str:
    """What several cost together, behind other figures; those whose cost is unknown are told of."""
    known = [one for one in costs if one is not None]
    if not known:
        return ""
    of_some = "" if len(known) == len(costs) else f" for {len(known)} of {len(costs)} that cost any"
    return f", {usd_words(sum(known))}{of_some}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def value_words(value: Any) -> str:
    """A variable's value as in experiment.yaml; numbers without needless digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def params_words(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value_words(value)}" for name, value in params.items())


def measured_words(result: EvalResult | None) -> str:
    if result is None:
        return NOT_RUN
    return f"{score_words(result.score)} {interval_text(result.interval)}, n={result.n}"


def task_title(outcome: StudyOutcome, task: TaskResult) -> str:
    """A task by the study's name, with its role where it does not enter the score."""
    return outcome.task_names.get(task.name, task.name) + ROLE_NAMES[task.role]


def num_questions(arm: ArmFinding) -> int:
    """The questions that an arm's score rests on."""
    return sum(task.n for task in arm.tasks if task.role == "score")


def of_what(arm: ArmFinding, outcome: StudyOutcome) -> str:
    """What an arm's interval speaks of: with few seeds it is of the weights alone."""
    if arm.is_of_setting:
        return "the setting"
    if not any(one.name == arm.name and one.is_trained for one in outcome.arms):
        return OF_WEIGHTS
    return "this checkpoint" if arm.num_seeds == 1 else f"these {arm.num_seeds} checkpoints"


def difference_words(one: Difference) -> str:
    """A difference as it stands beside its interval in a chart."""
    said = f"{change_words(one.mean)} {interval_text(one.interval, signed=True)}"
    return f"{said}, {p_text(one.p_holm)}"


def short(name: str) -> str:
    """A name inside of a title; it stands whole in the tables."""
    return one_line(name, 60)


def minus(one: Difference, reference: str) -> Difference:
    """A difference as the other arm minus `reference`, which is one of the two."""
    if one.other == reference:
        return one
    ends = one.interval
    turned = None if ends is None else Interval(0.0 - ends.high, 0.0 - ends.low)
    return replace(one, one=one.other, other=one.one, mean=0.0 - one.mean, interval=turned)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A column with its cells. `said` is a clause for the caption, such as "n is {}", which takes
    the column's place where all cells but those of `exempt` are the same, or "" for a column that
    is left out where it has no others; None: always a column."""

    title: str
    cells: Sequence[str]
    is_number: bool = False
    said: str | None = None
    exempt: Collection[str] = (NONE,)

    @property
    def clause(self) -> str | None:
        found = {cell for cell in self.cells if cell not in self.exempt}
        if not found:
            return None if self.said is None else ""
        if not self.said or len(self.cells) < 2 or len(found) > 1:
            return None
        return self.said.format(*found)


def compact_table(caption: str, fields: Sequence[Field], *, is_folded: bool = False) -> Table:
    """A table without the columns that say the same of every row: the caption says it once."""
    clauses = [one.clause for one in fields]
    kept = [one for one, clause in zip(fields, clauses, strict=True) if clause is None]
    said = "; ".join(clause for clause in clauses if clause)
    return Table(
        caption,
        [Column(one.title, one.is_number) for one in kept],
        [list(row) for row in zip(*(one.cells for one in kept), strict=True)],
        is_folded,
        f"Alike: {said}." if said else "",
    )

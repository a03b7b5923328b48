"""The rounds of a run as a small table, as wide as the terminal has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from loop.reports.lines import columns_of
from loop.reports.sparkline import ends_text
from scores.measures import main_of
from scores.results import EvalResult
from scores.wording import interval_text

if TYPE_CHECKING:
    from ledger.store import RunStore

GAP = "  "
MAX_ROWS = 20  # the others are counted
WORDS = {
    "continue": "go on",
    "rollback": "go back",
    "stop_passed": "passed",
    "stop_plateau": "plateau",
    "stop_budget": "budget",
    "stop_rounds": "last round",
    "eval_failed": "no score",
}
# Names as they are shown, and in which order they go where there is no room for all of them.
NAMES = {"round": "round", "score": "score", "interval": "95 %", "n": "n", "cut": "truncated",
         "loss": "loss", "lr": "lr", "decision": "decision"}  # fmt: skip
GOES_FIRST = ("lr", "cut", "n", "loss", "interval", "decision")
TO_THE_LEFT = ("loss", "decision")


class RoundRow(NamedTuple):
    """A round: what was measured of it, the loss and rate of its steps, and what was decided.
    Where a method has measures of its own, the first of them stands in the place of the loss."""

    round: int
    result: EvalResult
    losses: Sequence[float]
    rates: Sequence[float]
    action: str
    is_best: bool
    loss_name: str = "loss"


def rounds_of(store: RunStore) -> list[RoundRow]:
    """The rounds that a run has decided on, as its ledger stands."""
    last = store.last_decision()
    rows = []
    for result in store.results():
        decision, steps = store.decision(result.round), list(store.events("step", result.round))
        name, values = main_of(steps)
        rows.append(
            RoundRow(
                result.round,
                result,
                values,  # as the diagnosis and the page have it
                [step["lr"] for step in steps],
                "" if decision is None else decision.action,
                last is not None and last.best_round == result.round > 0,
                name,
            )
        )
    return rows


def rounds_table(rows: Sequence[RoundRow], width: int) -> list[str]:
    """The lines of the table: its head, and a row for the first round, the best, and the newest."""
    shown = _shown(rows)
    cells = [_cells(row) for row in shown]
    head = {**NAMES, "loss": rows[-1].loss_name if rows else NAMES["loss"]}
    names = list(NAMES)
    if not any(row.result.num_truncated for row in rows):
        names.remove("cut")
    for name in (None, *GOES_FIRST):
        names = [one for one in names if one != name]
        columns = {n: max(columns_of(row[n]) for row in (head, *cells)) for n in names}
        if sum(columns.values()) + len(GAP) * (len(names) - 1) <= width:
            break
    lines = [_line(row, columns) for row in (head, *cells)]
    if left_out := len(rows) - len(shown):
        lines.insert(2, f"({left_out:,} more in eval_report.md)"[:width])
    return lines


def _shown(rows: Sequence[RoundRow]) -> list[RoundRow]:
    if len(rows) <= MAX_ROWS:
        return list(rows)
    newest = rows[len(rows) - MAX_ROWS + 2 :]
    best = [row for row in rows[1 : len(rows) - len(newest)] if row.is_best]
    return [rows[0], *best, *newest]


def _cells(row: RoundRow) -> dict[str, str]:
    result = row.result
    rates = dict.fromkeys(f"{rate:.3g}" for rate in (*row.rates[:1], *row.rates[-1:]))
    return {
        "round": f"{row.round}{'*' if row.is_best else ' '}",
        "score": f"{result.score:.4f}",
        "interval": interval_text(result.interval),
        "n": str(result.n),
        "cut": str(result.num_truncated),
        "loss": ends_text(row.losses),
        "lr": " -> ".join(rates),
        "decision": "baseline" if row.round == 0 else WORDS.get(row.action, row.action),
    }


def _line(cells: dict[str, str], columns: dict[str, int]) -> str:
    padded = []
    for name, width in columns.items():
        space = " " * (width - columns_of(cells[name]))
        padded.append(cells[name] + space if name in TO_THE_LEFT else space + cells[name])
    return GAP.join(padded).rstrip()

"""What a study has used against its budget. Pure but for the ledgers that it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ledger.records import Usage
from settings.groups import BudgetSettings

NOTHING = Usage(0, 0, 0, 0.0)


class Spent(NamedTuple):
    """What was used, and what it cost where there are prices."""

    usage: Usage
    usd: float | None


@dataclass
class Spending:
    """What each trial and arm has used so far, with what it cost where there are prices."""

    budget: BudgetSettings
    used: dict[str, Usage] = field(default_factory=dict)
    usd: dict[str, float] = field(default_factory=dict)
    dearest: dict[str, float] = field(default_factory=dict)  # by unit, of one round

    def note(self, run_id: str, all_of_it: Spent, rounds: Sequence[Spent] = ()) -> None:
        """What a trial has used in all by now, and each of its rounds, which tell what another one
        may need; they are the same after a kill."""
        self.used[run_id], self.usd[run_id] = all_of_it.usage, all_of_it.usd or 0.0
        for one in rounds:
            amounts = {"tokens": one.usage.tokens, "minutes": one.usage.minutes, "usd": one.usd}
            for unit, amount in amounts.items():
                self.dearest[unit] = max(self.dearest.get(unit, 0.0), amount or 0.0)

    @property
    def total(self) -> Usage:
        total = NOTHING
        for usage in self.used.values():
            total = total.plus(usage)
        return total

    def out_of(self, num_pieces: int) -> str | None:
        """Why so many rounds do not fit any more, those that are being done among them; None while
        they do."""
        total = self.total
        for unit, used, limit in (
            ("tokens", total.tokens, self.budget.tokens),
            ("minutes", total.minutes, self.budget.minutes),
            ("usd", sum(self.usd.values()), self.budget.usd),
        ):
            needed = self.dearest.get(unit, 0.0) * num_pieces
            if limit is not None and used + needed > limit:
                what = "another round" if num_pieces == 1 else f"{num_pieces} rounds"
                return (
                    f"{used:,.4g} of study.budget.{unit} {limit:,.6g} are used, and {needed:,.4g} "
                    f"would be needed for {what} like the dearest so far"
                )
        return None

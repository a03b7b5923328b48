"""What a study has used against its budget. Pure but for the ledgers that it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger.records import Usage
from settings.groups import BudgetSettings

NOTHING = Usage(0, 0, 0, 0.0)


@dataclass
class Spending:
    """What each trial and arm has used so far, with what it cost where there are prices."""

    budget: BudgetSettings
    used: dict[str, Usage] = field(default_factory=dict)
    usd: dict[str, float] = field(default_factory=dict)
    dearest: dict[str, float] = field(default_factory=dict)  # by unit, of one round

    def found(self, run_id: str, rounds: Sequence[tuple[Usage, float | None]]) -> None:
        """What each round of a trial had used before, with what it cost."""
        self.used[run_id], self.usd[run_id] = NOTHING, 0.0
        for usage, usd in rounds:
            total = self.used[run_id].plus(usage)
            self.note(run_id, total, self.usd[run_id] + (usd or 0.0))

    def note(self, run_id: str, usage: Usage, usd: float | None) -> None:
        """What a trial has used in all by now; what is new of it was one round."""
        before, before_usd = self.used.get(run_id, NOTHING), self.usd.get(run_id, 0.0)
        self.used[run_id], self.usd[run_id] = usage, usd or 0.0
        piece = {
            "tokens": usage.tokens - before.tokens,
            "minutes": usage.minutes - before.minutes,
            "usd": (usd or 0.0) - before_usd,
        }
        for unit, amount in piece.items():
            self.dearest[unit] = max(self.dearest.get(unit, 0.0), amount)

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

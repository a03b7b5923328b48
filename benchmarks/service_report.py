"""The table that compares the service with plain torch, and which targets it misses."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median


@dataclass
class Report:
    """Rows of the table, sentences below it, and which targets were missed."""

    rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def add(
        self, what: str, cells: list[str], value: float, shown: str, target: float | None
    ) -> None:
        """Add a row; `value` is held against `target`, and both are of the unit of `shown`."""
        verdict = "none stated"
        if target is not None:
            verdict = f"<= {target:g}: {'met' if value <= target else 'MISSED'}"
            if value > target:
                self.missed.append(f"{what}: {shown}, and the target is at most {target:g}")
        self.rows.append(f"| {' | '.join([what, *cells, verdict])} |")

    def ratio(
        self, what: str, service: list[float], direct: list[float], target: float | None, unit: str
    ) -> None:
        """Add a ratio of medians; `unit` formats a value of either side."""
        ratios = [one / other for one, other in zip(service, direct, strict=True)]
        ratio = median(service) / median(direct)
        cells = [unit.format(median(values)) for values in (service, direct)]
        cells += [f"{ratio:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
        self.add(what, cells, ratio, f"{ratio:.3f} times", target)

    def figure(self, what: str, value: float, unit: str, target: float | None, beside: str) -> None:
        """Add a figure that is no ratio; `beside` is what it is to be compared with."""
        shown = unit.format(value)
        self.add(what, [shown, beside, "", ""], value, shown, target)

    def conclude(self) -> int:
        """Print the table, the notes and what was missed; returns the exit code."""
        print("| | over the service | directly | ratio | ratios of the runs | target |")
        print("|---|---|---|---|---|---|")
        for line in (*self.rows, "", *self.notes):
            print(line)
        for missed in self.missed:
            print(f"MISSED: {missed}")
        return 1 if self.missed else 0


def fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

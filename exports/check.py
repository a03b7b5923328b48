"""What came of each comparison of an export with the service."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One comparison: whether it holds, a sentence with its numbers, and the numbers."""

    name: str
    passed: bool
    sentence: str
    figures: dict[str, float | int | str | None] = field(default_factory=dict)

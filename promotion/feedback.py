"""What people said of a promoted checkpoint's answers, turned into rows for the next run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FeedbackFile:
    """A file of rated answers, the entry that they are of, and who gives it."""

    name: str  # `registry:support@3`, `registry:support@champion`, `registry:champion`, `support`
    file: Path
    registry: Path  # the file
    out: Path | None = None  # a folder; None: one beside the registry
    right_from: float = 1.0  # the score from which an answer counts as right (`--right-from`)
    by: str = ""
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Taken:
    """What became of the rows, and where it was written."""

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    def lines(self) -> list[str]:
        raise NotImplementedError


def take(given: FeedbackFile) -> Taken:
    """Sort the rows of a file and write them for the next run. Raises `LoopError` children."""
    raise NotImplementedError

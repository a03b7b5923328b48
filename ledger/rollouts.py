"""The answers that a run has sampled to train on: a file for each step, a line for each prompt.

    rollouts/step_000012.jsonl

A file is written whole before its step is trained, so that a step that is taken again after a kill
trains on what was paid for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ledger.run_directory import RunDirectory
from storage.stored_json import Count, Measure, parse_object, record_of

ROLLOUTS = "rollouts"  # the folder in a run directory


@dataclass(frozen=True)
class RolledSample:
    """One sampled answer. `logprobs` are of what it was sampled from, token by token."""

    tokens: list[Count]
    logprobs: list[Measure]
    text: str
    is_truncated: bool
    reward: Measure | None  # None where none is given, as in distillation
    advantage: Measure  # the mean over its tokens, where they differ


@dataclass(frozen=True)
class RolledGroup:
    """The answers to one prompt. A group that `is_used` is trained on."""

    example_id: str
    question: str
    reference: str  # what the row answers
    samples: Annotated[list[RolledSample], Field(min_length=1)]
    is_used: bool = True


def rollouts_file(step: int) -> str:
    return f"{ROLLOUTS}/step_{step:06d}.jsonl"


def write_rollouts(store: RunDirectory, step: int, groups: Sequence[RolledGroup]) -> str:
    """Keep what was sampled for a step; returns the file's name in the run directory."""
    name = rollouts_file(step)
    lines = (json.dumps(asdict(group), ensure_ascii=False) + "\n" for group in groups)
    store.write_text(name, lines)
    return name


def read_rollouts(run_dir: Path, step: int) -> list[RolledGroup] | None:
    """What was sampled for a step; None where nothing was.

    Raises `ValueError` for a damaged file.
    """
    file = run_dir / rollouts_file(step)
    if not file.is_file():
        return None

    def group_of(line: str) -> RolledGroup:
        fields: dict[str, Any] = parse_object(line)
        return record_of(RolledGroup, fields)

    return [group_of(line) for line in file.read_text(encoding="utf-8").splitlines()]

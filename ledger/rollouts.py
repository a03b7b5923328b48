"""The answers that a run has sampled to train on: a file for each step, a line for each prompt.

    rollouts/step_000012.jsonl

A file is written whole before its step is trained, so that a step that is taken again after a kill
trains on what was paid for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ledger.run_directory import PARTIAL, RunDirectory
from storage.journal import Journal
from storage.stored_json import Count, Measure, parse_object, record_of

ROLLOUTS = "rollouts"  # the folder in a run directory


class HeardMessage(NamedTuple):
    """What the model was told, by whom."""

    role: str
    text: str


@dataclass(frozen=True)
class RolledTurn:
    """One answer in a conversation with an environment.

    Its prompt is the first `num_kept` tokens of the conversation as it stood, which is the prompt
    of the turn before and its answer, and the tokens of `read` after them.
    """

    heard: list[HeardMessage]  # since the answer before
    num_kept: Count
    read: list[Count]
    num_tokens: Count  # of the sample's tokens, in their order, that are this answer
    text: str
    reward: Measure | None  # None where the environment was not told of it, or failed


@dataclass(frozen=True)
class RolledSample:
    """One sampled answer, or with `turns` all the answers of one conversation, one after the other.
    `logprobs` are of what they were sampled from, token by token."""

    tokens: list[Count]
    logprobs: list[Measure]
    text: str  # of a conversation, the last answer's
    is_truncated: bool  # of a conversation, whether any answer is
    reward: Measure | None  # None where none is given, as in distillation
    advantage: Measure  # the mean over its tokens, where they differ
    teacher_logprobs: list[Measure] | None = None  # of its tokens, in distillation
    start_logprobs: list[Measure] | None = None  # under the weights of the start, with rl.kl_coef
    turns: list[RolledTurn] | None = None

    def prompts(self) -> list[list[int]]:
        """The tokens that each answer of a conversation was sampled after."""
        found: list[list[int]] = []
        stood: list[int] = []
        begin = 0
        for turn in self.turns or ():
            found.append([*stood[: turn.num_kept], *turn.read])
            stood = [*found[-1], *self.tokens[begin : begin + turn.num_tokens]]
            begin += turn.num_tokens
        return found


class RolloutsFile(NamedTuple):
    """Which answers a step was trained on, as its event has it."""

    sha256: str
    drawn_with: str  # of its groups


@dataclass(frozen=True)
class RolledGroup:
    """The answers to one prompt. A group that `is_used` is trained on."""

    example_id: str
    question: str
    reference: str | None  # what the row answers; None where it only asks
    samples: Annotated[list[RolledSample], Field(min_length=1)]
    is_used: bool = True
    num_tries: Annotated[int, Field(ge=1)] = 1  # groups sampled until this one, which was kept
    drawn_with: str = ""  # a digest of what led to it: settings, steps before, prompts


def rollouts_file(step: int) -> str:
    return f"{ROLLOUTS}/step_{step:06d}.jsonl"


def write_rollouts(store: RunDirectory, step: int, groups: Sequence[RolledGroup]) -> str:
    """Keep what was sampled for a step; returns the file's name in the run directory."""
    name = rollouts_file(step)
    store.write_text(name, lines_of(groups))
    return name


def lines_of(groups: Sequence[RolledGroup]) -> Iterator[str]:
    """Yield groups as a file has them, a line each."""
    return (json.dumps(asdict(group), ensure_ascii=False) + "\n" for group in groups)


def rollouts_journal(store: RunDirectory, step: int, drawn_with: str) -> Journal:
    """What has come of a step's answers until they are written, where they come about like this."""
    return Journal((store.run_dir / rollouts_file(step)).with_suffix(PARTIAL), drawn_with)


def read_rollouts(run_dir: Path, step: int, sha256: str | None = None) -> list[RolledGroup] | None:
    """What was sampled for a step; None where nothing was.

    Raises `ValueError` for a damaged file, and for one that is not of this sha256.
    """
    return read_groups(run_dir, rollouts_file(step), sha256)


def read_groups(run_dir: Path, name: str, sha256: str | None = None) -> list[RolledGroup] | None:
    """The groups in a file of the run directory; None where it is not there.

    Raises `ValueError` for a damaged file, and for one that is not of this sha256.
    """
    file = run_dir / name
    if not file.is_file():
        return None
    content = file.read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"its sha256 is not {sha256}, as the ledger has it")
    return groups_in(content)


def groups_in(content: bytes) -> list[RolledGroup]:
    """The groups in the lines of a file. Raises `ValueError`."""

    def group_of(line: str) -> RolledGroup:
        fields: dict[str, Any] = parse_object(line)
        return record_of(RolledGroup, fields)

    # An answer may hold what `splitlines` takes for a line's end.
    return [group_of(line) for line in content.decode().split("\n") if line]

"""The errors a user can meet, one paragraph each: what is wrong, where, what was found, what to do.

Everything that the outside world can break is raised as a `LoopError`; a broken promise inside the
program is an `assert`. The command line turns a child of `InputError` into exit code 2 and every
other `LoopError` into exit code 1, without a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SENT_AGAIN = "--resume would send it again"  # in what is said of a request that cannot succeed


class LoopError(Exception):
    """An error whose message is the whole explanation.

    `num_prompt_tokens` and `num_sampled_tokens` were spent on samples that no result holds,
    `num_train_tokens` on steps that no event tells of. `facts` is what --json tells beside the
    message, by name.
    """

    num_train_tokens = 0
    num_prompt_tokens = 0
    num_sampled_tokens = 0
    facts: Mapping[str, Any] = {}


class InputError(LoopError):
    """Something the user gave (settings, files, command line, environment) cannot be used."""


class ConfigError(InputError):
    """A setting or a command-line argument is wrong."""


class TokenizerError(ConfigError):
    """A base model's tokenizer cannot be loaded on this machine."""


class DataError(InputError):
    """A data or question file is missing, unreadable, empty or mostly rejected."""


class ServiceError(LoopError):
    """The Tinker service refused or lost something and the run cannot go on.

    `fault` says in one word what, for the ledger; see services/faults.py.
    """

    fault: str | None = None


class StorageError(LoopError):
    """The disk refused a write: full, read-only or broken. What was recorded before is whole."""


class TrainingError(LoopError):
    """Training itself went wrong, for example a loss that is not finite.

    `rollouts` are the files of the answers that its tokens count, each with its step.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.rollouts: list[dict[str, Any]] = []


class EvalError(LoopError):
    """An evaluation could not be completed; there is no score."""


class RunStoreError(InputError):
    """A run directory cannot be used: not empty, not a run, damaged, or of another config."""


class ExportError(LoopError):
    """An export could not be made, or does not do what the checkpoint does; nothing is left."""


class RegistryError(InputError):
    """A registry cannot be used, or a name means nothing in it."""


class TrackerError(LoopError):
    """A tracker could not be told of all of a run. The run does not depend on it."""


class Interrupted(LoopError):
    """The user asked to stop; what was paid for is saved. Exit code 130."""


class OutputGone(Interrupted):
    """Nobody reads the progress any more: whoever was given it has ended. As if asked to stop."""


def one_line(text: str, limit: int | None = None) -> str:
    """A text from outside as messages, tables and logs hold it: one printable line.

    With a `limit` the line is cut to so many characters.
    """
    line = " ".join(text.split())
    if not line.isprintable():
        line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    return line if limit is None or len(line) <= limit else line[: limit - 3] + "..."


def first_of(words: Sequence[str], most: int) -> str:
    """Names from outside as messages list them: the first, and how many more there are."""
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")

"""What a teacher has said in a run, each thing once: its answers to rows, and how likely it finds
which tokens at each place of them.

    rollouts/answers_001.jsonl         a line for each row
    rollouts/targets_001.safetensors   of each row `ID/tokens` and `ID/logprobs`, both (T, K)

There is a file for each time that it was asked, named by an event with its sha256. A file counts
whether or not its round does: the teacher is the same after going back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import RunStoreError
from ledger.rollouts import ROLLOUTS, RolledGroup, groups_in, lines_of
from ledger.run_directory import PARTIAL, Event, RunDirectory
from storage.journal import Journal, num_waiting_tokens

if TYPE_CHECKING:
    import numpy as np


class _Files:
    """The files of one kind, by the type of event that names them."""

    def __init__(self, store: RunDirectory, event_type: str, name: str) -> None:
        self._store, self._type, self._name = store, event_type, name
        self._known: set[str] = set()  # files whose sha256 is right

    @property
    def _next(self) -> str:
        number = sum(1 for _ in self._store.ever(self._type)) + 1
        return f"{ROLLOUTS}/{self._name.format(number)}"

    def paths(self) -> Iterator[Path]:
        """Yield what was kept so far, oldest first. Raises `RunStoreError` for a file that was
        changed."""
        for event in self._store.ever(self._type):
            path = self._store.run_dir / event["file"]
            # A kill may have left the journal of what is recorded, which would count again.
            path.with_suffix(PARTIAL).unlink(missing_ok=True)
            if event["file"] not in self._known:
                self._check(path, event)
            yield path

    def _check(self, path: Path, event: Event) -> None:
        try:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != event["sha256"]:
                    raise ValueError(f"its sha256 is not {event['sha256']}, as the ledger has it")
        except (OSError, ValueError) as error:
            raise _refusal(path, error) from None
        self._known.add(event["file"])

    def journal(self) -> Journal:
        """What goes into the file that comes next, one by one."""
        path = (self._store.run_dir / self._next).with_suffix(PARTIAL)
        return Journal(path, "the teacher")

    def record(
        self, round_no: int, content: bytes, journal: Journal, counts: Mapping[str, int]
    ) -> None:
        """Keep a file of what the journal holds."""
        name = self._next
        self._store.write_bytes(name, content)
        num_prompt_tokens, num_sampled_tokens = num_waiting_tokens(journal.path)
        self._store.append(
            self._type,
            round=round_no,
            file=name,
            sha256=hashlib.sha256(content).hexdigest(),
            num_prompt_tokens=num_prompt_tokens,
            num_sampled_tokens=num_sampled_tokens,
            **counts,
        )
        journal.discard()


def _refusal(path: Path, error: Exception) -> RunStoreError:
    return RunStoreError(
        f"{path}: {error}. It holds what the teacher said, which was paid for, and was changed by "
        "something else. Restore it, or start a new run."
    )


class TaughtAnswers:
    """The teacher's answers, once for each row."""

    def __init__(self, store: RunDirectory) -> None:
        self._files = _Files(store, "answered", "answers_{:03d}.jsonl")

    def of(self, example_ids: Collection[str]) -> dict[str, RolledGroup]:
        """The answers to those of these rows that have been answered. Raises `RunStoreError`."""
        found: dict[str, RolledGroup] = {}
        wanted = set(example_ids)
        for path in self._files.paths():
            try:
                groups = groups_in(path.read_bytes())
            except (OSError, ValueError) as error:
                raise _refusal(path, error) from None
            found |= {one.example_id: one for one in groups if one.example_id in wanted}
        return found

    def journal(self) -> Journal:
        """The answers that come next, one by one."""
        return self._files.journal()

    def record(self, round_no: int, groups: Sequence[RolledGroup], journal: Journal) -> None:
        """Keep the answers that a round needs beside those before, which the journal holds."""
        counts = {
            "num_rows": len(groups),
            "num_answers": sum(len(one.samples) for one in groups),
            "num_truncated": sum(one.is_truncated for group in groups for one in group.samples),
        }
        self._files.record(round_no, "".join(lines_of(groups)).encode(), journal, counts)


class TopTokens(NamedTuple):
    """At each of T tokens the K that the teacher finds likeliest, and their log-probabilities in
    nats: int32 and float32."""

    tokens_TK: np.ndarray
    logprobs_TK: np.ndarray


class SoftTargets:
    """What the teacher finds likely at each token of its answers, once for each row; those of a
    row's answers stand one after the other."""

    def __init__(self, store: RunDirectory) -> None:
        self._files = _Files(store, "targets_read", "targets_{:03d}.safetensors")
        self._known: dict[str, Path] = {}

    def known(self) -> Collection[str]:
        """The rows that have been read. Raises `RunStoreError`."""
        for path in self._files.paths():
            with _opened(path) as file:
                names = (name.partition("/") for name in file.keys())  # noqa: SIM118
                self._known |= {one: path for one, _, what in names if what == "tokens"}
        return self._known.keys()

    def of(self, num_tokens: Mapping[str, int]) -> dict[str, TopTokens]:
        """Those of rows that `known` has told of, by how many tokens their answers have, as they
        were given, bit for bit. Raises `RunStoreError` where a file has other ones."""
        known = self._known
        found: dict[str, TopTokens] = {}
        for path in dict.fromkeys(known[one] for one in num_tokens):
            with _opened(path) as file:
                for one, number in num_tokens.items():
                    if known[one] == path:
                        found[one] = TopTokens(*(file.get_tensor(f"{one}/{p}") for p in _PARTS))
                        sizes = {part.shape for part in found[one]}
                        if len(sizes) > 1 or next(iter(sizes))[:1] != (number,):
                            raise ValueError(f"what it has of row {one} is not of {number} tokens")
        return found

    def journal(self) -> Journal:
        """What comes next, answer by answer."""
        return self._files.journal()

    def record(self, round_no: int, rows: Mapping[str, TopTokens], journal: Journal) -> None:
        """Keep what a round needs beside what was read before, which the journal holds."""
        from safetensors.numpy import save

        tensors = {
            f"{example_id}/{what}": tensor
            for example_id, one in rows.items()
            for what, tensor in zip(_PARTS, one, strict=True)
        }
        counts = {"num_rows": len(rows)}
        self._files.record(round_no, save(tensors), journal, counts)


_PARTS = ("tokens", "logprobs")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of tensors. Raises `RunStoreError` for what is found wrong with it meanwhile."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise _refusal(path, error) from None

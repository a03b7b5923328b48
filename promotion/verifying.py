"""`registry.py verify`: the chain of lines, and the files that its entries were promoted by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from errors import LoopError
from ledger.registry_file import Promoted, Registry, Results
from ledger.registry_names import problem_of, run_of
from ledger.registry_weights import digest_of, weights_dir
from ledger.store import MANIFEST, RunStore
from storage.stored_json import record_of

State = Literal["ok", "gone", "changed", "not read"]


class Finding(NamedTuple):
    """What became of one thing that an entry was promoted by."""

    what: str
    state: State
    detail: str

    @property
    def holds(self) -> bool:
        return self.state in ("ok", "not read")


class EntryFindings(NamedTuple):
    """What became of all that an entry was promoted by."""

    entry: Promoted
    is_retired: bool
    findings: list[Finding]

    @property
    def holds(self) -> bool:
        """Whether the entry is what it was; of a retired one files may be gone."""
        return all(one.holds or (self.is_retired and one.state == "gone") for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        found = [finding._asdict() for finding in self.findings]
        about = {"reference": self.entry.reference, "retired": self.is_retired}
        return {**about, "holds": self.holds, "findings": found}

    def lines(self) -> list[str]:
        """A line on what holds, and one on each thing that does not, or was not read."""
        called = self.entry.key + (" (retired)" if self.is_retired else "")
        good = ", ".join(finding.what for finding in self.findings if finding.state == "ok")
        lines = [f"{called}: as promoted: {good or 'nothing'}"]
        for finding in self.findings:
            if finding.state != "ok":
                state = finding.state if finding.holds else finding.state.upper()
                lines.append(f"{called}: {finding.what} {state}: {finding.detail}")
        return lines


class Verification(NamedTuple):
    """What a registry proves of itself and of its files."""

    registry: Registry
    has_head: bool | None  # whether the line is in it that was asked for; None where none was
    entries: list[EntryFindings]

    @property
    def holds(self) -> bool:
        return (
            self.registry.problem is None
            and self.has_head is not False
            and all(one.holds for one in self.entries)
        )


def verify(registry: Registry, head: str | None = None) -> Verification:
    """Hold a registry against its chain and its files. `head` is the hash of a line that was noted
    elsewhere: what came up to it was not written anew, where it is still in the chain."""
    entries = [
        EntryFindings(entry, registry.is_retired(entry), list(_findings(registry, entry)))
        for entry in registry.entries
    ]
    has_head = None if head is None else head in registry.hashes
    return Verification(registry, has_head, entries)


def _findings(registry: Registry, entry: Promoted) -> Iterator[Finding]:
    problems: list[str] = []
    store = run_of(registry, entry, problems)
    if store is None:
        yield Finding("run", "gone", "; ".join(problems))
        return
    yield Finding("run", "ok", str(store.run_dir))
    yield _weights(store, entry)
    yield _results("evaluation", registry, store, entry.results)
    if entry.sealed_test is not None:
        yield _results("sealed test", registry, store, entry.sealed_test)
    yield _file("data", store.run_dir / MANIFEST, entry.data_sha256)


def _weights(store: RunStore, entry: Promoted) -> Finding:
    try:
        problem = problem_of(store, store.checkpoint(entry.round), entry)
    except LoopError as error:
        return Finding("weights", "changed", str(error))
    folder = weights_dir(store.run_dir, entry.sampler_path)
    if problem is not None:
        is_gone = entry.weights_sha256 is not None and not folder.is_dir()
        return Finding("weights", "gone" if is_gone else "changed", problem)
    if entry.weights_sha256 is None:
        return Finding("weights", "not read", f"{entry.sampler_path}: the service keeps the files")
    return Finding("weights", "ok", str(folder))


def _results(what: str, registry: Registry, store: RunStore, results: dict[str, Any]) -> Finding:
    looked_up = record_of(Results, results)
    if looked_up.file is None or looked_up.file_sha256 is None:
        return Finding(what, "not read", "the entry names no file")
    folder = store.run_dir
    if looked_up.evaluation_dir is not None:
        folder = registry.folder / looked_up.evaluation_dir
    return _file(what, folder / looked_up.file, looked_up.file_sha256)


def _file(what: str, file: Path, sha256: str) -> Finding:
    found = digest_of(file)
    if found is None:
        return Finding(what, "gone", f"{file} is not there, or is no file")
    if found != sha256:
        return Finding(what, "changed", f"{file} is not the file that it was (sha256 {found})")
    return Finding(what, "ok", str(file))

"""`registry.py verify`: the chain of lines, and the files that its entries were promoted by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from errors import LoopError
from ledger.registry_file import Promoted, Registry, Results
from ledger.registry_names import measured_in, problem_of, run_of, weights_problem
from ledger.registry_weights import digest_of, weights_dir
from ledger.store import MANIFEST, TEST_FILE, RunStore
from promotion.entry import summary_of
from scores.results import EvalResult
from storage.stored_json import record_of

State = Literal["ok", "gone", "changed", "grown", "not read"]
PARTS = ("tasks", "held_out")  # of an entry's results, by name


class Finding(NamedTuple):
    """What became of one thing that an entry was promoted by."""

    what: str
    state: State
    detail: str

    @property
    def holds(self) -> bool:
        return self.state in ("ok", "grown", "not read")


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
    yield _results("evaluation", measured_in(registry, entry, store.run_dir), entry.results)
    if entry.sealed_test is not None:
        yield _results("sealed test", store.run_dir, entry.sealed_test)
    yield _file("data", store.run_dir / MANIFEST, entry.data_sha256)


def _weights(store: RunStore, entry: Promoted) -> Finding:
    try:
        problem = problem_of(store, store.checkpoint(entry.round), entry) or weights_problem(
            store.run_dir, entry.weights_sha256, entry.state_path
        )
    except LoopError as error:
        return Finding("weights", "changed", str(error))
    folder, state_folder = (
        weights_dir(store.run_dir, path) for path in (entry.sampler_path, entry.state_path)
    )
    if problem is not None:
        is_there = folder.is_dir() and state_folder.is_dir()
        is_gone = entry.weights_sha256 is not None and not is_there
        return Finding("weights", "gone" if is_gone else "changed", problem)
    if entry.weights_sha256 is None:
        return Finding("weights", "not read", f"{entry.sampler_path}: the service keeps the files")
    return Finding("weights", "ok", str(folder))


def _results(what: str, folder: Path, results: dict[str, Any]) -> Finding:
    """Of an evaluation the file, and that the entry says of it what it holds. A run that went on
    may have measured more tasks of the round since: the file is another one then, and what the
    entry says has to stand in it."""
    looked_up = record_of(Results, results)
    if looked_up.file is None or looked_up.file_sha256 is None:
        return Finding(what, "not read", "the entry names no file")
    file = folder / looked_up.file
    found = _file(what, file, looked_up.file_sha256)
    if found.state == "gone":
        return found
    try:
        result = _result_in(RunStore.open(folder), looked_up.file)
    except LoopError as error:
        return Finding(what, "changed", str(error))
    other = "it is no evaluation" if result is None else _disagreement(results, result)
    if other is not None:
        why = f"{file}: {other}" if found.state == "ok" else f"{found.detail}: {other}"
        return Finding(what, "changed", why)
    is_more = result is not None and set() < _said_names(results) < _names(result)
    if found.state == "changed" and is_more:
        return Finding(what, "grown", f"{file} has more tasks now, and what the entry says of it")
    return found


def _result_in(store: RunStore, file: str) -> EvalResult | None:
    """The result that a file of a run or of an evaluation holds, as its ledger has it."""
    match = re.fullmatch(r"evals/(?:round|checkpoint)_(\d{1,9})\.json", file)
    if match is not None:
        return store.result(int(match[1]))
    return store.test_result() if file == TEST_FILE else None


def _disagreement(said: Mapping[str, Any], result: EvalResult) -> str | None:
    """What an entry says of a result that it does not hold; None where it holds all of it."""
    now = summary_of(result)
    for key in ("score", "interval", "n", "protocol_hash"):
        if key in said and said[key] != now[key]:
            return f"the entry has {key} {said[key]!r:.80}, and it has {now[key]!r:.80}"
    for kind in PARTS:
        for name, figures in _part(said, kind).items():
            if now[kind].get(name) != figures:
                return f"the entry has other figures of {name!r:.80}"
    return None


def _names(result: EvalResult) -> set[str]:
    return {*(task.name for task in result.tasks), *(loss.name for loss in result.held_out)}


def _said_names(said: Mapping[str, Any]) -> set[str]:
    return {name for kind in PARTS for name in _part(said, kind)}


def _part(said: Mapping[str, Any], kind: str) -> dict[str, Any]:
    figures = said.get(kind)
    return figures if isinstance(figures, dict) else {}


def _file(what: str, file: Path, sha256: str) -> Finding:
    found = digest_of(file)
    if found is None:
        return Finding(what, "gone", f"{file} is not there, or is no file")
    if found != sha256:
        return Finding(what, "changed", f"{file} is not the file that it was (sha256 {found})")
    return Finding(what, "ok", str(file))

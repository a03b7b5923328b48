"""A registry as `registry.py list` and `show` print it, in lines and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from errors import LoopError, one_line
from ledger.registry_chain import Event
from ledger.registry_file import Promoted, Registry, Results
from loop.reports.lines import columns_of, cut, wrapped
from promotion.staleness import Freshness, freshness_of
from storage.stored_json import record_of

WIDTH = 80
BY_CHARS = 8
MAX_COLUMN = 16  # of names; a longer one has a line of its own
MAX_DETAIL = 400
NOTIFIED = "notified"  # the event of a command that a promotion ran
NO_TEST = "none that was asked of these weights"


class Shown(NamedTuple):
    """An entry, and how it stands now."""

    entry: Promoted
    results: Results
    aliases: list[str]
    retired: str | None  # why
    stale: list[str]
    unchecked: list[str]  # what could not be compared, as a file that is gone
    unknown: str | None  # why it cannot be told whether its results are stale

    @property
    def marks(self) -> list[str]:
        """What it is called else, and what is to be known of it before it is used."""
        flags = {
            "RETIRED": self.retired is not None,
            "STALE": bool(self.stale),
            "NOT CHECKED": self.unknown is not None,
            "FORCED": self.entry.forced is not None,
        }
        return [*self.aliases, *(flag for flag, is_so in flags.items() if is_so)]

    def to_json(self) -> dict[str, Any]:
        stands = {
            "reference": self.entry.reference,
            "aliases": self.aliases,
            "retired": self.retired,
            "stale": self.stale,
            "not_checked": self.unchecked,
            "staleness_unknown": self.unknown,
        }
        return {**stands, **asdict(self.entry)}


def shown_of(registry: Registry, entry: Promoted) -> Shown:
    """How an entry stands now. What is retired is not held against its files any more."""
    retired, fresh, unknown = registry.retired(entry), Freshness([], []), None
    if retired is None:
        try:
            fresh = freshness_of(registry, entry)
        except LoopError as error:
            unknown = str(error)
    results = record_of(Results, entry.results)
    why = None if retired is None else retired.reason
    aliases = registry.aliases_of(entry)
    return Shown(entry, results, aliases, why, fresh.stale, fresh.unchecked, unknown)


# --- a table --------------------------------------------------------------------------------------


def table(shown: Sequence[Shown]) -> list[str]:
    """A row an entry, in so many columns that a terminal has; a long name has a line of its own."""
    lengths = (columns_of(one.entry.key) for one in shown)
    width = max((n for n in lengths if n <= MAX_COLUMN), default=len("name"))
    lines = [f"{'name':<{width}} {_HEAD} aliases".rstrip()]
    for one in shown:
        key, cells, marks = one.entry.key, _cells(one), ", ".join(one.marks)
        if columns_of(key) > width:
            lines.append(key)
            key = ""
        row = f"{key:<{width}} {cells} {marks}".rstrip()
        if columns_of(row) <= WIDTH:
            lines.append(row)
        else:
            lines.append(f"{key:<{width}} {cells}".rstrip())
            lines.append(wrapped(f"  {marks}", WIDTH))
    return lines


_HEAD = f"{'score':<19} {'n':>5} {'when (UTC)':<10} {'by':<{BY_CHARS}}"


def _cells(one: Shown) -> str:
    score, number = _score(one.results), "" if one.results.n is None else str(one.results.n)
    by = cut(one_line(one.entry.promoted_by), BY_CHARS)
    by += " " * (BY_CHARS - columns_of(by))
    return f"{score:<19} {number:>5} {one.entry.time[:10]} {by}"


def _score(results: Results) -> str:
    if results.score is None:
        return "not measured"
    low, high = results.interval or (None, None)
    interval = "[unknown]" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"
    return f"{results.score:.4f} {interval}"


def refused_of(registry: Registry, name: str | None) -> list[Event]:
    """The promotions that were refused, of a name or of all, oldest first."""
    events = (event for event in registry.events if event["type"] == "refused")
    return [event for event in events if name in (None, event.get("name"))]


def refusal_line(event: Event) -> str:
    """What was refused, when, to whom and why."""
    objections = event.get("objections")
    listed = objections if isinstance(objections, list) else []
    why = [_said(one) for one in listed if isinstance(one, dict)]
    what = one_line(f"{event.get('checkpoint')} as {event.get('name')}", MAX_DETAIL)
    by = one_line(str(event.get("by")), MAX_DETAIL)
    return f"{event['time']} {what}, by {by}: {one_line('; '.join(why)) or 'no reason recorded'}"


def _steps(entry: Promoted) -> str:
    """The steps that its weights have had: the run may have gone back on others."""
    if entry.num_steps is None:
        return f"saved at step {entry.step} of the run, with those that it went back on"
    back = entry.step - entry.num_steps
    return f"{entry.num_steps} steps" + (f", and {back} that the run went back on" if back else "")


# --- one entry ------------------------------------------------------------------------------------


def describe(registry: Registry, one: Shown) -> Iterator[str]:
    """Yield what an entry is, how it stands, and what happened to it, a line a fact."""
    entry, results = one.entry, one.results
    yield f"{entry.reference}, promoted on {entry.time} by {one_line(entry.promoted_by)}"
    if entry.forced is not None:
        yield f"promoted all the same: {one_line(entry.forced)}"
    for objection in entry.objections:
        yield f"in spite of: {one_line(_said(objection))}"
    yield f"aliases: {', '.join(one.aliases) or 'none'}"
    if one.retired is not None:
        yield f"retired: {one_line(one.retired)}"
    for reason in one.stale:
        yield f"stale: {one_line(reason)}"
    for what in one.unchecked:
        yield f"not checked for changes: {one_line(what)}"
    if one.unknown is not None:
        yield f"whether its results are stale cannot be told: {one_line(one.unknown)}"
    yield f"checkpoint: round {entry.round} of run {entry.run_id}, {_steps(entry)}"
    yield f"run directory: {entry.run_dir}"
    yield f"sampler weights: {entry.sampler_path}"
    yield f"state to train on from: {entry.state_path}"
    for file, sha256 in sorted((entry.weights_sha256 or {}).items()):
        yield f"  {one_line(file)} sha256 {sha256}"
    if entry.weights_sha256 is None:
        yield "  the service keeps the files: there is no sha256 of them"
    yield f"base model: {one_line(entry.base_model)}, renderer {one_line(entry.renderer)}"
    for file, sha256 in sorted((entry.base_sha256 or {}).items()):
        yield f"  {one_line(file)} sha256 {sha256}"
    lora = ", ".join(f"{key} {value}" for key, value in entry.lora.items())
    yield f"adapter: {one_line(lora, MAX_DETAIL)}"
    yield f"data manifest: sha256 {entry.data_sha256}"
    yield f"score: {_measured(results)}"
    sealed = None if entry.sealed_test is None else record_of(Results, entry.sealed_test)
    yield f"sealed test: {NO_TEST if sealed is None else _measured(sealed)}"
    yield f"started from: {'the base model' if entry.parent is None else one_line(entry.parent)}"
    if entry.against is not None:
        yield f"compared with: {one_line(_said(entry.against), MAX_DETAIL)}"
    yield f"command: {one_line(shlex.join(entry.command), MAX_DETAIL)}"
    for note in entry.notes:
        yield f"note: {one_line(note)}"
    for event in history_of(registry, entry):
        yield f"{event['time']} {_told(event)}"


def _measured(results: Results) -> str:
    if results.score is None:
        return "not measured"
    number = "unknown" if results.n is None else results.n
    protocol = one_line(results.protocol_hash or "unknown", 80)
    return f"{_score(results)}, n={number}, protocol {protocol}"


def _said(record: dict[str, Any]) -> str:
    """The sentence in a record where it has one, or else its fields."""
    for key in ("sentence", "said"):
        if isinstance(record.get(key), str):
            return record[key]
    return ", ".join(f"{key} {value}" for key, value in record.items())


def history_of(registry: Registry, entry: Promoted) -> list[Event]:
    """What happened to an entry since it was promoted, oldest first."""
    keys = (entry.key, entry.reference)
    return [
        event
        for event in registry.events
        if (
            event["type"] in ("alias", "retired")
            and event["name"] == entry.name
            and entry.version in (event["version"], event.get("was"))
        )
        or (
            event["type"] not in ("promoted", "alias", "retired")
            and any(event.get(key) in keys for key in ("entry", "reference"))
        )
    ]


def _told(event: Event) -> str:
    by = f", by {one_line(str(event.get('by')), 80)}" if event.get("by") else ""
    why = event.get("forced") or event.get("reason") or event.get("problem")
    because = f": {one_line(str(why), MAX_DETAIL)}" if why else ""
    if event["type"] == "alias" and event["version"] is None:
        return f"{event['alias']} no more{by}{because}"
    if event["type"] == "alias":
        was = event.get("was")
        before = "" if was is None else f", which was version {was} before"
        return f"{event['alias']} is version {event['version']}{before}{by}{because}"
    done = "the command of --then was run" if event["type"] == NOTIFIED else event["type"]
    return f"{done}{by}{because}"

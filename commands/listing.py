"""`--list`: which weights a run has saved, where, since and until when."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from errors import ConfigError
from ledger.records import SavedWeights
from ledger.store import RunStore
from loop.reports.console import say, tell, width_of
from loop.reports.lines import columns_of, wrapped


def missing_from(folder: Path, saved: Sequence[SavedWeights]) -> set[str]:
    """Paths whose weights are not in the embedded service's folder any more."""
    missing = set()
    for one in saved:
        parts = one.path.removeprefix("tinker://").split("/")
        is_plain = len(parts) == 3 and not any(part in ("", ".", "..") for part in parts)
        if not (is_plain and (folder / parts[0].replace(":", "_") / parts[1] / parts[2]).is_dir()):
            missing.add(one.path)
    return missing


def listing(
    saved: Sequence[SavedWeights],
    where: str,
    scores: Mapping[int, float],
    best_round: int | None,
    missing: Collection[str],
    width: int | None = None,
) -> str:
    """The table that `--list` prints; `missing` are paths that should be on this disk and are not.

    Times are UTC. Where a row would be wider than `width`, each path has a line of its own.
    """
    head = (
        f"Saved weights, {where}.\nThose of the best round do not expire as long as it is the best."
    )
    names = f"{'round':>5} {'step':>6} {'kind':<8} {'score':>6}  {'saved':<16}  {'until':<16}"
    rows = []
    for one in saved:
        is_scored = one.kind == "sampler" and one.round in scores and not one.is_superseded
        score = f"{scores[one.round]:.4f}" if is_scored else ""
        until = "no expiry" if one.expires_at is None else _minute(one.expires_at)
        marks = {
            "best": one.round == best_round and one.kind == "sampler" and not one.is_superseded,
            "superseded": one.is_superseded,
            "NOT THERE": one.path in missing,
        }
        cells = (
            f"{one.round:>5} {one.step:>6} {one.kind:<8} {score:>6}  {_minute(one.saved_at):<16}"
        )
        shown = ", ".join(mark for mark, is_so in marks.items() if is_so)
        prose = f"round {one.round}, step {one.step}, {one.kind}{', score ' * bool(score)}{score}"
        kept = until if one.expires_at is None else f"until {until}"
        prose += f": saved {_minute(one.saved_at)}, {kept}"
        marks = f"  ({shown})" if shown else ""
        rows.append(_Row(f"{cells}  {until:<16}", one.path, marks, prose))
    whole = [f"{names}  path", *(f"{row.cells}  {row.path}{row.marks}" for row in rows)]
    if width is None or all(columns_of(line) <= width for line in whole):
        return "\n".join([head if width is None else wrapped(head, width), *whole])
    if columns_of(names) > width:  # no room for columns
        parts = [part for r in rows for part in (r.prose, f"  {r.path}", r.marks) if part]
        return "\n".join(wrapped(part, width) for part in (head, *parts))
    lines = [wrapped(head, width), f"{names.rstrip()}  (path below)"]
    for row in rows:
        fits = columns_of(row.cells + row.marks) <= width
        lines.append(row.cells.rstrip() + row.marks if fits else row.cells.rstrip())
        lines += [f"  {row.path}"] if fits else [f"  {row.path}", row.marks]
    return "\n".join(lines)


class _Row(NamedTuple):
    cells: str
    path: str
    marks: str  # in brackets, or nothing
    prose: str  # the cells as a sentence, for where columns have no room


def _minute(stamp: str) -> str:
    return stamp[:16].replace("T", " ")


def list_checkpoints(args: argparse.Namespace) -> int:
    """Print which weights a run has saved. Reads the run directory alone."""
    store = RunStore.open(args.list)
    settled = store.settled_config()
    if store.is_evaluation:
        raise ConfigError(
            f"{args.list}: this is an evaluation of checkpoints, which saves no weights. --list "
            "takes the directory of a run."
        )
    service = settled["resolved"]["service"]
    saved, decision = store.saved_weights(), store.last_decision()
    best_round = None if decision is None else decision.best_round
    missing: set[str] = set()
    address = "Tinker" if service == "tinker" else settled["config"].get("base_url")
    where = f"on the service at {address or 'TINKER_BASE_URL'}"
    if service == "embedded":
        folder = store.run_dir / "checkpoints"
        missing, where = missing_from(folder, saved), f"on this machine in {folder}"
    if args.json:
        rows = [{**one._asdict(), "is_best": one.round == best_round} for one in saved]
        started_from = None if store.origin is None else asdict(store.origin)
        listed = {"where": where, "checkpoints": rows, "missing": sorted(missing)}
        say(json.dumps({**listed, "started_from": started_from}))
    else:
        if store.origin is not None:
            tell(f"Started from {store.origin.chain}: {store.origin.parent.state_path}.")
        width = width_of(sys.stdout)
        say(listing(saved, where, store.scores(), best_round, missing, width))
    return 0

"""What trials said of themselves that a reader of the study must know: the rows that their data
lost, and their warnings. Each stands once, with the trials that it is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from errors import one_line
from ledger.records import Manifest
from ledger.store import RunStore
from storage.files import read_lines
from studies.findings.measured import listed, listed_few

MAX_WARNINGS = 12
MAX_LENGTH = 300  # characters of a warning
WARNING = "warning: "
LABELS = {
    "duplicate": "that stand in the files already",
    "near_duplicate": "nearly like another row",
    "no_loss_tokens": "without a token to train on",
    "tie": "pairs in which neither answer is better",
    "unpaired": "marked answers without one of the other kind",
    "opposite": "pairs that stand the other way round as well",
}


def lost_rows(stores: Mapping[str, RunStore]) -> list[str]:
    """A sentence on the rows that were left out of training, or are near a question."""
    of: dict[str, list[str]] = {}
    for run_id, store in stores.items():
        if store.has_started:
            for sentence in _of_data(store.manifest()):
                of.setdefault(sentence, []).append(run_id)
    return [f"{said} ({_whose(names, stores)})." for said, names in of.items()]


def _of_data(manifest: Manifest) -> Iterator[str]:
    dropped = dict(manifest.num_dropped)
    num_similar = manifest.num_similar + dropped.pop("similar", 0)  # older runs list them there
    told = [
        f"{number:,} {_asked(manifest, number) if kind == 'contaminated' else _label(kind)}"
        for kind, number in sorted(dropped.items())
        if number
    ]
    if told:
        yield f"Rows left out of training: {listed(told)}"
    if num_similar:
        yield f"Rows trained on though they are similar to an evaluation question: {num_similar:,}"


def _label(kind: str) -> str:
    return LABELS.get(kind, kind.replace("_", " "))


def _asked(manifest: Manifest, number: int) -> str:
    """Of how many questions contaminated rows are; the manifest lists the first rows alone."""
    listed_rows = [row for row in manifest.dropped if row.kind == "contaminated"]
    questions = len({row.other for row in listed_rows if row.other is not None})
    if not questions:
        return "contaminated, which ask what an evaluation asks"
    least = "" if len(listed_rows) == number else "at least "
    are = "question" if questions == 1 else "questions"
    return f"contaminated, which ask {least}{questions} evaluation {are}"


def warnings_said(logs_dir: Path, run_ids: Sequence[str], known: Sequence[str]) -> list[str]:
    """The warnings in trials' logs but for those that are told anyway. Those that differ by their
    numbers alone are one, with the numbers of the first."""
    said: dict[str, dict[str, list[str]]] = {}
    for run_id in run_ids:
        for line in read_lines(logs_dir / f"{run_id}.log", repair=False).complete:
            text = line.decode("utf-8", "replace")
            if text.startswith(WARNING) and text.removeprefix(WARNING) not in known:
                shown = one_line(text.removeprefix(WARNING), MAX_LENGTH)
                alike = said.setdefault(re.sub(r"\d+(?:[.,]\d+)*", "\0", shown), {})
                names = alike.setdefault(shown, [])
                if run_id not in names:
                    names.append(run_id)
    told = [_warning(alike, run_ids) for alike in said.values()]
    more = len(told) - MAX_WARNINGS
    rest = [f"Trials warned of {more} more things: results/logs has each."] if more > 0 else []
    return [*told[:MAX_WARNINGS], *rest]


def _warning(alike: Mapping[str, list[str]], run_ids: Sequence[str]) -> str:
    (first, names), *others = alike.items()
    later = {name for _, of in others for name in of} - set(names)
    also = f"; with other numbers {listed_few([n for n in run_ids if n in later])}" if later else ""
    return f"A trial warned: {first} ({_whose(names, run_ids)}{also})."


def _whose(names: Sequence[str], every: Sequence[str] | Mapping[str, object]) -> str:
    return "all trials" if len(names) == len(every) > 1 else listed_few(names)

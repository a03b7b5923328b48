"""The page's part on questions and answers: each round's samples, to be filtered and compared.

What is in the page is said by an index: the rounds, the tasks, what was not run and why. A round's
samples are a part of their own, which the page's script reads when somebody looks at it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from config_schema import TrainingConfig
from ledger.run_directory import EVALUATED
from ledger.store import RunStore
from loop.run_page.answer_parts import Source, part_of, relative_href
from loop.run_page.viewed import Viewed
from pages.document import Mount, Section
from pages.html import Behaviour, DataPart

ANSWERS = "answers"  # the section's id, and what its links begin with
INDEX = "answers-index"
ENDS = ("eval_failed", "failed", "interrupted")  # events that break a run off
PAGE_CHARS = 13_000_000  # of all parts together; the rounds that matter least are left out


class Answers(NamedTuple):
    section: Section
    behaviour: Behaviour


class Round(NamedTuple):
    """A round, or a checkpoint of an evaluation; `source` is None where nothing was measured."""

    number: int
    name: str
    note: str  # why it has no result; empty where it has
    source: Source | None

    @property
    def part_id(self) -> str:
        return f"{ANSWERS}-{self.number}"


def answers_at(round_no: int, task: str | None = None) -> str:
    """A link to the answers of a round, of its first task unless told otherwise."""
    chosen = "" if task is None else f"?task={quote(task, safe='', errors='replace')}"
    return f"#{ANSWERS}/{round_no}{chosen}"


def answers_of(view: Viewed) -> Answers:
    """The section, and what makes it work. A round that has no kept part gets one where this
    process holds the run. Raises `RunStoreError` and `StorageError`."""
    store = view.store
    rounds = rounds_of(store)
    recommended = recommended_of(store, rounds)
    parts = parts_of(store, rounds, recommended)
    index = {
        "recommended": recommended,
        "is_evaluation": store.is_evaluation,
        "rounds": [_in_index(one, one.part_id in parts) for one in rounds],
        "tasks": _tasks(view, rounds),
    }
    text = json.dumps(index, ensure_ascii=False).encode("utf-8", "backslashreplace")
    data = [DataPart(INDEX, base64.b64encode(text).decode("ascii"))]
    data += [DataPart(name, part) for name, part in sorted(parts.items())]
    without = (
        "Here is a browser of all questions and answers where scripts run. They are in the files "
        "of evals/ beside this page, one for each round."
    )
    section = Section("Questions and answers", [Mount("answers-browser", without)], anchor=ANSWERS)
    return Answers(section, Behaviour([_script()], _beside("answers.css"), data))


def _script() -> str:
    """One function, so that none of its names is seen by the scripts of other parts."""
    inside = "\n".join(_beside(f"answers_{kind}.js") for kind in ("data", "view"))
    return f'"use strict";\n(() => {{\n{inside}}})();\n'


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="ascii")


# --- what there is --------------------------------------------------------------------------------


def rounds_of(store: RunStore) -> list[Round]:
    kinds = ("step", "measured", "evaluated", "decided")
    numbers = {event["round"] for kind in kinds for event in store.events(kind)}
    numbers |= set(range(len(_labels(store)))) if store.is_evaluation else {0}
    return [_round(store, number) for number in sorted(numbers - {None})]


def _labels(store: RunStore) -> list[str]:
    """The checkpoints of an evaluation outside a run."""
    records = store.resolved_config().get(EVALUATED)
    return [str(one["label"]) for one in records] if isinstance(records, list) else []


def _round(store: RunStore, number: int) -> Round:
    measured = list(store.events("measured", number))
    names = tuple(sorted({name for event in measured for name in event["tasks"]}))
    source, kind = None, "checkpoint" if store.is_evaluation else "round"
    if names:
        source = Source(f"{kind}_{number:02d}", number, measured[-1]["file"], names)
    return Round(number, _name(store, number), _why_no_result(store, number, names), source)


def _name(store: RunStore, number: int) -> str:
    labels = _labels(store) if store.is_evaluation else []
    if number < len(labels):
        return labels[number]
    return f"Round {number}" if number else f"Round 0, {store.baseline_name}"


def _why_no_result(store: RunStore, number: int, measured: Sequence[str]) -> str:
    """What a round without a result has come to; empty for one with."""
    if any(store.events("evaluated", number)):
        return ""
    ended = _how_it_ended(store)
    said = f"It was not evaluated: {ended}" if ended else "It has not been evaluated yet."
    return f"{said} Measured until then: {', '.join(measured)}." if measured else said


def _how_it_ended(store: RunStore) -> str:
    """What broke the run off, where it has not gone on since; empty where nothing has."""
    on = ("resumed", "step", "measured", "evaluated", "decided")
    last = max((event["seq"] for kind in on for event in store.events(kind)), default=-1)
    ends = (event for kind in ENDS for event in store.events(kind) if event["seq"] > last)
    details = [one.get("detail") for one in sorted(ends, key=lambda event: event["seq"])]
    return str(details[-1] or "") if details else ""


def recommended_of(store: RunStore, rounds: Sequence[Round]) -> int | None:
    """What `#answers` shows: the recommended round, or the newest that has something to show."""
    decision = store.last_decision()
    shown = [one.number for one in rounds if one.source is not None]
    if decision is not None and decision.best_round in shown:
        return decision.best_round
    return shown[-1] if shown else None


def parts_of(
    store: RunStore, rounds: Sequence[Round], recommended: int | None, room: int = PAGE_CHARS
) -> dict[str, str]:
    """The parts by their id: the recommended round and the baseline first, then the newest, until
    the page is full."""
    first = (recommended, 0)
    by_weight = sorted(rounds, key=lambda one: (one.number not in first, -one.number))
    parts: dict[str, str] = {}
    for one in by_weight:
        if one.source is None:
            continue
        part = part_of(store, one.source)
        room -= len(part)
        if room < 0:
            break
        parts[one.part_id] = part
    return parts


def _in_index(one: Round, is_in_page: bool) -> dict[str, Any]:
    source = one.source
    return {
        "number": one.number,
        "name": one.name,
        "note": one.note,
        "part": one.part_id if is_in_page else None,
        "file": source and source.file,
        "href": source and relative_href(source.file),
        "tasks": list(source.tasks) if source else [],
    }


def _tasks(view: Viewed, rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The tasks, those that enter the score first, with how often each is measured."""
    settings = TrainingConfig.model_validate(view.config)
    measured = (name for one in rounds if one.source for name in one.source.tasks)
    names = dict.fromkeys([*settings.scored_tasks, *settings.measured_tasks, *measured])
    every = settings.evaluation.every
    return [{"name": name, "every": every.get(name, 1)} for name in names]

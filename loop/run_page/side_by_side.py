"""Several runs on one page: their curves over each other, their checkpoints paired question by
question, and what the runs differ in.

A run is named as its directory, which means its best round, or as `RUN_DIR@round_02`. Each run is
one seed of its settings: what is told is of these checkpoints, for which a study is the remedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config_schema import validate
from errors import ConfigError
from ledger.glance import Glance, Head, LedgerWatch, head_of
from ledger.records import Usage
from ledger.references import named_round
from ledger.store import RunStore
from loop.planning.plan import cost_usd
from loop.run_page.curves import held_out_of
from loop.run_page.folders import refuse_other_folders
from loop.run_page.side_by_side_charts import AtStep, Curves, curves_section
from loop.run_page.side_by_side_scores import Pair, Side, headline, pairs_of
from loop.run_page.side_by_side_settings import recorded_values, settings_of, settings_section
from loop.run_page.side_by_side_tables import (
    Told,
    checkpoints_section,
    cost_section,
    decisions_section,
    differences_section,
    questions_section,
    tasks_section,
    topics_section,
)
from loop.run_page.viewed import is_on_this_machine
from pages.document import Block, Document, Paragraph
from scores.measures import method_words, names_in
from scores.results import EvalResult

MIN_RUNS, MAX_RUNS = 2, 20
COMPARISON = "comparison.html"


class Named(NamedTuple):
    """A run and the round of it that is compared, None where none has been evaluated yet."""

    label: str  # of the checkpoint
    run_label: str
    store: RunStore
    round: int | None
    glance: Glance


class SideBySide(NamedTuple):
    """What a comparison shows, before it is shown."""

    sentence: str
    named: list[Named]
    sides: list[Side]
    pairs: list[Pair]
    document: Document


def find_named(names: Sequence[str]) -> list[Named]:
    """The runs that are meant, in the order given. Raises `InputError` children."""
    if not MIN_RUNS <= len(names) <= MAX_RUNS:
        raise ConfigError(
            f"{MIN_RUNS} to {MAX_RUNS} runs can be compared, and {len(names)} "
            f"{'is' if len(names) == 1 else 'are'} named. Of more, a study tells (docs/studies.md)."
        )
    found = []
    stores: dict[Path, RunStore] = {}
    for name in names:
        run_dir, number, _ = named_round(name, name, [Path()])
        key = run_dir.resolve()
        store = stores[key] = stores.get(key) or _opened(name, run_dir)
        found.append((name, run_dir, store, _round_of(name, store, number)))
    run_labels = _run_labels([run_dir for _, run_dir, _, _ in found])
    named = [
        Named(_label(label, number), label, store, number, LedgerWatch(run_dir).look())
        for label, (_, run_dir, store, number) in zip(run_labels, found, strict=True)
    ]
    for position, one in enumerate(named):
        for earlier, name in zip(named[:position], names, strict=False):
            if (one.store, one.round) == (earlier.store, earlier.round):
                raise ConfigError(
                    f"{names[position]} is the same checkpoint as {name}. Name each once, or "
                    "another round of it, for example RUN_DIR@round_01."
                )
    return named


def _opened(name: str, run_dir: Path) -> RunStore:
    refuse_other_folders(name, run_dir)
    store = RunStore.open(run_dir)
    if store.is_evaluation:
        raise ConfigError(
            f"{name}: it holds an evaluation of checkpoints, and no run. Its own page compares "
            f"them: report.py {run_dir}. Name directories of runs."
        )
    store.refuse_impossible_ledger()
    return store


def _round_of(name: str, store: RunStore, number: int | None) -> int | None:
    """The round that is compared: the named one, the best, or what there is of a run that has only
    begun."""
    evaluated = store.scores()
    if number is None:
        decision = store.last_decision()
        best = 0 if decision is None else decision.best_round
        return best if best in evaluated else None
    if number not in evaluated:
        there_is = ", ".join(f"round_{one:02d}" for one in sorted(evaluated)) or "none yet"
        raise ConfigError(
            f"{name}: round {number} of this run has not been evaluated. Evaluated are: {there_is}."
        )
    return number


def _run_labels(run_dirs: Sequence[Path]) -> list[str]:
    """The names of the directories, or the paths where two have one name."""
    places = {run_dir.resolve() for run_dir in run_dirs}
    numbers = Counter(place.name for place in places)
    return [
        run_dir.resolve().name if numbers[run_dir.resolve().name] == 1 else str(run_dir)
        for run_dir in run_dirs
    ]


def _label(run_label: str, number: int | None) -> str:
    return f"{run_label} (not evaluated)" if number is None else f"{run_label}@round_{number:02d}"


# --- what is told ---------------------------------------------------------------------------------


def side_by_side(named: Sequence[Named]) -> SideBySide:
    """Compare runs. Raises `InputError` children for what of them cannot be read."""
    told = [_told(one) for one in named]
    sides = [Side(one.label, one.result) for one in told if one.result is not None]
    pairs = pairs_of(sides)
    of_runs = {one.run_label: one for one in named}  # a run with two checkpoints is told once
    values = [recorded_values(one.store) for one in of_runs.values()]
    sentence = headline(sides, pairs)
    blocks: list[Block] = [
        Paragraph(sentence, is_lead=True),
        *(Paragraph(remark) for remark in _remarks(named, pairs)),
        checkpoints_section(told),
        *differences_section(sides, pairs),
        curves_section([_curves(one) for one in of_runs.values()]),
        *tasks_section(sides),
        *questions_section(sides),
        *topics_section(sides),
        settings_section(list(of_runs), settings_of(values)),
        decisions_section(told),
        cost_section(told),
    ]
    num = len(of_runs)
    title = f"{num} runs side by side" if num > 1 else f"Checkpoints of {next(iter(of_runs))}"
    return SideBySide(sentence, list(named), sides, pairs, Document(title, blocks))


def _remarks(named: Sequence[Named], pairs: Sequence[Pair]) -> list[str]:
    remarks = []
    if any(pair.mean is not None for pair in pairs):
        remarks.append(
            "A run is one seed of its settings: another seed would give another checkpoint, and "
            "how much that matters is not known from one. What is told here is of these "
            "checkpoints and these questions; a study of three seeds or more tells of settings "
            "(docs/studies.md)."
        )
    if any(_is_chosen(one) for one in named):
        remarks.append(
            "A best round was chosen by these questions from several, so its score is too high on "
            "average, the more so the more rounds there were; a sealed test had no part in it."
        )
    by_id: dict[str, set[str]] = {}
    for one in named:
        if one.store.has_started:
            by_id.setdefault(one.store.run_id, set()).add(one.run_label)
    remarks += [
        f"{', '.join(sorted(labels))} are copies of one run ({run_id})."
        for run_id, labels in by_id.items()
        if len(labels) > 1
    ]
    if going := [one.run_label for one in named if one.glance.state == "going on"]:
        remarks.append(f"Still going on: {', '.join(dict.fromkeys(going))}.")
    return remarks


def _is_chosen(one: Named) -> bool:
    """Whether the round is the best of several trained ones."""
    return bool(one.round) and one.round == one.glance.best_round and one.store.num_rounds > 1


def _told(one: Named) -> Told:
    store, glance = one.store, one.glance
    result: EvalResult | None = None if one.round is None else store.result(one.round)
    baseline = store.result(0)
    usage = store.spent()
    decision = store.last_decision()
    return Told(
        label=one.label,
        run_label=one.run_label,
        place=str(store.run_dir),
        state=glance.state,
        detail=glance.detail,
        result=result,
        baseline=baseline,
        test=store.test_result(),
        sentence=None if decision is None else decision.sentence,
        usage=usage,
        cost_usd=_cost(store, usage),
        is_local=is_on_this_machine(store),
        num_steps=sum(1 for _ in store.events("step")),
        num_rounds=store.num_rounds,
    )


def _cost(store: RunStore, usage: Usage) -> float | None:
    config = validate(store.settled_config()["config"], str(store.run_dir))
    return cost_usd(config, usage)


def _curves(one: Named) -> Curves:
    store = one.store
    compared = None if one.round is None else store.result(one.round)
    # Where this round has one, the end of each has; else they need not be read for it.
    ends = store.results() if compared is not None and compared.held_out else ()
    held_out = held_out_of(store, ends)
    steps = list(store.events("step"))
    return Curves(
        one.run_label,
        {event["round"]: _head(store, event) for event in store.events("evaluated")},
        [AtStep(event["step"], event["nll"]) for event in steps],
        {name: [AtStep(at.step, at.nll) for at in found] for name, found in held_out.items()},
        [AtStep(event["step"], event["lr"]) for event in steps],
        {
            name: [
                AtStep(event["step"], event["measures"][name])
                for event in steps
                if name in event.get("measures", {})
            ]
            for name in names_in(steps)
        },
        method_words(store.settled_config()["config"]).learns_rows,
    )


def _head(store: RunStore, event: dict[str, Any]) -> Head:
    """A round's score with its interval, which older ledgers have not. Raises `RunStoreError` for
    a file that has been changed since."""
    found = head_of(store.run_dir / event["file"])
    if found is None or found.score != event["score"]:
        store.result(event["round"])  # which says what is wrong with it
    return found or Head(event["score"], None, event.get("n") or 0)

"""`--preview N`: rows as the model will see them, with the tokens that carry loss marked."""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from commands.boundary import Session
from commands.opening import OpenedSettings, begin_progress
from errors import ConfigError
from loop.reports.console import say, say_marked, says_in_colour
from rows.examples import find_example

if TYPE_CHECKING:
    from loop.planning.plan import Plan
    from rows.examples import Example


def preview(args: argparse.Namespace, settings: OpenedSettings, session: Session) -> int:
    """Show the first rows of each source and, of a run that has mined, as many hard ones."""
    begin_progress(args, settings, session)
    from loop.planning.inputs import read_inputs
    from loop.planning.methods import preview_text
    from loop.planning.plan import make_plan

    if args.preview < 1:
        raise ConfigError(f"--preview is {args.preview}: give the number of rows to show.")
    plan = make_plan(read_inputs(settings.loaded, settings.model_dir, settings.kept), settings.kept)
    rows = [*_first(plan, args.preview), *_hard(plan, settings, args.preview)]
    session.end_live_line()
    if args.json:
        shown = [
            {
                "of": title,
                "file": row.source,
                "line": row.line_no,
                "topic": row.topic,
                "weight": row.weight,
                "tokens": [piece._asdict() for piece in plan.rendering.pieces_of(row.id)],
                **_rejected(plan, row),
            }
            for title, row in rows
        ]
        say(json.dumps({"renderer_name": plan.renderer_name, "rows": shown}, indent=1))
        return 0
    how = "in green" if says_in_colour() else "in brackets"
    marked = preview_text(plan.config, plan.rendering.train_on_what.value)
    say(f"renderer {plan.renderer_name}, {marked} are {how}")
    for title, row in rows:
        topic = f", topic {row.topic}" if row.topic else ""
        weight = f", weight {row.weight:g}" if row.weight != 1 else ""
        say(f"\n--- {title}: {row.source} line {row.line_no}{topic}{weight}")
        say_marked((one.text, one.weight) for one in plan.rendering.pieces_of(row.id))
        if row.rejected is not None:
            say("--- rejected for it:")
            pieces = plan.rendering.pieces_of(row.id, is_rejected=True)
            say_marked((one.text, one.weight) for one in pieces)
    return 0


def _rejected(plan: Plan, row: Example) -> dict[str, Any]:
    """The rejected side of a pair, of which `tokens` are the chosen one."""
    if row.rejected is None:
        return {}
    pieces = plan.rendering.pieces_of(row.id, is_rejected=True)
    return {"rejected_tokens": [piece._asdict() for piece in pieces]}


def _first(plan: Plan, number: int) -> Iterator[tuple[str, Example]]:
    """The first rows of each source, in the order of the file."""
    for key, table in (("train_file", plan.train), ("mining.pool_file", plan.pool)):
        shown = Counter[str]()
        for position in range(len(table.examples)):
            source = table.examples.source_of(position)
            shown[source] += 1
            if shown[source] <= number:
                yield key, table.examples[position]


def _hard(plan: Plan, settings: OpenedSettings, number: int) -> Iterator[tuple[str, Example]]:
    """The first hard rows of the round that a resumed run chose last."""
    store = settings.store
    rounds = [] if store is None else [event["round"] for event in store.events("selected")]
    selection = None if store is None or not rounds else store.selection(rounds[-1])
    if selection is None:
        return
    mined = dict.fromkeys(pick.example_id for pick in selection.picks if pick.weight is not None)
    for example_id in itertools.islice(mined, number):
        example = find_example(example_id, plan.train.examples, plan.pool.examples)
        if example is not None:
            yield f"hard in round {selection.round}", example

"""`--dry-run`: the plan of a run, and all that can be checked without a service or the network."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.boundary import Session
from commands.opening import OpenedSettings, begin_progress, choose_place
from errors import ConfigError, InputError, StorageError, TokenizerError
from loop.planning.limits_file import load_limits
from loop.reports.console import PROGRAM, say, tell
from services.place import ServiceChoice, why_here
from storage.files import write_whole

if TYPE_CHECKING:
    from loop.plan_page.view import Offer, Planned, RowsForm
    from loop.planning.inputs import Inputs
    from loop.planning.plan import Plan

PAGE = "plan.html"  # in the folder beside the config


def dry_run(args: argparse.Namespace, settings: OpenedSettings, session: Session) -> int:
    """Plan the run, check all that costs nothing, and say what could not be checked."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is first imported, below
    progress = begin_progress(args, settings, session)
    from loop.plan_page.models import refusal
    from loop.plan_page.page import facts_of, flat_lines, page_html, plan_of, text_lines

    progress.lines(settings.notes)
    _check_what_goes_beside(settings)
    unchecked: list[str] = []
    if settings.loaded.config.evalops_enabled and not session.keys.evalops:
        unchecked.append("EvalOps: EVALOPS_API_KEY is not set, and the run needs it")
    known, place = _known_before(args, settings, session, unchecked)
    try:
        view = _planned(args, settings, known, place, unchecked)
    except InputError as error:
        error.facts = _facts_before(settings, known)
        raise
    folder = settings.loaded.file.with_suffix(".plan")
    is_new = settings.store is None  # a run has its lists, and its own page
    written = _written_lists(folder, view, unchecked) if is_new else []
    unchecked += _unchecked(view)
    plan = plan_of(view, written, unchecked)  # what is added to both lists it has as well
    facts = {**facts_of(plan), **_suites(settings)}
    if (why := refusal(known.offer, known.choice, view.config)) is not None:
        error = ConfigError(why)
        error.facts = {"plan": flat_lines(plan), "not_checked": unchecked, **facts}
        raise error
    if is_new:
        try:
            write_whole(folder / PAGE, [session.keys.redacted(page_html(plan))])
            written.append(f"page: {folder / PAGE}")
        except StorageError as error:
            unchecked.append(f"the plan as a page: {error}")
    session.end_live_line()
    if args.json:
        answer = {"dry_run": True, "plan": flat_lines(plan), "not_checked": unchecked}
        say(session.keys.redacted(json.dumps(answer | facts, indent=1)))
    else:
        tell(session.keys.redacted("\n".join(text_lines(plan))))
    return 0


class Known(NamedTuple):
    """What is known before the settings are found to be usable, so that they can be corrected."""

    choice: ServiceChoice | None  # None: nowhere to train yet
    offer: Offer
    rows: RowsForm


def _known_before(
    args: argparse.Namespace, settings: OpenedSettings, session: Session, unchecked: list[str]
) -> tuple[Known, list[str]]:
    """Where the run would happen, which models there are, and what the rows are; and the lines of
    the first."""
    from commands.offered_models import offer_of
    from loop.plan_page.method_choice import form_of_rows

    choice, place = _place(args, settings, session, unchecked)
    offer = offer_of(choice, settings, session.keys)
    return Known(choice, offer, form_of_rows(settings.loaded)), place


def _facts_before(settings: OpenedSettings, known: Known) -> dict[str, Any]:
    """What --json tells beside a refusal of files or rows."""
    from loop.plan_page.method_choice import choice_facts
    from loop.plan_page.models import offer_facts

    config = settings.loaded.config
    return {
        "service": offer_facts(known.offer, known.choice, config, None),
        "method_choice": choice_facts(known.rows, config),
        **_suites(settings),
    }


def _suites(settings: OpenedSettings) -> dict[str, Any]:
    from commands.suites import suites_facts

    return suites_facts(settings.loaded.config, settings.loaded.directory)


def _unchecked(view: Planned) -> Iterator[str]:
    """Yield what a dry run cannot know of the service and the model."""
    from loop.planning.fitting import limits_of, unchecked_fit

    inputs = view.inputs
    if view.is_embedded:
        yield "whether the model's weights load and train"
    elif view.offer.models is None:
        yield "whether the service can be reached and accepts the key"
        yield f"whether it serves base_model: {view.offer.why_not}"
    yield from unchecked_fit(limits_of(inputs.model_dir), (*inputs.tasks, *inputs.test_tasks))


def _check_what_goes_beside(settings: OpenedSettings) -> None:
    """Raise `ConfigError` for limits that cannot be read and trackers that are not installed."""
    from loop.tracking.trackers import refuse_missing

    load_limits(settings.loaded)
    refuse_missing(settings.loaded.config)


def _planned(
    args: argparse.Namespace,
    settings: OpenedSettings,
    known: Known,
    place: list[str],
    unchecked: list[str],
) -> Planned:
    """Read everything, and render it where there is a tokenizer; what fails is in `unchecked`."""
    from loop.plan_page.earlier import newest_alike
    from loop.plan_page.model import config_of
    from loop.plan_page.pilot import commands_of
    from loop.plan_page.view import Planned
    from loop.planning.inputs import read_inputs
    from loop.planning.origin import describe_origin, refuse_other_files
    from loop.planning.teacher import describe_teacher

    choice = known.choice
    _refuse_missing_directory(settings, choice)
    inputs = read_inputs(settings.loaded, settings.model_dir, settings.kept)
    plan = _made_plan(settings, inputs, choice, unchecked)
    if plan is not None:
        inputs = plan.inputs
        place += refuse_other_files(settings.start, plan)
        place += [] if plan.origin is None else describe_origin(plan.origin)
        place += describe_teacher(plan.inputs.teacher, plan.config, plan.chat_format)
    config, earlier = settings.loaded.config, None
    folders = [settings.loaded.directory, Path.cwd(), PROGRAM.parent, Path("~").expanduser()]
    folders += [] if inputs.model_dir is None else [inputs.model_dir.parent]
    if choice is not None and choice.kind == "embedded":
        asked = {task.name: task.work.sha256 for task in inputs.tasks}
        earlier = newest_alike(Path("runs"), config, inputs.model_path, asked)
    return Planned(
        inputs=inputs,
        plan=plan,
        choice=choice,
        place=place,
        commands=commands_of(args, config, inputs.settled.steps),
        rows=known.rows,
        offer=known.offer,
        earlier=earlier,
        model=config_of(config.base_model, inputs.model_dir),
        folders=[*map(str, folders)],
    )


def _refuse_missing_directory(settings: OpenedSettings, choice: ServiceChoice | None) -> None:
    """Raise `ConfigError` for a path where nothing is, which no hub model can be called and no
    service was named that might."""
    name = settings.loaded.config.base_model
    if choice is None and settings.model_dir is None and name.startswith(("/", "./", "../", "~")):
        raise ConfigError(
            f"base_model {name!r} is a path, and there is no such directory beside the config or "
            "here. Correct it, or give the name of a hub model."
        )


def _place(
    args: argparse.Namespace, settings: OpenedSettings, session: Session, unchecked: list[str]
) -> tuple[ServiceChoice | None, list[str]]:
    """Where the run would happen, with the line that says so."""
    try:
        choice = choose_place(args, settings, session, why_here(settings.kept.get("service")))
    except ConfigError as error:
        unchecked.append(str(error))
        return None, ["service: none yet"]
    return choice, [f"service: {choice.kind} ({choice.reason})"]


def _made_plan(
    settings: OpenedSettings, inputs: Inputs, choice: ServiceChoice | None, unchecked: list[str]
) -> Plan | None:
    """The plan with everything rendered; None where a hub model's tokenizer is not here."""
    from loop.planning.origin import checked_origin
    from loop.planning.plan import make_plan

    origin = checked_origin(settings.start, settings.store, inputs, choice)
    try:
        return make_plan(inputs, settings.kept, origin)
    except TokenizerError as error:
        if settings.model_dir is not None:  # it has to be there; a hub's needs the network
            raise
        unchecked.append(f"chat format, tokens and truncation: {error}")
        return None


def _written_lists(folder: Path, view: Planned, unchecked: list[str]) -> list[str]:
    """Write the lists of dropped and similar rows; a line that names them."""
    from loop.planning.left_out import write_lists

    logs = list(view.inputs.drop_logs)
    logs += [] if view.plan is None else view.plan.dropped_in_rendering
    try:
        files = write_lists(folder, logs, view.inputs.split.similar)
    except StorageError as error:
        unchecked.append(f"the lists of dropped and similar rows: {error}")
        return []
    return [f"lists: {', '.join(map(str, files))}"]

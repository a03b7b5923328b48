"""What comes between the settings of a run and its first step: all is settled, and written down."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from commands.boundary import Session
from commands.opening import OpenedSettings, begin_run, choose_place
from loop.planning.inputs import read_inputs
from loop.planning.limits_file import load_limits
from loop.planning.origin import checked_origin, refuse_other_files, weights_to_start_from
from loop.planning.page import describe_inputs, describe_plan
from loop.planning.plan import Plan, make_plan
from loop.planning.resumption import continue_run, with_known_model
from loop.planning.service_checks import checked
from loop.planning.teacher import refuse_other_teacher_service
from loop.reports.progress import Progress
from loop.reports.taking_up import describe_taking_up
from loop.rounds.adopting import adopt_start, refuse_unfit_adapter
from loop.rounds.run import Beside
from loop.rounds.sending import open_evalops
from loop.tracking.trackers import refuse_missing
from services.place import Place, ServiceChoice, why_here

if TYPE_CHECKING:
    from ledger.store import RunStore
    from local_tinker import Service


class Settled(NamedTuple):
    """Where a run happens, its plan, and what goes on beside its rounds."""

    choice: ServiceChoice
    plan: Plan
    beside: Beside


def settle(
    args: argparse.Namespace, settings: OpenedSettings, session: Session, progress: Progress
) -> Settled:
    """Settle everything before the first paid step, and say it."""
    loaded, store = settings.loaded, settings.store
    refuse_missing(loaded.config)
    choice = choose_place(args, settings, session, why_here(settings.kept.get("service")))
    evalops, limits = open_evalops(loaded.config, session.keys), load_limits(loaded)
    progress.line(f"service: {choice.kind} ({choice.reason})")
    if (found := checked(loaded.file, choice, loaded.config.base_model)) is not None:
        progress.line(f"service check: {found}")
    if limits is not None and (untouched := limits.not_acted_on) is not None:
        progress.line(f"{loaded.config.evalops_budget_file}: {untouched}")
    progress.live("reading data and questions")
    inputs = read_inputs(loaded, settings.model_dir, settings.kept)
    refuse_other_teacher_service(inputs.teacher, choice)
    progress.lines(describe_inputs(inputs))
    progress.live("rendering the rows as the model will see them")
    plan = make_plan(inputs, settings.kept, checked_origin(settings.start, store, inputs, choice))
    progress.lines(describe_plan(plan))
    plan = with_known_model(plan, store, progress.line)
    progress.lines(refuse_other_files(settings.start, plan))
    return Settled(choice, plan, Beside(evalops, limits))


def take_up(
    settings: OpenedSettings,
    plan: Plan,
    choice: ServiceChoice,
    service: Service | None,
    session: Session,
) -> tuple[RunStore, Place]:
    """Make the run directory, or go on with the one there is; and where its session is opened."""
    progress, store = session.progress, settings.store
    assert progress is not None, "a command that runs shows how it goes on"
    if store is None:
        refuse_unfit_adapter(service, settings.start, plan)
        store = begin_run(settings, plan, choice, session)
    else:
        store.on_event = session.tell_event
        if store.num_torn_bytes:
            progress.line(
                f"ledger: dropped a last line of {store.num_torn_bytes} bytes that was not "
                "written whole"
            )
        had_started, num_steps = store.has_started, sum(1 for _ in store.events("step"))
        continue_run(store, plan, settings.back_to)
        if had_started:
            progress.lines(describe_taking_up(store, num_steps, plan.tasks))
    session.store, session.is_running = store, True
    progress.line(f"run directory: {store.run_dir}")
    adopt_start(service, store, plan)
    start_dir = weights_to_start_from(store, choice)
    checkpoint_dir = store.run_dir / "checkpoints"
    return store, Place(choice, service, checkpoint_dir, session.keys, start_dir)

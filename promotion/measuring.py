"""A champion measured again by the questions of the checkpoint that is to follow it.

It is an ordinary evaluation outside a run, by the settings that the candidate's run recorded, in a
directory of its own; a later promotion finds it there and pays for none. Only what cannot be
compared as it stands is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import trainer_with_eval
from commands.boundary import Session, describe_failure, in_loop, record_failure
from commands.evaluate import (
    SettledEvaluation,
    conclude,
    evaluate_on_service,
    refuse_unfit_subjects,
    serve_as_named,
    settle_evaluation,
    take_up_evaluation,
    with_known_weights,
)
from commands.opening import OpenedSettings, begin_progress, recorded_config
from errors import LoopError
from ledger.records import Usage
from ledger.run_directory import new_run_dir
from ledger.store import RunStore
from loop.planning.models import find_model_dir
from loop.planning.resumption import refuse_other_code
from loop.planning.tasks import task_code
from loop.planning.tokens import eval_tokens
from loop.reports.console import how_to_continue
from loop.rounds.session import open_service
from loop.run_page.page import keep_page
from promotion.evidence import Candidate, Measurement
from services.keys import Keys
from services.place import service_of_run


def measure_again(champion: Candidate, like: Measurement, folder: Path, keys: Keys) -> Measurement:
    """Measure the champion as the other was measured; the directory is made in `folder`. Raises
    `LoopError`."""
    session = Session(keys)
    with _kept(session):
        return _measured(champion, like, folder, session)


def _measured(
    champion: Candidate, like: Measurement, folder: Path, session: Session
) -> Measurement:
    subject, args = champion.subject, _arguments()
    settings, notes = _settings(champion, like.store, folder, session.keys)
    progress = begin_progress(args, settings, session)
    progress.lines(notes)
    settled = settle_evaluation(args, settings, session, [subject])
    progress.lines([*settled.lines, cost_line(champion, settled)])
    plan = with_known_weights(settled.plan, None, [subject], progress)
    settled = settled._replace(plan=plan)
    with open_service(settled.choice, plan, progress) as service:
        serve_as_named(service, plan, [subject])
        choice, keys = settled.choice, session.keys
        in_loop(refuse_unfit_subjects([subject], choice, plan.config, keys, progress.line))
        store, place = take_up_evaluation(settings, settled, service, session, [subject])
        (result,) = in_loop(evaluate_on_service(plan, store, progress, place, [subject]))
        conclude(store, [subject], [result], settled)
        session.is_running = False
        if (problem := keep_page(store)) is not None:
            progress.line(problem)
    return Measurement(store, 0, result)


@contextlib.contextmanager
def _kept(session: Session) -> Iterator[None]:
    """Write a failure into the directory of the evaluation, say how to go on with it, and let go of
    it at the end."""
    try:
        yield
    except LoopError as error:
        if session.store is not None and session.is_running:
            message = session.keys.redacted(describe_failure(error))
            record_failure(session.store, error, message)
            error.args = (f"{error} {how_to_continue(session.store.run_dir)}",)
        raise
    finally:
        session.end_live_line()
        if session.store is not None:
            session.store.close()


def _arguments() -> argparse.Namespace:
    """The command line of an evaluation, of which the flags alone are looked at."""
    return trainer_with_eval.parse_arguments(["--evaluate", "champion"])


def _settings(
    champion: Candidate, store: RunStore, folder: Path, keys: Keys
) -> tuple[OpenedSettings, list[str]]:
    """The settings that the other was measured by, with the champion's own base model, format
    and service.

    Raises `RunStoreError` where the code of its tasks is not what it was.
    """
    began = champion.store.settled_config()
    model = began["files"]["base_model"]
    address = service_of_run(began, keys.environment).base_url
    if Path(model).is_absolute() and not Path(model).is_dir():
        model = store.settled_config()["files"]["base_model"]  # it was moved, with both runs
    overrides = [
        f"base_model={json.dumps(model)}",
        f"base_url={json.dumps(address)}",
        f"renderer_name={json.dumps(champion.checkpoint.renderer)}",
        'gate.rule="mean"',  # nothing is judged, and one checkpoint is paired with none
        "tracking.trackers=[]",
    ]
    loaded, notes = recorded_config(store, store.settled_config(), overrides)
    notes += refuse_other_code(store, task_code(loaded), loaded.directory)
    run_dir = new_run_dir(folder, f"{loaded.config.run_name}-evaluation")
    names = [champion.label]
    return OpenedSettings(loaded, find_model_dir(loaded), None, run_dir, {}, names), notes


def cost_line(champion: Candidate, settled: SettledEvaluation) -> str:
    """What measuring it takes at the most."""
    plan = settled.plan
    repeats = plan.sampling.num_repeats
    num_requests = sum(task.num_requests(repeats) for task in plan.tasks)
    tokens = [eval_tokens(plan, task) for task in plan.tasks]
    used = Usage(0, sum(t.num_prompt for t in tokens), sum(t.num_sampled for t in tokens), 0.0)
    cost = plan.cost_usd(used)
    price = "" if cost is None else f", at most {cost:,.4f} US dollars by the recorded prices"
    if settled.choice.kind == "embedded":
        price = ", on this machine, where they cost nothing"
    return (
        f"{champion.label} is measured again: {num_requests:,} requests, at most "
        f"{used.prompt_tokens:,} prompt and {used.sampled_tokens:,} sampled tokens{price}"
    )

"""`--evaluate`: checkpoints measured outside a run, side by side."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from commands.boundary import Session, alert, in_loop
from commands.opening import OpenedSettings, begin_progress, begin_run, choose_place
from config_schema import TrainingConfig
from errors import ConfigError, Interrupted, OutputGone
from ledger.references import Subject
from loop.planning.adapters import base_note
from loop.planning.models import model_digests
from loop.planning.resumption import continue_run, refuse_other_model, with_known_model
from loop.reports.console import say, tell
from loop.rounds.adopting import adopt_subjects
from loop.rounds.evaluating import measure_and_record
from loop.rounds.run import Beside
from loop.rounds.session import connected, open_service, refuse_unserved
from loop.run_page.page import PAGE, keep_page
from loop.tracking.following import tracked
from services.faults import SDK_ERRORS, explain, is_gone, said_by
from services.keys import Keys
from services.place import OF_A_RUN, OF_ANOTHER_PROGRAM, Place, why_here
from services.sdk import rest_client
from services.waiting import aside

if TYPE_CHECKING:
    from ledger.store import RunStore
    from local_tinker import Service
    from loop.planning.inputs import Inputs
    from loop.planning.plan import Plan
    from loop.reports.comparison import Comparison
    from loop.reports.progress import Progress
    from scores.decision import Gate
    from scores.results import EvalResult
    from services.place import ServiceChoice


def common_renderer(
    subjects: Sequence[Subject], inputs: Inputs, key: str = "--evaluate"
) -> str | None:
    """The renderer that the checkpoints were trained with; None where none of them tells. `key` is
    what errors begin with.

    Raises `ConfigError` for checkpoints that one evaluation cannot ask alike: of another base model
    than the config's, or trained with different renderers. Of a directory the files tell
    which model it is, where the run recorded them.
    """
    model, renderer = inputs.model_path, inputs.config.renderer_name
    digests_of = functools.cache(model_digests)  # its files are read once for all checkpoints
    for subject in subjects:
        is_other = subject.base_model not in (None, model)
        if is_other and not is_moved(subject, inputs.model_dir, digests_of):
            raise ConfigError(
                f"{key} {subject.label}: its base model is {subject.base_model}, the config's "
                f"is {model}. Set base_model to it: one evaluation asks checkpoints of one model."
            )
        if subject.renderer is not None and renderer not in (None, subject.renderer):
            raise ConfigError(
                f"{key} {subject.label}: it was trained with the renderer {subject.renderer}, "
                f"and would be asked with {renderer}. Set renderer_name to {subject.renderer}, or "
                "leave out the checkpoints that were trained with another one."
            )
        renderer = renderer or subject.renderer
    return renderer


Reporting = Callable[[argparse.Namespace, Session, "RunStore", "list[Comparison]"], int]


def evaluate_checkpoints(
    args: argparse.Namespace,
    settings: OpenedSettings,
    session: Session,
    report: Reporting | None = None,
) -> int:
    """Evaluate checkpoints outside a run, side by side; with --gate, exit 3 if one fails it.

    `report` prints what came of it and gives the exit code, as `report_and_alert` does."""
    report = report or report_and_alert
    progress = begin_progress(args, settings, session)
    from ledger.references import find_subjects, recorded_subjects
    from loop.reports.comparison import compare

    assert settings.evaluated is not None, "the caller has looked"
    store = settings.store
    progress.lines(settings.notes)
    named = settings.evaluated
    if store is not None:
        subjects = recorded_subjects(named, store)
    else:
        subjects = find_subjects(named, Path("runs"), args.registry)
    settled = settle_evaluation(args, settings, session, subjects)
    if args.dry_run:
        session.end_live_line()
        return show_plan(args, settled.lines)
    if store is not None and len(results := store.comparable_results()) == len(subjects):
        progress.line(f"{store.run_dir}: this evaluation is finished, nothing is left to measure")
        comparisons = compare(subjects, results, settled.gate)
        return report(args, session, store, comparisons)
    progress.lines(settled.lines)
    plan = with_known_weights(settled.plan, store, subjects, progress)
    with open_service(settled.choice, plan, progress) as service:
        serve_as_named(service, plan, subjects)
        choice, keys = settled.choice, session.keys
        in_loop(refuse_unfit_subjects(subjects, choice, plan.config, keys, progress.line))
        store, place = take_up_evaluation(
            settings, settled._replace(plan=plan), service, session, subjects
        )
        results = in_loop(evaluate_on_service(plan, store, progress, place, subjects))
        comparisons = conclude(store, subjects, results, settled)
        session.is_running = False
        if (problem := keep_page(store)) is not None:
            progress.line(problem)
    return report(args, session, store, comparisons)


class SettledEvaluation(NamedTuple):
    """Where checkpoints are evaluated, how, by which gate, and what is said of it first."""

    choice: ServiceChoice
    plan: Plan
    gate: Gate
    lines: list[str]


def settle_evaluation(
    args: argparse.Namespace,
    settings: OpenedSettings,
    session: Session,
    subjects: Sequence[Subject],
) -> SettledEvaluation:
    """Settle everything before the first sample. Raises `ConfigError`."""
    from loop.planning.inputs import read_eval_inputs
    from loop.planning.page import describe_formats, describe_tasks
    from loop.planning.plan import make_plan
    from loop.reports.comparison import gate_for
    from loop.tracking.trackers import refuse_missing
    from scores.resolution import describe_resolution

    if settings.loaded.config.gate.rule == "paired" and len(subjects) == 1:
        raise ConfigError(
            "--evaluate: gate.rule is paired, and there is one checkpoint only. Name the one that "
            "it is compared with first, for example RUN_DIR@round_00 for the untouched model."
        )
    refuse_missing(settings.loaded.config)
    choice = choose_place(args, settings, session, why_weights_here(subjects))
    inputs = read_eval_inputs(settings.loaded, settings.model_dir)
    name = common_renderer(subjects, inputs)
    recorded = {"renderer_name": name} if any(s.renderer for s in subjects) else {}
    plan = make_plan(inputs, {**settings.kept, **recorded})
    gate = gate_for(plan.gate, len(subjects))
    lines = [f"service: {choice.kind} ({choice.reason})", *describe_tasks(inputs)]
    lines += [describe_resolution(gate, inputs.scored_sizes), *describe_formats(plan)]
    lines += [f"checkpoint: {s.label} ({s.path or 'the untouched base model'})" for s in subjects]
    lines += notes_on(subjects, inputs)
    return SettledEvaluation(choice, plan, gate, lines)


def why_weights_here(subjects: Sequence[Subject]) -> str | None:
    """Why they are asked on this machine, first for the weights of runs; None where nothing says
    so."""
    whys = [
        why_here(one.service, OF_A_RUN if one.adapter is None else OF_ANOTHER_PROGRAM)
        for one in subjects
    ]
    return OF_A_RUN if OF_A_RUN in whys else next((one for one in whys if one is not None), None)


def notes_on(subjects: Sequence[Subject], inputs: Inputs) -> list[str]:
    """What is to be said of checkpoints, and of what tells their base model. Raises `ConfigError`
    for an adapter of another one."""
    lines = [note for subject in subjects for note in subject.notes]
    for one in subjects:
        if one.adapter is not None:
            model = inputs.config.base_model
            lines.append(base_note(one.label, one.adapter, model, inputs.model_dir))
    return lines


def with_known_weights(
    plan: Plan, store: RunStore | None, subjects: Sequence[Subject], progress: Progress
) -> Plan:
    """The plan with its base model's digests. Raises `RunStoreError` where the checkpoints are of
    another one."""
    plan = with_known_model(plan, store, progress.line)
    progress.lines(refuse_other_models(subjects, plan))
    return plan


def take_up_evaluation(
    settings: OpenedSettings,
    settled: SettledEvaluation,
    service: Service | None,
    session: Session,
    subjects: Sequence[Subject],
) -> tuple[RunStore, Place]:
    """Make the evaluation's directory, or go on with the one there is."""
    store, plan, progress = settings.store, settled.plan, session.progress
    assert progress is not None, "a command that runs shows how it goes on"
    base_model = plan.config.base_model
    if store is None:
        adopt_subjects(service, subjects, base_model)
        records = [one.to_record() for one in subjects]
        store = begin_run(settings, plan, settled.choice, session, records)
    else:
        store.on_event = session.tell_event
        continue_run(store, plan)
    session.store, session.is_running = store, True
    progress.line(f"evaluation directory: {store.run_dir}")
    place = Place(settled.choice, service, store.run_dir / "checkpoints", session.keys)
    adopt_subjects(service, subjects, base_model, place.checkpoint_dir)
    return store, place


def conclude(
    store: RunStore,
    subjects: Sequence[Subject],
    results: Sequence[EvalResult],
    settled: SettledEvaluation,
) -> list[Comparison]:
    """Compare what was measured, and write it down."""
    from loop.reports.comparison import compare, write_comparison

    comparisons = compare(subjects, results, settled.gate)
    write_comparison(store, comparisons, settled.plan.config)
    for number, one in enumerate(comparisons):
        store.record_comparison(number, one.passed, one.sentence)
    store.append("run_finished")
    return comparisons


def show_plan(args: argparse.Namespace, lines: Sequence[str]) -> int:
    """What a dry run of an evaluation shows; the exit code."""
    if args.json:
        say(json.dumps({"dry_run": True, "plan": lines}))
    else:
        tell("\n".join(lines))
    return 0


def is_moved(
    subject: Subject, model_dir: Path | None, digests_of: Callable[[Path], dict[str, str]]
) -> bool:
    """Whether a directory holds the base model of a checkpoint, whose run had it elsewhere."""
    if model_dir is None or subject.model_files is None or not subject.model_files.files:
        return False
    return subject.model_files.files == digests_of(model_dir)


def serve_as_named(service: Service | None, plan: Plan, subjects: Sequence[Subject]) -> None:
    """Serve the base model under each name that a run of the checkpoints called it, too."""
    if service is not None:
        for subject in subjects:
            service.also_serve_as(plan.config.base_model, subject.model_name)


def refuse_other_models(subjects: Sequence[Subject], plan: Plan) -> list[str]:
    """Raise `RunStoreError` for checkpoints that were trained on other files than the base model
    has now. Returns a line on each run that did not record them."""
    of_runs = {s.run_dir: s for s in subjects if s.run_dir is not None}
    return [
        line
        for run_dir, subject in of_runs.items()
        for line in refuse_other_model(str(run_dir), subject.model_files, plan)
    ]


def report_and_alert(
    args: argparse.Namespace, session: Session, store: RunStore, comparisons: list[Comparison]
) -> int:
    """Print how checkpoints compare, and alert where one does not pass; the exit code."""
    session.end_live_line()
    try:
        exit_code = report_comparisons(args, store, comparisons)
        if args.summary is not None or args.junit is not None:
            from commands.ci import summary_of_evaluation, write_files

            name = store.settled_config()["config"]["run_name"]
            summary = summary_of_evaluation(store, comparisons, name)
            write_files(args, session.keys.redacted, summary)
        return exit_code
    finally:
        if missed := [one.sentence for one in comparisons if one.passed is False]:
            alert(session, "target_missed", {"detail": " ".join(missed)})


async def evaluate_on_service(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    place: Place,
    subjects: Sequence[Subject],
    beside: Beside | None = None,
) -> list[EvalResult]:
    """Measure each checkpoint on every task; what is measured already is not measured again."""
    beside = beside or Beside()
    async with tracked(store, plan.config, progress.line, beside.tracking):
        return await _measure_each(plan, store, progress, place, subjects, beside)


async def _measure_each(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    place: Place,
    subjects: Sequence[Subject],
    beside: Beside,
) -> list[EvalResult]:
    results = []
    for number, subject in enumerate(subjects):
        folder = subject.checkpoint_dir or place.checkpoint_dir
        of_subject = place._replace(checkpoint_dir=folder)
        async with connected(plan, store, progress, of_subject, beside.sharing) as run:
            label, path, tasks = subject.label, subject.path, list(plan.tasks)
            result = await measure_and_record(run, number, label, path, subject.step, tasks)
        progress.line(f"{label}: measured, {number + 1} of {len(subjects)} checkpoints")
        if run.stop_requested and number + 1 < len(subjects):  # while its session was closed
            said = f"after {label}, with its result saved."
            if progress.is_gone:
                raise OutputGone(f"Nobody read the progress any more; stopped {said}")
            raise Interrupted(f"Interrupted {said}")
        results.append(result)
    return results


async def refuse_unfit_subjects(
    subjects: Sequence[Subject],
    choice: ServiceChoice,
    config: TrainingConfig,
    keys: Keys,
    tell: Callable[[str], None],
    key: str = "--evaluate",
) -> None:
    """Raise `ConfigError` where the service does not serve the models, and for a bare path whose
    weights are not there, or of another model; `tell` is given what could not be looked up, and
    `key` is what errors on a path begin with."""
    await refuse_unserved(config, choice, keys, tell, is_trained=False)
    for subject in subjects:
        if subject.path is None or subject.run_dir is not None or subject.adapter is not None:
            continue
        if choice.kind == "embedded":
            raise ConfigError(
                f"{key} {subject.path}: no run below ./runs has these weights, and the "
                "embedded service finds weights by their run. Give RUN_DIR@round_02 instead."
            )
        try:
            rest = await aside(lambda: rest_client(choice.base_url, keys.tinker))
            info = await rest.get_weights_info_by_tinker_path(subject.path)
        except SDK_ERRORS as error:
            if not is_gone(error):
                raise explain(error, choice.base_url) or error from error
            raise ConfigError(
                f"{key} {subject.path}: the service does not have it: {said_by(error)}. Check the "
                "path."
            ) from None
        if info.base_model != config.base_model:
            raise ConfigError(
                f"{key} {subject.path}: its base model is {info.base_model}, the config's is "
                f"{config.base_model}. Set base_model to it."
            )


def report_comparisons(
    args: argparse.Namespace, store: RunStore, comparisons: list[Comparison]
) -> int:
    """Print how checkpoints compare to stdout; returns the exit code."""
    from loop.reports.comparison import summary, task_lines, to_json

    if args.json:
        outcome = {
            "checkpoints": [to_json(one) for one in comparisons],
            "tokens": store.usage()._asdict(),
            "tokens_in_vain": store.in_vain()._asdict(),
            "run_dir": str(store.run_dir),
        }
        say(json.dumps(outcome, indent=1))
    else:
        for one in comparisons:
            tell(summary(one))
            for line in task_lines(one.result):
                tell(line)
        if (store.run_dir / PAGE).is_file():
            tell(f"Page: {store.run_dir / PAGE}")
        tell(f"Evaluation directory: {store.run_dir}")
    has_failed = any(one.passed is False for one in comparisons)
    return 3 if args.gate and has_failed else 0

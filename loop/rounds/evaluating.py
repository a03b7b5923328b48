"""Evaluate: what is not measured of a checkpoint yet is measured and recorded, task by task."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from errors import LoopError
from evaluation.measuring import Measuring, measure, rehearse_tasks
from evaluation.tasks import EvalTask, protocol_of
from ledger.records import Checkpoint
from ledger.registry_weights import digests_of_weights
from ledger.store import RunStore
from loop.rounds.run import Run
from loop.rounds.session import sampling_client
from scores.results import EvalResult, Measured, eval_result
from simple_eval import Sampler


async def rehearse(run: Run) -> None:
    """Try what is measured only at the end on one sample, so that what it lacks is known now."""
    tasks, sealed = (
        [task for task in of_run if task.needs_rehearsal]
        for of_run in (run.plan.tasks, run.plan.test_tasks)
    )
    if not (tasks or sealed) or run.store.is_rehearsed:
        return
    place = await measuring(run, 0, "rehearsal", None, len(tasks) + len(sealed))
    usage = await rehearse_tasks(tasks, sealed, place)
    names = [task.name for task in (*tasks, *sealed)]
    run.store.append("rehearsed", round=0, tasks=names, **usage._asdict())


def due_tasks(run: Run, round_no: int) -> list[EvalTask]:
    return [task for task in run.plan.tasks if task.is_due(round_no)]


async def evaluate(
    run: Run, round_no: int, checkpoint: Checkpoint | None, tasks: list[EvalTask]
) -> EvalResult:
    """Measure the saved weights (round 0: the base model) on what is not measured of them yet."""
    if checkpoint is None:
        return await measure_and_record(run, round_no, f"round_{round_no:02d}", None, 0, tasks)
    path, step = checkpoint.sampler_path, checkpoint.step
    return await measure_and_record(run, round_no, f"round_{round_no:02d}", path, step, tasks)


async def measure_and_record(
    run: Run, number: int, label: str, path: str | None, step: int, tasks: list[EvalTask]
) -> EvalResult:
    """Measure weights on the tasks that they were not measured on yet, and record the result.

    `number` is the round, or the place among checkpoints that are evaluated outside a run.
    """
    plan, store = run.plan, run.store
    settings = plan.sampling, plan.renderer_name, plan.config.evaluation.grader_model
    protocol = protocol_of(plan.tasks, *settings)
    missing = [task for task in tasks if task.name not in store.measured(number).names]
    journal = store.eval_journal(number, path)
    recorded = store.result(number)
    if recorded is not None and not missing and _is_of_all_measured(store, number):
        journal.discard()
        return recorded
    if run.sharing.is_busy_with(store, number):
        run.progress.live(f"waiting for another run, which measures the same ({label})")
    async with run.sharing.turn_on(store, number):
        if left := take_paid(run, number, step, missing, protocol):
            total = sum(task.num_requests(plan.sampling.num_repeats) for task in left)
            place = await measuring(run, number, label, path, total - len(journal))
            weights = await weights_asked(run, path)
            async for new in measure(left, place, journal):
                latency_ms = run.stopwatch.take_mean_ms()
                store.record_measured(number, new, step, latency_ms, weights)
            run.waits.record(number)
        result = eval_result(number, path, store.measured(number), protocol)
        store.record_result(result, step)
        run.sharing.offer(store, result)
    journal.discard()
    return result


def take_paid(
    run: Run, number: int, step: int, tasks: list[EvalTask], protocol: Mapping[str, Any]
) -> list[EvalTask]:
    """Take what other runs have measured of the same weights; the tasks that are left."""
    store, left = run.store, list(tasks)
    for task, paid in run.sharing.paid_for(store, number, tasks, protocol):
        try:
            source = RunStore.open(paid.run_dir)
            found = source.measured(paid.number).only({paid.task})
        except LoopError as error:  # it is another run's, and may be moved or removed at any time
            run.progress.line(f"{task.name}: not taken from {paid.run_dir}: {error}")
            continue
        logs = [source.run_dir / one.log for one in found.tasks if one.log is not None]
        if not found.names or not all(log.is_file() for log in logs):
            run.progress.line(
                f"{task.name}: measured here, since what {paid.run_dir} had of it is gone"
            )
            continue
        taken = Measured(
            tuple(one.called(task.name, task.layer, task.role) for one in found.tasks),
            tuple(replace(one, name=task.name) for one in found.held_out),
        )
        (weights, *others) = source.measured_weights(paid.number, {paid.task})
        store.record_taken(number, taken, step, source, None if others else weights)
        run.progress.line(f"{task.name}: taken from {source.run_dir}, which measured the same")
        left.remove(task)
    return left


async def weights_asked(run: Run, path: str | None) -> dict[str, str] | None:
    """The sha256 of the files that are about to be measured, so that a later reader can tell
    whether what lies under the path is that still. None where the service keeps them, and of the
    base model, whose files the data manifest has."""
    if path is None or run.weights_dir is None:
        return None
    return await asyncio.to_thread(digests_of_weights, run.weights_dir, path)


def _is_of_all_measured(store: RunStore, number: int) -> bool:
    """Whether the newest result is recorded after all that was measured: a run may have been killed
    between the two, also where there was an earlier result."""
    newest = (
        max((event["seq"] for event in store.events(kind, number)), default=-1)
        for kind in ("measured", "evaluated")
    )
    measured, evaluated = newest
    return evaluated > measured


async def measuring(run: Run, number: int, label: str, path: str | None, total: int) -> Measuring:
    """What the measuring of a checkpoint needs: its sampler, the grader, and where logs go."""
    plan, store, config = run.plan, run.store, run.plan.config
    run.progress.live(f"loading the weights to measure ({label})")
    counted = run.progress.counter(f"measuring {label}", total)
    client = await sampling_client(run, path, counted)
    grader: Sampler | None = None
    if config.evaluation.grader_model is not None:
        assert plan.grader_renderer is not None, "the plan loads the grader's renderer"
        name = config.evaluation.grader_model
        judge = await sampling_client(run, None, lambda: None, name)
        grader = Sampler(name, judge, plan.grader_renderer, plan.rendering, plan.sampling)
    return Measuring(
        Sampler(label, client, plan.renderer, plan.rendering, plan.sampling),
        grader,
        run_dir=store.run_dir.resolve(),
        tags=[config.run_name, label],
        metadata={
            "run": store.run_id,
            "round": number,
            "checkpoint": path or "base model",
            "weights": store.weights_of(path),
            "evaluation": label,
        },
        say=run.say_once,
        begin=counted.begin,
        graded=counted.graded,
        turn=functools.partial(inspect_turn, run),
    )


@contextlib.asynccontextmanager
async def inspect_turn(run: Run) -> AsyncIterator[None]:
    """Inspect, for as long as one evaluation of it takes."""
    if run.sharing.inspect_turn.locked():
        run.progress.live("waiting for its turn in Inspect")
    async with run.sharing.inspect_turn:
        yield

"""The command line and the loop: train, checkpoint, evaluate, decide, select, and go again.

    python trainer_with_eval.py --config eval_loop_config.json

Every arrow is written to the run directory's ledger before the next one starts, and each is looked
up there first; so a run that was killed resumes at the arrow it was on, by the same code.
This file orchestrates. It computes no statistics, parses no rows and builds no datums.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import shlex
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import config_schema
from config_schema import LoadedConfig, TrainingConfig
from errors import (
    ConfigError,
    EvalError,
    InputError,
    LoopError,
    RunStoreError,
    ServiceError,
    TokenizerError,
    TrainingError,
)

if TYPE_CHECKING:
    import tinker

    from checkpoint_eval import Comparison, Subject
    from data_loader import ExampleTable
    from data_selector import MeasuredLosses, Selection, Signals
    from decision import Decision, Spent
    from diagnosis import TopicReport
    from eval_result import EvalResult
    from evalops_client import EvalOpsClient
    from evaluation import EvalTask, Sampler
    from local_tinker import Service
    from mining import Topics
    from nll_eval import HeldOutFile
    from plan import Plan, ServiceChoice
    from progress import Progress
    from run_store import Checkpoint, RunStore

MAX_STEPS_IN_FLIGHT = 4
EXTENDABLE = (
    "stop_rounds",
    "stop_budget",
    "stop_plateau",
)  # decisions that a larger bound lets a run take again


# --- the loop -------------------------------------------------------------------------------------


async def run_rounds(run: Run) -> Decision:
    """Run the loop from wherever its ledger stands to a decision that stops it."""
    store = run.store
    round_no = 0
    checkpoint: Checkpoint | None = None  # round 0 is the untouched base model
    decision: Decision | None = None
    await rehearse(run)
    while True:
        # --- train, checkpoint ---------------------------------------------------------------
        if decision is not None:
            selection = store.selection(round_no) or await select(run, round_no, decision)
            checkpoint = store.checkpoint(round_no) or await train(run, selection, decision)
        # --- evaluate ------------------------------------------------------------------------
        result = await evaluate(run, round_no, checkpoint, due_tasks(run, round_no))
        # --- decide --------------------------------------------------------------------------
        decision = store.decision(round_no)
        if decision is None or decision.action in EXTENDABLE:
            decision, result = await decide_and_record(run, result, checkpoint)
        # --- report --------------------------------------------------------------------------
        sentence, topics = diagnose_and_record(run, result), topics_and_record(run, result)
        run.progress.round_line(result, decision, sentence, topics)
        await post_to_evalops(run, result, decision, checkpoint)
        if decision.stops:
            await complete_evidence(run, decision)
            return decision
        # --- select --------------------------------------------------------------------------
        round_no += 1


async def rehearse(run: Run) -> None:
    """Try what is measured only at the end on one sample, so that what it lacks is known now."""
    from evaluation import rehearse_tasks

    tasks, sealed = (
        [task for task in of_run if task.needs_rehearsal]
        for of_run in (run.plan.tasks, run.plan.test_tasks)
    )
    if not (tasks or sealed) or run.store.is_rehearsed:
        return
    place = await measuring(run, 0, "rehearsal", None, len(tasks) + len(sealed))
    usage = await rehearse_tasks(tasks, sealed, **place)
    names = [task.name for task in (*tasks, *sealed)]
    run.store.append("rehearsed", round=0, tasks=names, **usage._asdict())


async def select(run: Run, round_no: int, decision: Decision) -> Selection:
    """Choose what a round trains on, from the round before it and what its evaluation failed."""
    from data_selector import select_first, select_next

    store, plan, config = run.store, run.plan, run.plan.config
    train, weights = plan.train.examples, plan.train_weights
    previous, step = store.selection(round_no - 1), store.steps_taken()
    num_slots = min(config.steps_per_round, config.max_steps - step) * config.batch_size
    if previous is None:
        selection = select_first(train, num_slots=num_slots, seed=config.seed, weights=weights)
    else:
        train, pool, signals = await signals_for(run, previous, decision, num_slots)
        selection = select_next(
            previous, train, pool, signals, plan.mining, num_slots=num_slots, weights=weights
        )
    assert not plan.held_out_picks(selection), "a pick that an evaluation asks"
    store.record_selection(selection, step)
    run.progress.selection_line(selection)
    return selection


async def signals_for(
    run: Run, previous: Selection, decision: Decision, num_slots: int
) -> tuple[ExampleTable, ExampleTable, Signals]:
    """The training rows and the pool, and what is known of those that the next round draws from;
    they have their topics."""
    from data_selector import Signals, candidates, mined_table
    from mining import likeness_of, stalled_topics, suspects_among

    plan, mining = run.plan, run.plan.mining
    start = decision.best_round if decision.action == "rollback" else previous.round
    result = run.store.result(start)  # of the weights that the round goes on from
    assert result is not None, "a round is evaluated before the next one is selected"
    train, pool = plan.train.examples, plan.pool.examples
    rows, source = mined_table(train, pool)
    signals = Signals()
    if mining.needs_topics:
        known = topics_for(run, result)
        reports = [run.store.topics(n) or [] for n in (*run.store.lineage(start), start) if n > 1]
        rows = known.rows
        signals = Signals(topics=known.scores(result), stalled=stalled_topics(reports))
    earlier = run.store.measured_losses()
    of_topics = rows if mining.needs_topics else None
    signals = replace(signals, suspects=suspects_among(earlier, of_topics))
    num_hard = mining.slots(num_slots, has_pool=source == "pool").num_hard
    positions = candidates(previous, rows, signals, mining, num_hard)
    if mining.needs_losses and positions:
        new = await measure_losses(run, previous.round + 1, rows.take(positions), start, earlier)
        suspects = suspects_among([*earlier, new], of_topics)
        signals = replace(signals, losses=new.losses, suspects=suspects)
    if mining.strategy == "similar":
        signals = replace(signals, likeness=likeness_of(rows, positions, result))
    return (train, rows, signals) if source == "pool" else (rows, pool, signals)


def topics_for(run: Run, result: EvalResult) -> Topics:
    """The topics of the rows to draw from, found once where they have none."""
    from data_selector import mined_table
    from mining import topics_of

    if run.topics is None:
        rows, _ = mined_table(run.plan.train.examples, run.plan.pool.examples)
        run.topics = topics_of(rows, result, run.plan.config.seed)
    return run.topics


async def measure_losses(
    run: Run, round_no: int, rows: ExampleTable, start: int, earlier: Sequence[MeasuredLosses]
) -> MeasuredLosses:
    """The losses of rows before a round, under the weights of round `start`, and under the base
    model where the strategy asks for them; what was measured `earlier` is not measured again."""
    from data_selector import CandidateLoss, MeasuredLosses
    from errors import EvalError
    from mining import losses_of

    store, plan = run.store, run.plan
    before: dict[str, float | None] = {}
    now: dict[str, float] = {}  # of an earlier round that these weights were asked before, too
    for one in earlier:
        if one.round == round_no:
            return one
        before |= {example_id: loss.before for example_id, loss in one.losses.items()}
        if one.checkpoint_round == start:
            now |= {example_id: loss.now for example_id, loss in one.losses.items()}
    run.progress.live(f"measuring the losses of {len(rows)} rows")
    num_tokens = 0

    async def measured(known: Collection[str], path: str | None) -> dict[str, float]:
        nonlocal num_tokens
        new = rows.take([i for i in range(len(rows)) if rows.id_of(i) not in known])
        if not len(new):
            return {}
        base_model = plan.config.base_model if path is None else None
        client = await run.service_client.create_sampling_client(path, base_model)
        tokenizer, concurrency = plan.renderer.tokenizer, plan.sampling.concurrency
        try:
            losses = await losses_of(new, client, plan.rendering, tokenizer, concurrency)
        except EvalError as error:
            error.num_prompt_tokens += num_tokens
            raise
        num_tokens += losses.num_prompt_tokens
        return {row.id: row.nll_sum / row.num_loss_tokens for row in losses.rows}

    if plan.mining.needs_losses_before:
        before |= await measured(before, None)
    checkpoint = store.checkpoint(start)
    now |= await measured(now, None if checkpoint is None else checkpoint.sampler_path)
    losses = {one: CandidateLoss(now[one], before.get(one)) for one in rows.ids}
    made = MeasuredLosses(round_no, start, losses)
    store.record_losses(made, num_tokens)
    run.progress.losses_line(round_no, len(losses), num_tokens)
    return made


async def train(run: Run, selection: Selection, decision: Decision) -> Checkpoint:
    """Train one round, several steps in flight, and save both kinds of weights at its end."""
    store, config = run.store, run.plan.config
    round_no = selection.round
    start = store.last_checkpoint()
    if decision.action == "rollback" and (start is None or start.round != round_no):
        start, run.training_client = store.checkpoint(decision.best_round), None
    client = run.training_client = run.training_client or await open_training_client(run, start)
    examples = [pick.example_id for pick in selection.picks]
    batches = [
        examples[i : i + config.batch_size] for i in range(0, len(examples), config.batch_size)
    ]
    first_step = 0 if (before := store.checkpoint(round_no - 1)) is None else before.step
    end_step = first_step + len(batches)
    next_step = start.step if start is not None and start.round == round_no else first_step

    in_flight: deque[InFlight] = deque()
    run.is_training = True
    try:
        for step in range(next_step, end_step):
            if run.stop_requested:
                if step == next_step or not is_checkpoint_due(config, step):  # else just saved
                    in_flight.append(submit_save(client, round_no, step, is_round_end=False))
                await finish_all(run, round_no, in_flight, num_left=0)
                raise Interrupted(f"before step {step}, with the weights saved")
            lr = run.plan.schedule.lr(step, decision.num_missed_gates)
            in_flight.append(submit_step(run, client, step, batches[step - first_step], lr))
            is_round_end = step + 1 == end_step
            if not is_round_end and is_held_out_due(config, step + 1):
                in_flight += submit_held_out(run, client, step + 1)
            if is_round_end or is_checkpoint_due(config, step + 1):
                in_flight.append(submit_save(client, round_no, step + 1, is_round_end))
            num_left = 0 if is_round_end else MAX_STEPS_IN_FLIGHT
            await finish_all(run, round_no, in_flight, num_left)
        if run.stop_requested:
            raise Interrupted(f"after round {round_no}'s last step, with the weights saved")
    except TrainingError:
        await discard_saves(run, round_no, in_flight)
        raise
    finally:
        run.is_training = False
    checkpoint = store.checkpoint(round_no)
    assert checkpoint is not None, "the last save of a round is its checkpoint"
    return checkpoint


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
    from eval_result import eval_result
    from evaluation import measure, protocol_of

    plan, store = run.plan, run.store
    result = store.result(number)
    missing = [task for task in tasks if task.name not in store.measured(number).names]
    if result is not None and not missing:
        return result
    if missing:
        total = sum(task.num_requests(plan.sampling.num_repeats) for task in missing)
        async for new in measure(missing, **await measuring(run, number, label, path, total)):
            store.record_measured(number, new, step)
    settings = plan.sampling, plan.renderer_name, plan.config.evaluation.grader_model
    result = eval_result(number, path, store.measured(number), protocol_of(plan.tasks, *settings))
    store.record_result(result, step)
    return result


async def measuring(
    run: Run, number: int, label: str, path: str | None, total: int
) -> dict[str, Any]:
    """What `measure` needs besides the tasks: the checkpoint, the grader, and where logs go."""
    from evaluation import Sampler, counted

    plan, store = run.plan, run.store
    config, service = plan.config, run.service_client
    base_model = config.base_model if path is None else None
    weights = await service.create_sampling_client(path, base_model)
    client = counted(weights, run.progress.counter(label, total))
    grader: Sampler | None = None
    if config.evaluation.grader_model is not None:
        assert plan.grader_renderer is not None, "the plan loads the grader's renderer"
        judge = await service.create_sampling_client(None, config.evaluation.grader_model)
        name = config.evaluation.grader_model
        grader = Sampler(name, judge, plan.grader_renderer, plan.rendering, plan.sampling)
    return {
        "sampler": Sampler(label, client, plan.renderer, plan.rendering, plan.sampling),
        "grader": grader,
        "run_dir": store.run_dir.resolve(),
        "tags": [config.run_name, label],
        "metadata": {"run": store.run_id, "round": number, "checkpoint": path or "base model"},
    }


async def decide_and_record(
    run: Run, result: EvalResult, checkpoint: Checkpoint | None
) -> tuple[Decision, EvalResult]:
    """Decide; guards that were not due are measured before a round is stopped or gone back to."""
    from decision import decide

    store = run.store
    step = 0 if checkpoint is None else checkpoint.step
    results = {one.round: one for one in store.results() if one.round <= result.round}
    guards = [task for task in run.plan.tasks if task.role == "guard"]
    while True:
        *earlier, result = results.values()
        decision = decide(earlier, result, spent(run, step), run.plan.gate)
        best = decision.best_round
        if decision.action == "continue" or all(t.name in results[best].names for t in guards):
            break
        results[best] = await evaluate(run, best, store.checkpoint(best), guards)
    assert decision.stops or store.test_opened() is None, "no training past the sealed test"
    recorded = store.decision(result.round)
    if recorded is not None and recorded.action == decision.action:
        return recorded, result
    store.record_decision(decision, step)
    return decision, result


def diagnose_and_record(run: Run, result: EvalResult) -> str | None:
    """Say once what a trained round's curves show; None for the baseline, which has none."""
    from diagnosis import Curves, diagnose

    store, round_no = run.store, result.round
    if round_no == 0:
        return None
    if (recorded := store.diagnosis(round_no)) is not None:
        return recorded
    lr = store.last_lr(round_no)
    assert lr is not None, "a trained round has steps"
    curves = Curves(
        store.losses(round_no), store.held_out_points(round_no), lr, run.plan.config.lora_rank
    )
    lineage = [one for number in store.lineage(round_no) if (one := store.result(number))]
    sentence = diagnose(curves, lineage, result)
    store.record_diagnosis(round_no, sentence)
    return sentence


def topics_and_record(run: Run, result: EvalResult) -> list[TopicReport]:
    """Say once how each topic stands after a trained round; empty for the baseline."""
    from diagnosis import topic_reports

    store, round_no = run.store, result.round
    if round_no == 0:
        return []
    if (recorded := store.topics(round_no)) is not None:
        return recorded
    selection, before = store.selection(round_no), store.result(store.lineage(round_no)[-1])
    assert selection is not None, "a trained round was selected"
    if run.plan.mining.needs_topics:  # the questions may have none of their own
        topics = topics_for(run, result)
        result = topics.labelled(result)
        before = None if before is None else topics.labelled(before)
    reports = topic_reports(result, before, selection.added_by_topic)
    store.record_topics(round_no, reports)
    return reports


def spent(run: Run, step: int) -> Spent:
    """What the run has used, and what its dearest round used, in the units of the budget."""
    from decision import Spent

    rounds = [run.store.usage(number) for number in range(1, run.store.num_rounds + 1)]
    used = run.store.usage()
    return Spent(
        steps=step,
        tokens=used.tokens,
        minutes=used.minutes,
        usd=run.plan.cost_usd(used) or 0.0,
        round_tokens=max((one.tokens for one in rounds), default=0),
        round_minutes=max((one.minutes for one in rounds), default=0.0),
        round_usd=max((run.plan.cost_usd(one) or 0.0 for one in rounds), default=0.0),
    )


async def complete_evidence(run: Run, decision: Decision) -> None:
    """At the end: what the chosen checkpoint still lacks, the sealed test, and the report."""
    from eval_report import write_report

    plan, store = run.plan, run.store
    checkpoint = store.checkpoint(decision.best_round)
    assert checkpoint is not None, "a run stops after a trained round"
    try:
        before = store.measured(decision.best_round).names
        result = await evaluate(run, decision.best_round, checkpoint, list(plan.tasks))
        run.progress.task_lines(result, result.names - before)
        if plan.test_tasks and store.test_result() is None:
            await ask_sealed_test(run, checkpoint)
    finally:  # there is a report, also where an evaluation failed
        config, cost_usd = plan.config.model_dump(mode="json"), plan.cost_usd(store.usage())
        write_report(store, plan.gate, config, decision, cost_usd)


async def ask_sealed_test(run: Run, checkpoint: Checkpoint) -> None:
    """Open the sealed test on a checkpoint, or finish one that was opened on it."""
    from eval_result import eval_result, protocol_hash
    from evaluation import measure, protocol_of

    plan, store, round_no, path = run.plan, run.store, checkpoint.round, checkpoint.sampler_path
    settings = plan.sampling, plan.renderer_name, plan.config.evaluation.grader_model
    protocol = protocol_of(plan.test_tasks, *settings)
    opened = store.test_opened()
    if opened is None:
        store.record_test_opened(round_no, path, protocol_hash(protocol))
    elif opened["checkpoint"] != path:
        raise RunStoreError(
            f"{store.run_dir}: the sealed test was opened on {opened['checkpoint']} and is not "
            f"asked of {path} as well. Start a new run with a new test."
        )
    missing = [t for t in plan.test_tasks if t.name not in store.test_measured().names]
    total = sum(task.num_requests(plan.sampling.num_repeats) for task in missing)
    place = await measuring(run, round_no, "sealed test", path, total)
    async for new in measure(missing, **place):
        store.record_test_measured(round_no, new, checkpoint.step)
    result = eval_result(round_no, path, store.test_measured(), protocol)
    store.record_test(result, checkpoint.step)


async def post_to_evalops(
    run: Run, result: EvalResult, decision: Decision, checkpoint: Checkpoint | None
) -> None:
    """Post a round that was not posted yet. A failed post is only a warning and a ledger entry."""
    from evalops_client import EvalOpsError, RoundReport

    config, store = run.plan.config, run.store
    if run.evalops is None or store.is_posted(result.round):
        return
    report = RoundReport(
        run_name=config.run_name,
        run_id=store.run_id,
        config_hash=run.plan.config_hash,
        round=result.round,
        checkpoint=result.checkpoint,
        base_model=config.base_model,
        score=result.score,
        stderr=result.stderr,
        n=result.n,
        threshold=config.eval_threshold,
        learning_rate=store.last_lr(result.round),
        step=0 if checkpoint is None else checkpoint.step,
        tasks=tuple((task.name, task.score, task.n) for task in result.tasks),
        passed=decision.action == "stop_passed",
        decision=decision.sentence,
    )
    assert config.evalops_test_suite_id is not None, "the schema asks for it"
    try:
        delivery = await run.evalops.post_round(report, config.evalops_test_suite_id)
    except EvalOpsError as error:
        store.append("evalops", round=result.round, ok=False, detail=str(error))
        run.progress.line(f"warning: {error}")
    else:
        store.append("evalops", round=result.round, ok=True, detail=delivery.run_id)


# --- steps and saves in flight --------------------------------------------------------------------


class StepInFlight(NamedTuple):
    """A submitted optimizer step: the forward-backward futures (one per part) and the step's."""

    step: int
    lr: float
    example_ids: list[str]
    forward_backwards: list[Any]
    optim_step: Any


class HeldOutInFlight(NamedTuple):
    """A submitted forward pass over a held-out file, behind the steps before it."""

    step: int
    file: HeldOutFile
    forward: Any


class SaveInFlight(NamedTuple):
    """Submitted saves. They queue behind the steps before them, so the pipeline need not drain."""

    step: int
    state: Any
    sampler: Any | None


InFlight = StepInFlight | HeldOutInFlight | SaveInFlight


def submit_step(
    run: Run, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
) -> StepInFlight:
    """Submit the forward-backwards of a batch and its optimizer step, before any is awaited."""
    import tinker

    from hyperparam_utils import ADAM_BETAS, ADAM_EPS

    config = run.plan.config
    part_size = math.ceil(len(example_ids) / config.data.accumulate)
    datums = [run.plan.rendering[example_id].datum for example_id in example_ids]
    adam = tinker.AdamParams(
        learning_rate=lr,
        beta1=ADAM_BETAS[0],
        beta2=ADAM_BETAS[1],
        eps=ADAM_EPS,
        weight_decay=config.weight_decay,
    )
    forward_backwards = [
        client.forward_backward(datums[start : start + part_size], "cross_entropy")
        for start in range(0, len(datums), part_size)
    ]
    return StepInFlight(step, lr, example_ids, forward_backwards, client.optim_step(adam))


def is_checkpoint_due(config: TrainingConfig, num_steps: int) -> bool:
    every = config.checkpoint_every_steps
    return every is not None and num_steps % every == 0


def is_held_out_due(config: TrainingConfig, num_steps: int) -> bool:
    every = config.evaluation.held_out_every_steps
    return every is not None and num_steps % every == 0


def submit_held_out(run: Run, client: tinker.TrainingClient, step: int) -> list[HeldOutInFlight]:
    """Submit a forward pass over each held-out file; it sees the weights after `step` steps."""
    from nll_eval import HeldOutFile, held_out_datums

    return [
        HeldOutInFlight(
            step,
            task.work,
            client.forward(held_out_datums(task.work, run.plan.rendering), "cross_entropy"),
        )
        for task in run.plan.tasks
        if isinstance(task.work, HeldOutFile)
    ]


def submit_save(
    client: tinker.TrainingClient, round_no: int, step: int, is_round_end: bool
) -> SaveInFlight:
    if not is_round_end:
        return SaveInFlight(step, client.save_state(f"round_{round_no:02d}_step_{step:06d}"), None)
    name = f"round_{round_no:02d}"
    return SaveInFlight(step, client.save_state(name), client.save_weights_for_sampler(name))


async def finish_all(run: Run, round_no: int, in_flight: deque[InFlight], num_left: int) -> None:
    """Await and record the oldest of what is in flight until `num_left` are."""
    while len(in_flight) > num_left:
        await finish(run, round_no, in_flight.popleft())


async def finish(run: Run, round_no: int, pending: InFlight) -> None:
    """Await and record one submitted step, measurement or save.

    Raises `TrainingError` for a bad step.
    """
    if isinstance(pending, SaveInFlight):
        await finish_save(run, round_no, pending)
        return
    if isinstance(pending, HeldOutInFlight):
        await finish_held_out(run, round_no, pending)
        return
    import tinker

    from eval_stats import batch_loss
    from run_store import Batch

    outputs = [await future for future in pending.forward_backwards]
    rendered = [run.plan.rendering[example_id] for example_id in pending.example_ids]
    loss, nll = batch_loss(
        [made["logprobs"].to_numpy() for output in outputs for made in output.loss_fn_outputs],
        [one.datum.loss_fn_inputs["weights"].to_numpy() for one in rendered],
    )
    if not (math.isfinite(loss) and math.isfinite(nll)):
        raise TrainingError(
            f"round {round_no} step {pending.step}: the loss is {loss}, at learning rate "
            f"{pending.lr:.3g}. The run stops here, and weights saved after this step are not "
            "used. Lower learning_rate, or check the model's weights and the rows of this step."
        )
    try:
        await pending.optim_step
    except tinker.RequestFailedError as error:
        raise TrainingError(
            f"round {round_no} step {pending.step}: the service refused the optimizer step at "
            f"learning rate {pending.lr:.3g} (loss {loss:.4g}): {error}. Weights saved after this "
            "step are not used. Where gradients are not finite, lower learning_rate."
        ) from error
    batch = Batch(
        step=pending.step,
        example_ids=tuple(pending.example_ids),
        num_tokens=sum(one.info.num_tokens for one in rendered),
        num_loss_tokens=sum(one.info.num_loss_tokens for one in rendered),
        lr=pending.lr,
    )
    run.store.record_batch(round_no, batch, loss=loss, nll=nll)
    run.progress.step_line(round_no, batch, loss)


async def finish_held_out(run: Run, round_no: int, pending: HeldOutInFlight) -> None:
    from nll_eval import held_out_of_output

    rendering, tokenizer = run.plan.rendering, run.plan.renderer.tokenizer
    loss = held_out_of_output(pending.file, await pending.forward, rendering, tokenizer)
    if not math.isfinite(loss.nll):
        raise TrainingError(
            f"round {round_no}: after {pending.step} steps the loss on {loss.name} is {loss.nll}. "
            "The run stops here, and weights saved from now on are not used. Lower learning_rate."
        )
    run.store.record_held_out(round_no, loss, pending.step)
    run.progress.held_out_line(round_no, pending.step, loss)


async def finish_save(run: Run, round_no: int, save: SaveInFlight) -> None:
    from hyperparam_utils import LORA_ALPHA
    from run_store import Checkpoint

    config = run.plan.config
    state = await save.state
    sampler = None if save.sampler is None else await save.sampler
    run.store.record_checkpoint(
        Checkpoint(
            round=round_no,
            step=save.step,
            state_path=state.path,
            sampler_path=None if sampler is None else sampler.path,
            base_model=config.base_model,
            lora_rank=config.lora_rank,
            lora_alpha=LORA_ALPHA,
            train_attn=config.train_attn,
            train_mlp=config.train_mlp,
            train_unembed=config.train_unembed,
            renderer=run.plan.renderer_name,
            expires_at=None,
        )
    )


async def discard_saves(run: Run, round_no: int, in_flight: deque[InFlight]) -> None:
    """Mark saves that queue behind a bad step as unusable, and delete them."""
    import tinker

    rest = tinker.RestClient(base_url=run.base_url, api_key=run.api_key)
    for save in [pending for pending in in_flight if isinstance(pending, SaveInFlight)]:
        for future in filter(None, (save.state, save.sampler)):
            try:
                path = (await future).path
            except tinker.TinkerError:
                continue  # the service refused to save these weights; there is nothing to discard
            run.store.append("checkpoint_unusable", round=round_no, step=save.step, state_path=path)
            await rest.delete_checkpoint_from_tinker_path(path)


async def open_training_client(run: Run, start: Checkpoint | None) -> tinker.TrainingClient:
    """A new adapter, or the newest saved state with its optimizer."""
    config = run.plan.config
    run.progress.live("preparing the adapter")
    if start is not None:
        return await run.service_client.create_training_client_from_state_with_optimizer(
            start.state_path
        )
    return await run.service_client.create_lora_training_client(
        base_model=config.base_model,
        rank=config.lora_rank,
        seed=config.seed,
        train_attn=config.train_attn,
        train_mlp=config.train_mlp,
        train_unembed=config.train_unembed,
        user_metadata={"renderer_name": run.plan.renderer_name},
    )


# --- a run, and what the user sees of it ---------------------------------------------------------


class Interrupted(LoopError):
    """The user asked to stop; what was paid for is saved. Exit code 130."""


@dataclass
class Run:
    """A plan in a run directory on a service."""

    plan: Plan
    store: RunStore
    progress: Progress
    service_client: tinker.ServiceClient
    base_url: str | None
    api_key: str | None = field(repr=False)
    evalops: EvalOpsClient | None = None
    training_client: tinker.TrainingClient | None = None
    topics: Topics | None = None  # of the rows to draw from, once they are needed
    is_training: bool = False
    stop_requested: bool = False


# --- the command ----------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="trainer_with_eval.py",
        description="Fine-tune a language model with LoRA in evaluation-driven rounds.",
        epilog="Exit codes: 0 finished, 1 failed, 2 bad input, 3 with --gate when the target was "
        "not met, 130 interrupted. Progress goes to stderr, results to stdout.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON config; README.md lists the settings"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one setting, for example --set seed=3 --set mining.replay_share=0.5",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="new run directory (default: runs/<time>-<name>)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_DIR",
        help="continue a run; without RUN_DIR the newest one of --config",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="CHECKPOINT",
        help="evaluate checkpoints instead of training: RUN_DIR, RUN_DIR@best, RUN_DIR@round_02 "
        "or tinker://...; of several the first is what the others are compared with",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="train on this machine, whatever keys or addresses are set",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check settings, files and data, show the schedule, stop",
    )
    parser.add_argument(
        "--gate", action="store_true", help="exit 3 when the threshold is not met in the end"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show every answer, and tracebacks of errors"
    )
    return parser.parse_args(argv)


@dataclass
class Session:
    """What the top boundary needs: the run that is open, and whether it has work in hand."""

    store: RunStore | None = None
    is_running: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    args, session = parse_arguments(argv), Session()
    try:
        return run_command(args, session)
    except KeyboardInterrupt:
        return report_failure(args, session, Interrupted("Interrupted."))
    except BrokenPipeError:  # whoever read the output has gone; what was paid for is on disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the one boundary
        return report_failure(args, session, error)
    finally:
        if session.store is not None:
            session.store.close()


def report_failure(args: argparse.Namespace, session: Session, error: BaseException) -> int:
    """Record a failure in the ledger, where there is a run, and tell the user; the exit code."""
    if args.verbose:
        import traceback

        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
    message = str(error)
    if not isinstance(error, LoopError):
        message = f"Unexpected {type(error).__name__}: {error}. Add -v for the traceback."
    exit_code = 2 if isinstance(error, InputError) else 130 if isinstance(error, Interrupted) else 1
    if session.store is not None and session.is_running:
        event = {Interrupted: "interrupted", EvalError: "eval_failed"}.get(type(error), "failed")
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            tokens = {}
            if isinstance(error, LoopError) and error.num_prompt_tokens:
                tokens["num_prompt_tokens"] = error.num_prompt_tokens
                tokens["num_sampled_tokens"] = error.num_sampled_tokens
            session.store.append(event, detail=redacted(message), **tokens)
        if not isinstance(error, ConfigError):
            message += f" Continue with: {resume_command(session.store.run_dir)}"
    message = redacted(message)
    print(message if exit_code == 130 else f"error: {message}", file=sys.stderr)
    if args.json:
        print(json.dumps({"error": message, "exit_code": exit_code}))
    return exit_code


def resume_command(run_dir: Path) -> str:
    """The command that goes on with a run, for the shell and folder that this one was given in."""
    cwd, words = Path.cwd(), [Path(sys.executable), Path(__file__).resolve()]
    shown = [
        str(word.relative_to(cwd)) if word.is_relative_to(cwd) else str(word) for word in words
    ]
    return shlex.join([*shown, "--resume", str(run_dir)])


def redacted(text: str) -> str:
    """Remove the keys that this process knows, wherever the text came from."""
    for name in ("TINKER_API_KEY", "EVALOPS_API_KEY"):
        if secret := os.environ.get(name):
            from evalops_client import redact

            text = redact(text, secret)
    return text


def run_command(args: argparse.Namespace, session: Session) -> int:
    settings = open_settings(args, session)
    from plan import describe_inputs, describe_plan, find_model_dir, make_plan, read_inputs
    from progress import Progress

    loaded, store = settings.loaded, settings.store
    model_dir = find_model_dir(loaded)
    if settings.evaluated is not None:
        return evaluate_checkpoints(args, settings, session, model_dir)
    if args.dry_run:
        return dry_run(args, settings, model_dir)
    choice = choose_place(args, settings, model_dir, settings.kept.get("service"))
    evalops = open_evalops(loaded.config)
    progress = Progress(verbose=args.verbose)
    progress.line(f"service: {choice.kind} ({choice.reason})")
    inputs = read_inputs(loaded, model_dir, settings.kept)
    for line in describe_inputs(inputs):
        progress.line(line)
    plan = make_plan(inputs, settings.kept)
    for line in describe_plan(plan):
        progress.line(line)
    with open_service(choice, plan, progress) as service:
        store = begin_run(settings, plan, choice) if store is None else continue_run(store, plan)
        session.store, session.is_running = store, True
        progress.line(f"run directory: {store.run_dir}")
        decision = asyncio.run(train_on_service(plan, store, progress, choice, service, evalops))
    session.is_running = False
    return report_end(args, store, decision, plan.cost_usd(store.usage()))


def evaluate_checkpoints(
    args: argparse.Namespace, settings: OpenedSettings, session: Session, model_dir: Path | None
) -> int:
    """Evaluate checkpoints outside a run, side by side; with --gate, exit 3 if one fails it."""
    from checkpoint_eval import (
        common_renderer,
        compare,
        find_subjects,
        gate_for,
        recorded_subjects,
        write_comparison,
    )
    from decision import describe_resolution
    from plan import describe_tasks, make_plan, read_eval_inputs
    from progress import Progress

    assert settings.evaluated is not None, "the caller has looked"
    loaded, store = settings.loaded, settings.store
    if store is None:
        subjects = find_subjects(settings.evaluated, Path("runs"))
    else:
        subjects = recorded_subjects(settings.evaluated)
    if loaded.config.gate.rule == "paired" and len(subjects) == 1:
        raise ConfigError(
            "--evaluate: gate.rule is paired, and there is one checkpoint only. Name the one that "
            "it is compared with first, for example RUN_DIR@round_00 for the untouched model."
        )
    begun_on = "embedded" if any(s.service == "embedded" for s in subjects) else None
    choice = choose_place(args, settings, model_dir, begun_on)
    inputs = read_eval_inputs(loaded, model_dir)
    renderer_name = common_renderer(subjects, loaded.config, inputs.model_path)
    plan = make_plan(inputs, {"renderer_name": renderer_name})
    gate = gate_for(plan.gate, len(subjects))
    progress = Progress(verbose=args.verbose)
    lines = [f"service: {choice.kind} ({choice.reason})", *describe_tasks(inputs)]
    lines += [describe_resolution(gate, inputs.scored_sizes), f"renderer: {plan.renderer_name}"]
    lines += [f"checkpoint: {s.label} ({s.path or 'the untouched base model'})" for s in subjects]
    if args.dry_run:
        print(json.dumps({"dry_run": True, "plan": lines}) if args.json else "\n".join(lines))
        return 0
    for line in lines:
        progress.line(line)
    with open_service(choice, plan, progress) as service:
        asyncio.run(refuse_unknown_paths(subjects, choice, loaded.config))
        if store is None:
            store = begin_run(settings, plan, choice, [one.to_record() for one in subjects])
        else:
            continue_run(store, plan)
        session.store, session.is_running = store, True
        progress.line(f"evaluation directory: {store.run_dir}")
        results = asyncio.run(evaluate_on_service(plan, store, progress, choice, service, subjects))
        comparisons = compare(subjects, results, gate)
        write_comparison(store, comparisons, loaded.config)
        for number, one in enumerate(comparisons):
            store.append("compared", round=number, passed=one.passed, sentence=one.sentence)
        store.append("run_finished")
    session.is_running = False
    return report_comparisons(args, store, comparisons)


class OpenedSettings(NamedTuple):
    """The settings of a run, and its store and resolved values when it is being resumed."""

    loaded: LoadedConfig
    store: RunStore | None
    run_dir: Path | None
    kept: dict[str, Any]
    evaluated: list[Any] | None  # checkpoints to evaluate: their names, or records on resumption


def open_settings(args: argparse.Namespace, session: Session) -> OpenedSettings:
    """Find out from the command line which settings and which run directory are meant."""
    if args.resume is None:
        if args.config is None:
            raise ConfigError(
                "--config is missing. Give the path of a JSON config, for example --config "
                "eval_loop_config.json, or --resume RUN_DIR to continue a run."
            )
        loaded = config_schema.load_and_validate_config(args.config, args.overrides)
        return OpenedSettings(loaded, None, args.run_dir, {}, args.evaluate)
    if args.evaluate is not None:
        raise ConfigError(
            "--evaluate and --resume exclude each other: the directory of an evaluation that is "
            "resumed says which checkpoints it is of."
        )
    if args.run_dir is not None:
        raise ConfigError(
            "--run-dir and --resume exclude each other: --resume names the directory."
        )
    import run_store
    from run_store import RunStore, newest_run

    given = None
    if args.config is not None:
        given = config_schema.load_and_validate_config(args.config, args.overrides)
    run_dir = Path(args.resume)
    if args.resume == "":
        if given is None:
            raise ConfigError(
                "--resume without a RUN_DIR needs --config, to know whose run is meant."
            )
        run_dir = newest_run(Path("runs"), config_schema.config_hash(given.config))
    elif given is not None and is_absent_or_empty(run_dir):
        return OpenedSettings(given, None, run_dir, {}, None)
    store = session.store = RunStore.open(run_dir, to_resume=not args.dry_run)
    recorded = store.resolved_config()
    if given is None:
        raw = config_schema.with_overrides(recorded["config"], args.overrides)
        file = Path(recorded["config_file"])
        given = LoadedConfig(config_schema.validate(raw, str(run_dir)), file, file.parent)
    config_schema.refuse_other_config(recorded["config"], given)
    evaluated = recorded.get(run_store.EVALUATED)
    return OpenedSettings(given, store, run_dir, recorded["resolved"], evaluated)


def is_absent_or_empty(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def choose_place(
    args: argparse.Namespace,
    settings: OpenedSettings,
    model_dir: Path | None,
    begun_on: str | None,
) -> ServiceChoice:
    """Where the run happens, by the rules of plan.py, from command line and environment."""
    from plan import choose_service

    config = settings.loaded.config
    return choose_service(config, model_dir, os.environ, local=args.local, begun_on=begun_on)


def dry_run(args: argparse.Namespace, settings: OpenedSettings, model_dir: Path | None) -> int:
    """Check all that can be checked without a service or the network; say what could not be."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is first imported, below
    from plan import (
        describe_inputs,
        describe_plan,
        make_plan,
        read_inputs,
        schedule_table,
        unchecked_without_service,
    )

    lines, unchecked, choice = [], [], None
    try:
        choice = choose_place(args, settings, model_dir, settings.kept.get("service"))
        lines.append(f"service: {choice.kind} ({choice.reason})")
    except ConfigError as error:
        lines.append("service: none yet")
        unchecked.append(str(error))
    inputs = read_inputs(settings.loaded, model_dir, settings.kept)
    lines += describe_inputs(inputs)
    try:
        lines += describe_plan(make_plan(inputs, settings.kept))
    except TokenizerError as error:
        if model_dir is not None:  # a hub model's needs the network, a directory's has to be there
            raise
        unchecked.append(f"tokens and truncation: {error}")
    lines += schedule_table(inputs)
    unchecked += unchecked_without_service(choice)
    if args.json:
        print(json.dumps({"dry_run": True, "plan": lines, "not_checked": unchecked}, indent=1))
    else:
        print("\n".join([*lines, "not checked:", *(f"  {what}" for what in unchecked)]))
    return 0


def open_evalops(config: TrainingConfig) -> EvalOpsClient | None:
    """The EvalOps client where it is enabled. Raises `ConfigError` when its key is missing."""
    if not config.evalops_enabled:
        return None
    from evalops_client import DEFAULT_API_URL, EvalOpsClient

    key = os.environ.get("EVALOPS_API_KEY")
    if not key:
        raise ConfigError(
            "evalops_enabled is true but EVALOPS_API_KEY is not set. Export your EvalOps key, or "
            "set evalops_enabled to false."
        )
    url = config.evalops_api_url or os.environ.get("EVALOPS_API_URL") or DEFAULT_API_URL
    return EvalOpsClient(key, url)


@contextlib.contextmanager
def open_service(choice: ServiceChoice, plan: Plan, progress: Progress) -> Iterator[Service | None]:
    """Start the embedded service and load the base model, where that is where the run happens."""
    if choice.kind != "embedded":
        if choice.base_url is not None:
            refuse_silent_address(choice.base_url)
        yield None
        return
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    progress.live("loading the base model")
    import local_tinker
    from local_tinker.wire import UserError

    with local_tinker.start() as service:
        try:
            service.serve_model(plan.config.base_model, plan.inputs.model_path)
            if (grader := plan.config.evaluation.grader_model) is not None:
                service.serve_model(grader, plan.inputs.grader_path)
        except UserError as error:
            raise ConfigError(str(error)) from None
        yield service


def refuse_silent_address(base_url: str) -> None:
    """Raise `ConfigError` when nothing listens there; the SDK would retry for minutes."""
    try:
        url = urlsplit(base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Nothing answers at {base_url}: {error}. Start the service, or correct base_url (or "
            "TINKER_BASE_URL)."
        ) from None


def begin_run(
    settings: OpenedSettings,
    plan: Plan,
    choice: ServiceChoice,
    evaluated: list[dict[str, Any]] | None = None,
) -> RunStore:
    """Make the run directory and write down everything that was settled.

    `evaluated` are the checkpoints of an evaluation outside a run.
    """
    from plan import data_manifest, dropped_rows, resolved_config
    from run_store import EVALUATED, RunStore, new_run_dir

    name, resolved = plan.config.run_name, resolved_config(plan, choice, versions())
    if evaluated is not None:
        name, resolved = f"{name}-evaluation", {**resolved, EVALUATED: evaluated}
    store = RunStore.create(settings.run_dir or new_run_dir(Path("runs"), name), resolved)
    store.record_start(data_manifest(plan), dropped_rows(plan), plan.config_hash)
    return store


def continue_run(store: RunStore, plan: Plan) -> RunStore:
    """Check that the data are the ones the run began with, and mark the resumption."""
    from plan import data_manifest, dropped_rows

    refuse_training_past_test(store, plan.config)

    manifest = data_manifest(plan)
    if not store.has_started:  # killed while its directory was being made
        store.record_start(manifest, dropped_rows(plan), plan.config_hash)
    else:
        store.refuse_other_data(manifest)
        store.mark_resumed(plan.config.model_dump(mode="json"))
    return store


def refuse_training_past_test(store: RunStore, config: TrainingConfig) -> None:
    """Raise `ConfigError` when a larger bound would train on after the sealed test was opened."""
    opened, recorded = store.test_opened(), store.resolved_config()["config"]
    bounds = {"max_rounds": config.max_rounds, "budget": config.budget.model_dump(mode="json")}
    changed = [key for key, value in bounds.items() if recorded[key] != value]
    if opened is not None and changed:
        raise ConfigError(
            f"{store.run_dir}: {changed[0]} cannot change any more, because the sealed test of "
            f"this run has been opened, on round {opened['round']}: training on would give a "
            "checkpoint that no unseen question can judge. Resume without the change, or start a "
            "new run with a test_tasks that nobody has looked at."
        )


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("tinker", "tinker-cookbook", "torch", "transformers", "peft")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


async def train_on_service(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    choice: ServiceChoice,
    service: Service | None,
    evalops: EvalOpsClient | None,
) -> Decision:
    """Run the rounds, from wherever the ledger stands."""
    checkpoint_dir = store.run_dir / "checkpoints"
    async with connected(plan, store, progress, choice, service, checkpoint_dir) as run:
        run.evalops = evalops
        decision = await run_rounds(run)
        store.append("run_finished", round=decision.round, action=decision.action)
        return decision


async def evaluate_on_service(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    choice: ServiceChoice,
    service: Service | None,
    subjects: list[Subject],
) -> list[EvalResult]:
    """Measure each checkpoint on every task; what is measured already is not measured again."""
    results = []
    for number, subject in enumerate(subjects):
        folder = subject.checkpoint_dir or store.run_dir / "checkpoints"
        async with connected(plan, store, progress, choice, service, folder) as run:
            label, path, tasks = subject.label, subject.path, list(plan.tasks)
            result = await measure_and_record(run, number, label, path, subject.step, tasks)
        progress.result_lines(label, result)
        results.append(result)
    return results


async def refuse_unknown_paths(
    subjects: list[Subject], choice: ServiceChoice, config: TrainingConfig
) -> None:
    """Raise `ConfigError` for a bare path whose weights are not there, or of another model."""
    import tinker

    for subject in subjects:
        if subject.path is None or subject.run_dir is not None:
            continue
        if choice.kind == "embedded":
            raise ConfigError(
                f"--evaluate {subject.path}: no run below ./runs has these weights, and the "
                "embedded service finds weights by their run. Give RUN_DIR@round_02 instead."
            )
        rest = tinker.RestClient(base_url=choice.base_url, api_key=os.environ.get("TINKER_API_KEY"))
        try:
            info = await rest.get_weights_info_by_tinker_path(subject.path)
        except tinker.APIStatusError as error:
            raise ConfigError(
                f"--evaluate {subject.path}: the service does not have it: {error}. Check the path."
            ) from None
        if info.base_model != config.base_model:
            raise ConfigError(
                f"--evaluate {subject.path}: its base model is {info.base_model}, the config's is "
                f"{config.base_model}. Set base_model to it."
            )


@contextlib.asynccontextmanager
async def connected(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    choice: ServiceChoice,
    service: Service | None,
    checkpoint_dir: Path,
) -> AsyncIterator[Run]:
    """Open a session on the service, and finish it whatever happens."""
    import tinker

    if service is not None:
        base_url, api_key = service.base_url, service.open_folder(checkpoint_dir)
    else:
        base_url, api_key = choice.base_url, os.environ.get("TINKER_API_KEY")
    client = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    run = Run(plan, store, progress, client, base_url, api_key)
    stop_on_signals(run)
    status = "errored"
    try:
        yield run
        status = "success"
    except (Interrupted, asyncio.CancelledError) as error:
        status = "interrupted"
        # Each request on its way would be reported, with a traceback, when the service closes.
        for name in ("tinker", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        detail = str(error) or "with all that was recorded so far saved"
        raise Interrupted(f"Interrupted {detail}.") from None
    except tinker.TinkerError as error:
        where = base_url or "Tinker"
        raise ServiceError(
            f"The service at {where} failed a request with {type(error).__name__}: {error}"
        ) from error
    finally:
        progress.close()
        with contextlib.suppress(tinker.TinkerError, TimeoutError):
            await asyncio.wait_for(client.close(status).result_async(), 5)


def stop_on_signals(run: Run) -> None:
    """First SIGINT or SIGTERM: finish the step in flight, save, leave. Second: leave at once."""
    loop, main_task = asyncio.get_running_loop(), asyncio.current_task()
    assert main_task is not None

    def on_signal() -> None:
        if run.stop_requested:
            os._exit(130)
        run.stop_requested = True
        run.progress.line("stopping after the steps in flight; once more to leave at once")
        if not run.is_training:
            main_task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def report_comparisons(
    args: argparse.Namespace, store: RunStore, comparisons: list[Comparison]
) -> int:
    """Print how checkpoints compare to stdout; returns the exit code."""
    from checkpoint_eval import summary, to_json

    if args.json:
        outcome = {
            "checkpoints": [to_json(one) for one in comparisons],
            "tokens": store.usage()._asdict(),
            "run_dir": str(store.run_dir),
        }
        print(json.dumps(outcome, indent=1))
    else:
        for one in comparisons:
            print(summary(one))
        for one in comparisons:
            if one.passed is not None:
                print(one.sentence)
        print(f"Evaluation directory: {store.run_dir}")
    has_failed = any(one.passed is False for one in comparisons)
    return 3 if args.gate and has_failed else 0


def report_end(
    args: argparse.Namespace, store: RunStore, decision: Decision, cost_usd: float | None
) -> int:
    """Print the outcome to stdout; returns the exit code."""
    from progress import score_and_n

    best, baseline, test = store.result(decision.best_round), store.result(0), store.test_result()
    checkpoint = store.checkpoint(decision.best_round)
    assert best is not None and baseline is not None and checkpoint is not None
    if args.json:
        outcome = {
            "action": decision.action,
            "sentence": decision.sentence,
            "scores": {str(number): score for number, score in store.scores().items()},
            "best_round": decision.best_round,
            "best_sampler_path": checkpoint.sampler_path,
            "best_state_path": checkpoint.state_path,
            "baseline": baseline.score,
            "test_score": None if test is None else test.score,
            "tokens": store.usage()._asdict(),
            "cost_usd": cost_usd,
            "run_dir": str(store.run_dir),
        }
        print(json.dumps(outcome, indent=1))
    else:
        print(decision.sentence)
        print(
            f"Best checkpoint: round {decision.best_round}, score {score_and_n(best)}, "
            f"baseline {baseline.score:.4f}"
        )
        if best.score <= baseline.score:
            print("No round scored above the untouched model.")
        if test is not None:
            print(f"Sealed test: score {score_and_n(test)}")
        print(f"  {checkpoint.sampler_path}")
        print(f"Report: {store.run_dir / 'eval_report.md'}")
        print(f"Run directory: {store.run_dir}")
    return 3 if args.gate and decision.action != "stop_passed" else 0


if __name__ == "__main__":
    sys.exit(main())

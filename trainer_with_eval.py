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
import functools
import json
import logging
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar
from urllib.parse import urlsplit

import config_schema
import durable
from config_schema import LoadedConfig, TrainingConfig
from errors import (
    ConfigError,
    EvalError,
    InputError,
    LoopError,
    RunStoreError,
    ServiceError,
    StorageError,
    TokenizerError,
)
from secret_keys import Keys, taken
from training import (
    Alert,
    Interrupted,
    Run,
    care_for_checkpoints,
    ignore_alert,
    naming_what_is_gone,
    train,
)

if TYPE_CHECKING:
    import tinker

    from checkpoint_eval import Comparison, Subject
    from data_loader import ExampleTable
    from data_selector import MeasuredLosses, Selection, Signals
    from decision import Decision, Spent
    from diagnosis import TopicReport
    from eval_budget import Budget, Metrics
    from eval_result import EvalResult
    from evalops_client import EvalOpsClient
    from evaluation import EvalTask, Sampler
    from local_tinker import Service
    from mining import Topics
    from plan import Plan, ServiceChoice
    from progress import Progress
    from run_store import Checkpoint, RunStore

T = TypeVar("T")

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
        await care_for_checkpoints(run, decision)
        # --- report --------------------------------------------------------------------------
        sentence, topics = diagnose_and_record(run, result), topics_and_record(run, result)
        run.progress.round_line(result, decision, sentence, topics)
        check_limits(run, result, checkpoint)
        send_to_evalops(run, result, decision, checkpoint)
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
    measured = run.store.measured_losses()
    earlier = [one for one in measured if one.round <= previous.round]
    of_topics = rows if mining.needs_topics else None
    signals = replace(signals, suspects=suspects_among(earlier, of_topics))
    num_hard = mining.slots(num_slots, has_pool=source == "pool").num_hard
    positions = candidates(previous, rows, signals, mining, num_hard)
    if mining.needs_losses and positions:
        new = await measure_losses(run, previous.round + 1, rows.take(positions), start, measured)
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
    run: Run, round_no: int, rows: ExampleTable, start: int, recorded: Sequence[MeasuredLosses]
) -> MeasuredLosses:
    """The losses of rows before a round, under the weights of round `start`, and under the base
    model where the strategy asks for them; what is `recorded` is not measured again."""
    from data_selector import CandidateLoss, MeasuredLosses
    from mining import losses_of

    store, plan = run.store, run.plan
    checkpoint = store.checkpoint(start)
    path = None if checkpoint is None else checkpoint.sampler_path
    journal = store.losses_journal(round_no, path)
    before: dict[str, float | None] = {}
    now: dict[str, float] = {}  # of an earlier round that these weights were asked before, too
    for one in recorded:
        if one.round == round_no:
            journal.discard()
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
        client = await sampling_client(run, path, lambda: None)
        tokenizer, concurrency = plan.renderer.tokenizer, plan.sampling.concurrency
        weights = path or "the base model"
        losses = await losses_of(
            new, client, plan.rendering, tokenizer, concurrency, journal, weights
        )
        num_tokens += losses.num_prompt_tokens
        return {row.id: row.nll_sum / row.num_loss_tokens for row in losses.rows}

    if plan.mining.needs_losses_before:
        before |= await measured(before, None)
    now |= await measured(now, path)
    losses = {one: CandidateLoss(now[one], before.get(one)) for one in rows.ids}
    made = MeasuredLosses(round_no, start, losses)
    store.record_losses(made, num_tokens)
    journal.discard()
    run.progress.losses_line(round_no, len(losses), num_tokens)
    return made


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
    journal = store.eval_journal(number, path)
    if missing:
        total = sum(task.num_requests(plan.sampling.num_repeats) for task in missing)
        place = await measuring(run, number, label, path, total - len(journal))
        async for new in measure(missing, journal=journal, **place):
            store.record_measured(number, new, step, run.stopwatch.take_mean_ms())
    journal.discard()
    if result is not None and not missing:
        return result
    settings = plan.sampling, plan.renderer_name, plan.config.evaluation.grader_model
    result = eval_result(number, path, store.measured(number), protocol_of(plan.tasks, *settings))
    store.record_result(result, step)
    return result


async def measuring(
    run: Run, number: int, label: str, path: str | None, total: int
) -> dict[str, Any]:
    """What `measure` needs besides the tasks: the checkpoint, the grader, and where logs go."""
    from evaluation import Sampler

    plan, store, config = run.plan, run.store, run.plan.config
    client = await sampling_client(run, path, run.progress.counter(label, total))
    grader: Sampler | None = None
    if config.evaluation.grader_model is not None:
        assert plan.grader_renderer is not None, "the plan loads the grader's renderer"
        name = config.evaluation.grader_model
        judge = await sampling_client(run, None, lambda: None, name)
        grader = Sampler(name, judge, plan.grader_renderer, plan.rendering, plan.sampling)
    return {
        "sampler": Sampler(label, client, plan.renderer, plan.rendering, plan.sampling),
        "grader": grader,
        "run_dir": store.run_dir.resolve(),
        "tags": [config.run_name, label],
        "metadata": {
            "run": store.run_id,
            "round": number,
            "checkpoint": path or "base model",
            "evaluation": label,
        },
    }


async def sampling_client(
    run: Run, path: str | None, on_answer: Callable[[], None], model: str | None = None
) -> tinker.SamplingClient:
    """A client for saved weights, or for a base model (None: the run's), that is watched."""
    from evaluation import watched

    base_model = (model or run.plan.config.base_model) if path is None else None
    async with naming_what_is_gone(run, path):
        client = await run.service_client.create_sampling_client(path, base_model)

    def answered(seconds: float) -> None:
        run.stopwatch.add(seconds)
        on_answer()

    return watched(client, answered, run.keys.redacted)


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
        losses=store.losses(round_no),
        held_out=store.held_out_points(round_no),
        lr=lr,
        lora_rank=run.plan.config.lora_rank,
        vocab_size=len(run.plan.renderer.tokenizer),
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
    journal = store.test_journal(path)
    place = await measuring(run, round_no, "sealed test", path, total - len(journal))
    async for new in measure(missing, journal=journal, **place):
        store.record_test_measured(round_no, new, checkpoint.step)
    journal.discard()
    result = eval_result(round_no, path, store.test_measured(), protocol)
    store.record_test(result, checkpoint.step)


def check_limits(run: Run, result: EvalResult, checkpoint: Checkpoint | None) -> None:
    """Hold a trained round against the limits of `evalops_budget_file`, once, and alert."""
    from eval_budget import check

    store, round_no = run.store, result.round
    if run.limits is None or checkpoint is None or store.limits_verdict(round_no) is not None:
        return
    verdict = check(run.limits, round_metrics(run, result))
    store.append("limits_checked", round=round_no, step=checkpoint.step, **verdict.to_json())
    for one in (*verdict.violations, *verdict.warnings):
        run.progress.line(f"  {one.type}: {one.message}")
    if verdict.violations:
        said = " ".join(one.message for one in verdict.violations)
        run.alert("limits_violated", {"round": round_no, "detail": said})


def round_metrics(run: Run, result: EvalResult) -> Metrics:
    """What limits are held against: a round's scores, and what the run has used up to it."""
    from eval_budget import Metrics

    used = run.store.usage()
    custom = {task.name: task.score for task in result.tasks}
    custom |= {f"{t.name}/{name}": value for t in result.tasks for name, value in t.metrics.items()}
    custom |= {loss.name: loss.nll for loss in result.held_out}
    return Metrics(
        quality_score=result.score,
        cost_usd=run.plan.cost_usd(used),
        tokens_used=used.tokens,
        avg_latency_ms=run.store.mean_latency_ms(result.round),
        total_execution_time_ms=used.minutes * 60_000,
        custom=custom,
    )


def send_to_evalops(
    run: Run, result: EvalResult, decision: Decision, checkpoint: Checkpoint | None
) -> None:
    """Put a round into the outbox, from where it is sent while the loop goes on."""
    from evalops_client import EvalOpsError, RoundReport

    config, store = run.plan.config, run.store
    if run.evalops is None:
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
    try:
        run.evalops.put(report)
    except EvalOpsError as error:
        run.progress.line(f"warning: {error}")


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
        help="continue a run; without RUN_DIR the newest one of --config; with RUN_DIR@round_02 go "
        "back to the end of that round and run what came after it again",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="CHECKPOINT",
        help="evaluate checkpoints instead of training: RUN_DIR, RUN_DIR@best, RUN_DIR@round_02 "
        "or tinker://...; of several the first is what the others are compared with",
    )
    parser.add_argument(
        "--list",
        type=Path,
        metavar="RUN_DIR",
        help="show which weights a run has saved, where, since and until when",
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
    parser.add_argument(
        "--alert",
        metavar="COMMAND",
        help="run a command, without a shell, when a limit is violated, the target is missed or "
        "the run fails, with what happened as JSON on its standard input",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show every answer, and tracebacks of errors"
    )
    return parser.parse_args(argv)


@dataclass
class Session:
    """What the top boundary needs: the keys, the run that is open, whether it has work in hand,
    and the user's alert command."""

    keys: Keys
    alert_command: Sequence[str] | None = None
    store: RunStore | None = None
    is_running: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    args = parse_arguments(argv)
    with taken() as keys, sigterm_as_interrupt():
        session = Session(keys)
        try:
            exit_code = run_command(args, session)
            write_out()
            return exit_code
        except KeyboardInterrupt:
            return report_failure(args, session, Interrupted("Interrupted."))
        except BrokenPipeError:  # whoever read the output has gone; what was paid for is on disk
            drop_output()
            return 1
        except Exception as error:  # the one boundary
            return report_failure(args, session, error)
        finally:
            if session.store is not None:
                session.store.close()


def write_out() -> None:
    """Write the result out; what a full disk refuses only at exit, nobody is told any more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        if isinstance(error, BrokenPipeError):
            raise
        raise StorageError(
            f"Standard output: the disk refused to write the result to it: {error.strerror}. Make "
            "room. The run directory is whole."
        ) from error


def drop_output() -> None:
    """Keep Python from writing the rest of the output at exit, where that would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Where the loop has not its own handlers, SIGTERM ends the command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in an event loop, which leaves SIGTERM at its default when it closes."""
    try:
        return asyncio.run(work)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)


def say(text: str, file: TextIO | None = None) -> None:
    """Print what may hold anybody's names: nothing in it reaches the terminal as a command."""
    from progress import printable

    print(printable(text), file=file)


def report_failure(args: argparse.Namespace, session: Session, error: BaseException) -> int:
    """Record a failure in the ledger, where there is a run, and tell the user; the exit code."""
    redacted, store = session.keys.redacted, session.store
    message = redacted(describe_failure(error))
    exit_code = 2 if isinstance(error, InputError) else 130 if isinstance(error, Interrupted) else 1
    if store is not None and session.is_running:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong
            record_failure(store, error, message)
    is_gone = isinstance(error, ServiceError) and error.fault == "checkpoint_gone"  # it says how
    can_continue = session.is_running and not isinstance(error, ConfigError) and not is_gone
    if store is not None and (can_continue or isinstance(error, StorageError)):
        message += f" {how_to_continue(store.run_dir)}"
        if not store.has_started and args.config is not None:  # what its tasks run is not recorded
            overrides = [word for one in args.overrides for word in ("--set", one)]
            message += f" {shlex.join(['--config', args.config, *overrides])}"
    with contextlib.suppress(OSError, StorageError):  # the output may lie on the disk that is full
        if args.verbose:
            import traceback

            say(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        say(message if exit_code == 130 else f"error: {message}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": message, "exit_code": exit_code}))
        write_out()
    if exit_code == 1:
        with contextlib.suppress(KeyboardInterrupt):  # during the alert; it has failed already
            alert(session, "failed", {"detail": message})
    return exit_code


def describe_failure(error: BaseException) -> str:
    """One paragraph on any failure."""
    if isinstance(error, LoopError):
        return str(error)
    if isinstance(error, OSError) and error.errno in durable.REFUSALS:
        if error.filename:
            return str(durable.storage_error(Path(error.filename), error))
        return (
            f"The disk refused to write an output or a temporary file: {error.strerror}. Make room "
            "where they go; what was recorded before is whole."
        )
    return f"Unexpected {type(error).__name__}: {error}. Add -v for the traceback."


def record_failure(store: RunStore, error: BaseException, message: str) -> None:
    event = {Interrupted: "interrupted", EvalError: "eval_failed"}.get(type(error), "failed")
    fields: dict[str, Any] = {}
    if isinstance(error, ServiceError) and error.fault is not None:
        fields["fault"] = error.fault
    if isinstance(error, LoopError) and error.num_prompt_tokens:
        fields["num_prompt_tokens"] = error.num_prompt_tokens
        fields["num_sampled_tokens"] = error.num_sampled_tokens
    store.append(event, detail=message, **fields)


def alert(session: Session, what: str, figures: Mapping[str, Any]) -> None:
    """Run the user's alert command, if there is one; that it failed is a warning."""
    if session.alert_command is None:
        return
    from alerts import send_alert

    run_dir = None if session.store is None else str(session.store.run_dir)
    message = {"alert": what, "run_dir": run_dir, **figures}
    if (problem := send_alert(session.alert_command, message)) is not None:
        say(f"warning: {problem}", file=sys.stderr)


def how_to_continue(run_dir: Path) -> str:
    return f"Continue with: {resume_command(run_dir)}"


def resume_command(run_dir: Path) -> str:
    """The command that goes on with a run, for the shell and folder that this one was given in."""
    cwd, words = Path.cwd(), [Path(sys.executable), Path(__file__).resolve()]
    shown = [
        str(word.relative_to(cwd)) if word.is_relative_to(cwd) else str(word) for word in words
    ]
    return shlex.join([*shown, "--resume", str(run_dir)])


def run_command(args: argparse.Namespace, session: Session) -> int:
    if args.alert is not None:
        from alerts import parse_command

        session.alert_command = parse_command(args.alert)
    if args.list is not None:
        return list_checkpoints(args)
    settings = open_settings(args, session)
    from plan import (
        describe_inputs,
        describe_plan,
        find_model_dir,
        make_plan,
        read_inputs,
        task_code,
    )
    from progress import Progress

    loaded, store = settings.loaded, settings.store
    model_dir = find_model_dir(loaded)
    progress = Progress(verbose=args.verbose, redacted=session.keys.redacted)
    # Before a run has started nothing is recorded, and --config names code as for a new one.
    if store is not None and (store.has_started or args.config is None):
        for line in store.refuse_other_code(task_code(loaded)):
            progress.line(line)
    if settings.evaluated is not None:
        return evaluate_checkpoints(args, settings, session, model_dir)
    if args.dry_run:
        return dry_run(args, settings, session, model_dir)
    as_recorded = loaded.config.model_dump(mode="json")
    if store is not None and settings.back_to is None and store.is_finished_with(as_recorded):
        return report_finished(args, session, store, loaded.config, progress)
    choice = choose_place(args, settings, session, model_dir, settings.kept.get("service"))
    evalops, limits = open_evalops(loaded.config, session.keys), load_limits(loaded)
    progress.line(f"service: {choice.kind} ({choice.reason})")
    if limits is not None and (untouched := limits.not_acted_on) is not None:
        progress.line(f"{loaded.config.evalops_budget_file}: {untouched}")
    inputs = read_inputs(loaded, model_dir, settings.kept)
    for line in describe_inputs(inputs):
        progress.line(line)
    plan = make_plan(inputs, settings.kept)
    for line in describe_plan(plan):
        progress.line(line)
    with open_service(choice, plan, progress) as service:
        if store is None:
            store = begin_run(settings, plan, choice, session)
        else:
            if store.num_torn_bytes:
                progress.line(
                    f"ledger: dropped a last line of {store.num_torn_bytes} bytes that was not "
                    "written whole"
                )
            continue_run(store, plan, settings.back_to)
        session.store, session.is_running = store, True
        progress.line(f"run directory: {store.run_dir}")
        place = Place(choice, service, store.run_dir / "checkpoints", session.keys)
        on_alert = functools.partial(alert, session)
        decision = in_loop(
            train_on_service(plan, store, progress, place, evalops, limits, on_alert)
        )
        session.is_running = False
    return report_end_and_alert(args, session, store, decision, plan.cost_usd(store.usage()))


def report_finished(
    args: argparse.Namespace,
    session: Session,
    store: RunStore,
    config: TrainingConfig,
    progress: Progress,
) -> int:
    """A run with nothing left to do: say so, how it can go on, and its outcome."""
    from plan import cost_usd

    decision = store.last_decision()
    assert decision is not None, "a finished run has a decision"
    how = "a run that met its target ends there"
    if store.test_opened() is not None:
        how = "its sealed test was opened, so it is not trained further"
    elif decision.action in EXTENDABLE:
        command = f"{resume_command(store.run_dir)} --set max_rounds={config.max_rounds + 1}"
        how = f"to train on, raise a bound: {command}"
    progress.line(f"{store.run_dir}: this run is finished, nothing is left to do; {how}")
    # The alert comes again: a kill at the very end may have kept it from being told.
    used_usd = cost_usd(config, store.usage())
    return report_end_and_alert(args, session, store, decision, used_usd)


def list_checkpoints(args: argparse.Namespace) -> int:
    """Print which weights a run has saved. Reads the run directory alone."""
    from checkpoint_care import listing, missing_from
    from run_store import RunStore

    store = RunStore.open(args.list)
    settled = store.settled_config()
    if store.is_evaluation:
        raise ConfigError(
            f"{args.list}: this is an evaluation of checkpoints, which saves no weights. --list "
            "takes the directory of a run."
        )
    service = settled["resolved"]["service"]
    saved, decision = store.saved_weights(), store.last_decision()
    best_round = None if decision is None else decision.best_round
    missing: set[str] = set()
    address = "Tinker" if service == "tinker" else settled["config"].get("base_url")
    where = f"on the service at {address or 'TINKER_BASE_URL'}"
    if service == "embedded":
        folder = store.run_dir / "checkpoints"
        missing, where = missing_from(folder, saved), f"on this machine in {folder}"
    if args.json:
        rows = [{**one._asdict(), "is_best": one.round == best_round} for one in saved]
        print(json.dumps({"where": where, "checkpoints": rows, "missing": sorted(missing)}))
    else:
        say(listing(saved, where, store.scores(), best_round, missing))
    return 0


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
    choice = choose_place(args, settings, session, model_dir, begun_on)
    inputs = read_eval_inputs(loaded, model_dir)
    renderer_name = common_renderer(subjects, loaded.config, inputs.model_path)
    plan = make_plan(inputs, {"renderer_name": renderer_name})
    gate = gate_for(plan.gate, len(subjects))
    progress = Progress(verbose=args.verbose, redacted=session.keys.redacted)
    lines = [f"service: {choice.kind} ({choice.reason})", *describe_tasks(inputs)]
    lines += [describe_resolution(gate, inputs.scored_sizes), f"renderer: {plan.renderer_name}"]
    lines += [f"checkpoint: {s.label} ({s.path or 'the untouched base model'})" for s in subjects]
    if args.dry_run:
        say(json.dumps({"dry_run": True, "plan": lines}) if args.json else "\n".join(lines))
        return 0
    if store is not None and len(results := store.comparable_results()) == len(subjects):
        progress.line(f"{store.run_dir}: this evaluation is finished, nothing is left to measure")
        return report_and_alert(args, session, store, compare(subjects, results, gate))
    for line in lines:
        progress.line(line)
    with open_service(choice, plan, progress) as service:
        in_loop(refuse_unknown_paths(subjects, choice, loaded.config, session.keys))
        if store is None:
            records = [one.to_record() for one in subjects]
            store = begin_run(settings, plan, choice, session, records)
        else:
            continue_run(store, plan)
        session.store, session.is_running = store, True
        progress.line(f"evaluation directory: {store.run_dir}")
        place = Place(choice, service, store.run_dir / "checkpoints", session.keys)
        results = in_loop(evaluate_on_service(plan, store, progress, place, subjects))
        comparisons = compare(subjects, results, gate)
        write_comparison(store, comparisons, loaded.config)
        for number, one in enumerate(comparisons):
            store.record_comparison(number, one.passed, one.sentence)
        store.append("run_finished")
        session.is_running = False
    return report_and_alert(args, session, store, comparisons)


def report_and_alert(
    args: argparse.Namespace, session: Session, store: RunStore, comparisons: list[Comparison]
) -> int:
    """Print how checkpoints compare, and alert where one does not pass; the exit code."""
    try:
        return report_comparisons(args, store, comparisons)
    finally:
        if missed := [one.sentence for one in comparisons if one.passed is False]:
            alert(session, "target_missed", {"detail": " ".join(missed)})


class OpenedSettings(NamedTuple):
    """The settings of a run, and its store and resolved values when it is being resumed."""

    loaded: LoadedConfig
    store: RunStore | None
    run_dir: Path | None
    kept: dict[str, Any]
    evaluated: list[Any] | None  # checkpoints to evaluate: their names, or records on resumption
    back_to: int | None = None  # the round to go back to


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
    run_dir, back_to = resumed_place(args.resume)
    if args.resume == "":
        if given is None:
            raise ConfigError(
                "--resume without a RUN_DIR needs --config, to know whose run is meant."
            )
        run_dir = newest_run(Path("runs"), config_schema.config_hash(given.config))
    elif given is not None and run_store.is_absent_or_empty(run_dir):
        return OpenedSettings(given, None, run_dir, {}, None)
    store = session.store = RunStore.open(run_dir, to_resume=not args.dry_run)
    store.refuse_impossible_ledger()
    recorded = store.settled_config()
    if given is None:
        raw = config_schema.with_overrides(recorded["config"], args.overrides)
        file = Path(recorded["config_file"])
        given = LoadedConfig(config_schema.validate(raw, str(run_dir)), file, file.parent)
    where = str(run_dir) if args.config is None else str(given.file)
    config_schema.refuse_other_config(recorded["config"], given, where)
    evaluated = recorded.get(run_store.EVALUATED)
    if evaluated is not None and back_to is not None:
        raise ConfigError(
            f"--resume {args.resume}: {run_dir} is an evaluation of checkpoints, which has no "
            "rounds to go back to. Give the directory alone."
        )
    return OpenedSettings(given, store, run_dir, recorded["resolved"], evaluated, back_to)


def resumed_place(text: str) -> tuple[Path, int | None]:
    """The directory that --resume names, and the round to go back to, if one is named."""
    match = re.fullmatch(r"(.+)@round_(\d{1,4})", text, re.DOTALL)
    if match is None or Path(text).exists():
        return Path(text), None
    return Path(match[1]), int(match[2])


def choose_place(
    args: argparse.Namespace,
    settings: OpenedSettings,
    session: Session,
    model_dir: Path | None,
    begun_on: str | None,
) -> ServiceChoice:
    """Where the run happens, by the rules of plan.py, from command line and environment."""
    from plan import choose_service

    config, env = settings.loaded.config, session.keys.environment
    return choose_service(config, model_dir, env, local=args.local, begun_on=begun_on)


def dry_run(
    args: argparse.Namespace, settings: OpenedSettings, session: Session, model_dir: Path | None
) -> int:
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
    load_limits(settings.loaded)
    if settings.loaded.config.evalops_enabled and not session.keys.evalops:
        unchecked.append("EvalOps: EVALOPS_API_KEY is not set, and the run needs it")
    try:
        choice = choose_place(args, settings, session, model_dir, settings.kept.get("service"))
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
        say(json.dumps({"dry_run": True, "plan": lines, "not_checked": unchecked}, indent=1))
    else:
        say("\n".join([*lines, "not checked:", *(f"  {what}" for what in unchecked)]))
    return 0


def open_evalops(config: TrainingConfig, keys: Keys) -> EvalOpsClient | None:
    """The EvalOps client where it is enabled. Raises `ConfigError` when its key is missing."""
    if not config.evalops_enabled:
        return None
    from evalops_client import make_client

    if not keys.evalops:
        raise ConfigError(
            "evalops_enabled is true but EVALOPS_API_KEY is not set. Export your EvalOps key, or "
            "set evalops_enabled to false."
        )
    return make_client(keys.evalops, config.evalops_api_url)


def load_limits(loaded: LoadedConfig) -> Budget | None:
    """The limits of `evalops_budget_file`, where one is named."""
    config = loaded.config
    if config.evalops_budget_file is None:
        return None
    from eval_budget import load_budget

    path = loaded.find("evalops_budget_file", config.evalops_budget_file)
    return load_budget(path, config.evalops_environment)


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
    session: Session,
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
    run_dir = settings.run_dir or new_run_dir(Path("runs"), name)
    try:
        store = session.store = RunStore.create(run_dir, resolved)
    except StorageError as error:
        raise StorageError(f"{error} Nothing was begun yet; give the same command again.") from None
    store.record_start(data_manifest(plan), dropped_rows(plan), plan.config_hash)
    return store


def continue_run(store: RunStore, plan: Plan, back_to: int | None = None) -> None:
    """Check that the data are the ones the run began with, and mark the resumption.

    It goes on where it was, or from the end of round `back_to`.
    """
    from plan import data_manifest, dropped_rows, refuse_foreign_records

    refuse_training_past_test(store, plan.config)

    manifest = data_manifest(plan)
    if not store.has_started:  # killed while its directory was being made
        store.record_start(manifest, dropped_rows(plan), plan.config_hash)
    else:
        store.refuse_other_data(manifest)
        refuse_foreign_records(plan, store)
        store.mark_resumed(plan.config.model_dump(mode="json"), back_to)


def refuse_training_past_test(store: RunStore, config: TrainingConfig) -> None:
    """Raise `ConfigError` when a larger bound would train on after the sealed test was opened."""
    opened, recorded = store.test_opened(), store.resolved_config()["config"]
    bounds = {"max_rounds": config.max_rounds, "budget": config.budget.model_dump(mode="json")}
    changed = [key for key, value in bounds.items() if recorded.get(key) != value]
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


class Place(NamedTuple):
    """Where a session is opened, and what it is signed with."""

    choice: ServiceChoice
    service: Service | None  # the embedded one
    checkpoint_dir: Path
    keys: Keys


async def train_on_service(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    place: Place,
    evalops: EvalOpsClient | None = None,
    limits: Budget | None = None,
    on_alert: Alert = ignore_alert,
) -> Decision:
    """Run the rounds, from wherever the ledger stands."""
    async with connected(plan, store, progress, place) as run:
        run.limits, run.alert = limits, on_alert
        with sending(run, evalops):
            decision = await run_rounds(run)
            run.is_closing = True
            store.append("run_finished", round=decision.round, action=decision.action)
            if run.evalops is not None:
                await run.evalops.finish()
        return decision


@contextlib.contextmanager
def sending(run: Run, evalops: EvalOpsClient | None) -> Iterator[None]:
    """Send rounds to EvalOps beside the loop, where that is enabled."""
    if evalops is None:
        yield
        return
    from evalops_client import Deliverer, Outbox

    suite_id = run.plan.config.evalops_test_suite_id
    assert suite_id is not None, "the schema asks for it"
    run.evalops = Deliverer(
        evalops,
        Outbox(run.store.run_dir, run.store.run_id),
        suite_id,
        delivered=run.store.delivered_keys(),
        record=run.store.record_delivery,
        warn=lambda text: run.progress.line(f"warning: {text}"),
    )
    run.evalops.start()
    try:
        yield
    finally:
        run.evalops.close()


async def evaluate_on_service(
    plan: Plan, store: RunStore, progress: Progress, place: Place, subjects: list[Subject]
) -> list[EvalResult]:
    """Measure each checkpoint on every task; what is measured already is not measured again."""
    results = []
    for number, subject in enumerate(subjects):
        folder = subject.checkpoint_dir or place.checkpoint_dir
        of_subject = place._replace(checkpoint_dir=folder)
        async with connected(plan, store, progress, of_subject) as run:
            label, path, tasks = subject.label, subject.path, list(plan.tasks)
            result = await measure_and_record(run, number, label, path, subject.step, tasks)
        progress.result_lines(label, result)
        if run.stop_requested and number + 1 < len(subjects):  # while its session was closed
            raise Interrupted(f"Interrupted after {label}, with its result saved.")
        results.append(result)
    return results


async def refuse_unknown_paths(
    subjects: list[Subject], choice: ServiceChoice, config: TrainingConfig, keys: Keys
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
        rest = tinker.RestClient(base_url=choice.base_url, api_key=keys.tinker)
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
    plan: Plan, store: RunStore, progress: Progress, place: Place
) -> AsyncIterator[Run]:
    """Open a session on the service, and finish it whatever happens."""
    import tinker

    from faults import SDK_ERRORS, explain

    base_url, keys = place.choice.base_url, place.keys
    if place.service is not None:
        base_url = place.service.base_url
        keys = replace(keys, tinker=place.service.open_folder(place.checkpoint_dir))
    client = tinker.ServiceClient(base_url=base_url, api_key=keys.tinker)
    run = Run(plan, store, progress, client, base_url, keys)
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
    except SDK_ERRORS as error:
        explained = explain(error, base_url)
        if explained is None:
            raise
        raise explained from error
    finally:
        run.is_closing = True
        progress.close()
        with contextlib.suppress(tinker.TinkerError, TimeoutError):
            await asyncio.wait_for(client.close(status).result_async(), 5)


def stop_on_signals(run: Run) -> None:
    """First SIGINT or SIGTERM: finish the step in flight, save, leave. Second: leave at once."""
    loop, main_task = asyncio.get_running_loop(), asyncio.current_task()
    assert main_task is not None

    def on_signal() -> None:
        if run.stop_requested:
            say(f"Left at once. {how_to_continue(run.store.run_dir)}", file=sys.stderr)
            os._exit(130)
        run.stop_requested = True
        if run.is_closing:
            run.progress.line("the end is being written; once more to leave at once")
            return
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
            say(summary(one))
        for one in comparisons:
            if one.passed is not None:
                say(one.sentence)
        say(f"Evaluation directory: {store.run_dir}")
    has_failed = any(one.passed is False for one in comparisons)
    return 3 if args.gate and has_failed else 0


def report_end_and_alert(
    args: argparse.Namespace,
    session: Session,
    store: RunStore,
    decision: Decision,
    cost_usd: float | None,
) -> int:
    """Print the outcome of a run, and alert where it has not met its target; the exit code."""
    try:
        return report_end(args, store, decision, cost_usd)
    finally:
        if decision.action != "stop_passed":
            alert(session, "target_missed", {"round": decision.round, "detail": decision.sentence})


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
        say(decision.sentence)
        say(
            f"Best checkpoint: round {decision.best_round}, score {score_and_n(best)}, "
            f"baseline {baseline.score:.4f}"
        )
        if best.score <= baseline.score:
            say("No round scored above the untouched model.")
        if test is not None:
            say(f"Sealed test: score {score_and_n(test)}")
        say(f"  {checkpoint.sampler_path}")
        say(f"Report: {store.run_dir / 'eval_report.md'}")
        say(f"Run directory: {store.run_dir}")
    verdict = store.limits_verdict(decision.best_round)
    is_within_limits = verdict is None or not verdict["fails"]
    return 3 if args.gate and not (decision.action == "stop_passed" and is_within_limits) else 0


if __name__ == "__main__":
    sys.exit(main())

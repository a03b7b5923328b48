"""A whole study: its arms and trials, in turn or several at once, rung by rung, to a winner.

Trials are ordinary runs. What is done is found by their own ledgers, so that a study that was
killed goes on where it was by running it again, and so does one that was changed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from commands.boundary import Failure, Session, one_of_several
from config_schema import validate
from errors import ConfigError, Interrupted, LoopError
from ledger.run_directory import CONFIG, is_absent_or_empty
from ledger.store import RunStore
from scores.results import EvalResult
from studies.checking import state_of
from studies.collecting import (
    choose_winner,
    outcome_of,
    study_cost_usd,
    trials_by_arm,
)
from studies.evaluating import lay_out_trial
from studies.experiment import FILE_NAME
from studies.generating import ArmFiles, Generation, TrialFiles
from studies.halving import judge_rung, rungs
from studies.hindsight import gate_in_hindsight
from studies.outcome import StudyOutcome, TrialOutcome
from studies.record import StudyRecord
from studies.screen import ENDED, WAITING, Screen
from studies.spending import Spending
from studies.trial_runs import Floor, TrialPlace, ask_sealed_test, measure_arm, train_trial

T = TypeVar("T")

FILES_OF_ITSELF = 512  # libraries, logs, the embedded service
FILES_OF_A_TRIAL = 256  # twice the answers that are asked for at once (evaluation.concurrency)


@dataclass
class Work:
    """A study at work."""

    generation: Generation
    record: StudyRecord
    floor: Floor
    num_parallel: int
    spending: Spending
    stopped: Interrupted | None = None  # nothing more is begun
    budget_sentence: str | None = None

    @property
    def screen(self) -> Screen:
        return self.floor.screen

    @property
    def may_begin(self) -> bool:
        """Whether another piece of work may be begun; says once where the budget ends."""
        if self.stopped is not None or self.floor.sharing.is_stopping:
            return False
        if self.budget_sentence is None and (why := self.spending.out_of()) is not None:
            self.budget_sentence = f"Stopped for the budget: {why}."
            self.record.append("budget_reached", sentence=self.budget_sentence)
            self.screen.line(self.budget_sentence)
        return self.budget_sentence is None


async def run_study(work: Work, known: Iterable[Path]) -> StudyOutcome:
    """Do all that is left of a study. `known` are run directories that may have been paid for
    already, its own and others.

    Raises `ConfigError` for a run directory that is of another trial, `Interrupted` once all that
    was at work is saved.
    """
    generation, record = work.generation, work.record
    refuse_stale(generation)
    _note_opened(work)
    _offer_known(work, known)
    _finish_found(work)
    await _each(work, generation.arms, lambda arm: _measure(work, arm))
    arms = trials_by_arm(generation)
    for rung in [*_rungs(generation), None]:
        alive = [name for name in arms if name not in record.dropped]
        trials = [one for name in alive for one in arms[name] if not _has_reached(one, rung)]
        await _each(work, trials, lambda one, rung=rung: _train(work, one, rung))
        if work.stopped is not None or work.floor.sharing.is_stopping:
            raise work.stopped or Interrupted("Interrupted between two trials.")
        if rung is not None and work.budget_sentence is None:
            _judge(work, rung)
    outcome = outcome_of(generation, record)
    await _name_winner(work, outcome)
    return outcome_of(generation, record)


def allow_open_files(num_parallel: int) -> str | None:
    """Have this process hold as many files open as trials side by side may need; what to do where
    it may not. Over plain HTTP each request on its way is a connection, and the SDK lets go of a
    trial's only some time after it has ended."""
    needed = FILES_OF_ITSELF + num_parallel * FILES_OF_A_TRIAL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    return (
        f"{num_parallel} trials at once may hold {needed:,} files and connections open, and this "
        f"process may hold {allowed:,} (ulimit -n). Raise that, or lower --parallel."
    )


def refuse_stale(generation: Generation) -> None:
    """Raise `ConfigError` for trials whose directory holds a run of other settings or data."""
    stale = [one for one in state_of(generation).trials if one.training.state == "stale"]
    if stale:
        first, more = stale[0], f", and so for {len(stale) - 1} more" if len(stale) > 1 else ""
        raise ConfigError(
            f"{generation.study.results_dir / first.run_id}: {first.training.why}, so it is not "
            f"the trial that the study has now ({first.params}){more}. What it cost is not thrown "
            "away: undo the change, or move the directory, or set another output.results_dir."
        )


def _note_opened(work: Work) -> None:
    generation = work.generation
    trials = {one.trial.run_id: one.trial.shown for one in generation.trials}
    arms = [arm.name for arm in generation.arms]
    for change in work.record.note_opened(generation.inputs[FILE_NAME], trials, arms):
        work.screen.line(f"since the last run: {change}")
    work.record.append("run_begun", parallel=work.num_parallel)


def _offer_known(work: Work, known: Iterable[Path]) -> None:
    """Let trials take what run directories have measured. One that is damaged is no source."""
    own = {one.trial.run_id: one for one in work.generation.trials}
    for run_dir in known:
        if not (run_dir / CONFIG).is_file():
            continue
        with contextlib.suppress(LoopError, KeyError, TypeError):
            store = RunStore.open(run_dir)
            if not store.has_started:
                continue
            for result in store.results():
                work.floor.sharing.offer(store, result)
            if run_dir.name in own and run_dir.parent == work.generation.study.results_dir:
                _note_usage(work, own[run_dir.name], store)


async def _each(work: Work, things: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do something for each, so many at once, as long as more may be begun."""
    slots = asyncio.Semaphore(work.num_parallel)

    async def one(thing: T) -> None:
        async with slots:
            if work.may_begin:
                await do(thing)
        # The SDK's clients hold each other and, until they are collected, their connections.
        if work.num_parallel > 1:
            gc.collect()

    await asyncio.gather(*(asyncio.create_task(one(thing)) for thing in things))


# --- a trial --------------------------------------------------------------------------------------


def place_of(files: TrialFiles) -> TrialPlace:
    return TrialPlace(files.trial.run_id, files.train_file, files.run_dir)


def _has_reached(files: TrialFiles, rung: int | None) -> bool:
    """Whether a trial has come as far as it is to come; its end where no rung is named."""
    if is_absent_or_empty(files.run_dir):
        return False
    store = RunStore.open(files.run_dir)
    is_done = any(store.events("run_finished"))
    return is_done or (rung is not None and store.decision(rung) is not None)


async def _train(work: Work, files: TrialFiles, rung: int | None) -> None:
    """Train a trial to a rung or to its end, and record what became of it."""
    run_id, record = files.trial.run_id, work.record
    session = Session(work.floor.keys)
    if not any(e["run"] == run_id for e in record.events("trial_begun")):
        params = dict(files.trial.params)
        record.append("trial_begun", run=run_id, params=params, seed=files.trial.seed)

    def leaves_after(round_no: int) -> bool:
        if rung is not None and round_no >= rung:
            return True
        if session.store is not None:
            _note_usage(work, files, session.store)
        return not work.may_begin

    training = train_trial(place_of(files), work.floor, session, leaves_after)
    is_done = await _recorded(work, run_id, training, session)
    if is_absent_or_empty(files.run_dir):
        return
    store = RunStore.open(files.run_dir)
    _note_usage(work, files, store)
    if not is_done:
        return
    if any(store.events("run_finished")):
        _finish(work, files, store)
        return
    decision = store.last_decision()
    round_no = 0 if decision is None else decision.round
    record.append("trial_left", run=run_id, round=round_no)
    work.screen.set(run_id, WAITING, f"left after round {round_no}")


def _finish(work: Work, files: TrialFiles, store: RunStore) -> None:
    """Lay out what a finished trial has measured, and record that it is done."""
    run_id = files.trial.run_id
    result = lay_out_trial(work.generation, files, store)
    gate = gate_in_hindsight(work.generation.study, files, store)
    work.record.append("trial_done", run=run_id, round=result.round, score=result.score, gate=gate)
    work.screen.end(run_id, f"done, score {result.score:.4f} ({files.trial.shown})")


def _finish_found(work: Work) -> None:
    """The same for trials that have finished since, be it by hand or before a kill, and a word on
    those that were done before."""
    done = {event["run"]: event for event in work.record.events("trial_done")}
    for one in work.generation.trials:
        run_id = one.trial.run_id
        if _has_reached(one, None) and run_id not in done:
            _finish(work, one, RunStore.open(one.run_dir))
        elif run_id in done:
            score = f"{done[run_id]['score']:.4f}"
            work.screen.set(run_id, ENDED, "done before", score)


async def _recorded(
    work: Work, run_id: str, job: Coroutine[Any, Any, None], session: Session
) -> bool:
    """Do one trial's work; whether it is done. Its failure is recorded, and what stops the study is
    kept for its end."""
    try:
        failure = await one_of_several(job, session)
    except Interrupted as stopped:
        work.stopped = stopped
        work.screen.set(run_id, WAITING, "interrupted")
        return False
    if isinstance(failure, Failure):
        work.record.append("trial_failed", run=run_id, error=failure.message)
        work.screen.end(run_id, f"failed: {failure.message}")
        return False
    return True


def _note_usage(work: Work, files: TrialFiles, store: RunStore) -> None:
    usage = store.usage()
    config = validate(json.loads(files.train_text), str(files.train_file))
    usd = study_cost_usd(work.generation.study, config, usage)
    work.spending.note(files.trial.run_id, usage, usd)


# --- an arm that is not trained -------------------------------------------------------------------


async def _measure(work: Work, arm: ArmFiles) -> None:
    if not is_absent_or_empty(arm.run_dir) and RunStore.open(arm.run_dir).comparable_results():
        return
    session = Session(work.floor.keys)
    place = TrialPlace(arm.run_id, arm.config_file, arm.run_dir)
    job = measure_arm(place, arm.checkpoint, work.floor, session)
    if await _recorded(work, arm.run_id, job, session):
        store = RunStore.open(arm.run_dir)
        if results := store.comparable_results():
            work.spending.note(arm.run_id, store.usage(), None)
            work.record.append("trial_done", run=arm.run_id, round=0, score=results[0].score)
            work.screen.end(arm.run_id, f"measured, score {results[0].score:.4f}")


# --- halving --------------------------------------------------------------------------------------


def _rungs(generation: Generation) -> list[int]:
    """The rounds after which arms are dropped; none where the study does not halve."""
    if generation.study.experiment.study.stop != "halving" or not generation.trials:
        return []
    first = generation.trials[0]
    config = validate(json.loads(first.train_text), str(first.train_file))
    return rungs(config.max_rounds, len(trials_by_arm(generation)))


def _judge(work: Work, rung: int) -> None:
    """Judge the arms that have reached a rung and were not judged there before."""
    results: dict[str, list[EvalResult]] = {}
    for name, of_arm in trials_by_arm(work.generation).items():
        found = [_result_at(one, rung) for one in of_arm]
        if all(found):
            results[name] = [one for one in found if one is not None]
    judged = {e["arm"] for e in work.record.events("rung") if e["round"] == rung}
    if not results or results.keys() <= judged:
        return
    for verdict in judge_rung(rung, results):
        if verdict.arm in judged or verdict.arm in work.record.dropped:
            continue
        work.record.append("rung", round=rung, **verdict._asdict())
        work.screen.line(f"{verdict.arm}: {verdict.sentence}")
        if not verdict.is_kept:
            for one in trials_by_arm(work.generation)[verdict.arm]:
                work.screen.end(one.trial.run_id, f"dropped {verdict.sentence}")


def _result_at(files: TrialFiles, rung: int) -> EvalResult | None:
    return None if is_absent_or_empty(files.run_dir) else RunStore.open(files.run_dir).result(rung)


# --- the winner -----------------------------------------------------------------------------------


async def _name_winner(work: Work, outcome: StudyOutcome) -> None:
    """Name the winner once all is done, and open the sealed test on it, on no other ever."""
    winner, record = choose_winner(outcome.arms), work.record
    if winner is None:
        return
    named = record.last("winner")
    if named is None or named["run"] != winner.run_id:
        arm = next(one.name for one in outcome.arms if winner in one.trials)
        score = winner.result.score if winner.result is not None else None
        record.append("winner", run=winner.run_id, arm=arm, round=winner.round_no, score=score)
    files = next(one for one in work.generation.trials if one.trial.run_id == winner.run_id)
    if not json.loads(files.train_text).get("evaluation", {}).get("test_tasks"):
        return
    opened = next(record.events("test_opened"), None)
    if opened is not None and opened["run"] != winner.run_id:
        work.screen.line(
            f"The sealed test was opened on {opened['run']} at {opened['time']} and is not asked "
            f"of {winner.run_id}, which is ahead by now: a test is opened once."
        )
        return
    await _open_test(work, files, winner, is_opened=opened is not None)


async def _open_test(
    work: Work, files: TrialFiles, winner: TrialOutcome, *, is_opened: bool
) -> None:
    store = RunStore.open(files.run_dir)
    if store.test_result() is not None or not work.may_begin:
        return
    assert winner.round_no is not None, "a winner is trained"
    if not is_opened:
        work.record.append("test_opened", run=winner.run_id, round=winner.round_no)
    session = Session(work.floor.keys)
    job = ask_sealed_test(place_of(files), work.floor, session, winner.round_no)
    if not await _recorded(work, winner.run_id, job, session):
        if work.stopped is not None:
            raise work.stopped
        return
    test = RunStore.open(files.run_dir).test_result()
    if test is not None:
        work.screen.line(f"{winner.run_id}: the sealed test scores {test.score:.4f}, n={test.n}")

"""A whole study: its arms and trials, in turn or several at once, rung by rung, to a winner.

Trials are ordinary runs. What is done is found by their own ledgers, so that a study that was
killed goes on where it was by running it again, and so does one that was changed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from commands.boundary import Failure, Session, one_of_several
from errors import ConfigError, Interrupted, LoopError, OutputGone
from ledger.records import Usage
from ledger.run_directory import CONFIG, is_absent_or_empty
from ledger.store import RunStore
from scores.results import EvalResult
from studies.design.checking import has_ended, state_of
from studies.design.experiment import FILE_NAME
from studies.design.generating import ArmFiles, Generation, TrialFiles
from studies.findings.outcome import StudyOutcome, TrialOutcome
from studies.work.collecting import (
    choose_winner,
    dropped_runs,
    has_sealed_test,
    outcome_of,
    study_cost_usd,
    trials_by_arm,
)
from studies.work.evaluating import lay_out_trial
from studies.work.halving import judge_rung, rungs
from studies.work.hindsight import gate_in_hindsight
from studies.work.record import StudyRecord
from studies.work.screen import ENDED, WAITING, Screen
from studies.work.spending import Spending, Spent
from studies.work.trial_runs import Floor, TrialPlace, ask_sealed_test, measure_arm, train_trial

T = TypeVar("T")


@dataclass
class Work:
    """A study at work."""

    generation: Generation
    record: StudyRecord
    floor: Floor
    spending: Spending
    stopped: Interrupted | None = None  # nothing more is begun
    budget_sentence: str | None = None
    failed: set[str] = field(default_factory=set)  # now, and to be tried again by the next run
    num_at_work: int = 0

    @property
    def screen(self) -> Screen:
        return self.floor.screen

    def may_do(self, num_pieces: int) -> bool:
        """Whether so many pieces of work fit, those that are being done among them; says once where
        the budget ends."""
        if self.stopped is not None or self.floor.sharing.is_stopping:
            return False
        if self.budget_sentence is None and (why := self.spending.out_of(num_pieces)) is not None:
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
    refuse_stopped(work)
    arms = trials_by_arm(generation)
    dropped = dropped_runs(generation, record)
    alive = [n for n in arms if not any(one.trial.run_id in dropped for one in arms[n])]
    for rung in [*_rungs(generation), None]:
        of_alive = {one.trial.run_id for name in alive for one in arms[name]} - work.failed
        trials = [one for one in generation.trials if one.trial.run_id in of_alive]
        trials = [one for one in trials if not _has_reached(one, rung)]
        await _each(work, trials, lambda one, rung=rung: _train(work, one, rung))
        refuse_stopped(work)
        if rung is not None and work.budget_sentence is None:
            kept = _judge(work, rung)
            alive = [name for name in alive if name in kept]
    outcome = outcome_of(generation, record)
    for warning in outcome.warnings:
        if warning not in generation.warnings:  # those were said at the beginning
            work.screen.line(f"warning: {warning}")
    await _name_winner(work, outcome)
    return outcome_of(generation, record)


def refuse_stopped(work: Work) -> None:
    """Raise `Interrupted` where somebody asked to stop, once all that was at work has stopped."""
    if work.stopped is not None or work.floor.sharing.is_stopping:
        kind = OutputGone if isinstance(work.stopped, OutputGone) else Interrupted
        raise kind("Interrupted, with all that was at work saved.")


def refuse_stale(generation: Generation) -> None:
    """Raise `ConfigError` for directories that hold a run of other settings, data or code."""
    state = state_of(generation)
    stale = {one.run_id: why for one in state.trials if (why := one.why_not_used) is not None}
    stale |= {one.run_id: one.measured.why for one in state.arms if one.measured.state == "stale"}
    if stale:
        run_id, why = next(iter(stale.items()))
        more = f", and so are {len(stale) - 1} more" if len(stale) > 1 else ""
        raise ConfigError(
            f"{generation.study.results_dir / run_id}: it is not what the study has now: {why}"
            f"{more}. What it cost is not thrown away: undo the change, or move the directory, or "
            "set another output.results_dir."
        )


def _note_opened(work: Work) -> None:
    generation = work.generation
    trials = {one.trial.run_id: one.trial.shown for one in generation.trials}
    arms = [arm.name for arm in generation.arms]
    for change in work.record.note_opened(generation.inputs[FILE_NAME], trials, arms):
        work.screen.line(f"since the last run: {change}")
    work.record.append("run_begun", parallel=work.floor.num_parallel)


def _offer_known(work: Work, known: Iterable[Path]) -> None:
    """Let trials take what run directories have measured. One that is damaged is no source.

    Raises `RunStoreError` where what a trial of its own has cost cannot be read.
    """
    own = {place.run_dir: place for place in _own_places(work.generation)}
    for run_dir in known:
        if not (run_dir / CONFIG).is_file():
            continue
        if run_dir in own and (store := RunStore.open(run_dir)).has_started:
            _note_usage(work, own[run_dir], store)
        with contextlib.suppress(LoopError, KeyError, TypeError):
            store = RunStore.open(run_dir)
            if not store.has_started:
                continue
            for result in store.results():
                work.floor.sharing.offer(store, result)


async def _each(work: Work, things: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do something for each, so many at once, as long as more may be begun."""
    slots = asyncio.Semaphore(work.floor.num_parallel)

    async def one(thing: T) -> None:
        async with slots:
            if work.may_do(work.num_at_work + 1):
                work.num_at_work += 1
                try:
                    await do(thing)
                finally:
                    work.num_at_work -= 1
        # A closed client of the SDK keeps connections; those in cycles go with a collection, the
        # others with the hundredth client after it (findings/).
        if work.floor.num_parallel > 1:
            gc.collect()

    await asyncio.gather(*(asyncio.create_task(one(thing)) for thing in things))


# --- a trial --------------------------------------------------------------------------------------


def place_of(files: TrialFiles) -> TrialPlace:
    return TrialPlace(files.trial.run_id, files.train_file, files.run_dir, files.config)


def place_of_arm(arm: ArmFiles) -> TrialPlace:
    return TrialPlace(arm.run_id, arm.config_file, arm.run_dir, arm.config)


def _has_reached(files: TrialFiles, rung: int | None) -> bool:
    """Whether a trial has come as far as it is to come; its end where no rung is named."""
    if is_absent_or_empty(files.run_dir):
        return False
    store = RunStore.open(files.run_dir)
    return has_ended(store, files.config) or (rung is not None and store.decision(rung) is not None)


async def _train(work: Work, files: TrialFiles, rung: int | None) -> None:
    """Train a trial to a rung or to its end, and record what became of it."""
    run_id, record, place = files.trial.run_id, work.record, place_of(files)
    session = Session(work.floor.keys)
    if not any(e["run"] == run_id for e in record.events("trial_begun")):
        params = dict(files.trial.params)
        record.append("trial_begun", run=run_id, params=params, seed=files.trial.seed)

    def leaves_after(round_no: int) -> bool:
        if rung is not None and round_no >= rung:
            return True
        if session.store is not None:
            _note_usage(work, place, session.store)
        return not work.may_do(work.num_at_work)

    training = train_trial(place, work.floor, session, leaves_after)
    is_done = await _recorded(work, run_id, training, session)
    if is_absent_or_empty(files.run_dir):
        return
    store = RunStore.open(files.run_dir)
    _note_usage(work, place, store)
    if not is_done:
        return
    if has_ended(store, files.config):
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
    work.screen.end(run_id, "done", f"done, score {result.score:.4f} ({files.trial.shown})")


def _finish_found(work: Work) -> None:
    """The same for trials that have finished since, be it by hand or before a kill, and a word on
    those that were done before."""
    done = work.record.done
    for arm in work.generation.arms:
        if _measured_arm(arm) is not None and arm.run_id in done:
            work.screen.set(arm.run_id, ENDED, "done before", f"{done[arm.run_id]['score']:.4f}")
    for one in work.generation.trials:
        run_id = one.trial.run_id
        if not _has_reached(one, None):
            continue
        if run_id not in done:
            _finish(work, one, RunStore.open(one.run_dir))
        else:
            result = lay_out_trial(work.generation, one, RunStore.open(one.run_dir))
            work.screen.set(run_id, ENDED, "done before", f"{result.score:.4f}")


async def _recorded(
    work: Work, run_id: str, job: Coroutine[Any, Any, None], session: Session
) -> bool:
    """Do one trial's work; whether it is done. Its failure is recorded, and what stops the study is
    kept for its end."""
    try:
        failure = await one_of_several(job, session)
    except Interrupted as stopped:
        work.stopped = work.stopped or stopped
        work.screen.set(run_id, WAITING, "interrupted")
        work.screen.line(f"{run_id}: {stopped}")
        return False
    if isinstance(failure, Failure):
        work.failed.add(run_id)
        work.record.append("trial_failed", run=run_id, error=failure.message)
        work.screen.end(run_id, "failed", f"failed: {failure.message}")
        return False
    return True


def _own_places(generation: Generation) -> list[TrialPlace]:
    return [*map(place_of, generation.trials), *map(place_of_arm, generation.arms)]


def _note_usage(work: Work, place: TrialPlace, store: RunStore) -> None:
    """What a trial, or an arm that is not trained, has used of the study's budget."""

    def spent(usage: Usage) -> Spent:
        return Spent(usage, study_cost_usd(work.generation.study, place.config, usage))

    rounds = [] if store.is_evaluation else range(store.num_rounds + 1)
    of_rounds = [spent(store.usage(number)) for number in rounds]
    work.spending.note(place.run_id, spent(store.spent()), of_rounds)


# --- an arm that is not trained -------------------------------------------------------------------


async def _measure(work: Work, arm: ArmFiles) -> None:
    if _measured_arm(arm) is not None and arm.run_id in work.record.done:
        return
    session = Session(work.floor.keys)
    job = measure_arm(place_of_arm(arm), arm.checkpoint, work.floor, session)
    is_done = await _recorded(work, arm.run_id, job, session)
    if is_absent_or_empty(arm.run_dir):
        return
    store = RunStore.open(arm.run_dir)
    _note_usage(work, place_of_arm(arm), store)
    if is_done and (results := store.comparable_results()):
        work.record.append("trial_done", run=arm.run_id, round=0, score=results[0].score)
        score = f"{results[0].score:.4f}"
        work.screen.end(arm.run_id, "done", f"measured, score {score}", score)


def _measured_arm(arm: ArmFiles) -> EvalResult | None:
    """What an arm scored, once all of it is measured."""
    if is_absent_or_empty(arm.run_dir):
        return None
    return next(iter(RunStore.open(arm.run_dir).comparable_results()), None)


# --- halving --------------------------------------------------------------------------------------


def _rungs(generation: Generation) -> list[int]:
    """The rounds after which arms are dropped; none where the study does not halve."""
    if generation.study.experiment.study.stop != "halving" or not generation.trials:
        return []
    return rungs(generation.trials[0].config.max_rounds, len(trials_by_arm(generation)))


def _judge(work: Work, rung: int) -> set[str]:
    """Judge the arms that have reached a rung and were not judged there before; those that go on.
    An arm of which a seed has not come so far waits for it."""
    record = work.record
    results: dict[str, list[EvalResult]] = {}
    runs = {
        name: [one.trial.run_id for one in of_arm]
        for name, of_arm in trials_by_arm(work.generation).items()
    }
    for name, of_arm in trials_by_arm(work.generation).items():
        found = [one for files in of_arm if (one := _result_at(files, rung)) is not None]
        if len(found) == len(of_arm):
            results[name] = found
    said = {run: e["is_kept"] for e in record.events("rung") if e["round"] == rung
            for run in e["runs"]}  # fmt: skip
    judged = {name: said[run] for name in runs for run in runs[name] if run in said}
    before = {name for name in runs if any(run in record.dropped for run in runs[name])}
    for verdict in judge_rung(rung, results) if results.keys() - judged.keys() - before else []:
        if verdict.arm in judged or verdict.arm in before:
            continue
        record.append("rung", round=rung, runs=runs[verdict.arm], **verdict._asdict())
        judged[verdict.arm] = verdict.is_kept
        work.screen.line(f"{verdict.arm}: {verdict.sentence}")
        if not verdict.is_kept:
            for one in trials_by_arm(work.generation)[verdict.arm]:
                work.screen.set(one.trial.run_id, ENDED, f"dropped after round {rung}")
    return {arm for arm, is_kept in judged.items() if is_kept}


def _result_at(files: TrialFiles, rung: int) -> EvalResult | None:
    """What a trial scored at a rung, or at its end where that came before."""
    if is_absent_or_empty(files.run_dir):
        return None
    store = RunStore.open(files.run_dir)
    is_done = has_ended(store, files.config)
    return store.result(min(rung, store.num_rounds) if is_done else rung)


# --- the winner -----------------------------------------------------------------------------------


async def _name_winner(work: Work, outcome: StudyOutcome) -> None:
    """Name the winner once all is done, and open the sealed test on it, on no other ever."""
    chosen, record = choose_winner(outcome.arms), work.record
    if chosen is None:
        return
    winner, named = chosen.trial, record.last("winner")
    if named is None or named["sentence"] != chosen.sentence:
        run_id = None if winner is None else winner.run_id
        record.append("winner", run=run_id, sentence=chosen.sentence)
    if winner is None or not has_sealed_test(work.generation):
        return
    files = next(one for one in work.generation.trials if one.trial.run_id == winner.run_id)
    opened = _opened_test(work)
    if opened is not None and opened.run_id != winner.run_id:
        work.screen.line(
            f"The sealed test was opened on {opened.run_id} at {opened.time} and is not asked "
            f"of {winner.run_id}, which is ahead by now: a test is opened once."
        )
        return
    await _open_test(work, files, winner, is_opened=opened is not None)


class OpenedTest(NamedTuple):
    """On which trial a sealed test was opened, and when."""

    run_id: str
    time: str


def _opened_test(work: Work) -> OpenedTest | None:
    """What the record says, or the ledger of any run: a record may be lost, and a trial may be no
    part of the study any more."""
    event = next(work.record.events("test_opened"), None)
    if event is not None:
        return OpenedTest(event["run"], event["time"])
    for run_dir in sorted(work.generation.study.results_dir.glob("run_*")):
        if (run_dir / CONFIG).is_file():
            found = RunStore.open(run_dir).test_opened()
            if found is not None:
                return OpenedTest(run_dir.name, found["time"])
    return None


async def _open_test(
    work: Work, files: TrialFiles, winner: TrialOutcome, *, is_opened: bool
) -> None:
    store = RunStore.open(files.run_dir)
    if store.test_result() is not None or not work.may_do(1):
        return
    assert winner.round_no is not None, "a winner is trained"
    if not is_opened:
        work.record.append("test_opened", run=winner.run_id, round=winner.round_no)
    session = Session(work.floor.keys)
    job = ask_sealed_test(place_of(files), work.floor, session, winner.round_no)
    if not await _recorded(work, winner.run_id, job, session):
        refuse_stopped(work)
        return
    test = RunStore.open(files.run_dir).test_result()
    if test is not None:
        work.screen.line(f"{winner.run_id}: the sealed test scores {test.score:.4f}, n={test.n}")

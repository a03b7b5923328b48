"""One trial of a study, or an arm that is not trained, as an ordinary run beside others.

Each has its own run directory; they share the process, the embedded service, sessions and clients
of others, what may be in flight there, and what one of them has measured for all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trainer_with_eval
from commands.boundary import Session
from commands.evaluate import (
    conclude,
    evaluate_on_service,
    refuse_unfit_subjects,
    serve_as_named,
    settle_evaluation,
    take_up_evaluation,
    with_known_weights,
)
from commands.opening import OpenedSettings, open_settings
from commands.starting import settle, take_up
from config_schema import TrainingConfig, load_and_validate_config
from errors import Interrupted
from ledger.references import Subject, find_subjects, recorded_subjects
from ledger.run_directory import is_absent_or_empty
from loop.planning.models import find_model_dir
from loop.planning.plan import Plan
from loop.rounds.finishing import ask_test_of_winner
from loop.rounds.run import Beside, LeavesAfter
from loop.rounds.session import connected, hosting, log_levels_kept, refuse_unfit_service, serve
from loop.rounds.sharing import Sharing
from loop.tracking.following import Following, tracked
from services.keys import Keys
from services.listening import refuse_no_service
from services.place import ServiceChoice
from services.waiting import aside
from studies.work.screen import Screen, TrialProgress

if TYPE_CHECKING:
    from local_tinker import Service


@dataclass
class Floor:
    """What trials share: the process's keys, the screen, the embedded service once it is needed,
    and what they measure. Closing it ends the service."""

    keys: Keys
    screen: Screen
    is_local: bool  # whatever keys or addresses are set
    num_parallel: int = 1
    sharing: Sharing = field(default_factory=Sharing)
    tracking: Following = field(default_factory=Following)
    embedded_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _service: Service | None = None

    @contextlib.asynccontextmanager
    async def service_for(
        self, choice: ServiceChoice, plan: Plan, progress: TrialProgress
    ) -> AsyncIterator[Service | None]:
        """The service of a trial; the embedded one takes trials in turn, since they would share one
        processor. Raises `Interrupted` where somebody asked to stop while it was waited for."""
        if choice.kind != "embedded":
            if (address := choice.base_url) is not None:
                tell = functools.partial(self.screen.line_once, "note")
                await aside(lambda: refuse_no_service(address, tell))
                self.refuse_stopped()
            with log_levels_kept():
                yield None
            return
        if self.num_parallel > 1:
            self.screen.line_once(
                "note", f"--parallel {self.num_parallel}: the embedded service takes trials in turn"
            )
        if self.embedded_turn.locked():
            progress.live("waiting for the embedded service, which takes trials in turn")
        async with self.embedded_turn:
            self.refuse_stopped()
            if self._service is None:
                self._service = self._opened.enter_context(hosting(choice, progress))
            assert self._service is not None, "it was started just now"
            progress.live("loading the base model")
            serve(self._service, plan)
            yield self._service

    def refuse_stopped(self) -> None:
        """Raise `Interrupted` where somebody asked to stop while no run was there to hear it."""
        if self.sharing.is_stopping:
            raise Interrupted("Interrupted before the next trial.")

    def beside(self, own: Beside) -> Beside:
        """What goes on beside a trial of its own, with what trials share."""
        return own._replace(sharing=self.sharing, tracking=self.tracking)

    def close(self) -> None:
        self._opened.close()
        for line in self.tracking.finish():
            self.screen.line(line)


class TrialPlace(NamedTuple):
    """A trial's config and its run directory."""

    run_id: str
    config_file: Path
    run_dir: Path
    config: TrainingConfig


@contextlib.contextmanager
def at_work(floor: Floor, session: Session, run_id: str) -> Iterator[TrialProgress]:
    """A trial on the screen; its run directory is let go of at the end."""
    progress = session.progress = floor.screen.progress_of(run_id)
    try:
        yield progress
    finally:
        floor.screen.forget(progress)
        if session.store is not None:
            session.store.close()


async def train_trial(
    trial: TrialPlace, floor: Floor, session: Session, leaves_after: LeavesAfter
) -> None:
    """Begin a trial or go on with it, to its end or to where it is left. Raises `LoopError`."""
    args = _arguments(trial, floor)
    with at_work(floor, session, trial.run_id) as progress:
        progress.live("reading settings and data")
        settings = open_settings(args, session)
        progress.lines(settings.notes)
        as_recorded = settings.loaded.config.model_dump(mode="json")
        if settings.store is not None and settings.store.is_finished_with(as_recorded):
            return
        choice, plan, beside = settle(args, settings, session, progress)
        await asyncio.sleep(0)  # a signal may wait to be heard
        floor.refuse_stopped()
        async with floor.service_for(choice, plan, progress) as service:
            keys, tell = session.keys, progress.line
            await refuse_unfit_service(settings.start, plan, choice, keys, tell)
            store, place = take_up(settings, plan, choice, service, session)
            beside = floor.beside(beside)._replace(leaves_after=leaves_after)
            await trainer_with_eval.train_on_service(plan, store, progress, place, beside)
            session.is_running = False


async def ask_sealed_test(trial: TrialPlace, floor: Floor, session: Session, round_no: int) -> None:
    """Open the sealed test on a round of a finished trial, or finish one that was opened on it."""
    args = _arguments(trial, floor)
    with at_work(floor, session, trial.run_id) as progress:
        settings = open_settings(args, session)
        choice, plan, _ = settle(args, settings, session, progress)
        async with floor.service_for(choice, plan, progress) as service:
            store, place = take_up(settings, plan, choice, service, session)
            async with (
                connected(plan, store, progress, place, floor.sharing) as run,
                tracked(store, plan.config, progress.line, floor.tracking),
            ):
                await ask_test_of_winner(run, round_no)
            session.is_running = False


async def measure_arm(
    arm: TrialPlace, checkpoint: str | None, floor: Floor, session: Session
) -> None:
    """Measure an arm that is not trained: a checkpoint, or the untouched base model (None)."""
    args = _arguments(arm, floor)
    with at_work(floor, session, arm.run_id) as progress:
        progress.live("reading settings and tasks")
        if is_absent_or_empty(arm.run_dir):
            loaded = load_and_validate_config(arm.config_file, [])
            settings = OpenedSettings(loaded, find_model_dir(loaded), None, arm.run_dir, {}, [])
            named = [] if checkpoint is None else [checkpoint]
            subjects = find_subjects(named, Path("runs")) or [Subject(arm.run_id, None)]
        else:
            settings = open_settings(args, session)
            assert settings.store is not None, "there is something in its directory"
            subjects = recorded_subjects(settings.evaluated or [], settings.store)
            if settings.store.comparable_results():
                return
        settled = settle_evaluation(args, settings, session, subjects)
        progress.lines(settled.lines)
        plan = with_known_weights(settled.plan, settings.store, subjects, progress)
        settled = settled._replace(plan=plan)
        async with floor.service_for(settled.choice, plan, progress) as service:
            serve_as_named(service, plan, subjects)
            choice, keys = settled.choice, session.keys
            await refuse_unfit_subjects(subjects, choice, plan.config, keys, progress.line)
            store, place = take_up_evaluation(settings, settled, service, session, subjects)
            beside = floor.beside(Beside())
            results = await evaluate_on_service(plan, store, progress, place, subjects, beside)
            conclude(store, subjects, results, settled)
            session.is_running = False


def _arguments(trial: TrialPlace, floor: Floor) -> argparse.Namespace:
    """The command line that would do the same for the trial alone; an absent directory is begun."""
    words = ["--config", str(trial.config_file), "--resume", str(trial.run_dir)]
    if floor.is_local:
        words.append("--local")
    args = trainer_with_eval.parse_arguments(words)
    args.verbose = floor.screen.verbose
    return args

"""A run on a service: opened, watched for signals and faults, and closed whatever happens.

The embedded service is started here alone. Several runs may be at work in one process: a signal is
heard by all of them, those that share a session finish it together, and what one changes of the
process is put back when its service closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import tinker

from config_schema import TrainingConfig
from errors import ConfigError, Interrupted, OutputGone, ServiceError, StorageError
from ledger.registry_weights import CHECKPOINTS
from ledger.store import RunStore
from loop.planning.origin import Start, refuse_other_adapter
from loop.planning.plan import Plan
from loop.reports.console import tell
from loop.reports.progress import Progress
from loop.rounds.run import Run
from loop.rounds.sharing import Sharing
from loop.rounds.waiting import Waits
from services.faults import SDK_ERRORS, explain, is_gone, said_by
from services.held_up import watching
from services.keys import Keys
from services.listening import refuse_no_service
from services.place import Place, ServiceChoice
from services.sdk import names_to_sample, names_to_train, rest_client
from services.shared_clients import SharedSession, Status
from services.waiting import aside, saying
from services.watched_client import watched

if TYPE_CHECKING:
    from tinker.types import GetServerCapabilitiesResponse

    from local_tinker import Service

LOUD_LOGGERS = ("tinker", "asyncio")


@contextlib.contextmanager
def open_service(choice: ServiceChoice, plan: Plan, progress: Progress) -> Iterator[Service | None]:
    """Start the embedded service and load the base model, where that is where the run happens."""
    with hosting(choice, progress) as service:
        if service is not None:
            serve(service, plan)
        yield service


@contextlib.contextmanager
def hosting(choice: ServiceChoice, progress: Progress) -> Iterator[Service | None]:
    """The embedded service, without a model yet; None where the run happens elsewhere."""
    with log_levels_kept():
        if choice.kind != "embedded":
            if choice.base_url is not None:
                refuse_no_service(choice.base_url, progress.line)
            yield None
            return
        os.environ.setdefault("TINKER_TELEMETRY", "0")
        progress.live("loading the base model")
        import local_tinker

        with local_tinker.start() as service:
            yield service


def serve(service: Service, plan: Plan) -> None:
    """Load what a run needs, as far as another has not. Raises `ConfigError`."""
    from local_tinker.wire import UserError

    try:
        service.serve_model(plan.config.base_model, plan.inputs.model_path)
        if plan.origin is not None:
            service.also_serve_as(plan.config.base_model, plan.origin.parent.base_model)
        if (grader := plan.config.evaluation.grader_model) is not None:
            service.serve_model(grader, plan.inputs.grader_path)
        serve_teacher(service, plan)
    except UserError as error:
        raise ConfigError(str(error)) from None


def serve_teacher(service: Service, plan: Plan) -> None:
    """Serve the teacher's base model under the name that its run called it by. Raises `UserError`
    where it cannot be loaded."""
    teacher = plan.inputs.teacher
    if teacher is None or teacher.model_path is None:
        return
    if teacher.model_path == plan.inputs.model_path:
        service.also_serve_as(plan.config.base_model, teacher.model_name)
    else:
        service.serve_model(teacher.model_name or teacher.model_path, teacher.model_path)


async def refuse_unfit_service(
    start: Start | None,
    plan: Plan,
    choice: ServiceChoice,
    keys: Keys,
    tell: Callable[[str], None],
) -> None:
    """Raise `ConfigError` where the service does not serve the models or has not the weights to
    start from; `tell` is given what could not be looked up."""
    await refuse_unserved(plan.config, choice, keys, tell, is_trained=True)
    await _refuse_unfit_path(start, plan, choice.base_url, keys)


async def refuse_unserved(
    config: TrainingConfig,
    choice: ServiceChoice,
    keys: Keys,
    tell: Callable[[str], None],
    *,
    is_trained: bool,
) -> None:
    """Raise `ConfigError` where the service does not list the base model, which `is_trained` or
    asked alone, or the model that grades; `tell` is told where it lists none. Engines are known
    that take whatever they serve under any name. The embedded service loads what is asked for."""
    if choice.kind == "embedded":
        return
    base_url = choice.base_url
    where = f"the service at {base_url or 'Tinker'}"

    async def ask() -> GetServerCapabilitiesResponse:
        rest = await aside(lambda: rest_client(base_url, keys.tinker))
        return await rest.get_server_capabilities()

    try:
        capabilities = await saying(
            ask(), lambda: tell(f"waiting for {where}; the SDK tries for some minutes")
        )
    except SDK_ERRORS as error:
        explained = explain(error, base_url)
        if not isinstance(error, tinker.NotFoundError):
            raise explained or error from error
        tell(f"{where} lists no models, so whether it serves {config.base_model} was not checked")
        return
    trained, asked = names_to_train(capabilities), names_to_sample(capabilities)
    wanted = {"base_model": (config.base_model, trained if is_trained else asked)}
    if (grader := config.evaluation.grader_model) is not None:
        wanted["evaluation.grader_model"] = (grader, asked)
    for key, (name, listed) in wanted.items():
        if name not in listed:
            does = "trains" if listed is trained else "samples from"
            raise ConfigError(
                f"{key} {name!r}: {where} does not list it among the models that it {does}. Set "
                f"{key} to what it lists: {', '.join(listed) or 'nothing'}."
            )


async def _refuse_unfit_path(
    start: Start | None, plan: Plan, base_url: str | None, keys: Keys
) -> None:
    """Raise `ConfigError` where a run is to start from a path of no known run, and the service does
    not have it, or has it of another model or in another shape."""
    if start is None or start.checkpoint is not None or start.adapter is not None:
        return
    path = start.origin.parent.state_path
    try:
        rest = await aside(lambda: rest_client(base_url, keys.tinker))
        info = await rest.get_weights_info_by_tinker_path(path)
    except SDK_ERRORS as error:
        if is_gone(error):
            raise ConfigError(
                f"{start.key}: the service does not have it: {said_by(error)}. Check the path."
            ) from None
        raise explain(error, base_url) or error from error
    if info.base_model != plan.config.base_model:
        raise ConfigError(
            f"{start.key}: its base model is {info.base_model}, the settings' is "
            f"{plan.config.base_model}. Set base_model to it."
        )
    refuse_other_adapter(start.key, info, plan.inputs.loaded)


@contextlib.contextmanager
def log_levels_kept() -> Iterator[None]:
    """Put the levels back that an interrupted run sets, for the runs that come after it."""
    loggers = [logging.getLogger(name) for name in LOUD_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.asynccontextmanager
async def connected(
    plan: Plan,
    store: RunStore,
    progress: Progress,
    place: Place,
    sharing: Sharing | None = None,
) -> AsyncIterator[Run]:
    """Go to a session on the service, one that runs of the same `sharing` are at work in or a new
    one, and leave it whatever happens; the last one finishes it."""
    freeze_what_is_loaded()
    sharing = sharing or Sharing()
    base_url, keys, here = place.choice.base_url, place.keys, None
    if place.service is not None:
        here = place.checkpoint_dir.parent
        base_url = place.service.base_url
        keys = replace(keys, tinker=place.service.open_folder(place.checkpoint_dir))
        if place.start_dir is not None:
            place.service.open_folder(place.start_dir)
        teacher = plan.inputs.teacher
        if teacher is not None and teacher.path is not None and teacher.run_dir is not None:
            place.service.open_folder(Path(teacher.run_dir) / CHECKPOINTS)
    progress.live(f"waiting for the service at {base_url or 'Tinker'}")
    with watching(base_url) as held_up:
        waits = Waits(held_up, store, progress, keys)
        with explained(base_url, waits.before):
            session = await sharing.clients.take(base_url, keys.tinker, held_up)
        clients = session.clients
        run = Run(plan, store, progress, clients, base_url, keys, waits, here, sharing=sharing)
        progress.num_spent = lambda: store.usage().tokens
        stop_on_signals(run)
        async with waits.telling(), _in_session(run, session):
            if run.sharing.is_stopping:  # while it waited and could not hear it
                raise Interrupted("before it began")
            yield run


@contextlib.asynccontextmanager
async def _in_session(run: Run, session: SharedSession) -> AsyncIterator[None]:
    """Leave the run's session whatever happens in the block; the last run finishes it."""
    progress = run.progress
    status: Status = "errored"
    try:
        with explained(run.base_url, run.waits.before):
            yield
        status = "success"
    except (Interrupted, asyncio.CancelledError) as error:
        status = "interrupted"
        _be_quiet()
        detail = str(error) or "with all that was recorded so far saved"
        if progress.is_gone:
            raise OutputGone(f"Nobody read the progress any more; stopped {detail}.") from None
        raise Interrupted(f"Interrupted {detail}.") from None
    finally:
        run.is_closing = True
        of_all = run.sharing.clients.leave(session, status)
        run.waits.tell()
        progress.close()
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong
            run.waits.record_rest()
        # Where all is done, a stop that was asked for at the last moment has nothing to stop.
        too_late = (asyncio.CancelledError,) if status == "success" else ()
        if of_all is not None:
            if of_all == "interrupted":
                _be_quiet()
            with contextlib.suppress(tinker.TinkerError, TimeoutError, *too_late):
                await asyncio.wait_for(session.clients.service.close(of_all).result_async(), 5)


def _be_quiet() -> None:
    """Each request on its way would be reported, with a traceback, when the service closes."""
    for name in LOUD_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@functools.cache
def freeze_what_is_loaded() -> None:
    """Leave out of searches for cycles what is there before the first run of a process.

    What libraries and rows hold is there to the end. Each full search of it stops every step and
    answer for a third of a second, and a service that is far away runs dry meanwhile.
    """
    gc.freeze()


@contextlib.contextmanager
def explained(base_url: str | None, before: Callable[[], str] = lambda: "") -> Iterator[None]:
    """What the SDK raises about the service becomes a `ServiceError` that says what it means, and
    what the service held up `before`."""
    try:
        yield
    except SDK_ERRORS as error:
        explained = explain(error, base_url, before())
        if explained is None:
            raise
        raise explained from error


class _AtWork(NamedTuple):
    run: Run
    task: asyncio.Task[Any]


# By event loop, the runs that hear its signals. One that has ended stays until the next begins, so
# that a signal between two of them is heard as well.
_HEARING: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_AtWork]] = WeakKeyDictionary()


def stop_on_signals(run: Run) -> None:
    """First SIGINT or SIGTERM: finish the step in flight, save, leave. Second: leave at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    at_work = _AtWork(run, task)
    run.progress.on_gone = lambda: _stop(at_work)
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        return
    hearing = _HEARING.setdefault(loop, [])
    hearing[:] = [one for one in hearing if not one.run.is_closing]
    hearing.append(at_work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, hearing)


def _on_signal(hearing: list[_AtWork]) -> None:
    if all(run.was_signalled for run, _ in hearing):
        for run, _ in hearing:
            with contextlib.suppress(OSError):
                run.progress.leave_terminal()
        for said in {run.progress.how_to_continue(run.store.run_dir) for run, _ in hearing}:
            with contextlib.suppress(OSError):  # nobody may read it
                tell(f"Left at once. {said}", file=sys.stderr)
        os._exit(130)
    for one in hearing:
        what = "stopping after the steps in flight"
        if one.run.is_closing:
            what = "the end is being written"
        one.run.was_signalled = True
        one.run.progress.stopping(f"{what}; once more to leave at once")
        _stop(one)


def _stop(one: _AtWork) -> None:
    """Ask a run to save what is in flight, or break off what it asks; its end is still written."""
    run, task = one
    run.stop_requested = run.sharing.is_stopping = True
    if not run.is_closing and not run.is_training:
        task.cancel()


async def sampling_client(
    run: Run, path: str | None, on_answer: Callable[[], None], model: str | None = None
) -> tinker.SamplingClient:
    """A client for saved weights, or for a base model (None: the run's), that is watched."""
    base_model = (model or run.plan.config.base_model) if path is None else None
    async with naming_what_is_gone(run, path):
        client = await run.clients.service.create_sampling_client(path, base_model)

    def answered(seconds: float) -> None:
        run.stopwatch.add(seconds)
        on_answer()

    note, turns = run.store.note_sent, run.sharing.answer_turns
    return watched(client, answered, run.keys.redacted, note, turns)


@contextlib.asynccontextmanager
async def naming_what_is_gone(run: Run, path: str | None) -> AsyncIterator[None]:
    """Around the loading of a run's saved weights (None: a base model's): where the service does
    not have them any more, the error says what the run can still go on from."""
    try:
        yield
    except SDK_ERRORS as error:
        is_own = any(one.path == path for one in run.store.saved_weights())
        if path is None or run.store.is_evaluation or not is_own or not is_gone(error):
            raise
        raise await gone(run, path, error) from error


async def gone(run: Run, path: str, error: Exception) -> ServiceError:
    """Says that saved weights cannot be loaded, and which rounds the run can still go on from."""
    store = run.store
    saved = next(one for one in store.saved_weights() if one.path == path)
    has_start = store.origin is not None  # the untouched model is always there
    there = [] if has_start else [0]
    for round_no in range(0 if has_start else 1, saved.round + 1):
        checkpoint = store.checkpoint(round_no)
        paths = () if checkpoint is None else (checkpoint.state_path, checkpoint.sampler_path)
        if not paths or path in paths or store.decision(round_no) is None:
            continue
        with contextlib.suppress(tinker.TinkerError):
            for one in paths:
                await run.clients.rest.get_weights_info_by_tinker_path(one or "")
            there.insert(0, round_no)
    names = ", ".join(f"{store.run_dir}@round_{number:02d}" for number in there)
    remedy = (
        f"The run can still go on from {names} (round_00 is {store.baseline_name}): give one to "
        "--resume, and the rounds after it are run again."
    )
    if not there:
        remedy = "The run has no others that it could go on from. Start a new one."
    if store.test_opened() is not None:
        remedy = "Its sealed test has been opened, so no earlier round can be trained on from."
    until = "" if saved.expires_at is None else f" They were to be kept until {saved.expires_at}."
    explained = ServiceError(
        f"The weights of round {saved.round}, step {saved.step} ({path}) cannot be loaded: {error}."
        f"{until} {remedy}"
    )
    explained.fault = "checkpoint_gone"
    return explained

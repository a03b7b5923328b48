"""The one boundary: a failure becomes one paragraph on stderr, an event and an exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Never, TypeVar

from errors import (
    ConfigError,
    EvalError,
    InputError,
    Interrupted,
    LoopError,
    OutputGone,
    ServiceError,
    StorageError,
    TrainingError,
    one_line,
)
from loop.reports.console import Starting, drop, how_to_continue, say, tell, write_out
from loop.reports.events_out import event_stream
from services.keys import Keys
from storage.files import REFUSALS, storage_error

if TYPE_CHECKING:
    from ledger.store import RunStore
    from loop.reports.progress import Progress


T = TypeVar("T")


@dataclass
class Session:
    """What the top boundary needs: the keys, the run that is open, whether it has work in hand,
    the user's alert command, and who else is told of each event."""

    keys: Keys
    alert_command: Sequence[str] | None = None
    store: RunStore | None = None
    progress: Progress | None = None
    is_running: bool = False
    starting: Starting | None = None
    watch: Callable[[RunStore, dict[str, Any]], None] | None = None

    def tell_event(self, event: dict[str, Any]) -> None:
        """Tell whoever reads along what was appended to the ledger."""
        if self.progress is not None:
            self.progress.event(event)
        if self.watch is not None and self.store is not None:
            self.watch(self.store, event)

    def end_live_line(self) -> None:
        """Leave the terminal as it was, before anything else is printed."""
        if self.starting is not None:
            self.starting.end()
        if self.progress is not None:
            self.progress.close()


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


def end_program(exit_code: int) -> Never:
    """Exit with what a command returned.

    Python's own end would search all that the libraries hold for cycles and take it apart, which is
    a fifth of the processor time of a short command.
    """
    gc.freeze()
    sys.exit(exit_code)


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in an event loop. Ctrl-C and SIGTERM mean afterwards what they meant before: a
    loop leaves SIGTERM at its default when it closes, and one of Inspect's does not close and still
    swallows Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return asyncio.run(work)
    except SystemExit as error:  # it passes by all that awaits what raised it
        raise ConfigError(
            f"The code of a task ended the program (SystemExit: {one_line(str(error))}). Let it "
            "raise another error, which makes one sample a failed one, and start a new run."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)
            signal.signal(signal.SIGINT, before or signal.default_int_handler)


def report_failure(args: argparse.Namespace, session: Session, error: BaseException) -> int:
    """Record a failure in the ledger, where there is a run, and tell the user; the exit code."""
    session.end_live_line()
    redacted, store = session.keys.redacted, session.store
    message = redacted(describe_failure(error))
    exit_code = 2 if isinstance(error, InputError) else 130 if isinstance(error, Interrupted) else 1
    if store is not None and session.is_running:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong
            record_failure(store, error, message)
    says_how = isinstance(error, ServiceError) and error.fault in ("checkpoint_gone", "too_long")
    # What would end the same way is not offered again.
    is_repeated = isinstance(error, ConfigError | TrainingError) or says_how
    can_continue = session.is_running and not is_repeated
    if store is not None and (can_continue or isinstance(error, StorageError)):
        message += f" {how_to_continue(store.run_dir)}"
        if not store.has_started and args.config is not None:  # what its tasks run is not recorded
            overrides = [word for one in args.overrides for word in ("--set", one)]
            message += f" {shlex.join(['--config', args.config, *overrides])}"
    with contextlib.suppress(OSError, StorageError):  # the output may lie on the disk that is full
        if args.verbose:
            import traceback

            say(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        if (stream := event_stream()) is not None:
            stream.event({"type": "error", "message": message, "exit_code": exit_code})
        else:
            tell(message if exit_code == 130 else f"error: {message}", file=sys.stderr)
        if args.json:
            facts = error.facts if isinstance(error, LoopError) else {}
            answer = {"error": message, "exit_code": exit_code, **facts}
            say(redacted(json.dumps(answer)))
        write_out()
    if getattr(args, "summary", None) is not None or getattr(args, "junit", None) is not None:
        from commands.ci import write_failure

        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong
            write_failure(args, message)
    if isinstance(error, OutputGone):  # unlike Ctrl-C, nobody is there to see it
        alert(session, "interrupted", {"detail": message})
    elif exit_code == 1:
        with contextlib.suppress(KeyboardInterrupt):  # during the alert; it has failed already
            alert(session, "failed", {"detail": message})
    return exit_code


def report_unread(args: argparse.Namespace, session: Session) -> int:
    """Whoever read the output has gone; what was paid for is on disk. The exit code."""
    for stream in (sys.stdout, sys.stderr):
        drop(stream)
    if session.is_running or (session.store is None and session.alert_command is not None):
        return report_failure(args, session, OutputGone("Nobody read the output any more."))
    return 1  # the run has ended, or none was begun: only its result was not read


class Failure(NamedTuple):
    """Why one of several runs failed, as its user is told."""

    message: str


async def one_of_several(work: Coroutine[Any, Any, T], session: Session) -> T | Failure:
    """Do the work of one run beside others: its failure is recorded in it, and stops none of them.

    Raises what all of them are to stop for: that they were asked to, and a disk that refuses.
    """
    try:
        return await work
    except Exception as error:  # the boundary of a run
        message = session.keys.redacted(describe_failure(error))
        if session.store is not None and session.is_running:
            with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong
                record_failure(session.store, error, message)
        if isinstance(error, Interrupted | StorageError):
            raise
        return Failure(message)


def describe_failure(error: BaseException) -> str:
    """One paragraph on any failure."""
    if isinstance(error, LoopError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        if error.filename:
            return str(storage_error(Path(error.filename), error))
        return (
            f"The disk refused to write an output or a temporary file: {error.strerror}. Make room "
            "where they go; what was recorded before is whole."
        )
    return f"Unexpected {type(error).__name__}: {error}. Add -v for the traceback."


def record_failure(store: RunStore, error: BaseException, message: str) -> None:
    """Write a failure down, and the page that tells of it; of a page that a full disk refuses
    nothing is said beside what went wrong."""
    from loop.run_page.page import keep_page

    events = {Interrupted: "interrupted", OutputGone: "interrupted", EvalError: "eval_failed"}
    event = events.get(type(error), "failed")
    fields: dict[str, Any] = {}
    if isinstance(error, ServiceError) and error.fault is not None:
        fields["fault"] = error.fault
    if isinstance(error, LoopError) and error.num_train_tokens:
        fields["num_tokens"] = error.num_train_tokens
    if isinstance(error, TrainingError) and error.rollouts:
        fields["rollouts"] = error.rollouts
    if isinstance(error, LoopError) and error.num_prompt_tokens:
        fields["num_prompt_tokens"] = error.num_prompt_tokens
        fields["num_sampled_tokens"] = error.num_sampled_tokens
    store.append(event, detail=message, **fields)
    keep_page(store)


def alert(session: Session, what: str, figures: Mapping[str, Any]) -> None:
    """Run the user's alert command, if there is one; that it failed is a warning."""
    if session.alert_command is None:
        return
    from commands.alerts import send_alert

    run_dir = None if session.store is None else str(session.store.run_dir)
    message = {"alert": what, "run_dir": run_dir, **figures}
    if (problem := send_alert(session.alert_command, message)) is not None:
        with contextlib.suppress(OSError):  # nobody may read it
            tell(f"warning: {problem}", file=sys.stderr)

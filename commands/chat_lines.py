"""Where the questions of `--chat` come from and its answers go: a terminal, or a pipe.

In a pipe an answer is one line, as its question is: line 7 of the output answers line 7 of the
input. A line break in an answer is written `\\n`, a tab `\\t`, a backslash `\\\\`; with --beside
the base model's answer stands behind a tab. What went wrong is said on stderr, by line.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from commands.chat_answers import Answer, Asked, Unanswerable
from errors import StorageError, first_of
from loop.reports.console import say, say_aside, say_row
from loop.reports.progress import Progress

STDIN = 0
CHUNK_BYTES = 65_536
NUM_NAMED = 5  # of lines with one flaw
PROMPT = "> "
ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


# --- a terminal -----------------------------------------------------------------------------------


def converse(asked: Asked, runner: asyncio.Runner, progress: Progress) -> int:
    """Ask what is typed until Ctrl-D; returns the exit code. Ctrl-C takes a question back, also one
    that is half typed; where there is none it is raised as `KeyboardInterrupt`."""
    import readline

    readline.parse_and_bind("tab: self-insert")  # and not the names of files
    progress.line("Type a question; Ctrl-C takes one back, Ctrl-D ends.")
    while True:
        try:
            question = input(PROMPT).strip()
        except EOFError:
            say("")
            return 0
        except KeyboardInterrupt:
            say("")
            if not readline.get_line_buffer():
                raise
            continue
        except ValueError:  # bytes that are not of the terminal's encoding
            _refuse("it is not text in this terminal's encoding")
            continue
        if not question:
            continue
        answers = runner.run(_until_taken_back(asked, question, progress))
        progress.close()
        if isinstance(answers, str):
            _refuse(answers)
            continue
        for label, answer in answers.items():
            if len(answers) > 1:
                say_aside(f"{label}:")
            _show(answer)


async def _until_taken_back(
    asked: Asked, question: str, progress: Progress
) -> dict[str, Answer] | str:
    """The answers, or why there are none."""
    try:
        progress.live(f"asking, up to {asked.max_tokens} tokens")
        return await asked.ask(question, asked.next_seed(question))
    except Unanswerable as error:
        return str(error)
    except asyncio.CancelledError:  # by Ctrl-C, which asyncio makes of it for what it runs
        return "it was taken back"


def _refuse(why: str) -> None:
    say(f"No answer: {why}", file=sys.stderr)


def _show(answer: Answer) -> None:
    if answer.reasoning:
        say_aside(answer.reasoning)
    if answer.text.strip():
        say(answer.text.strip("\n"))
    for call in answer.tool_calls:
        say_aside(f"(calls {call})")
    if answer.flaw is not None:
        say_aside(f"({answer.flaw})")
    elif not (answer.text.strip() or answer.tool_calls):
        say_aside("(an empty answer)")


# --- a pipe ---------------------------------------------------------------------------------------


class _Line:
    """A line of the input: its number from 1, and what it asks once that is known."""

    def __init__(self, number: int, content: bytes) -> None:
        self.number = number
        self.question: str | None = None  # None for bytes that are not UTF-8
        if number == 1:
            content = content.removeprefix(codecs.BOM_UTF8)
        with contextlib.suppress(UnicodeDecodeError):
            self.question = content.decode().removesuffix("\n").removesuffix("\r")

    @property
    def is_empty(self) -> bool:
        return self.question is not None and not self.question.strip()


@dataclass
class _Asking:
    """The questions of a pipe, in its order, each being answered; None behind the last one."""

    asked: Asked
    loop: asyncio.AbstractEventLoop
    slots: threading.Semaphore  # so that no more is read than can be asked
    begun: asyncio.Queue[tuple[_Line, asyncio.Task[dict[str, Answer]]] | OSError | None] = field(
        default_factory=asyncio.Queue
    )

    def begin(self, line: _Line) -> None:
        self.begun.put_nowait((line, self.loop.create_task(self._answers(line))))

    async def _answers(self, line: _Line) -> dict[str, Answer]:
        if line.question is None:
            raise Unanswerable("it is not UTF-8 text")
        if line.is_empty:
            return {}
        return await self.asked.ask(line.question, self.asked.next_seed(line.question))


async def answer_lines(asked: Asked, progress: Progress, *, is_json: bool) -> int:
    """Answer each line of standard input, in its order, as soon as it is there; returns 1 where
    some could not be answered, else 0.

    Raises `StorageError` where the input cannot be read.
    """
    if sys.stdin.isatty():
        progress.line("Type a question a line; Ctrl-D ends.")
    slots = threading.Semaphore(asked.settings.concurrency)
    asking = _Asking(asked, asyncio.get_running_loop(), slots)
    # A thread that nobody waits for: it may stand in a read for ever when the others are done.
    threading.Thread(target=_read, args=(asking,), daemon=True).start()
    num_failed, flaws = 0, defaultdict[str, list[str]](list)
    while (begun := await asking.begun.get()) is not None:
        if isinstance(begun, OSError):
            raise StorageError(f"Standard input cannot be read: {begun.strerror}.") from begun
        line, task = begun
        problem: str | None = None
        try:
            answers = await task
        except Unanswerable as error:
            num_failed += 1
            progress.line(f"line {line.number}: no answer: {error}")
            answers, problem = {}, str(error)
        slots.release()
        for what in _flaws(answers):
            flaws[what].append(str(line.number))
        if not is_json:
            say_row([one.text.translate(ESCAPED) for one in answers.values()])
        elif not line.is_empty:
            say(_object(line, answers, problem))
        sys.stdout.flush()
    for what, numbers in flaws.items() if not is_json else ():
        progress.line(f"{what}: line{'s' * (len(numbers) > 1)} {first_of(numbers, NUM_NAMED)}")
    return 1 if num_failed else 0


def _read(asking: _Asking) -> None:
    """Begin each line of standard input, as far as there is room for more."""
    tell = asking.loop.call_soon_threadsafe
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
        try:
            for number, content in enumerate(_lines(STDIN), 1):
                asking.slots.acquire()
                tell(asking.begin, _Line(number, content))
            tell(asking.begun.put_nowait, None)
        except OSError as error:
            tell(asking.begun.put_nowait, error)


def _lines(number: int) -> Iterator[bytes]:
    """The lines of a file by its number: as they come, and without Python's own buffer, which a
    thread must not hold when the process ends."""
    left = b""
    while part := os.read(number, CHUNK_BYTES):
        *whole, left = (left + part).split(b"\n")
        yield from whole
    if left:
        yield left


def _flaws(answers: Mapping[str, Answer]) -> Iterator[str]:
    """What a line of text does not show of its answers."""
    for label, answer in answers.items():
        of_which = f"{label}: " if len(answers) > 1 else ""
        if answer.tool_calls:
            yield f"{of_which}calls {', '.join(answer.tool_calls)}"
        if answer.flaw is not None:
            yield f"{of_which}{answer.flaw}"


def _object(line: _Line, answers: Mapping[str, Answer], problem: str | None) -> str:
    """One line of JSON; what is of the base model has names that begin with `base_`."""
    shown: dict[str, Any] = {"question": line.question}
    if problem is not None:
        shown["error"] = problem
    for prefix, answer in zip(("", "base_"), answers.values(), strict=False):
        shown |= {
            f"{prefix}answer": answer.text,
            f"{prefix}reasoning": answer.reasoning or None,
            f"{prefix}tool_calls": list(answer.tool_calls),
            f"{prefix}stop_reason": answer.stop_reason,
            f"{prefix}flaw": answer.flaw,
            f"{prefix}tokens": answer.num_tokens,
        }
    return json.dumps(shown)

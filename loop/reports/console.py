"""Where a command prints: results to stdout, messages to stderr, nothing a terminal acts on."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TextIO

from errors import StorageError
from loop.reports.events_out import JsonLines
from loop.reports.lines import wrapped

PROGRAM = Path(__file__).resolve().parent.parent.parent / "trainer_with_eval.py"
# It goes on with runs as well, and writes down at the end what the other does not.
OF_SKILL = PROGRAM.parent / "skills" / "tinker-llm-chief-officer" / "scripts" / "sl_trainer.py"
USUAL_WIDTH = 80
DUMB = ("dumb", "unknown")  # terminals that act on no control codes


def say(text: str, file: TextIO | None = None) -> None:
    """Print what may hold anybody's names: nothing in it reaches the terminal as a command."""
    print(as_written(text, file), file=file)


def tell(text: str, file: TextIO | None = None) -> None:
    """Print prose: on a terminal its lines are broken at words, in a pipe they stay whole."""
    stream = sys.stdout if file is None else file
    width = width_of(stream)
    shown = as_written(text, stream)
    say(shown if width is None else wrapped(shown, width, f"{shown_python()} "), stream)


def say_row(cells: Iterable[str]) -> None:
    """Print texts of one line each side by side, with a tab between them."""
    print("\t".join(map(as_written, cells)))


def say_aside(text: str) -> None:
    """Print what is beside the point to stdout: faint, where there are colours."""
    begin, end = ("\x1b[2m", "\x1b[0m") if says_in_colour() else ("", "")
    print(f"{begin}{as_written(text)}{end}")


def width_of(stream: IO[str] | None) -> int | None:
    """Columns of the terminal that a stream goes to; None for a pipe or a file."""
    try:
        if stream is None or not stream.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        if given.isdecimal() and int(given) > 0:
            return int(given)
        return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH
    except (OSError, ValueError):
        return USUAL_WIDTH


def says_in_colour() -> bool:
    is_dumb = os.environ.get("TERM", "").lower() in DUMB
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not is_dumb


def can_redraw(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that a person watches, whose rows can be written anew."""
    is_watched = os.environ.get("CI", "").lower() in ("", "0", "false")
    is_dumb = os.environ.get("TERM", "").lower() in DUMB
    return width_of(stream) is not None and is_watched and not is_dumb


def can_encode(stream: IO[str], text: str) -> bool:
    """Whether a stream's encoding has these characters; a stream without one has all."""
    return as_written(text, stream) == text


def as_written(text: str, stream: IO[str] | None = None) -> str:
    """A text as a stream can have it: printable, and escaped where its encoding has no such
    character, so that its width is known before it is written."""
    stream = sys.stdout if stream is None else stream
    # The one below rich's, which has no encoding of its own, while a live row is shown.
    below = getattr(stream, "rich_proxied_file", stream)
    encoding = getattr(below, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def say_marked(pieces: Iterable[tuple[str, float]]) -> None:
    """Print a text in pieces, those with a weight marked: in green, or in brackets where there are
    no colours; a weight below 1 is written before its piece."""
    brackets = ("\u27e6", "\u27e7") if can_encode(sys.stdout, "\u27e6\u27e7") else ("[[", "]]")
    begin, end = ("\x1b[32m", "\x1b[0m") if says_in_colour() else brackets
    marked = (
        f"{begin}{'' if weight == 1 else f'{weight:g}: '}{printable(text)}{end}"
        if weight
        else printable(text)
        for text, weight in pieces
    )
    print("".join(marked))


class Starting:
    """A sign of life on a terminal from the first moment, before any import that takes long.

    It is a word and a carriage return, which every console knows, and it is wiped with spaces
    before the first line.
    """

    WORD = "starting"

    def __init__(self) -> None:
        self._is_shown = can_redraw(sys.stderr)
        self._write(self.WORD)

    def __enter__(self) -> None:
        """Shown already."""

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._write(" " * len(self.WORD))
        self._is_shown = False

    def _write(self, word: str) -> None:
        if self._is_shown:
            with contextlib.suppress(OSError):  # whoever has gone is found out by the first line
                sys.stderr.write(f"{word}\r")
                sys.stderr.flush()


def write_out() -> None:
    """Write the result out; what a full disk refuses only at exit, nobody is told any more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise StorageError(
            f"Standard output: the disk refused to write the result to it: {error.strerror}. Make "
            "room. The run directory is whole."
        ) from error


def drop(stream: TextIO) -> None:
    """Keep Python from writing the rest of a stream at exit, where that would fail again."""
    written = stream.target if isinstance(stream, JsonLines) else stream
    with contextlib.suppress(OSError, ValueError):  # a stream of a test's, which has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), written.fileno())


def open_missing_streams() -> None:
    """Give a command that was started with `>&-` or `2>&-` a place to write to: else the next file
    that is opened gets that number, and what a library writes to it. And let what a stream's
    encoding does not have be written escaped."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == number and getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        # Names may have any character, and a console or a file as few as code page 437 has.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def how_to_continue(run_dir: Path) -> str:
    return f"Continue with: {resume_command(run_dir)}"


def resume_command(run_dir: Path) -> str:
    """The command that goes on with a run, for the shell and folder that this one was given in."""
    return f"{command_for(started_trainer())} --resume {shlex.quote(str(run_dir))}"


def started_trainer() -> Path:
    """The trainer that this process is, else the loop's own: what is to be given next as well."""
    return OF_SKILL if Path(sys.argv[0]).resolve() == OF_SKILL else PROGRAM


def command_for(program: Path) -> str:
    """How a program of this folder is started, from the folder that this one was started in."""
    return f"{shown_python()} {shlex.quote(_from_here(program))}"


def shown_python() -> str:
    return shlex.quote(_from_here(Path(sys.executable)))


def _from_here(path: Path) -> str:
    cwd = Path.cwd()
    return str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)


def printable(text: str) -> str:
    """A text as a terminal may have it: lines, and nothing that it would act on.

    Names, questions and answers in it may be anybody's.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "?" for c in text)

"""Where a command prints: results to stdout, messages to stderr, nothing a terminal acts on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from errors import StorageError

PROGRAM = Path(__file__).resolve().parent.parent.parent / "trainer_with_eval.py"


def say(text: str, file: TextIO | None = None) -> None:
    """Print what may hold anybody's names: nothing in it reaches the terminal as a command."""
    print(printable(text), file=file)


def says_in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def say_marked(pieces: Iterable[tuple[str, float]]) -> None:
    """Print a text in pieces, those with a weight marked: in green, or in brackets where there are
    no colours; a weight below 1 is written before its piece."""
    begin, end = ("\x1b[32m", "\x1b[0m") if says_in_colour() else ("\u27e6", "\u27e7")
    marked = (
        f"{begin}{'' if weight == 1 else f'{weight:g}: '}{printable(text)}{end}"
        if weight
        else printable(text)
        for text, weight in pieces
    )
    print("".join(marked))


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


def how_to_continue(run_dir: Path) -> str:
    return f"Continue with: {resume_command(run_dir)}"


def resume_command(run_dir: Path) -> str:
    """The command that goes on with a run, for the shell and folder that this one was given in."""
    cwd, words = Path.cwd(), [Path(sys.executable), PROGRAM]
    shown = [
        str(word.relative_to(cwd)) if word.is_relative_to(cwd) else str(word) for word in words
    ]
    return shlex.join([*shown, "--resume", str(run_dir)])


def printable(text: str) -> str:
    """A text as a terminal may have it: lines, and nothing that it would act on.

    Names, questions and answers in it may be anybody's.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "?" for c in text)

"""An alert: a command of the user's, given what happened as JSON on its standard input.

The command comes from the command line alone, never from a config or a run directory, which may be
somebody else's. It is run without a shell and without this process's keys.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from errors import ConfigError

LIMIT_S = 10.0


def parse_command(text: str, flag: str = "--alert") -> list[str]:
    """The words of a command, which `flag` gives. Raises `ConfigError` when it is none."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: not a command: {error}.") from None
    if not words:
        raise ConfigError(f"{flag}: the command is empty. Give a program and its arguments.")
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"{flag} {text}: {words[0]!r} is no program that can be run. Give one and its "
            "arguments; no shell reads them, so for pipes and variables name a script."
        )
    return words


def send_alert(
    words: Sequence[str],
    message: Mapping[str, Any],
    what: str = "the alert command",
    limit_s: float | None = None,
) -> str | None:
    """Run the command; returns what went wrong with it, or None. `what` is what it is called, and
    `limit_s` how long it may take (None: as an alert)."""
    limit_s = LIMIT_S if limit_s is None else limit_s
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that what it has started can be stopped with it
        )
    except (OSError, ValueError) as error:
        return f"{what} {words[0]} could not be run: {error}"
    try:
        process.communicate(json.dumps(message).encode() + b"\n", limit_s)
    except subprocess.TimeoutExpired:
        return f"{what} {words[0]} took longer than {limit_s:g} s and was stopped"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        return f"{what} {words[0]} ended with exit code {process.returncode}"
    return None

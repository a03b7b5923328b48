"""What lies around an evaluation and may not decide it: Inspect's own settings, and `.env` files.

Inspect reads the nearest `.env` into the environment, where child processes and logs would find
the keys that it holds, and takes settings from variables: a model, a selection of samples, hooks.
Here the settings of a run say all of that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from services.keys import EVALOPS, TINKER

OF_MACHINE = ("INSPECT_SANDBOX_", "INSPECT_HTTP_")  # limits that a machine may need


def set_aside() -> list[str]:
    """Take Inspect's variables out of the environment, and keep it from reading `.env` files.

    Returns a line on each thing that is there and not used.
    """
    from dotenv import find_dotenv
    from inspect_ai._eval import context

    lines = []
    setattr(context, "init_dotenv", _read_no_file)  # noqa: B010 (it is no public name)
    found = [name for name in os.environ if name.startswith("INSPECT_")]
    unused = [name for name in found if not name.startswith(OF_MACHINE)]
    for name in unused:
        del os.environ[name]
    if unused:
        lines.append(
            f"not used: {', '.join(sorted(unused))} of the environment, since the settings say how "
            "tasks are asked"
        )
    if file := find_dotenv(usecwd=True):
        lines.append(
            f"not used: {file}, which Inspect would read; export the variables that your tasks need"
        )
    return lines


def _read_no_file() -> None:
    """In the place of Inspect's reading of `.env`."""


@contextlib.contextmanager
def without_new_keys() -> Iterator[None]:
    """Take out again the keys that a task's code puts into the environment (it may read a `.env`
    itself): what a sandbox runs would have them."""
    before: Mapping[str, str] = dict(os.environ)
    try:
        yield
    finally:
        for name in {TINKER, EVALOPS} - set(before):
            os.environ.pop(name, None)

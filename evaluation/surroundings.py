"""What lies around an evaluation and may not decide it: Inspect's own settings, and `.env` files.

Inspect reads the nearest `.env` into the environment, where child processes and logs would find
the keys that it holds, and takes settings from variables: a model, a selection of samples, hooks.
Here the settings of a run say all of that.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
def loading_apart() -> Iterator[None]:
    """What is around the loading of a task: it leaves no keys in the environment (its code may read
    a `.env` itself), where a sandbox would find them, and gets no rows of another time.

    Inspect keeps what `hf_dataset` loads by the words of the call. A file of that name that has
    changed since, or that lies in another folder, would give the rows of the first one.
    """
    from inspect_ai.dataset._sources import hf

    before, cache_dir = dict(os.environ), getattr(hf, "inspect_cache_dir")  # noqa: B009 (as above)
    with contextlib.ExitStack() as opened:

        def new_folder(*_: Any) -> Path:
            return Path(opened.enter_context(tempfile.TemporaryDirectory()))

        setattr(hf, "inspect_cache_dir", new_folder)  # noqa: B010
        try:
            yield
        finally:
            setattr(hf, "inspect_cache_dir", cache_dir)  # noqa: B010
            for name in {TINKER, EVALOPS} - set(before):
                os.environ.pop(name, None)

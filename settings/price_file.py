"""`budget.prices` as a file: its table is read into the settings, so a run records it whole."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from errors import ConfigError, one_line
from settings.config_file import as_shown, read_object

KEY = "budget.prices"


def with_prices(raw: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """A config with the table of prices in the place of the path that `budget.prices` gives.

    The path is looked for in `folder`, then in the working directory. A table that names no source
    has its file's name as one. Raises `ConfigError` where there is no such file or no JSON in it.
    """
    budget = raw.get("budget")
    given = budget.get("prices") if isinstance(budget, dict) else None
    if not isinstance(budget, dict) or not isinstance(given, str):
        return raw
    candidates = list(dict.fromkeys([folder / given, Path.cwd() / given]))
    for file in candidates:
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if file.is_file():
                table = {"source": file.name, **read_object(file, KEY, "table of prices")}
                return {**raw, "budget": {**budget, "prices": table}}
    tried = " and ".join(one_line(str(file)) for file in candidates)
    raise ConfigError(
        f"{where}: {KEY} names {as_shown(given)!r}, but there is no such file. Looked at {tried}. "
        "Give the path of a JSON table of prices, or the table itself."
    )

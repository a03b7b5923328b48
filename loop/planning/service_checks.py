"""What `--check-service` found of a service, kept beside a config and recorded by its runs.

A run on another service than Tinker says which differences that change scores were found there, or
that nobody has looked.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import ConfigError
from services.place import ServiceChoice

if TYPE_CHECKING:
    from services.check.verdicts import Line

FILE_SUFFIX = ".service.json"
NOT_CHECKED = "not checked; trainer_with_eval.py --check-service does"


def check_record(choice: ServiceChoice, base_model: str, lines: Sequence[Line]) -> dict[str, Any]:
    """What is written of a check. `changes_scores` names the lines that do."""
    return {
        "checked_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "service": choice.kind,
        "base_url": choice.base_url,
        "base_model": base_model,
        "changes_scores": [line.name for line in lines if line.is_bad],
        "lines": [asdict(line) for line in lines],
    }


def checked(config_file: Path, choice: ServiceChoice, base_model: str) -> str | None:
    """What is known of the service that a run is on, in a line; None where there is nothing to say,
    as of the embedded service and Tinker that were not checked.

    Raises `ConfigError` for a file beside the config that is no result of a check.
    """
    file = config_file.with_suffix(FILE_SUFFIX)
    unchecked = NOT_CHECKED if choice.kind == "compatible" else None
    if not file.is_file():
        return unchecked
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        where = (found["service"], found["base_url"], found["base_model"])
        when, bad = str(found["checked_at"]), [str(name) for name in found["changes_scores"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise ConfigError(
            f"{file}: this is no result of --check-service. Check the service again, or take the "
            "file away."
        ) from None
    if where != (choice.kind, choice.base_url, base_model):
        return unchecked
    if not bad:
        return f"checked {when}: nothing was found that changes scores"
    return f"checked {when}: scores are not those of Tinker, for these differ: {', '.join(bad)}"

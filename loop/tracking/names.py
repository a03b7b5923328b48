"""Names of metrics as a tracker takes them: pure, and never two of ours for one of theirs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping

MAX_CHARS = 200  # MLflow takes 250
_NOT_TAKEN = re.compile(r"[^A-Za-z0-9_\-. :/]")  # what MLflow refuses; Trackio takes any
_HASH_CHARS = 8
TAKEN = ("project", "run", "timestamp", "step", "time", "metrics")  # by Trackio


def taken_name(name: str) -> str:
    """The nearest name that every tracker takes, which others may have as well."""
    parts = [_NOT_TAKEN.sub("_", part).strip() for part in name.split("/")]
    path = "/".join("_" if part.strip(".") == "" else part for part in parts)
    return f"_{path}" if path in TAKEN else path


def with_names(
    known: Mapping[str, str], names: Iterable[str], cleaned: Callable[[str], str] = str
) -> dict[str, str]:
    """What is known of our names and theirs, with those of `names` that are new. Names that are
    one at a tracker, or too long, are told apart by a hash of the whole."""
    found = dict(known)
    theirs = set(found.values())
    for name in names:
        if name in found:
            continue
        mapped = taken_name(cleaned(name))
        if mapped in theirs or len(mapped) > MAX_CHARS:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
            mapped = f"{mapped[: MAX_CHARS - _HASH_CHARS - 1]}-{digest[:_HASH_CHARS]}"
        found[name] = mapped
        theirs.add(mapped)
    return found

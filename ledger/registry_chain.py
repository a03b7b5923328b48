"""Lines that each carry the hash of the one before: read as far as they fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ledger.records import seconds_of
from storage.stored_json import parse_object, unique_keys

Event = dict[str, Any]
MAX_TYPE_CHARS = 40
MAX_SAID = 300


@dataclass
class Chain:
    """The events of the lines, up to the first that does not fit.

    Bytes after the last newline are a line too, where they are whole but for it: it may have been
    told of. Others were never acknowledged, and are torn.
    """

    events: list[Event] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)  # of the lines
    num_whole_bytes: int = 0
    num_torn_bytes: int = 0
    lacks_newline: bool = False
    num_unread_lines: int = 0  # the one that does not fit, and those after it
    misfit: str | None = None  # why the first line that does not fit does not


def hash_of(line: bytes) -> str:
    """What the next line carries of this one, exactly its bytes without the newline."""
    return hashlib.sha256(line).hexdigest()


def read_chain(content: bytes, take: Callable[[Event], None]) -> Chain:
    """Read lines; `take` is given each event in turn, and raises `ValueError` for one that cannot
    come where it does."""
    chain = Chain()
    *lines, tail = content.split(b"\n")
    for number, line in enumerate(lines):
        try:
            _add(chain, line, take)
        except ValueError as error:
            chain.num_unread_lines = len(lines) - number + bool(tail)
            chain.misfit = str(error)[:MAX_SAID]
            return chain
        chain.num_whole_bytes += len(line) + 1
    if tail:
        try:
            _add(chain, tail, take)
            chain.lacks_newline = True
            chain.num_whole_bytes += len(tail)
        except ValueError as error:
            if _is_object(tail):  # whole, so that no kill has cut it short
                chain.num_unread_lines = 1
                chain.misfit = str(error)[:MAX_SAID]
            else:
                chain.num_torn_bytes = len(tail)
    return chain


def _is_object(line: bytes) -> bool:
    try:
        parse_object(line)
        return True
    except ValueError:
        return False


def _add(chain: Chain, line: bytes, take: Callable[[Event], None]) -> None:
    event = parse_object(line)
    json.loads(line, object_pairs_hook=unique_keys)
    previous = chain.hashes[-1] if chain.hashes else None
    if event.get("seq") != len(chain.events) or type(event["seq"]) is not int:
        raise ValueError(f"its number is {event.get('seq')!r:.40}, and {len(chain.events)} is next")
    if "previous" not in event or event["previous"] != previous:
        raise ValueError("the hash that it carries is not that of the line before")
    kind, time = event.get("type"), event.get("time")
    if not isinstance(kind, str) or not re.fullmatch("[a-z_]+", kind) or len(kind) > MAX_TYPE_CHARS:
        raise ValueError("it has no type")
    if not isinstance(time, str):
        raise ValueError("it has no time")
    seconds_of(time)
    take(event)
    chain.events.append(event)
    chain.hashes.append(hash_of(line))

"""Each round's answers as a part of the page: JSON, gzip, base64; made once and kept in the run.

    report_parts/round_02.txt    what the part was made from (a sha256), a sha256 of that with the
                                 part, and the part, a line each

A part has a budget. Over it the longest texts are cut, then samples are left out; both is written
in the part, and the page says it. What belongs to a part and when is `answers`' to know.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

from ledger.store import RunStore
from scores.results import HeldOutLoss, Measured, SampleResult, TaskResult

FORMAT = 1  # of parts, which the script reads; kept ones of another are made again
FOLDER = "report_parts"
PART_CHARS = 1_000_000  # of a part in the page, as base64
TEXT_LIMITS = (None, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 120)  # characters, until it fits
MOST_GAIN = 20  # times that gzip makes answers smaller, at most; larger ones are not tried
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


class Source(NamedTuple):
    """What a part is made from: which tasks of which file of the run have been measured."""

    name: str  # such as round_02
    number: int
    file: str
    tasks: tuple[str, ...]


def part_of(store: RunStore, source: Source) -> str:
    """The part as base64: the kept one where its file is unchanged, or else made, and kept where
    this process holds the run. Raises `RunStoreError` and `StorageError`."""
    place = f"{FOLDER}/{source.name}.txt"
    key = _key(store.run_dir / source.file, source.tasks)
    kept = _kept(store.run_dir / place, key)
    if kept is not None:
        return kept
    made = encoded(store.measured(source.number))
    if key is not None and store.is_held:
        store.write_text(place, f"{key}\n{_seal(key, made)}\n{made}\n")
    return made


def _key(path: Path, tasks: Iterable[str]) -> str | None:
    """What tells that a part is still right; None where the file cannot be read."""
    made_by = json.dumps([FORMAT, PART_CHARS, sorted(tasks)])
    try:
        content = path.read_bytes()
    except OSError:
        return None  # who reads it next says so
    return hashlib.sha256(made_by.encode() + content).hexdigest()


def _seal(key: str, part: str) -> str:
    """What tells that a kept part is the one that was made."""
    return hashlib.sha256(f"{key}\n{part}".encode()).hexdigest()


def _kept(path: Path, key: str | None) -> str | None:
    """A part that was kept under this key; anything else in its place is as good as none."""
    try:
        if key is None or path.stat().st_size > 2 * PART_CHARS:
            return None
        lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, ValueError):
        return None
    if len(lines) != 4 or lines[0] != key or lines[1] != _seal(key, lines[2]):
        return None
    return lines[2] if _BASE64.fullmatch(lines[2]) else None


# --- making one -----------------------------------------------------------------------------------


def encoded(measured: Measured, max_chars: int = PART_CHARS) -> str:
    """The part of a round: whole, or with texts cut, or with samples left out, so that it fits."""
    longest = _longest_text(measured)
    for limit in TEXT_LIMITS:
        if limit is not None and limit >= longest:  # it cuts nothing
            continue
        part = _packed(part_json(measured, limit), max_chars)
        if part is not None:
            return part
    num_samples = max(_lengths(measured), default=1)
    while True:  # of one sample with its texts cut to so few characters any budget has room
        num_samples = max(1, num_samples // 2)
        part = _packed(part_json(measured, TEXT_LIMITS[-1], num_samples), max_chars)
        if part is not None or num_samples == 1:
            return part or _packed(part_json(Measured()), max_chars * MOST_GAIN) or ""


def _longest_text(measured: Measured) -> int:
    samples = (sample for task in measured.tasks for sample in task.samples)
    return max((len(text) for sample in samples for text in _texts_of(sample)), default=0)


def _texts_of(sample: SampleResult) -> list[str]:
    """What of a sample may be cut."""
    return [sample.question, *sample.expected, sample.answer or "", sample.error or ""]


def _lengths(measured: Measured) -> list[int]:
    return [
        *(len(one.samples) for one in measured.tasks),
        *(len(o.rows) for o in measured.held_out),
    ]


def _packed(part: dict[str, Any], max_chars: int) -> str | None:
    """None where it does not fit."""
    text = json.dumps(part, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half of a surrogate pair has no UTF-8; with a backslash it is JSON's own way to write it.
    content = text.encode("utf-8", "backslashreplace")
    if len(content) > MOST_GAIN * max_chars:
        return None
    packed = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")
    return packed if len(packed) <= max_chars else None


def part_json(
    measured: Measured, limit: int | None = None, num_samples: int | None = None
) -> dict[str, Any]:
    """What a part says, texts cut to `limit` characters, of each task the first `num_samples`."""
    return {
        "tasks": [_task(task, limit, num_samples) for task in measured.tasks],
        "held_out": [_losses(loss, num_samples) for loss in measured.held_out],
    }


def _task(task: TaskResult, limit: int | None, num_samples: int | None) -> dict[str, Any]:
    return {
        "name": task.name,
        "role": task.role,
        "num_samples": len(task.samples),
        "log": None if task.log is None else _log(task.log),
        "samples": [_sample(one, task.name, limit) for one in task.samples[:num_samples]],
    }


def _sample(sample: SampleResult, task_name: str, limit: int | None) -> dict[str, Any]:
    """A sample with what is worth saying of it; `digest` tells whole answers apart, cut or not."""
    said: dict[str, Any] = {
        "id": sample.id.removeprefix(f"{task_name}/"),
        "question": sample.question[:limit],
        "expected": [one[:limit] for one in sample.expected],
        "answer": None if sample.answer is None else sample.answer[:limit],
        "digest": _digest(sample.answer),
        "score": sample.score,
        "tokens": [sample.num_prompt_tokens, sample.num_sampled_tokens],
        "topic": sample.topic,
    }
    further = {
        "repeat": sample.repeat if sample.repeat != 1 else None,
        "truncated": sample.truncated,
        "malformed": sample.malformed,
        "error": None if sample.error is None else sample.error[:limit] or "no reason is recorded",
        "other_scores": sample.other_scores,
        "cut": limit is not None and any(len(text) > limit for text in _texts_of(sample)),
    }
    return said | {name: value for name, value in further.items() if value}


def _digest(answer: str | None) -> str:
    if answer is None:
        return ""
    return hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _losses(loss: HeldOutLoss, num_rows: int | None) -> dict[str, Any]:
    rows = [
        {
            "id": row.id.removeprefix(f"{loss.name}/"),
            "topic": row.topic,
            "loss": row.nll_sum / row.num_loss_tokens,
            "num_tokens": row.num_loss_tokens,
        }
        for row in loss.rows[:num_rows]
    ]
    return {"name": loss.name, "num_rows": len(loss.rows), "loss": loss.nll, "rows": rows}


def _log(log: str) -> dict[str, str] | None:
    """The Inspect log beside the page, and what opens it from the run's directory."""
    href = relative_href(log)
    if href is None:
        return None
    folder = shlex.quote(str(PurePosixPath(log).parent))
    return {"name": log, "href": href, "command": f"inspect view --log-dir {folder}"}


def relative_href(name: str) -> str | None:
    """A file of the run as a link from its page; None for what would lead out of the run."""
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and ".." not in path.parts and name != ""
    return quote(name, errors="replace") if is_inside else None

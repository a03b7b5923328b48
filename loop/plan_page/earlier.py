"""What the newest run of the same model has measured on this machine: how fast it went, and how the
untouched model scored. Nothing is measured here, and other models' speeds say nothing of this one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config_schema import TrainingConfig
from errors import LoopError
from ledger.run_directory import BEGUN_AT, CONFIG, EVALUATED
from ledger.store import RunStore
from scores.results import EvalResult

NUM_LOOKED_AT = 20  # of the newest runs
# Settings that a speed hangs on, as far as it is told by tokens.
SAME_SPEED = ("lora_rank", "train_attn", "train_mlp", "train_unembed", "batch_size")
# Those of the method, with what they are in runs before there were others.
METHODS = {"method": "sft", "dpo": None, "rl": None, "distill": None}


class Speed(NamedTuple):
    """Tokens a second, with saving and waiting in it; None of what the run did not do."""

    trained_per_s: float | None
    sampled_per_s: float | None


class Earlier(NamedTuple):
    """A run of the same model and adapter on this machine."""

    run: str  # its directory's name
    speed: Speed
    baseline: float | None  # round 0's score, where it asked what this run will ask


def newest_alike(
    parent: Path, config: TrainingConfig, model_path: str, asked: Mapping[str, str]
) -> Earlier | None:
    """The newest run below `parent` that says how fast this model is trained and sampled here.

    `asked` are the tasks with the sha256 of what they ask.

    One that was moved or copied is left out: where it was measured is not known.
    """
    given = config.model_dump(mode="json")
    for run_dir, settled in _newest(parent):
        with contextlib.suppress(LookupError, TypeError, LoopError):
            was = settled["config"]
            if (
                settled["resolved"]["service"] != "embedded"
                or settled["files"]["base_model"] != model_path
                or any(was[key] != given[key] for key in SAME_SPEED)
                or any(was.get(key, usual) != given[key] for key, usual in METHODS.items())
            ):
                continue
            store = RunStore.open(run_dir)
            speed = _speed_of(store)
            if speed.trained_per_s is None and speed.sampled_per_s is None:
                continue
            same = ("eval_tasks", "evaluation", "start_from", "renderer_name", "seed")
            first = store.result(0) if all(was[key] == given[key] for key in same) else None
            is_same = first is not None and _asked(first) == asked  # files may have changed since
            return Earlier(run_dir.name, speed, first.score if first and is_same else None)
    return None


def _newest(parent: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The newest runs in place with what they settled; evaluations of checkpoints are none."""
    files: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for file in parent.glob(f"*/{CONFIG}"):
            with contextlib.suppress(OSError):
                files.append((file.stat().st_mtime, file))
    for _, file in sorted(files, reverse=True)[:NUM_LOOKED_AT]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            settled = json.loads(file.read_text(encoding="utf-8"))
            is_run = isinstance(settled, dict) and EVALUATED not in settled
            if is_run and settled.get(BEGUN_AT) == str(file.parent.resolve()):
                yield file.parent, settled


def _asked(first: EvalResult) -> dict[str, str]:
    tasks = first.protocol.get("tasks", {})  # versions before did not record them
    return {name: task["sha256"] for name, task in tasks.items()}


def _speed_of(store: RunStore) -> Speed:
    steps, asked = list(store.events("step")), list(store.events("measured"))
    return Speed(
        _rate([event["num_tokens"] for event in steps], [event["worked"] for event in steps]),
        _rate(
            [event["num_sampled_tokens"] for event in asked], [event["worked"] for event in asked]
        ),
    )


def _rate(tokens: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Tokens a second; None where either is nothing, as in ledgers that recorded no times."""
    return sum(tokens) / sum(seconds) if sum(tokens) > 0 and sum(seconds) > 0 else None

"""What a tracker is told of a run, from the ledger's effective events: pure.

A row has a step, and steps never fall: the optimizer steps that the run has taken when the row is
recorded (of an evaluation of checkpoints outside a run, the place of the checkpoint). Rows of one
step never share a name, so that a tracker which keeps one row for a step loses nothing. What is
measured later of an earlier round has that round in its names.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scores.results import HeldOutLoss, Measured, TaskResult
from settings.sameness import flat

Event = Mapping[str, Any]

# The two metrics that every row has at a tracker: where in the ledger it stands, and its round.
EVENT, ROUND = "ledger/event", "ledger/round"
# A password may hold what an address should escape: it ends with the last @ that can be its end.
_USER_OF_URL = re.compile(r"(\w[\w+.-]*://)(?:[^/?#\s:@]*:[^\s\"']*|[^/?#\s\"']*)@")
_QUERY_OF_URL = re.compile(r"(\w[\w+.-]*://[^\s?#\"']*)\?[^\s#\"']*")


class Row(NamedTuple):
    """One optimizer step, one held-out loss inside a round, or one evaluation."""

    seq: int  # of its event
    time: str
    step: int
    round: int
    metrics: dict[str, float]

    @property
    def at_tracker(self) -> dict[str, float]:
        return {**self.metrics, ROUND: float(self.round), EVENT: float(self.seq)}


@dataclass
class _Told:
    """What the rows so far have told of."""

    num_steps: int = 0
    newest_round: int = -1
    measured: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by file
    evaluated: dict[str, set[str]] = field(default_factory=dict)  # by file, what a row has told
    names: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))  # by step


def rows_of(
    events: Iterable[Event], files: Mapping[str, Measured], *, is_evaluation: bool = False
) -> list[Row]:
    """The rows of effective events; `files` is what the files that they name hold."""
    told, rows = _Told(), []
    for event in events:
        kind = event["type"]
        if kind in ("measured", "test_measured"):
            told.measured[event["file"]].update(event["tasks"])
        elif kind == "step":
            told.num_steps += 1
        metrics = _metrics_of(event, files, told)
        if not metrics:
            continue
        step = event["round"] if is_evaluation else told.num_steps
        names = told.names[step]
        for place in ("", f"of_round_{event['round']:02d}/", f"of_event_{event['seq']}/"):
            placed = {place + name: value for name, value in metrics.items()}
            if not names & set(placed):
                break
        names |= set(placed)
        rows.append(Row(event["seq"], event["time"], step, event["round"], placed))
    return rows


def _metrics_of(event: Event, files: Mapping[str, Measured], told: _Told) -> dict[str, float]:
    kind = event["type"]
    if kind == "step":
        named = {"lr": "lr", "loss": "loss", "nll": "nll", "tokens": "num_tokens"}
        found = {f"train/{name}": event.get(key) for name, key in named.items()}
        found["train/loss_tokens"] = event.get("num_loss_tokens")
        for name in ("num_prompt_tokens", "num_sampled_tokens"):  # of answers to train on
            if event.get(name):
                found[f"train/{name.removeprefix('num_')}"] = event[name]
        own = {f"train/{name}": value for name, value in event.get("measures", {}).items()}
        return _numbers({**own, **found})
    if kind == "held_out":
        names = ("nll", "stderr", "perplexity", "bits_per_byte")
        return _numbers({f"held_out/{event['task']}/{name}": event.get(name) for name in names})
    if kind in ("evaluated", "test_evaluated"):
        return _of_evaluation(event, files, told)
    return {}


def _of_evaluation(event: Event, files: Mapping[str, Measured], told: _Told) -> dict[str, float]:
    """What is told of an evaluation: all of a first one, of a later one what is new in it."""
    file, number = event["file"], event["round"]
    known = told.evaluated.get(file)
    new = told.measured[file] - (known or set())
    told.evaluated[file] = (known or set()) | new
    measured = files.get(file, Measured()).only(new)
    is_test = event["type"] == "test_evaluated"
    place = "test/" if is_test else "eval/"
    found: dict[str, Any] = {}
    for task in measured.tasks:
        found |= {f"{task.name}/{name}": value for name, value in _of_task(task).items()}
    for loss in measured.held_out:
        found |= {f"{loss.name}/{name}": value for name, value in _of_loss(loss).items()}
    if known is None:
        names = ("score", "stderr", "n", "num_truncated", "num_malformed", "num_failed")
        found = {**{name: event.get(name) for name in names}, **found}
    if not (found := _numbers(found)):
        return {}
    if not is_test:
        if number < told.newest_round:
            place = f"of_round_{number:02d}/{place}"
        told.newest_round = max(told.newest_round, number)
    found["weights_step"] = float(event["step"] or 0)
    return {place + name: value for name, value in found.items()}


def _of_task(task: TaskResult) -> dict[str, Any]:
    own = {f"own/{name}": value for name, value in task.metrics.items()}
    return {
        "score": task.score,
        "stderr": task.stderr,
        "n": task.n,
        "num_truncated": task.num_truncated,
        "num_malformed": task.num_malformed,
        "num_failed": task.num_failed,
        **own,
    }


def _of_loss(loss: HeldOutLoss) -> dict[str, Any]:
    return {
        "nll": loss.nll,
        "stderr": loss.stderr,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte,
        "n": loss.n,
    }


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """What was measured; what was not has no number, and none takes its place."""
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def by_step(rows: Iterable[Row]) -> dict[int, dict[str, float]]:
    """One row for each step, for a tracker that keeps no more (W&B); nothing is lost in it."""
    merged: dict[int, dict[str, float]] = {}
    for row in rows:
        merged.setdefault(row.step, {}).update({**row.metrics, ROUND: float(row.round)})
    return merged


def texts_of(events: Iterable[Event]) -> dict[str, str]:
    """What a tracker is told in words: decisions, checkpoints and how the run ended."""
    texts: dict[str, str] = {}
    for event in events:
        kind, number = event["type"], event["round"]
        at = "" if number is None else f"round_{number:02d}"
        if kind == "decided":
            texts[f"{at}.decision"] = texts["verdict"] = event["sentence"]
        elif kind == "checkpoint" and event["sampler_path"] is not None:
            texts[f"{at}.sampler_path"] = event["sampler_path"]
            texts[f"{at}.state_path"] = event["state_path"]
        elif kind == "compared":
            texts[f"checkpoint_{number:02d}.comparison"] = texts["verdict"] = event["sentence"]
        elif kind in ("failed", "eval_failed", "interrupted"):
            texts[f"event_{event['seq']}.{kind}"] = str(event.get("detail", ""))
    return texts


def params_of(
    config: Mapping[str, Any], redacted: Callable[[str], str] = lambda text: text
) -> dict[str, str]:
    """The settings by dotted key, as text, without what they may hold of secrets."""
    settings = {key: value for key, value in config.items() if key != "tracking"}
    return {
        key: redacted(without_secrets(value if isinstance(value, str) else json.dumps(value)))
        for key, value in flat(settings).items()
    }


def without_secrets(text: str) -> str:
    """A text with the users, passwords and queries of its addresses taken out."""
    return _QUERY_OF_URL.sub(r"\1?[redacted]", _USER_OF_URL.sub(r"\1[redacted]@", text))

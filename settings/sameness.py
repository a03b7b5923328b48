"""Which settings make a run the run that it is, and which of them may change when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# What may differ between a run and its resumption.
CHANGEABLE_ON_RESUME = (
    "max_rounds",
    "data.max_steps_in_flight",
    "budget",
    "base_url",
    "evalops_enabled",
    "evalops_test_suite_id",
    "evalops_api_url",
    "evalops_budget_file",
    "evalops_environment",
    "evaluation.concurrency",
    "tracking",
)
# Settings that are younger than some runs: where one is not used, it is as if it were not there.
ADDED_SINCE = {
    "num_epochs": None,
    "start_from": None,
    "start_from_optimizer": False,
    "evaluation.test_on": "end",
    "gate.stop": True,
    "evaluation.system_prompt": None,
    "checkpoint_names": "rounds",
    "method": "sft",
    "dpo": None,
    "rl": None,
    "distill": None,
}
# Of a setting that younger versions let change, what the hash of every run is made with.
HASHED_AS = {"evaluation.concurrency": 128}


def kept_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings a resumed run must share with the run it continues, by dotted key; a
    younger setting that is not used is left out."""
    return {
        key: value
        for key, value in flat(config).items()
        if not any(f"{key}.".startswith(f"{one}.") for one in CHANGEABLE_ON_RESUME)
        and not (key in ADDED_SINCE and value == ADDED_SINCE[key])
    }


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings with the keys of their groups dotted."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else None
        found |= {f"{prefix}{key}": value} if inner is None else inner
    return found


def hash_of(config: Mapping[str, Any]) -> str:
    """sha256 of what a resumed run must share with the run it continues.

    It stays what it was for runs of earlier versions: a younger setting that is not used is left
    out, one that may change by now counts as its default.
    """
    return _hash(config, HASHED_AS)


def hash_before(config: Mapping[str, Any]) -> str:
    """The same as earlier versions had it, where what is in `HASHED_AS` could not change."""
    return _hash(config, {})


def _hash(config: Mapping[str, Any], hashed_as: Mapping[str, Any]) -> str:
    hashed = json.loads(json.dumps(config))
    for dotted in (*CHANGEABLE_ON_RESUME, *ADDED_SINCE):
        *groups, leaf = dotted.split(".")
        group = hashed
        for name in groups:
            group = group[name]
        if dotted in HASHED_AS:
            group[leaf] = hashed_as.get(dotted, group[leaf])
        elif dotted not in ADDED_SINCE or group[leaf] == ADDED_SINCE[dotted]:
            del group[leaf]
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()

"""The run in the form that the field's playground lists: `checkpoints.jsonl` and `config.json`.

Made of the ledger alone, whole each time. Weights that were deleted, could not be used or were
superseded are left out; nothing is in it that opens a service.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ledger.records import Checkpoint
from ledger.store import RunStore
from loop.tracking.rows import without_secrets

CHECKPOINTS, CONFIG = "checkpoints.jsonl", "config.json"


def write_for_playground(store: RunStore) -> None:
    """Write both files as the ledger stands. Raises `StorageError`.

    An evaluation outside a run saves no weights, and has neither.
    """
    if store.is_evaluation or not store.has_started:
        return
    settled = store.settled_config()
    config = playground_config(settled["config"], settled["resolved"], store.run_id)
    lines = checkpoint_lines(store.checkpoints(), store.deleted_paths(), store.scores())
    _write_changed(store, CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    _write_changed(store, CHECKPOINTS, "".join(line + "\n" for line in lines))


def _write_changed(store: RunStore, name: str, text: str) -> None:
    """Write a file that is not so already: a resumed run passes all of its rounds once more."""
    with contextlib.suppress(OSError):
        if (store.run_dir / name).read_bytes() == text.encode():
            return
    store.write_text(name, text)


def playground_config(
    config: Mapping[str, Any], resolved: Mapping[str, Any], run_id: str
) -> dict[str, Any]:
    """What the playground shows of a run beside its name."""
    train_file = config["train_file"]
    shown = train_file if isinstance(train_file, str) else json.dumps(train_file)
    return {
        "model_name": config["base_model"],
        "wandb_name": f"{config['run_name']}-{run_id}",
        "lora_rank": config["lora_rank"],
        "learning_rate": resolved["learning_rate"],
        "seed": config["seed"],
        "dataset_builder": {
            "file_path": without_secrets(shown),
            "common_config": {"renderer_name": resolved["renderer_name"]},
        },
    }


def checkpoint_lines(
    checkpoints: Iterable[Checkpoint], deleted: set[str], scores: Mapping[int, float]
) -> list[str]:
    """A line for each round whose weights can be sampled: its number is the name, since names that
    are none are sorted last, and `batch` the optimizer steps in them."""
    lines = []
    for one in checkpoints:
        if one.sampler_path is None or one.sampler_path in deleted:
            continue
        record = {
            "name": f"{one.round:06d}",
            "batch": one.step,
            "sampler_path": one.sampler_path,
            "score": scores.get(one.round),
        }
        if one.state_path not in deleted:
            record["state_path"] = one.state_path
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False))
    return lines

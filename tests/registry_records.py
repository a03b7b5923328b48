"""Entries of a registry made by hand, of runs made by hand: nothing is trained or compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ledger.registry_file import CHAMPION, Promoted
from ledger.registry_weights import (
    ADAPTER_FILES,
    digest_of,
    digests_of_weights,
    weights_dir,
)
from ledger.registry_writing import Who, writing
from ledger.run_directory import now
from ledger.store import MANIFEST, RunStore

BY = Who("a test", ["registry.py"])


def with_weights(store: RunStore, text: str = "") -> RunStore:
    """A run made by hand, with files where its weights would be."""
    for checkpoint in store.checkpoints():
        for path in (checkpoint.state_path, checkpoint.sampler_path):
            if path is not None:
                folder = weights_dir(store.run_dir, path)
                folder.mkdir(parents=True, exist_ok=True)
                for name in ADAPTER_FILES:
                    (folder / name).write_text(f"{name} of round {checkpoint.round}{text}")
    return store


def entry_of(store: RunStore, name: str, version: int, round_no: int, **changes: Any) -> Promoted:
    """What a promotion would record of a round; the run lies below the registry's folder in runs/
    where nothing else is said."""
    checkpoint, result = store.checkpoint(round_no), store.result(round_no)
    assert checkpoint is not None and checkpoint.sampler_path is not None and result is not None
    file = f"evals/round_{round_no:02d}.json"
    interval = None if result.interval is None else list(result.interval)
    fields: dict[str, Any] = {
        "name": name,
        "version": version,
        "time": now(),
        "run_id": store.run_id,
        "run_dir": f"runs/{store.run_dir.name}",
        "round": round_no,
        "step": checkpoint.step,
        "sampler_path": checkpoint.sampler_path,
        "state_path": checkpoint.state_path,
        "weights_sha256": digests_of_weights(store.run_dir, checkpoint.sampler_path),
        "base_model": checkpoint.base_model,
        "base_sha256": None,
        "lora": {"rank": checkpoint.lora_rank, "alpha": checkpoint.lora_alpha},
        "renderer": checkpoint.renderer,
        "data_sha256": digest_of(store.run_dir / MANIFEST),
        "results": {
            "score": result.score,
            "interval": interval,
            "n": result.n,
            "protocol_hash": result.protocol_hash,
            "file": file,
            "file_sha256": digest_of(store.run_dir / file),
        },
        "sealed_test": None,
        "promoted_by": BY.by,
        "command": BY.command,
        "parent": None,
        "against": None,
        "weights": store.weights_of(checkpoint.sampler_path),
    }
    return Promoted(**{**fields, **changes})


def promoted(path: Path, store: RunStore, name: str, *rounds: int, **changes: Any) -> None:
    """Make rounds of a run versions of a name, the last one its champion."""
    with writing(path) as writer:
        for round_no in rounds:
            version = writer.registry.next_version(name)
            entry = entry_of(store, name, version, round_no, **changes)
            writer.promote(entry, [CHAMPION])

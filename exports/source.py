"""What is exported: a checkpoint found on disk, with what its run says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger.records import Checkpoint
from ledger.store import RunStore


@dataclass(frozen=True)
class Source:
    """One checkpoint to export. Of a path that belongs to no known run the run is None."""

    label: str  # as the command line names it
    sampler_path: str | None  # tinker://..., as it was evaluated
    adapter_dir: Path  # adapter_config.json and adapter_model.safetensors, in PEFT's layout
    base_dir: Path  # the base model: config.json, weights, tokenizer
    base_name: str  # what the settings call it, a directory or a hub name
    base_sha256: dict[str, str]  # file name -> sha256, of base_dir as it is now
    renderer: str
    store: RunStore | None
    checkpoint: Checkpoint | None

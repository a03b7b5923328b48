"""`registry.jsonl`: which checkpoints were promoted, by whom, on what evidence, for good.

Append-only, a JSON object a line; each carries the hash of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REGISTRY = "registry.jsonl"
CHAMPION = "champion"  # the alias that promotions compare with and move


@dataclass(frozen=True)
class Promoted:
    """An entry that a checkpoint has for good: `registry:NAME@VERSION`."""

    name: str
    version: int  # 1, 2, ... of this name
    time: str  # UTC, as in ledgers
    run_id: str
    run_dir: str  # as seen from the registry's folder where it lies below it
    round: int
    step: int
    sampler_path: str
    state_path: str
    weights_sha256: dict[str, str] | None  # file -> sha256; None where a service keeps the files
    base_model: str
    base_sha256: dict[str, str] | None  # file -> sha256; None for a hub's name without files here
    lora: dict[str, Any]  # rank, alpha, train_attn, train_mlp, train_unembed
    renderer: str
    data_sha256: str  # of the run's data_manifest.json
    results: dict[str, Any]  # score, interval, n, protocol_hash, tasks, evals file and its sha256
    sealed_test: dict[str, Any] | None
    promoted_by: str
    command: list[str]
    parent: str | None  # what the checkpoint was started from, a registry name where it has one
    against: dict[str, Any] | None  # the champion it was compared with, and what came of it
    forced: str | None = None  # the reason, where it was promoted all the same
    notes: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        return f"registry:{self.name}@{self.version}"

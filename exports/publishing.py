"""The last files of an export: export.json and the sha256 of every other file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from errors import ExportError
from exports.check import Check
from exports.served_template import ServedTemplate
from exports.source import Source
from exports.wanted import Wanted, Written
from ledger.registry_weights import digest_of
from storage.folders import write_plain

EXPORT, SUMS, CARD = "export.json", "SHA256SUMS", "README.md"


def export_record(
    source: Source,
    wanted: Wanted,
    written: Written,
    template: ServedTemplate,
    checks: Sequence[Check],
) -> dict[str, Any]:
    """What export.json holds: what was exported, from what, how, and what the checks found."""
    from importlib.metadata import version

    checkpoint, store = source.checkpoint, source.store
    packages = ("tinker", "tinker-cookbook", "torch", "transformers", "peft", *written.packages)
    return {
        "format": wanted.format,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "checkpoint": {
            "name": source.label,
            "sampler_path": source.sampler_path,
            "state_path": source.state_path,
            "service": source.service,
            "run_id": None if store is None else store.run_id,
            "round": None if checkpoint is None else checkpoint.round,
            "step": None if checkpoint is None else checkpoint.step,
        },
        "lora": _lora_of(source),
        "renderer": source.renderer,
        "chat_template": {
            "origin": template.origin,
            "equal_on": list(template.proven_on),
            "limits": list(template.limits),
            "ollama_limits": list(template.go_limits),
            "answers_end_at": list(template.stop_texts),
            "in_tokens": list(template.stop_ids),
        },
        "base_model": {
            "name": source.base_name,
            "path": None if source.base_is_hub else str(source.base_dir),
            "sha256": source.base_sha256,
        },
        "dtype": written.dtype,
        "quantization": written.quantization,
        "notes": [*source.notes, *written.notes],
        "checks": [asdict(one) for one in checks],
        "versions": {name: version(name) for name in packages},
    }


def _lora_of(source: Source) -> dict[str, Any] | None:
    """The adapter's shape, as far as it is known before a download."""
    checkpoint, adapter = source.checkpoint, source.adapter
    if adapter is not None:
        alphas = {"alpha": adapter.config["lora_alpha"], "described": adapter.describe()}
        return {"rank": adapter.rank, **alphas, "sha256": adapter.sha256}
    if checkpoint is None:
        return None
    return {
        "rank": checkpoint.lora_rank,
        "alpha": checkpoint.lora_alpha,
        "train_attn": checkpoint.train_attn,
        "train_mlp": checkpoint.train_mlp,
        "train_unembed": checkpoint.train_unembed,
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    write_plain(folder / EXPORT, (json.dumps(record, indent=1, default=str) + "\n").encode())


def write_sums(folder: Path) -> dict[str, str]:
    """Write the sha256 of every other file, as `sha256sum -c SHA256SUMS` reads it."""
    sums: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ExportError(f"{path}: an export holds plain files alone, and this is none.")
        if path.is_file() and path != folder / SUMS:
            digest = digest_of(path)
            assert digest is not None, "a plain file, as looked at above"
            sums[path.relative_to(folder).as_posix()] = digest
    lines = (f"{digest}  {name}\n" for name, digest in sums.items())
    if any("\n" in name or "\\" in name for name in sums):
        raise ExportError(f"{folder}: a file's name has a line break or a backslash.")
    write_plain(folder / SUMS, "".join(lines).encode("utf-8", "surrogateescape"))
    return sums

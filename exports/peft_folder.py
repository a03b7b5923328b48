"""An adapter in PEFT's layout: looked at, copied, and told from its part on the unembedding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import ExportError
from ledger.registry_weights import ADAPTER_FILES
from storage.folders import copy_plain, write_plain

CONFIG, WEIGHTS = ADAPTER_FILES
BASE_KEY = "base_model_name_or_path"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """What an adapter's two files hold, without its numbers."""

    config: dict[str, Any]
    names: tuple[str, ...]  # of the tensors
    is_zero: bool  # all of lora_B: it changes nothing

    @property
    def modules(self) -> frozenset[str]:
        """The layers that it changes, by their whole names in the base model."""
        return frozenset(module_of(name) for name in self.names)

    @property
    def has_experts(self) -> bool:
        """Whether it changes parameters of three dimensions, in a layout of PEFT's own."""
        return bool(self.config.get("target_parameters"))


def module_of(name: str) -> str:
    """The layer that a tensor of an adapter belongs to."""
    return name.removeprefix(PREFIX).split(".lora_")[0]


def read_adapter(folder: Path) -> Adapter:
    """Look at an adapter. Raises `ExportError` for one that is damaged or not finite."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
        is_zero, names = True, []
        with safe_open(str(folder / WEIGHTS), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_tensor(name)
                names.append(name)
                if not torch.isfinite(tensor).all():
                    raise ExportError(
                        f"{folder}: {name} of this adapter has values that are no numbers. It "
                        "cannot be used; name another checkpoint."
                    )
                if ".lora_B" in name and tensor.any():
                    is_zero = False
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ExportError(
            f"{folder}: these weights cannot be read: {error}. Restore the folder from a copy, or "
            "name another checkpoint."
        ) from None
    if not names:
        raise ExportError(f"{folder}: this adapter has no tensors. Name another checkpoint.")
    return Adapter(config, tuple(sorted(names)), is_zero)


def adapter_config(adapter: Adapter, base: str) -> dict[str, Any]:
    """The adapter's own settings, with the place of its base model where loaders look for it."""
    return {**adapter.config, BASE_KEY: base, "inference_mode": True}


def write_adapter(source_dir: Path, folder: Path, base: str) -> None:
    """Copy an adapter byte for byte, but for the place of its base model."""
    copy_plain(source_dir / WEIGHTS, folder / WEIGHTS)
    _write_config(folder, adapter_config(read_adapter(source_dir), base))


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    write_plain(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def write_part(
    source_dir: Path, folder: Path, base: str, unembedding: str, *, is_head: bool
) -> None:
    """Write the part of an adapter that is on the unembedding, or all the rest of it.

    Raises `ExportError` where there is no such part, or where it cannot be told apart.
    """
    import torch
    from safetensors.torch import load_file, save

    adapter = read_adapter(source_dir)
    config = adapter_config(adapter, base)
    modules = config.get("target_modules") or []
    kept = [name for name in adapter.names if (module_of(name) == unembedding) is is_head]
    if not kept:
        what = "no part on the unembedding" if is_head else "nothing but its part on it"
        raise ExportError(
            f"--fold-unembed: this adapter has {what} ({unembedding}), so there is nothing to "
            f"{'fold' if is_head else 'serve beside it; use --format merged'}."
        )
    if not isinstance(modules, list):
        raise ExportError(
            "--fold-unembed: this adapter names its layers by a pattern, whose part on the "
            "unembedding cannot be left out. Use --format merged."
        )
    leaf = unembedding.rsplit(".", 1)[-1]
    heads = [name for name in modules if name in (unembedding, leaf)]
    config["target_modules"] = heads if is_head else [one for one in modules if one not in heads]
    if is_head:
        config["target_parameters"] = None
    tensors: dict[str, torch.Tensor] = load_file(source_dir / WEIGHTS)
    part = {name: tensors[name].contiguous() for name in kept}
    write_plain(folder / WEIGHTS, save(part, metadata={"format": "pt"}))
    _write_config(folder, config)

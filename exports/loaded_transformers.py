"""An export as transformers and PEFT load it, and any word about a key that does not fit is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from exports.loaded import Loaded
from exports.reference import Reference
from exports.self_check import Noise

Rounding = Literal["bfloat16", "float16", "gguf-f16", "gguf-q8_0"]


def open_transformers(folder: Path, base_dir: Path | None, kind: str) -> Loaded:
    """Load what a user would: `kind` is "peft" (an adapter on `base_dir`) or "merged".

    A merged model is loaded in the dtype of its config. Raises `ExportError`.
    """
    raise NotImplementedError


def rounding_noise(
    base_dir: Path, adapter_dir: Path, rounding: Rounding, reference: Reference
) -> Noise:
    """How far the checkpoint's log-probabilities move when its weights are rounded so; base and
    adapter are taken unmerged from where they lie, so that a wrong export cannot widen it."""
    raise NotImplementedError

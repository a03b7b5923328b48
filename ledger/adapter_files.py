"""The files of saved weights on this machine: where they lie, and the sha256 that tells which they
are.

Only the embedded service keeps weights as files here, below a run's `checkpoints/`. The description
beside them is no part of them: it says until when they are kept, which changes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from errors import RunStoreError

CHECKPOINTS = "checkpoints"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_folder(checkpoint_dir: Path, path: str) -> Path | None:
    """The folder that a path means below the embedded service's; None for one that means none."""
    parts = path.removeprefix("tinker://").split("/")
    if len(parts) != 3 or any(part in ("", ".", "..") or "\\" in part for part in parts):
        return None
    return checkpoint_dir / parts[0].replace(":", "_") / parts[1] / parts[2]


def adapter_digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file that holds the weights, by its name. Raises `RunStoreError`."""
    digests = {}
    for name in ADAPTER_FILES:
        try:
            with open(folder / name, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RunStoreError(
                f"{folder / name}: this file of saved weights cannot be read: {error.strerror}. "
                "Restore it, or name weights that are whole."
            ) from None
    return digests

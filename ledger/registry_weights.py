"""Which weights lie where an entry says: the digests of an adapter's files on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from storage.files import open_plain

CHECKPOINTS = "checkpoints"  # of a run on the embedded service
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def weights_dir(run_dir: Path, path: str) -> Path:
    """Where the embedded service keeps the weights of a `tinker://` path of a run."""
    return path_in(run_dir / CHECKPOINTS, path)


def path_in(checkpoint_dir: Path, path: str) -> Path:
    """Where the weights of a `tinker://` path lie in a folder of checkpoints."""
    run, *rest = path.removeprefix("tinker://").split("/")
    return checkpoint_dir.joinpath(run.replace(":", "_"), *rest)


def digests_of_weights(run_dir: Path, path: str) -> dict[str, str] | None:
    """The sha256 of each file of the adapter at a `tinker://` path, state or sampler weights, which
    are the same adapter; None where none of them is here."""
    folder = weights_dir(run_dir, path)
    digests = {name: digest_of(folder / name) for name in ADAPTER_FILES}
    found = {name: digest for name, digest in digests.items() if digest is not None}
    return found or None


def digest_of(file: Path) -> str | None:
    """The sha256 of a file; None where there is none that is neither a link nor a pipe."""
    opened = open_plain(file)
    if opened is None:
        return None
    with opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

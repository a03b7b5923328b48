"""Checkpoints on disk: safetensors in PEFT's layout plus the optimizer, written atomically.

    DIR/<run>/weights/<name>/            state: adapter, optimizer.safetensors, checkpoint.json
    DIR/<run>/sampler_weights/<name>/    adapter and checkpoint.json only

`<run>` is the run id with ':' replaced. A checkpoint is first written beside its place and then
renamed, so a reader never meets half of one; a later process finds it again by its tinker:// path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from local_tinker.wire import UserError

Kind = Literal["weights", "sampler_weights"]
KINDS: tuple[Kind, ...] = ("weights", "sampler_weights")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}:train:[0-9]{1,9}")


class TinkerPath(NamedTuple):
    """`tinker://<run_id>/<kind>/<name>`, checked: no part of it can leave the checkpoint folder."""

    run_id: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"


def parse_path(path: str) -> TinkerPath:
    """Split a tinker:// path. Raises `UserError` for anything else."""
    parts = path.removeprefix("tinker://").split("/")
    if not path.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
        raise UserError(
            f"{path!r} is not a checkpoint path; expected tinker://RUN/weights/NAME or "
            ".../sampler_weights/NAME"
        )
    return checked_path(parts[0], parts[1], parts[2])


def checked_path(run_id: str, kind: Kind, name: str) -> TinkerPath:
    """Refuse run ids and names that could mean anything but one folder below the run's."""
    if not _RUN_ID.fullmatch(run_id):
        raise UserError(f"{run_id!r} is not a training run id")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"checkpoint name {name!r} must be 1 to 200 letters, digits, '.', '_' or '-', not "
            "starting with '.'"
        )
    return TinkerPath(run_id, kind, name)


@dataclass(frozen=True)
class CheckpointInfo:
    """What is stored beside the weights; times are seconds since the epoch."""

    base_model: str
    lora_rank: int
    lora_alpha: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    num_optimizer_steps: int
    created_at: float
    expires_at: float | None
    user_metadata: dict[str, str]


def write(
    root: Path,
    path: TinkerPath,
    info: CheckpointInfo,
    write_files: Callable[[Path], None],
    *,
    overwrite: bool,
) -> None:
    """Write a checkpoint folder: `write_files` fills a temporary one, a rename publishes it."""
    target = folder(root, path)
    if target.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another name or pass overwrite=True")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{path.name}-{os.getpid()}-{time.monotonic_ns()}"
    temporary.mkdir()
    try:
        write_files(temporary)
        (temporary / "checkpoint.json").write_text(
            json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8"
        )
        for file in temporary.iterdir():
            _fsync(file)
        _fsync(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder(root: Path, path: TinkerPath) -> Path:
    return root / path.run_id.replace(":", "_") / path.kind / path.name


def find(roots: Iterable[Path], path: TinkerPath) -> Path:
    """Return the folder of a checkpoint that exists and has not expired, else raise `UserError`."""
    for root in roots:
        candidate = folder(root, path)
        if (candidate / "checkpoint.json").is_file():
            expires_at = read_info(candidate).expires_at
            if expires_at is not None and expires_at < time.time():
                raise UserError(
                    f"{path} expired at {time.strftime('%Y-%m-%d %H:%M', time.gmtime(expires_at))} "
                    "UTC"
                )
            return candidate
    raise UserError(f"{path} is not stored here")


def read_info(checkpoint_dir: Path) -> CheckpointInfo:
    return CheckpointInfo(
        **json.loads((checkpoint_dir / "checkpoint.json").read_text(encoding="utf-8"))
    )


def delete(roots: Iterable[Path], path: TinkerPath) -> None:
    shutil.rmtree(find(roots, path))

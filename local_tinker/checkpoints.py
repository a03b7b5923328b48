"""Checkpoints on disk: safetensors in PEFT's layout plus the optimizer, written atomically.

    DIR/<run>/weights/<name>/            state: adapter, optimizer.safetensors, checkpoint.json
    DIR/<run>/sampler_weights/<name>/    adapter and checkpoint.json only
    DIR/<run>/external_weights/<name>/   files to download, and checkpoint.json
    DIR/.scratch-<pid>/                  what dies with the process: unnamed saves, parked runs
    DIR/.lock                            who has it may rename what lies in DIR

`<run>` is the run id with ':' replaced. A checkpoint is first written to the scratch folder and
then renamed, so a reader never meets half of one; a later process finds it again by its path.

Renames, expiries and deletions are made by the folder's owner alone (`placing.py`), one thread of
one process at a time; files are written, read and removed by anyone at any time, since no file of a
checkpoint is changed in place. Who misses a checkpoint looks again as the owner.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from local_tinker.lora import AdaptedLayer, LoraShape
from local_tinker.placing import OLD_PREFIX, bring_back, owned, owned_if_possible, put, settled
from local_tinker.wire import NotFound, UserError

logger = logging.getLogger(__name__)

Kind = Literal["weights", "sampler_weights", "external_weights"]
LOADABLE: tuple[Kind, ...] = ("weights", "sampler_weights")
KINDS: tuple[Kind, ...] = (*LOADABLE, "external_weights")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}:train:[0-9]{1,10}")
_RUN_FOLDER = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})_train_([0-9]{1,10})")

INFO_FILE = "checkpoint.json"
SCRATCH_PREFIX = ".scratch-"

T = TypeVar("T")
_numbers = itertools.count()


class StorageError(Exception):
    """The disk refused: full, read-only or broken. The request was not at fault."""


class TinkerPath(NamedTuple):
    """`tinker://<run_id>/<kind>/<name>`, checked: no part of it can leave the checkpoint folder."""

    run_id: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"


def parse_path(path: str, kinds: tuple[Kind, ...] = LOADABLE) -> TinkerPath:
    """Split a tinker:// path. Raises `UserError` for anything else, and for another kind."""
    parts = path.removeprefix("tinker://").split("/")
    if path.startswith("tinker://") and len(parts) == 3:
        for kind in kinds:
            if parts[1] == kind:
                return checked_path(parts[0], kind, parts[2])
        if parts[1] in KINDS:
            raise UserError(
                f"{path!r} holds files to download, which are not loaded again; name the run's "
                "weights/ or sampler_weights/ path"
            )
    raise UserError(
        f"{path!r} is not a checkpoint path; expected tinker://RUN/weights/NAME or "
        ".../sampler_weights/NAME"
    )


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
    lora_alpha: int | float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    num_optimizer_steps: int
    created_at: float
    expires_at: float | None
    user_metadata: dict[str, str]
    layers: tuple[AdaptedLayer, ...] = ()  # of an adapter that was made elsewhere

    @classmethod
    def of_shape(cls, shape: LoraShape, **others: Any) -> CheckpointInfo:
        """Describe weights in this shape; `others` are the fields that it does not say."""
        return cls(
            lora_rank=shape.rank,
            lora_alpha=shape.alpha,
            train_attn=shape.train_attn,
            train_mlp=shape.train_mlp,
            train_unembed=shape.train_unembed,
            layers=shape.layers,
            **others,
        )

    @property
    def shape(self) -> LoraShape:
        flags = self.train_attn, self.train_mlp, self.train_unembed
        return LoraShape(self.lora_rank, *flags, self.layers)

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at < time.time()


_INFO = TypeAdapter(CheckpointInfo)


def expiry(since: float, ttl_seconds: int | None) -> float | None:
    """When it expires, in seconds since the epoch as `since`; None: never."""
    return None if ttl_seconds is None else since + ttl_seconds


def folder(root: Path, path: TinkerPath) -> Path:
    return root / path.run_id.replace(":", "_") / path.kind / path.name


def scratch_path(root: Path) -> Path:
    """Where this process alone may write; `clean` removes those of processes that are gone."""
    return root / f"{SCRATCH_PREFIX}{os.getpid()}"


def scratch(root: Path) -> Path:
    """Make this process's folder. Raises `StorageError` when the disk refuses."""
    directory = scratch_path(root)
    with storage(root, "the scratch folder"):
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def new_in_scratch(root: Path, prefix: str) -> Path:
    """A path in this process's folder that nothing else is given."""
    return scratch(root) / f"{prefix}-{time.monotonic_ns()}{next(_numbers):06}"


def discard(directory: Path) -> None:
    """Remove a folder that nothing needs any more, if it is there."""
    shutil.rmtree(directory, ignore_errors=True)


def write(
    root: Path,
    target: Path,
    info: CheckpointInfo,
    write_files: Callable[[Path], None],
    *,
    overwrite: bool,
) -> None:
    """Write a checkpoint folder: `write_files` fills a temporary one, a rename publishes it.

    Raises `UserError` when it exists already and may not be overwritten, and `StorageError` when
    the disk refuses; what was there before is untouched then.
    """
    with storage(root, f"checkpoint {target.name!r}"):
        temporary, aside = new_in_scratch(root, "write"), new_in_scratch(root, "old")
        temporary.mkdir()
        try:
            write_files(temporary)
            _write_info(temporary / INFO_FILE, info)
            for file in temporary.iterdir():
                _fsync(file)
            _fsync(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            with owned(root):
                bring_back(target)
                if target.exists() and not overwrite and not read_info(target).is_expired:
                    raise UserError(
                        f"checkpoint {target.name!r} exists already; choose another name or pass "
                        "overwrite=True"
                    )
                put(temporary, target, aside)
            _fsync(target.parent)
        finally:
            discard(temporary)
            discard(aside)


@contextlib.contextmanager
def storage(root: Path, what: str) -> Iterator[None]:
    """Explain a disk that refuses. safetensors reports it as an error of its own."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(root).free if root.exists() else 0
        raise StorageError(
            f"{what} could not be written to {root}, the disk refused: {error}. "
            f"{free / 2**20:.0f} MiB are free there; make room, or let this user write there, and "
            "try again. Nothing that was saved before is touched."
        ) from error


def _write_info(file: Path, info: CheckpointInfo) -> None:
    described = asdict(info)
    if not info.layers:
        del described["layers"]  # that the flags say
    file.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Place(NamedTuple):
    root: Path
    directory: Path


def find(roots: Iterable[Path], path: TinkerPath) -> Path:
    """Return the folder of a checkpoint that exists and has not expired, else raise `UserError`."""
    place = place_of(roots, path)
    if place is None:
        raise UserError(f"{path} is not stored here")
    return place.directory


def place_of(roots: Iterable[Path], path: TinkerPath) -> Place | None:
    """Where a checkpoint lies, if it is stored. Raises `UserError` when it has expired."""
    for root in roots:
        candidate = folder(root, path)
        info = _stored_info(root, candidate)
        if info is None:
            continue
        if info.expires_at is not None and info.is_expired:
            expiry = time.strftime("%Y-%m-%d %H:%M", time.gmtime(info.expires_at))
            raise UserError(f"{path} expired at {expiry} UTC")
        return Place(root, candidate)
    return None


def _stored_info(root: Path, checkpoint_dir: Path) -> CheckpointInfo | None:
    """What is stored beside the weights, or None. Raises `UserError` for a file that is damaged."""
    try:
        return read_info(checkpoint_dir)
    except UserError:
        if not checkpoint_dir.parent.is_dir():
            return None
    with settled(root, checkpoint_dir):  # between the renames of an overwrite?
        return read_info(checkpoint_dir) if (checkpoint_dir / INFO_FILE).is_file() else None


def read_info(checkpoint_dir: Path) -> CheckpointInfo:
    """Read what is stored beside the weights. Raises `UserError` for a file that is damaged."""
    file = checkpoint_dir / INFO_FILE
    try:
        return _INFO.validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        found = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            found = f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"
        raise UserError(
            f"{file} cannot be read as a checkpoint's description: {found}. Restore the folder "
            "from a copy, or remove it"
        ) from error


class StoredWeights(NamedTuple):
    info: CheckpointInfo
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]  # empty where it was not asked for


def read_weights(checkpoint_dir: Path, *, with_optimizer: bool) -> StoredWeights:
    """Read a checkpoint, all files of one version. Raises `UserError` or `NotFound`."""
    optimizer = checkpoint_dir / "optimizer.safetensors"

    def read() -> StoredWeights:
        info = read_info(checkpoint_dir)
        if info.lora_alpha != info.shape.alpha:
            raise UserError(
                f"{checkpoint_dir / INFO_FILE} says lora_alpha {info.lora_alpha}, and weights in "
                f"this form are computed with {info.shape.alpha} alone. Restore the folder from a "
                "copy, or load other weights"
            )
        if with_optimizer and not optimizer.is_file():
            raise UserError(
                f"{checkpoint_dir.name!r} has no optimizer state: there is no {optimizer}. "
                "Sampler weights hold none; load a weights/ path"
            )
        adapter = _read_tensors(checkpoint_dir / "adapter_model.safetensors")
        return StoredWeights(info, adapter, _read_tensors(optimizer) if with_optimizer else {})

    return read_whole(checkpoint_dir, read)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Raises `UserError` when it is gone or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read: {error}. The checkpoint was deleted meanwhile or is damaged"
        ) from error


def read_whole(checkpoint_dir: Path, read: Callable[[], T]) -> T:
    """What `read` finds in a checkpoint, all of one version of it: it is called again where the
    checkpoint was overwritten meanwhile. Raises `NotFound` where it was deleted meanwhile, and what
    `read` raises of one that stayed."""
    while True:
        before = _version(checkpoint_dir)
        try:
            found = read()
        except (OSError, UserError):
            if _version(checkpoint_dir) == before:
                raise
        else:
            if _version(checkpoint_dir) == before:
                return found


def read_whole_info(checkpoint_dir: Path) -> CheckpointInfo:
    """`read_info` of a checkpoint that may be overwritten meanwhile; raises as `read_whole`."""
    return read_whole(checkpoint_dir, lambda: read_info(checkpoint_dir))


def _version(checkpoint_dir: Path) -> tuple[int, int, int]:
    """Another one after each overwrite. Raises `NotFound`."""
    with contextlib.suppress(FileNotFoundError):
        return _stamp(checkpoint_dir)
    with contextlib.ExitStack() as held:  # between the renames of an overwrite?
        if checkpoint_dir.parent.name in KINDS:
            held.enter_context(settled(checkpoint_dir.parent.parent.parent, checkpoint_dir))
        _require(checkpoint_dir)
        return _stamp(checkpoint_dir)


def _stamp(directory: Path) -> tuple[int, int, int]:
    stat = directory.stat()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns  # a number alone may be given out again


def list_all(
    roots: Iterable[Path], run_id: str | None = None
) -> list[tuple[TinkerPath, Path, CheckpointInfo]]:
    """Every readable checkpoint (of one run) that has not expired, oldest first."""
    found = [found for root in roots for found in _walk(root, run_id) if not found[2].is_expired]
    return sorted(found, key=lambda found: (found[2].created_at, found[0]))


def _walk(
    root: Path, only_run_id: str | None = None
) -> Iterator[tuple[TinkerPath, Path, CheckpointInfo]]:
    """All checkpoints of a folder. Others may be saved or deleted meanwhile, by any process."""
    for run in _children(root):
        match = _RUN_FOLDER.fullmatch(run.name)
        run_id = f"{match[1]}:train:{match[2]}" if match else None
        if run_id is None or only_run_id not in (None, run_id):
            continue
        for kind in KINDS:
            for directory in _in_place(root, run / kind):
                try:
                    info = _stored_info(root, directory)
                    if info is None and directory.exists():
                        read_info(directory)  # says what is wrong with it
                except (UserError, OSError) as error:
                    logger.warning("passed over: %s", error)
                    continue
                if info is not None:
                    yield TinkerPath(run_id, kind, directory.name), directory, info


def _in_place(root: Path, kind_dir: Path) -> list[Path]:
    """The folders of checkpoints of one kind; what a killed process moved aside is brought back."""
    if not kind_dir.is_dir():
        return []
    with owned_if_possible(root) as is_owner:
        for old in kind_dir.glob(f"{OLD_PREFIX}*") if is_owner else ():
            try:
                bring_back(old.with_name(old.name.removeprefix(OLD_PREFIX)))
            except OSError as error:
                logger.warning("%s stays: %s", old, error)
        return [child for child in _children(kind_dir) if _NAME.fullmatch(child.name)]


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def set_ttl(root: Path, checkpoint_dir: Path, ttl_seconds: int | None) -> None:
    """Let a checkpoint expire this long from now (None: never). Raises `NotFound`."""
    expires_at = expiry(time.time(), ttl_seconds)
    temporary = new_in_scratch(root, "info")
    what = f"the expiry of {checkpoint_dir.name!r}"
    with storage(root, what), _still_there(checkpoint_dir), owned(root):
        bring_back(checkpoint_dir)
        _require(checkpoint_dir)
        info = replace(read_info(checkpoint_dir), expires_at=expires_at)
        try:
            _write_info(temporary, info)
            _fsync(temporary)
            temporary.replace(checkpoint_dir / INFO_FILE)
        finally:
            temporary.unlink(missing_ok=True)


def gone(checkpoint_dir: Path) -> NotFound:
    return NotFound(f"checkpoint {checkpoint_dir.name!r} was deleted meanwhile")


def _require(checkpoint_dir: Path) -> None:
    if not checkpoint_dir.is_dir():
        raise gone(checkpoint_dir)


@contextlib.contextmanager
def _still_there(checkpoint_dir: Path) -> Iterator[None]:
    """Tell a checkpoint that was deleted meanwhile from a disk that refuses."""
    try:
        yield
    except OSError:
        _require(checkpoint_dir)
        raise


def copy(root: Path, source: Path, target: Path, ttl_seconds: int | None) -> None:
    """Copy a checkpoint; the copy has its own expiry."""
    staged = new_in_scratch(root, "copy")

    def copy_all() -> None:
        discard(staged)  # of a version that is no more
        shutil.copytree(source, staged)

    def move_all(directory: Path) -> None:
        for file in staged.iterdir():
            file.rename(directory / file.name)

    try:
        with storage(root, f"the copy of {source.name!r}"):
            read_whole(source, copy_all)
        now = time.time()
        info = replace(read_info(staged), created_at=now, expires_at=expiry(now, ttl_seconds))
        write(root, target, info, move_all, overwrite=False)
    finally:
        discard(staged)


def delete(root: Path, checkpoint_dir: Path, *, only_if_expired: bool = False) -> None:
    """Remove a checkpoint: out of sight in one step, then file by file. Raises `NotFound`."""
    aside = new_in_scratch(root, "old")
    try:
        with storage(root, f"deleted {checkpoint_dir.name!r}"), owned(root):
            bring_back(checkpoint_dir)
            _require(checkpoint_dir)
            if not only_if_expired or read_info(checkpoint_dir).is_expired:
                checkpoint_dir.rename(aside)
    finally:
        discard(aside)


def num_bytes(checkpoint_dir: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
        return sum(file.stat().st_size for file in checkpoint_dir.iterdir() if file.is_file())
    return 0


def clean(root: Path) -> None:
    """Remove what has expired and what killed processes left; undo overwrites cut in half.

    Others may do anything to the folder meanwhile. What the disk does not let go of is logged and
    left.
    """
    for _, directory, info in _walk(root):
        if info.is_expired:
            try:
                delete(root, directory, only_if_expired=True)
            except NotFound:
                continue  # somebody else was first
            except (StorageError, UserError) as error:
                logger.warning("an expired checkpoint stays: %s", error)
    for directory in _children(root):
        pid = directory.name.removeprefix(SCRATCH_PREFIX)
        if pid != directory.name and pid.isdigit() and not _is_running(int(pid)):
            discard(directory)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

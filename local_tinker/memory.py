"""Which training runs are in memory: a bound in bytes, kept by parking idle runs on disk.

A parked run is its exact tensors (weights, gradients, optimizer state) in the scratch folder of
its session. The next request for it brings it back with the same bits, and parks another one.
The bound covers base models and runs; activations and the few sampler adapters come on top.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from local_tinker import checkpoints
from local_tinker.checkpoints import StorageError
from local_tinker.engine import Engine
from local_tinker.lora import LoraShape
from local_tinker.training import TrainingRun, on_cpu
from local_tinker.wire import UserError

logger = logging.getLogger(__name__)

DEFAULT_SHARE = 0.7  # of the machine's or the GPU's memory


def default_limit_bytes(device: str | None) -> int:
    """Most of the memory of the device that models go to by default."""
    if device != "cpu" and torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(DEFAULT_SHARE * total)


@dataclass(frozen=True)
class _Parked:
    file: Path
    shape: LoraShape
    user_metadata: dict[str, str]
    num_optimizer_steps: int
    refusal: str | None
    num_bytes: int  # that it takes in memory


@dataclass
class _Held:
    engine: Engine
    root: Path  # checkpoint folder of the run's session
    run: TrainingRun | _Parked


class RunMemory:
    """All training runs of the service. Used on the compute thread, `reserve` while models load."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._engines: list[Engine] = []
        self._held: OrderedDict[str, _Held] = OrderedDict()  # least recently used first

    @property
    def room_bytes(self) -> int:
        """What the base models leave for runs."""
        return self.limit_bytes - sum(engine.num_base_bytes for engine in self._engines)

    @property
    def num_run_bytes(self) -> int:
        runs = [held.run for held in list(self._held.values())]  # others read this, too
        return sum(run.num_bytes for run in runs if isinstance(run, TrainingRun))

    def reserve(self, engine: Engine) -> None:
        """Count a base model that has been loaded."""
        self._engines.append(engine)

    def add(self, engine: Engine, root: Path, run: TrainingRun) -> None:
        """Keep a new run, parking others for it.

        Raises `UserError` when it alone is too large, and `StorageError` when the others cannot be
        parked; the run is dropped then.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(engine.unload_run, run)
            if run.num_bytes > self.room_bytes:
                raise UserError(
                    f"a run of rank {run.shape.rank} takes {run.num_bytes / 2**20:.1f} MiB and the "
                    f"memory limit leaves {self.room_bytes / 2**20:.1f} MiB for runs; choose a "
                    "smaller rank or raise --max-memory"
                )
            self._make_room(run.num_bytes)
            undo.pop_all()
        self._held[run.run_id] = _Held(engine, root, run)

    def get(self, run_id: str) -> TrainingRun:
        """Return a run, brought back into memory if it was parked."""
        if run_id not in self._held:
            raise UserError(
                f"training run {run_id!r} could not be created; see the error of its creation"
            )
        held = self._held[run_id]
        self._held.move_to_end(run_id)
        if isinstance(held.run, _Parked):
            parked = held.run
            self._make_room(parked.num_bytes)
            tensors = _read_parked(run_id, parked.file)
            run = held.engine.create_run(run_id, parked.shape, 0, parked.user_metadata)
            run.restore(tensors)
            run.num_optimizer_steps, run.refusal = parked.num_optimizer_steps, parked.refusal
            held.run = run
            parked.file.unlink(missing_ok=True)
            return run
        return held.run

    def drop(self, run_id: str) -> None:
        """Forget a run, in memory or parked; one that is not there is no error."""
        held = self._held.pop(run_id, None)
        if held is None:
            return
        if isinstance(held.run, _Parked):
            held.run.file.unlink(missing_ok=True)
        else:
            held.engine.unload_run(held.run)

    def _make_room(self, num_bytes: int) -> None:
        for held in list(self._held.values()):
            if self.num_run_bytes + num_bytes <= self.room_bytes:
                return
            if isinstance(held.run, TrainingRun):
                held.run = self._park(held.engine, held.root, held.run)

    @staticmethod
    def _park(engine: Engine, root: Path, run: TrainingRun) -> _Parked:
        file = checkpoints.scratch(root) / f"{run.run_id.replace(':', '_')}.safetensors"
        with checkpoints.storage(root, f"run {run.run_id}, which has to leave the memory,"):
            save_file(on_cpu(run.tensors()), file)
        parked = _Parked(
            file,
            run.shape,
            run.user_metadata,
            run.num_optimizer_steps,
            run.refusal,
            run.num_bytes,
        )
        engine.unload_run(run)
        logger.info("parked run %s on disk to stay within the memory limit", run.run_id)
        return parked


def _read_parked(run_id: str, file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"run {run_id} had to leave the memory and cannot be read back from {file}: {error}. "
            "Load its last checkpoint into a new run"
        ) from error

"""Adapters that other programs wrote, brought to the embedded service.

They are held against the base model before anything is written, and are then checkpoints like any
others: in the run's own folder, or in the evaluation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from errors import ConfigError
from ledger.references import Subject, adapter_again
from ledger.registry_weights import CHECKPOINTS
from ledger.store import RunStore
from local_tinker.peft_folders import FolderError, PeftFolder
from loop.planning.origin import Start, refuse_other_adapter
from loop.planning.plan import Plan

if TYPE_CHECKING:
    from local_tinker import Service
    from local_tinker.checkpoints import CheckpointInfo


def adopted(
    key: str,
    service: Service | None,
    base_model: str,
    adapter: PeftFolder,
    place: Path | None = None,
    kind: Literal["weights", "sampler_weights"] = "sampler_weights",
) -> CheckpointInfo:
    """Hold an adapter against its base model, and keep it in a folder of checkpoints where one is
    given; `key` is what errors begin with. Raises `ConfigError` where it does not fit."""
    if service is None:
        raise ConfigError(
            f"{key}: adapters of other programs are read by the embedded service alone. Add "
            "--local, or set base_model to the directory of its base model."
        )
    try:
        return service.adopt(base_model, adapter, place, kind)
    except FolderError as error:
        raise ConfigError(f"{key}: {error}") from None


def refuse_unfit_adapter(service: Service | None, start: Start | None, plan: Plan) -> None:
    """Raise `ConfigError` where a run is to start from an adapter that does not fit its base model,
    or that has another shape than the settings."""
    if start is not None and start.adapter is not None:
        info = adopted(start.key, service, plan.config.base_model, start.adapter)
        refuse_other_adapter(start.key, info, plan.inputs.loaded)


def adopt_start(service: Service | None, store: RunStore, plan: Plan) -> None:
    """Keep the adapter that a run starts from in the run's own folder, until it has saved it as
    round 0. Raises `ConfigError` where it is not there any more."""
    origin = store.origin
    if origin is None or origin.parent.adapter is None or store.checkpoint(0) is not None:
        return
    key = f"start_from {origin.parent.name}"
    adapter = adapter_again(key, origin.parent.adapter)
    place = store.run_dir / CHECKPOINTS
    adopted(key, service, plan.config.base_model, adapter, place, "weights")


def adopt_subjects(
    service: Service | None,
    subjects: Sequence[Subject],
    base_model: str,
    place: Path | None = None,
    key: str = "--evaluate",
) -> None:
    """Keep those of the checkpoints that other programs wrote in a folder, or hold them against the
    base model alone. Raises `ConfigError`."""
    for one in subjects:
        if one.adapter is not None:
            adopted(f"{key} {one.label}", service, base_model, one.adapter, place)

"""A promoted checkpoint as the registry keeps it: everything that tells what it is and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import RegistryError
from ledger.registry_file import Promoted, Registry
from ledger.registry_weights import digest_of
from ledger.registry_writing import Who
from ledger.run_directory import now
from ledger.store import MANIFEST, TEST_FILE
from promotion.evidence import Candidate, Measurement
from promotion.rules import Objection
from scores.results import EvalResult, TaskResult


@dataclass(frozen=True)
class Grounds:
    """What a promotion rests on."""

    measurement: Measurement | None
    against: dict[str, Any] | None
    objections: tuple[Objection, ...]
    forced: str | None
    notes: tuple[str, ...]


def place_from(folder: Path, path: Path) -> str:
    """A place as seen from the registry's folder where it lies below it, else whole."""
    whole, base = path.resolve(), folder.resolve()
    return str(whole.relative_to(base) if whole.is_relative_to(base) else whole)


def entry_of(
    registry: Registry, name: str, candidate: Candidate, grounds: Grounds, who: Who
) -> Promoted:
    """The entry of a checkpoint. Raises `RegistryError` where a file of its run cannot be read."""
    store, checkpoint = candidate.store, candidate.checkpoint
    model = store.manifest().base_model
    return Promoted(
        name=name,
        version=registry.next_version(name),
        time=now(),
        run_id=store.run_id,
        run_dir=place_from(registry.folder, store.run_dir),
        round=checkpoint.round,
        step=checkpoint.step,
        num_steps=store.num_steps_in(checkpoint),
        sampler_path=candidate.sampler_path,
        state_path=checkpoint.state_path,
        weights_sha256=candidate.digests,
        base_model=checkpoint.base_model,
        base_sha256=dict(model.files) if model is not None and model.files else None,
        lora={
            "rank": checkpoint.lora_rank,
            "alpha": checkpoint.lora_alpha,
            "train_attn": checkpoint.train_attn,
            "train_mlp": checkpoint.train_mlp,
            "train_unembed": checkpoint.train_unembed,
        },
        renderer=checkpoint.renderer,
        data_sha256=_digest(store.run_dir / MANIFEST),
        results=_results(registry, grounds.measurement),
        sealed_test=_sealed_test(candidate),
        promoted_by=who.by,
        command=who.command,
        parent=_parent(registry, candidate),
        against=grounds.against,
        forced=grounds.forced,
        notes=list(grounds.notes),
        weights=candidate.weights,
        objections=[one.to_json() for one in grounds.objections],
    )


def _digest(file: Path) -> str:
    found = digest_of(file)
    if found is None:
        raise RegistryError(
            f"{file}: this file of the run cannot be read, so nothing was promoted. Restore it."
        )
    return found


def _results(registry: Registry, measurement: Measurement | None) -> dict[str, Any]:
    """What was measured; nothing where nobody measured these weights."""
    if measurement is None:
        return {}
    results = summary_of(measurement.result)
    results |= {"file": measurement.file, "file_sha256": _digest(Path(measurement.where))}
    if measurement.is_outside:
        results["evaluation_dir"] = place_from(registry.folder, measurement.store.run_dir)
    return results


def summary_of(result: EvalResult) -> dict[str, Any]:
    """Of a result what an entry says itself."""
    return {
        "score": result.score,
        "interval": None if result.interval is None else list(result.interval),
        "n": result.n,
        "protocol_hash": result.protocol_hash,
        "tasks": {task.name: _task(task) for task in result.tasks},
        "held_out": {loss.name: {"nll": loss.nll, "n": loss.n} for loss in result.held_out},
    }


def _task(task: TaskResult) -> dict[str, Any]:
    interval = None if task.interval is None else list(task.interval)
    return {"role": task.role, "score": task.score, "interval": interval, "n": task.n}


def _sealed_test(candidate: Candidate) -> dict[str, Any] | None:
    """The sealed test of the run, where it was opened on exactly these weights."""
    store, result = candidate.store, candidate.store.test_result()
    if result is None or result.checkpoint != candidate.sampler_path:
        return None
    measured = [event.get("weights_sha256") for event in store.events("test_measured")]
    if candidate.digests is not None and any(one != candidate.digests for one in measured):
        return None
    return {
        **summary_of(result),
        "file": TEST_FILE,
        "file_sha256": _digest(store.run_dir / TEST_FILE),
    }


def _parent(registry: Registry, candidate: Candidate) -> str | None:
    """What the run was started from: a name of the registry where it has these weights, else as
    its settings name it; None for the untouched model."""
    origin = candidate.store.origin
    if origin is None:
        return None
    started = origin.parent.run_id, origin.parent.state_path
    for entry in reversed(registry.entries):
        if (entry.run_id, entry.state_path) == started:
            return entry.reference
    return origin.parent.name

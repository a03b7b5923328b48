"""What is exported: a checkpoint found on disk, with what its run says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from errors import ConfigError
from ledger.records import Checkpoint, ModelFiles, seconds_of
from ledger.references import find_start, find_subjects
from ledger.registry_weights import ADAPTER_FILES, weights_dir
from ledger.store import RunStore
from local_tinker.peft_folders import PeftFolder
from loop.planning.adapters import base_note
from loop.planning.models import model_change, model_config, model_digests
from services.place import OF_ANOTHER_PROGRAM, ServiceChoice, choose_service, service_of_run

NOWHERE = Path("not-downloaded")  # until it is
UNKNOWN = "so what it was trained on is not known"


@dataclass(frozen=True)
class Source:
    """One checkpoint to export. Of a path that belongs to no known run the run is None."""

    label: str  # as the command line names it
    sampler_path: str | None  # tinker://..., as it was evaluated
    adapter_dir: Path  # adapter_config.json and adapter_model.safetensors, in PEFT's layout
    base_dir: Path  # the base model: config.json, weights, tokenizer
    base_name: str  # what the settings call it, a directory or a hub name
    base_sha256: dict[str, str]  # file name -> sha256, of base_dir as it is now
    renderer: str
    store: RunStore | None
    checkpoint: Checkpoint | None
    service: str = "embedded"  # or compatible or tinker: where the weights are
    state_path: str | None = None  # what a service lets be downloaded
    base_is_hub: bool = False  # base_dir is the hub client's cache
    notes: tuple[str, ...] = field(default=())  # what of it could not be told
    adapter: PeftFolder | None = None  # that another program wrote; of no run

    @property
    def is_downloaded(self) -> bool:
        """Whether the adapter has to be fetched from a service."""
        return self.service != "embedded"


class Asked(NamedTuple):
    """What the command line says of a checkpoint, and where runs and a registry are looked for."""

    name: str
    base_model: str | None = None  # a directory, where the base has moved
    renderer: str | None = None  # of a path that belongs to no known run
    runs_dir: Path = Path("runs")
    registry: Path | None = None  # beside the runs where none is given


def find_source(asked: Asked) -> Source:
    """The checkpoint that is meant; of one that is on a service the adapter is nowhere yet. Raises
    `InputError` children."""
    key = f"export {asked.name}"
    point = _find_point(asked, key)
    if point.store is None or point.checkpoint is None:
        return _of_no_run(asked, point)
    store, checkpoint = point.store, point.checkpoint
    if checkpoint.sampler_path is None:
        raise ConfigError(
            f"{key}: this is a state inside round {checkpoint.round}, which nothing was sampled "
            "from, so there is nothing to hold an export against. Name the checkpoint at the end "
            "of a round, as RUN_DIR@round_01."
        )
    if asked.renderer not in (None, checkpoint.renderer):
        raise ConfigError(
            f"{key}: it was trained with the renderer {checkpoint.renderer}. Leave --renderer out."
        )
    settled = store.settled_config()
    resolved = settled["resolved"]
    is_embedded = resolved["service"] == "embedded"
    base = _base_of(asked, store, key)
    return Source(
        label=point.name or asked.name,
        sampler_path=checkpoint.sampler_path,
        adapter_dir=_adapter_dir(store, checkpoint, key) if is_embedded else NOWHERE,
        base_dir=base.directory,
        base_name=settled["config"].get("base_model") or settled["files"]["base_model"],
        base_sha256=base.sha256,
        renderer=checkpoint.renderer,
        store=store,
        checkpoint=checkpoint,
        service=resolved["service"],
        state_path=checkpoint.state_path,
        base_is_hub=base.is_hub,
        notes=(*point.notes, *base.notes),
    )


class _Point(NamedTuple):
    """A checkpoint and its run, or a path alone."""

    state_path: str
    store: RunStore | None = None
    checkpoint: Checkpoint | None = None
    name: str | None = None  # that it has for good, where an alias was given
    notes: tuple[str, ...] = ()
    adapter: PeftFolder | None = None  # that another program wrote


def _find_point(asked: Asked, key: str) -> _Point:
    """Paths are looked up as what a run starts from, where a state counts as well; all else as what
    is evaluated."""
    if asked.name.startswith("tinker://"):
        return _Point(*find_start(asked.name, [asked.runs_dir.parent], key=key))
    (subject,) = find_subjects([asked.name], asked.runs_dir, asked.registry, key="export")
    if subject.adapter is not None:
        path = subject.adapter.path("weights")
        return _Point(path, notes=subject.notes, adapter=subject.adapter)
    assert subject.run_dir is not None and subject.round is not None, "it was named by its run"
    store = RunStore.open(subject.run_dir)
    checkpoint = store.checkpoint(subject.round)
    if checkpoint is None:
        raise ConfigError(
            f"{key}: round 0 of this run is the untouched model: there is no adapter, and merged "
            f"it is {subject.base_model} itself. Name a trained round, as RUN_DIR@round_01, or "
            "RUN_DIR@best."
        )
    return _Point(checkpoint.state_path, store, checkpoint, subject.label, subject.notes)


def _adapter_dir(store: RunStore, checkpoint: Checkpoint, key: str) -> Path:
    """Where the embedded service keeps the weights. Raises `ConfigError` where they are gone."""
    path = checkpoint.sampler_path
    assert path is not None, "the caller has looked"
    folder = weights_dir(store.run_dir.resolve(), path)
    if not all((folder / file).is_file() for file in ADAPTER_FILES):
        until = next((one.expires_at for one in store.saved_weights() if one.path == path), None)
        kept = "" if until is None else f"; they were to be kept until {until}"
        raise ConfigError(
            f"{key}: {folder} does not hold the weights any more; they were deleted or have "
            f"expired{kept}. Name another checkpoint; --list {store.run_dir} shows which are there."
        )
    return folder


# --- the base model -------------------------------------------------------------------------------


class _Base(NamedTuple):
    directory: Path
    sha256: dict[str, str]
    is_hub: bool
    notes: tuple[str, ...] = ()


def _base_of(asked: Asked, store: RunStore, key: str) -> _Base:
    """The base model of a run, which has to be the files that the run began with."""
    recorded_at = store.settled_config()["files"]["base_model"]
    recorded = store.manifest().base_model
    directory, is_hub = _base_dir(asked, recorded_at, store, key)
    sha256 = model_digests(directory)
    return _Base(directory, sha256, is_hub, _compared(key, directory, recorded, sha256))


def _compared(
    key: str, directory: Path, recorded: ModelFiles | None, now: Mapping[str, str]
) -> tuple[str, ...]:
    """Raise `ConfigError` for another model than the run's; a sentence where it cannot be told."""
    if recorded is None or not recorded.files:
        return (
            f"whether {directory} is the base model that the run began with cannot be told: the "
            "run recorded no sha256 of its files",
        )
    change = model_change(recorded.files, now)
    if change is not None:
        raise ConfigError(
            f"{key}: {directory} is not the base model that the run began with, from "
            f"{recorded.path}: {change}. An adapter fits its own model alone: restore the files, "
            "or name the model with --base-model DIR."
        )
    return ()


def _base_dir(asked: Asked, recorded_at: str, store: RunStore, key: str) -> tuple[Path, bool]:
    """Where the base model lies now, and whether that is the hub client's cache."""
    if asked.base_model is not None:
        return _given_dir(asked.base_model, key), False
    place = Path(recorded_at)
    if not place.is_absolute():
        return _cached(recorded_at, key), True
    place = store.now_at(place)
    if not (place / "config.json").is_file():
        raise ConfigError(
            f"{key}: its base model is not at {place} any more. Name where it lies now with "
            "--base-model DIR; by its sha256 it is known again."
        )
    return place, False


def _given_dir(name: str, key: str) -> Path:
    directory = Path(name)
    try:
        is_model = (directory / "config.json").is_file()
    except (OSError, ValueError):  # a name that no directory can have
        is_model = False
    if not is_model:
        raise ConfigError(
            f"{key}: --base-model {name} is no model directory, it has no config.json. Give the "
            "directory of the base model, with config, weights and tokenizer."
        )
    model_config(directory, "--base-model")
    return directory.resolve()


def _cached(name: str, key: str) -> Path:
    """A hub's model in the hub client's cache; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        directory = None
    has_weights = directory is not None and any(directory.glob("*.safetensors"))
    if directory is None or not has_weights or not (directory / "config.json").is_file():
        raise ConfigError(
            f"{key}: its base model {name} is not in the cache of this machine, or not whole. "
            f"Download it with: hf download {name}"
        )
    return directory


# --- of no run ------------------------------------------------------------------------------------


def _of_no_run(asked: Asked, point: _Point) -> Source:
    """A path on Tinker or on a compatible service that no run below ./runs has, or an adapter that
    another program wrote."""
    missing = [
        word
        for word, given in (("--base-model", asked.base_model), ("--renderer", asked.renderer))
        if given is None
    ]
    if missing and point.adapter is not None:
        raise ConfigError(
            f"export {asked.name}: another program wrote this adapter, so its chat format is not "
            f"known here, and its base model is to be said. Give {' and '.join(missing)}."
        )
    if missing:
        raise ConfigError(
            f"export {asked.name}: no run below {asked.runs_dir} has these weights, so their base "
            f"model and chat format are not known here. Give {' and '.join(missing)}; weights of "
            "the embedded service are found by their run alone, as RUN_DIR@round_02."
        )
    assert asked.base_model is not None and asked.renderer is not None, "refused above"
    directory = _given_dir(asked.base_model, f"export {asked.name}")
    notes = (f"of no run that is known here, {UNKNOWN}",)
    if (adapter := point.adapter) is not None:
        of_base = base_note(Path(asked.name).name, adapter, asked.base_model, directory)
        notes = (f"another program wrote this adapter, {UNKNOWN}", adapter.describe(), of_base)
    return Source(
        label=asked.name,
        sampler_path=point.state_path.replace("/weights/", "/sampler_weights/"),
        adapter_dir=NOWHERE,
        base_dir=directory,
        base_name=asked.base_model,
        base_sha256=model_digests(directory),
        renderer=asked.renderer,
        store=None,
        checkpoint=None,
        service="tinker" if adapter is None else "embedded",
        state_path=point.state_path if adapter is None else None,
        notes=notes,
        adapter=adapter,
    )


def place_of(source: Source, env: Mapping[str, str]) -> ServiceChoice:
    """The service that has the checkpoint's weights. Raises `ConfigError` without a key for it."""
    if source.adapter is not None:
        return ServiceChoice("embedded", None, OF_ANOTHER_PROGRAM)
    if source.store is not None:
        return service_of_run(source.store.settled_config(), env)
    return choose_service(None, source.base_name, None, env, local=False)


def expiry_of(source: Source) -> float | None:
    """Until when a service keeps the state, in seconds since 1970; None for ever or not known."""
    if source.store is None:
        return None
    saved = source.store.saved_weights()
    until = next((one.expires_at for one in saved if one.path == source.state_path), None)
    return None if until is None else seconds_of(until)

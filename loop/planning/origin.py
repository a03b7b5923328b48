"""What a run starts from (`start_from`): found, held against the settings, and said.

The weights of another run can only be trained on as they were: with its base model, rank, layers
and chat format. What is refused is named with the value to set, before anything is paid for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from config_schema import LoadedConfig
from errors import ConfigError, RunStoreError
from hyperparam_utils import LORA_ALPHA
from ledger.records import Ancestor, Checkpoint, ModelFiles, Origin, seconds_of
from ledger.references import find_start, record_of_adapter
from ledger.store import RunStore
from local_tinker.peft_folders import PeftFolder
from loop.planning.adapters import base_note
from loop.planning.ancestry import Lineage, is_run, lineage_of, refuse_known_questions
from loop.planning.inputs import Inputs
from loop.planning.manifest import with_model_files
from loop.planning.plan import Plan
from loop.planning.resumption import refuse_other_model
from services.place import ServiceChoice, refuse_elsewhere

SHAPE = ("lora_rank", "train_attn", "train_mlp", "train_unembed")


@dataclass(frozen=True)
class Start:
    """The weights that a new run starts from, and what their run knows of them."""

    key: str  # what errors begin with
    origin: Origin
    lineage: Lineage
    checkpoint: Checkpoint | None  # None of a path that belongs to no known run
    service: str | None  # the kind of service that they are on
    base_model: str | None  # a model directory or a hub name, as that run resolved it
    model_files: ModelFiles | None
    weights_dir: Path | None  # where the embedded service finds them
    notes: tuple[str, ...] = ()  # what is to be said of their name
    adapter: PeftFolder | None = None  # that another program wrote; of no run

    @property
    def kept(self) -> dict[str, Any]:
        """What of that run is taken over where the settings leave it open."""
        renderer = self.origin.parent.renderer
        return {} if renderer is None else {"renderer_of_start": renderer}


def find_origin(loaded: LoadedConfig) -> Start | None:
    """What `start_from` names; None where it is not set. Raises `InputError` children."""
    name = loaded.config.start_from
    if name is None:
        return None
    key = f"{loaded.file}: start_from {name}"
    point = find_start(name, [loaded.directory, Path()])
    store, checkpoint, path = point.store, point.checkpoint, point.state_path
    with_optimizer = loaded.config.start_from_optimizer
    if point.adapter is not None:
        return _of_adapter(key, name, point.adapter, with_optimizer)
    if store is None or checkpoint is None:
        unknown = f"{name}: of no run that is known here, so what it was trained on is not known"
        origin = Origin(Ancestor(name, path), with_optimizer, unknown=[unknown])
        return Start(key, origin, Lineage(), None, None, None, None, None)
    settled, lineage = store.settled_config(), lineage_of(store)
    parent = Ancestor(
        name=point.name or name,
        state_path=path,
        run_id=store.run_id,
        run_dir=str(store.run_dir.resolve()),
        round=checkpoint.round,
        step=store.num_steps_in(checkpoint),
        base_model=checkpoint.base_model,
        renderer=checkpoint.renderer,
        lora_alpha=None if checkpoint.lora_alpha == LORA_ALPHA else checkpoint.lora_alpha,
    )
    ancestors = [] if store.origin is None else [store.origin.parent, *store.origin.ancestors]
    start = Start(
        key,
        Origin(parent, with_optimizer, ancestors),
        lineage,
        checkpoint,
        service=settled["resolved"]["service"],
        base_model=settled["files"]["base_model"],
        model_files=store.manifest().base_model,
        weights_dir=store.run_dir.resolve() / "checkpoints",
        notes=point.notes,
    )
    _refuse_other_shape(start, loaded)
    _refuse_missing_weights(start, store)
    return start


def _of_adapter(key: str, name: str, adapter: PeftFolder, with_optimizer: bool) -> Start:
    """An adapter that another program wrote, whose optimizer is not known. Raises `ConfigError` for
    one whose layers differ in scale: a run has one alpha."""
    if with_optimizer:
        raise ConfigError(
            f"{key}: another program wrote this adapter, and its optimizer's state is not read. "
            "Set start_from_optimizer to false."
        )
    if adapter.has_patterns:
        raise ConfigError(
            f"{key}: this adapter has rank_pattern or alpha_pattern, and a run has one rank and "
            "one alpha. It can be evaluated and exported; train one without patterns to go on from."
        )
    alpha = adapter.alpha
    parent = Ancestor(
        name=name,
        state_path=adapter.path("weights"),
        lora_alpha=None if alpha == LORA_ALPHA else alpha,
        adapter=record_of_adapter(adapter),
    )
    unknown = f"{name}: another program wrote it, so what it was trained on is not known"
    origin = Origin(parent, with_optimizer=False, unknown=[unknown])
    return Start(key, origin, Lineage(), None, "embedded", None, None, None, adapter=adapter)


class Shape(Protocol):
    """What of an adapter has to be the same: a checkpoint, or what a service says of a path."""

    @property
    def lora_rank(self) -> int | None: ...
    @property
    def train_attn(self) -> bool | None: ...
    @property
    def train_mlp(self) -> bool | None: ...
    @property
    def train_unembed(self) -> bool | None: ...


def refuse_other_adapter(key: str, shape: Shape, loaded: LoadedConfig) -> None:
    """Raise `ConfigError` for another rank or other layers than the settings have."""
    values = {name: getattr(shape, name) for name in SHAPE}
    others = {
        name: value
        for name, value in values.items()
        if value is not None and value != getattr(loaded.config, name)
    }
    if others:
        was = ", ".join(f"{name} {_as_json(value)}" for name, value in others.items())
        now = ", ".join(f"{name} {_as_json(getattr(loaded.config, name))}" for name in others)
        raise ConfigError(
            f"{key}: these weights have {was}, and the settings {now}. Set "
            f"{' and '.join(f'{name} to {_as_json(value)}' for name, value in others.items())}: an "
            "adapter goes on in the shape that it has."
        )


def _as_json(value: Any) -> str:
    return str(value).lower()


def _refuse_other_shape(start: Start, loaded: LoadedConfig) -> None:
    checkpoint, renderer = start.checkpoint, loaded.config.renderer_name
    assert checkpoint is not None, "the caller has looked"
    refuse_other_adapter(start.key, checkpoint, loaded)
    if checkpoint.lora_alpha != LORA_ALPHA and start.service != "embedded":
        raise ConfigError(
            f"{start.key}: these weights have lora_alpha {checkpoint.lora_alpha}, and such a "
            f"service trains with {LORA_ALPHA} alone. Name other weights."
        )
    if renderer not in (None, checkpoint.renderer):
        raise ConfigError(
            f"{start.key}: these weights were trained with the renderer {checkpoint.renderer}, and "
            f"would go on with {renderer}. Set renderer_name to {checkpoint.renderer}, or to null."
        )


def _refuse_missing_weights(start: Start, store: RunStore) -> None:
    """What has expired is known of every service, and what is not there of the embedded one."""
    path, folder = start.origin.parent.state_path, start.weights_dir
    until = next((one.expires_at for one in store.saved_weights() if one.path == path), None)
    is_there = until is None or seconds_of(until) > time.time()
    if start.service == "embedded" and folder is not None:
        run, kind, name = path.removeprefix("tinker://").split("/")
        is_there = is_there and (folder / run.replace(":", "_") / kind / name).is_dir()
    if not is_there:
        raise ConfigError(
            f"{start.key}: {path} is not there any more; it has expired or was deleted. Name other "
            f"weights; --list {store.run_dir} shows which are there."
        )


def refuse_other_base(start: Start, inputs: Inputs) -> None:
    """Raise `ConfigError` for another base model than the settings'. Of a directory that lies
    elsewhere the config.json tells whether it may be the same; all its files are read later."""
    if start.base_model in (None, inputs.model_path):
        return
    recorded = {} if start.model_files is None else start.model_files.files
    config = None if inputs.model_dir is None else (inputs.model_dir / "config.json").read_bytes()
    if config is None or recorded.get("config.json") != hashlib.sha256(config).hexdigest():
        raise ConfigError(
            f"{start.key}: its base model is {start.base_model}, and the settings' is another one, "
            f"{inputs.model_path}. Set base_model to it: an adapter fits its own model alone."
        )


def refuse_other_service(start: Start, choice: ServiceChoice) -> None:
    """Raise `ConfigError` where the weights are not on the service that the run is to be on."""
    refuse_elsewhere(start.key, "this state", start.service, choice)


def checked_origin(
    start: Start | None, store: RunStore | None, inputs: Inputs, choice: ServiceChoice | None
) -> Origin | None:
    """What a run was started from, as it recorded it, or is to be.

    Of one that is to begin, the sealed test is held against all that the weights were trained on
    and chosen by. Raises `ConfigError` for a question that is known to them; what cannot be told is
    noted.
    """
    if start is None:
        return None if store is None else store.origin
    if choice is not None:
        refuse_other_service(start, choice)
    refuse_other_base(start, inputs)
    known = refuse_known_questions(start.key, start.lineage, inputs.tasks, inputs.test_tasks)
    of_path = start.origin.unknown if inputs.test_tasks else []
    config = inputs.config
    of_base = []
    if start.adapter is not None:
        of_base = [base_note(start.key, start.adapter, config.base_model, inputs.model_dir)]
    warnings = [*start.notes, *of_base, *known.warnings]
    return replace(start.origin, unknown=[*of_path, *known.unknown], warnings=warnings)


def refuse_other_files(start: Start | None, plan: Plan) -> list[str]:
    """Raise `RunStoreError` where the base model's files are not those that the weights were
    trained on. Returns a line where that cannot be told."""
    if start is None or start.checkpoint is None:
        return []
    lines: list[str] = []
    if plan.model_files is None:
        plan = with_model_files(plan, lines.append)
    where = str(start.origin.parent.run_dir)
    return [*lines, *refuse_other_model(where, start.model_files, plan)]


def weights_to_start_from(store: RunStore, choice: ServiceChoice) -> Path | None:
    """Where the embedded service finds the weights that a run starts from; None once it has saved
    them itself. Raises `RunStoreError` where they are gone before that."""
    origin = store.origin
    if origin is None or store.checkpoint(0) is not None or choice.kind != "embedded":
        return None
    if origin.parent.adapter is not None:
        return None  # it is kept in the run's own folder
    assert origin.parent.run_dir is not None, "on the embedded service weights have their run"
    run_dir = store.now_at(Path(origin.parent.run_dir))
    if not is_run(run_dir, origin.parent.run_id):
        raise RunStoreError(
            f"{store.run_dir}: the run starts from {origin.parent}, which is not at {run_dir} any "
            "more, nor where it would be, had both been moved together, and it was ended before it "
            "had saved these weights itself. Move that run's directory to this place, and give the "
            "command again; or start a new run from other weights."
        )
    return run_dir / "checkpoints"


def describe_origin(origin: Origin) -> Iterator[str]:
    """Yield what the weights are that a run starts from, and what is not known of them."""
    how = "with its optimizer" if origin.with_optimizer else "with a new optimizer"
    yield (
        f"start: {origin.parent}, {origin.parent.state_path}, {how}; round 0 measures it, so that "
        "the baseline is what the run starts from"
    )
    if origin.ancestors:
        yield f"start: {origin.chain}"
    for what in origin.unknown:
        yield f"sealed test: whether it is unseen cannot be told in full: {what}"
    yield from origin.warnings

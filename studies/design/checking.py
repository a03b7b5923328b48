"""What of a study is done, missing or stale, trial by trial.

Everything is told from what lies on disk against what the study would generate now; nothing is
recorded for it and nothing is changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from config_schema import TrainingConfig
from errors import LoopError
from ledger.run_directory import EVALUATED, is_absent_or_empty
from ledger.store import RunStore
from settings.sameness import flat, kept_settings
from storage.stored_json import parse_object
from studies.design.arms import ArmFiles
from studies.design.generating import (
    Generation,
    OnDisk,
    TrialFiles,
    compare_with_disk,
    sha256_of,
)
from studies.design.paths import is_file, is_folder
from studies.design.torchtune_base import referred

RESULTS = "results.json"
BOUNDS = ("max_rounds", "budget.tokens", "budget.minutes", "budget.usd")  # of what a run trains
State = Literal["done", "missing", "stale", "begun"]


class Finding(NamedTuple):
    """How one thing of a trial stands, and why where that is not plain."""

    state: State
    why: str = ""

    @property
    def shown(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


@dataclass(frozen=True)
class TrialState:
    """How a trial stands: its files, its training, and each task on its weights. `other_code` is
    what of the tasks' code its run did not have, where it was trained and asked by other code."""

    run_id: str
    params: str
    config: Finding
    training: Finding
    tasks: dict[str, Finding]
    other_code: str | None = None

    @property
    def why_not_used(self) -> str | None:
        """Why what its run has measured is not of the study as it is now; None where it is."""
        if self.training.state == "stale":
            return self.training.why
        if self.other_code is not None:
            return f"measured before {self.other_code} was changed, which its tasks run"
        return None


class ArmState(NamedTuple):
    """How an arm stands that is not trained."""

    run_id: str
    config: Finding
    measured: Finding


@dataclass(frozen=True)
class StudyState:
    """How a study stands. `changed_inputs` have changed since it was generated."""

    trials: list[TrialState]
    changed_inputs: list[str]
    left_over: list[str]
    arms: list[ArmState] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "trials": [
                {
                    "run": one.run_id,
                    "params": one.params,
                    "config": one.config._asdict(),
                    "training": one.training._asdict(),
                    "tasks": {name: finding._asdict() for name, finding in one.tasks.items()},
                }
                for one in self.trials
            ],
            "arms": [
                {
                    "run": one.run_id,
                    "config": one.config._asdict(),
                    "measured": one.measured._asdict(),
                }
                for one in self.arms
            ],
            "changed_inputs": self.changed_inputs,
            "left_over": self.left_over,
        }


def state_of(generation: Generation) -> StudyState:
    """Look at everything that a study has on disk."""
    disk = compare_with_disk(generation)
    recorded = {} if generation.recorded is None else generation.recorded.inputs
    named = {**recorded, **generation.inputs}
    changed = [n for n in named if recorded and recorded.get(n) != generation.inputs.get(n)]
    left_over = [str(path) for path in disk.left_over]
    left_over += [str(path) for path in _other_results(generation)]
    trials = [_state_of_trial(generation, one, disk) for one in generation.trials]
    arms = [_state_of_arm(generation, one, disk) for one in generation.arms]
    return StudyState(trials, changed, left_over, arms)


def _other_results(generation: Generation) -> Iterator[Path]:
    """Folders of trials that the study does not have any more."""
    kept = {one.trial.run_id for one in generation.trials}
    for folder in (generation.study.results_dir, generation.study.eval_results_dir):
        for path in sorted(folder.glob("run_*")) if is_folder(folder) else ():
            if path.name.partition("-")[0] not in kept:
                yield path
    arms = {one.run_dir.name for one in generation.arms}
    results = generation.study.results_dir
    for path in sorted(results.glob("arm_*")) if is_folder(results) else ():
        if not any(path.name == name or path.name.startswith(f"{name}-") for name in arms):
            yield path


def _state_of_trial(generation: Generation, files: TrialFiles, disk: OnDisk) -> TrialState:
    config = _config_state(files, disk)
    is_ours = generation.study.experiment.experiment.framework == "tinker"
    training = _training_state(files) if is_ours else _torchtune_state(files)
    tasks = {
        task.entry.name: _task_state(files, task.entry.name, task.code_sha256, training)
        for task in generation.tasks
    }
    code = (
        _other_code(files.run_dir, files.train_file.parent)
        if is_ours and training.state in ("done", "begun")
        else None
    )
    return TrialState(files.trial.run_id, files.trial.shown, config, training, tasks, code)


def _state_of_arm(generation: Generation, arm: ArmFiles, disk: OnDisk) -> ArmState:
    config = _files_state([arm.config_file], disk)
    if is_absent_or_empty(arm.run_dir):
        return ArmState(arm.run_id, config, Finding("missing"))
    try:
        store = RunStore.open(arm.run_dir)
        why = _difference(store, arm.config) or _other_weights(store, arm)
        code = _other_code(arm.run_dir, arm.config_file.parent)
        if why is None and code is not None:
            why = f"measured before {code} was changed, which its tasks run"
        if why is not None:
            return ArmState(arm.run_id, config, Finding("stale", why))
        is_done = bool(store.comparable_results())
        return ArmState(arm.run_id, config, Finding("done" if is_done else "begun"))
    except LoopError as error:
        return ArmState(arm.run_id, config, Finding("stale", str(error)))


def _other_weights(store: RunStore, arm: ArmFiles) -> str | None:
    """Whether what was measured is another checkpoint than the arm's."""
    (measured,) = store.settled_config()[EVALUATED]
    if (measured["path"] is None) != (arm.checkpoint is None):
        return "measured on other weights"
    run_dir = measured["run_dir"]
    if arm.checkpoint is None or run_dir is None:
        return None if arm.checkpoint in (None, measured["path"]) else "measured on other weights"
    is_same = Path(run_dir).resolve() == Path(arm.checkpoint.rpartition("@")[0]).resolve()
    return None if is_same else f"measured on weights of {run_dir}"


def _config_state(files: TrialFiles, disk: OnDisk) -> Finding:
    own = [file for file in (files.train_file, files.eval_file) if file is not None]
    return _files_state(own, disk)


def _files_state(own: Sequence[Path], disk: OnDisk) -> Finding:
    missing = [file.name for file in own if file in disk.new]
    other = [file.name for file in own if file in disk.other]
    edited = [file.name for file in own if file in disk.edited]
    if missing:
        return Finding("missing", "generate it")
    if edited:
        told = f"{', '.join(edited)} is neither as it was generated nor what the study says"
        return Finding("stale", told)
    if other:
        return Finding("stale", f"{', '.join(other)} is not what the study says; generate again")
    return Finding("done")


def _training_state(files: TrialFiles) -> Finding:
    """A run of the loop tells by its own ledger."""
    if is_absent_or_empty(files.run_dir):
        return Finding("missing")
    try:
        store = RunStore.open(files.run_dir)
        why = _difference(store, files.config)
        if why is not None:
            return Finding("stale", why)
        if has_ended(store, files.config):
            return Finding("done")
        return Finding("begun", f"{store.num_rounds} rounds done; go on with --resume")
    except LoopError as error:
        return Finding("stale", str(error))


def has_ended(store: RunStore, config: TrainingConfig) -> bool:
    """Whether a trial has come to the end that its settings give it. Bounds may have been others
    when its run finished, and somebody may have gone on with it since."""
    decision = store.last_decision()
    finished = [event["seq"] for event in store.events("run_finished")]
    resumed = [event["seq"] for event in store.events("resumed")]
    if (
        decision is None
        or not decision.stops
        or not finished
        or finished[-1] < max(resumed, default=0)
    ):
        return False
    recorded, given = flat(store.resolved_config()["config"]), flat(config.model_dump(mode="json"))
    return all(recorded.get(key) == given.get(key) for key in BOUNDS)


def _difference(store: RunStore, given: TrainingConfig) -> str | None:
    """In what a run directory is not what the study has now; None where it is."""
    was, now = store.settled_config()["config"], given.model_dump(mode="json")
    recorded, kept = kept_settings(was), kept_settings(now)
    # A run may go on to more rounds; trials that are compared have as many.
    changed = [key for key in ("max_rounds",) if was.get(key) != now[key]]
    changed += [key for key in {**recorded, **kept} if recorded.get(key) != kept.get(key)]
    if changed:
        return f"trained with another {', '.join(changed[:3])}"
    if not store.has_started:
        return None
    manifest = store.manifest()
    # A task of Inspect is no file, and of a question file with code of its own both are hashed.
    asked = {} if manifest.code else manifest.eval_tasks
    for file in (*manifest.files.values(), *asked.values()):
        path = store.now_at(Path(file.path))
        if is_file(path) and "@" not in path.name and sha256_of(path) != file.sha256:
            return f"{path.name} has changed since"
    return None


def _other_code(run_dir: Path, configs_dir: Path) -> str | None:
    """A file of the tasks' code that is not the one that the run in a directory has run."""
    store = RunStore.open(run_dir)
    if not store.has_started:
        return None
    began_in = Path(store.settled_config()["config_file"]).parent
    for name, sha256 in store.manifest().code.items():
        path = os.path.relpath(name, began_in) if Path(name).is_absolute() else name
        file = configs_dir / path
        if is_file(file) and sha256_of(file) != sha256:
            return file.name
    return None


def _torchtune_state(files: TrialFiles) -> Finding:
    """torchtune keeps a copy of its config and a folder of weights for each epoch."""
    if not is_folder(files.run_dir):
        return Finding("missing")
    config = yaml.safe_load(files.train_text)
    kept = files.run_dir / "torchtune_config.yaml"
    if is_file(kept) and _plain_yaml(kept) != _plain_text(files.train_text):
        return Finding("stale", "trained with another config")
    output = referred(config, (config.get("checkpointer") or {}).get("output_dir"))
    epochs = referred(config, config.get("epochs", 1))
    weights = Path(str(output or files.run_dir))
    saved = [path.name for path in weights.glob("epoch_*")]
    if f"epoch_{epochs - 1}" in saved:
        return Finding("done")
    return Finding("begun", f"{len(saved)} of {epochs} epochs saved")


def _plain_yaml(file: Path) -> Any:
    return _plain_text(file.read_text(encoding="utf-8", errors="replace"))


def _plain_text(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def _task_state(files: TrialFiles, name: str, code: str, training: Finding) -> Finding:
    file = files.eval_dir / name / RESULTS
    if not is_file(file):
        return Finding("missing")
    try:
        found = parse_object(file.read_bytes())
    except (OSError, ValueError) as error:
        return Finding("stale", f"{RESULTS} cannot be read: {error}")
    if found.get("train_sha256") != files.train_sha256:
        return Finding("stale", "of a trial with another config")
    if found.get("code_sha256") != code:
        return Finding("stale", "the task's code has changed since")
    if training.state == "stale":
        return Finding("stale", "the training is")
    return Finding("done")


def as_json(state: StudyState) -> str:
    return json.dumps(state.to_json(), indent=1)

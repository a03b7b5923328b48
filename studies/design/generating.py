"""What a study comes to on disk: the config and the evaluation script of each trial, and the map.

A generation is made whole before anything is written; making it again and comparing is how `check`
knows what is stale. `run_mapping.yaml` is written last; it has the number of every trial, those
that were dropped among them, and every input with its sha256.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from config_schema import TrainingConfig, validate
from errors import ConfigError
from settings.yaml_file import dump_yaml
from storage.files import write_whole
from storage.stored_json import parse_object
from studies.design import tinker_trials, torchtune_trials
from studies.design.arms import ArmFiles, arms_of
from studies.design.eval_scripts import tinker_script, torchtune_script
from studies.design.expansion import Trial, check_parameters, combinations_of
from studies.design.experiment import FILE_NAME, Study, load_study
from studies.design.numbering import MAPPING, KnownTrial, StudyMap, number_trials, read_map
from studies.design.study_section import check_expectations
from studies.design.task_files import StudyTask, find_tasks
from studies.design.torchtune_base import referred

ASKED_FROM = 100  # trials, before so many are written a person is asked
STAMP = "generated_at"
BEGUN = "being_generated.json"  # only while files are written
_GENERATED = re.compile(r"train_\d{3,}\.(json|yaml)|eval_\d{3,}\.py|arm_[\w.-]{1,64}\.json")

Configs = tinker_trials.TinkerConfigs | torchtune_trials.TorchtuneConfigs


@dataclass(frozen=True)
class TrialFiles:
    """A trial and what is generated of it."""

    trial: Trial
    train_file: Path
    train_text: str
    remark: str | None
    eval_file: Path | None
    eval_text: str
    run_dir: Path
    eval_dir: Path

    @functools.cached_property
    def config(self) -> TrainingConfig:
        """The settings of a trial of the loop."""
        return validate(json.loads(self.train_text), str(self.train_file))

    @property
    def train_sha256(self) -> str:
        return sha256_of_text(self.train_text)

    @property
    def eval_sha256(self) -> str | None:
        return None if self.eval_file is None else sha256_of_text(self.eval_text)


@dataclass(frozen=True)
class Generation:
    """All that a study comes to. `inputs` are the files it depends on, with their sha256;
    `retired` are trials that it had and has dropped, `recorded` is the map of the last generation.
    """

    study: Study
    tasks: Sequence[StudyTask]
    trials: Sequence[TrialFiles]
    inputs: dict[str, str]
    warnings: Sequence[str]
    arms: Sequence[ArmFiles] = ()
    retired: Sequence[KnownTrial] = ()
    recorded: StudyMap | None = None

    @property
    def mapping_file(self) -> Path:
        return self.study.configs_dir / MAPPING

    @property
    def texts(self) -> dict[Path, str]:
        """Every file but the map, in the order in which they are written."""
        found = {one.train_file: one.train_text for one in self.trials}
        scripts = {one.eval_file: one.eval_text for one in self.trials}
        found |= {file: text for file, text in scripts.items() if file is not None}
        return found | {one.config_file: one.config_text for one in self.arms}

    @property
    def mapping(self) -> dict[str, Any]:
        """The map of trials to parameters and files, without the time."""
        configs_dir = self.study.configs_dir
        runs = [
            {
                "id": one.trial.run_id,
                "params": dict(one.trial.params),
                "seed": one.trial.seed,
                "train": one.train_file.name,
                "eval": None if one.eval_file is None else one.eval_file.name,
                "results": os.path.relpath(one.run_dir, configs_dir),
                "eval_results": os.path.relpath(one.eval_dir, configs_dir),
                "train_sha256": one.train_sha256,
                "eval_sha256": one.eval_sha256,
            }
            for one in self.trials
        ]
        return {
            "experiment_name": self.study.name,
            "framework": self.study.experiment.experiment.framework,
            "total_runs": len(runs),
            "inputs": self.inputs,
            "runs": runs,
            "retired": [
                {
                    "id": f"run_{one.number:03d}",
                    "params": dict(one.params),
                    "seed": one.seed,
                }
                for one in self.retired
            ],
            "arms": self._arms,
            "left_over": self._left_over,
        }

    @property
    def _arms(self) -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "prompt": one.prompt,
                "checkpoint": entry.checkpoint,
                "file": one.config_file.name,
                "results": os.path.relpath(one.run_dir, self.study.configs_dir),
                "sha256": sha256_of_text(one.config_text),
            }
            for one, entry in zip(self.arms, self.study.experiment.study.arms, strict=True)
        ]

    @property
    def _left_over(self) -> dict[str, str]:
        """What was written of trials and arms that the study has no more."""
        written = {} if self.recorded is None else self.recorded.written
        names = {file.name for file in self.texts}
        return {name: sha for name, sha in written.items() if name not in names}


def generation_of(folder: Path) -> Generation:
    """Read a study and make all that it comes to. Raises `ConfigError`; writes nothing."""
    study = load_study(folder)
    tasks = find_tasks(study)
    is_ours = study.experiment.experiment.framework == "tinker"
    kind = tinker_trials if is_ours else torchtune_trials
    check_parameters(study, kind.named)
    check_expectations(study)
    configs: Configs = kind.open_configs(study, tasks)
    wanted = combinations_of(study, configs.first_seed)
    recorded = read_map(study, configs.first_seed)
    numbering = number_trials(study, wanted, configs.first_seed, recorded)
    files = [study.folder / FILE_NAME, *configs.data_files()]
    code = {path: sha for task in tasks for path, sha in task.code.items()}
    inputs = {_named(study, path): sha256_of(path) for path in files}
    inputs |= {_named(study, Path(path)): sha for path, sha in code.items()}
    made = [_files_of(study, trial, configs, tasks) for trial in numbering.trials]
    remarks = dict.fromkeys(one.remark for one in made if one.remark is not None)
    is_asked = isinstance(configs, tinker_trials.TinkerConfigs)
    arms = arms_of(configs, numbering.trials[0]) if is_asked else []
    warnings = [*numbering.warnings, *_warnings(study, configs), *remarks]
    return Generation(study, tasks, made, inputs, warnings, arms, numbering.retired, recorded)


def _warnings(study: Study, configs: Configs) -> list[str]:
    told = list(configs.warnings)
    if "lora_rank" in study.experiment.variables and "lora_alpha" in study.experiment.controls:
        alpha = study.experiment.controls["lora_alpha"]
        told.append(
            f"lora_alpha is {alpha} for every lora_rank, so the scale of an adapter, alpha / rank, "
            "changes with the rank: the study compares both together"
        )
    if study.experiment.evaluation.enabled is False and study.experiment.evaluation.tasks:
        told.append("evaluation.enabled is false: its tasks are left out")
    return told


def _files_of(
    study: Study, trial: Trial, configs: Configs, tasks: Sequence[StudyTask]
) -> TrialFiles:
    number = trial.run_id.removeprefix("run_")
    is_ours = isinstance(configs, tinker_trials.TinkerConfigs)
    train_file = study.configs_dir / f"train_{number}.{'json' if is_ours else 'yaml'}"
    made = configs.text_of(trial)
    files = TrialFiles(
        trial=trial,
        train_file=train_file,
        train_text=made.text,
        remark=made.remark,
        eval_file=study.configs_dir / f"eval_{number}.py" if tasks else None,
        eval_text="",
        run_dir=study.results_dir / trial.run_id,
        eval_dir=study.eval_results_dir / trial.run_id,
    )
    if not tasks:
        return files
    script = _script_of(study, files, tasks, is_ours=is_ours)
    return replace(files, eval_text=script)


def _script_of(
    study: Study, files: TrialFiles, tasks: Sequence[StudyTask], *, is_ours: bool
) -> str:
    told = told_of(study, files, tasks)
    if is_ours:
        return tinker_script(study.configs_dir, told)
    config: dict[str, Any] = yaml.safe_load(files.train_text)
    checkpointer = config.get("checkpointer") or {}
    weights = referred(config, checkpointer.get("output_dir", "${output_dir}"))
    told["weights"] = str((study.folder / str(weights)).resolve())
    return torchtune_script(told)


def told_of(study: Study, files: TrialFiles, tasks: Sequence[StudyTask]) -> dict[str, Any]:
    """What an evaluation of a trial is told of it."""
    configs_dir = study.configs_dir
    told: dict[str, Any] = {
        "study": study.name,
        "run": files.trial.run_id,
        "params": dict(files.trial.params),
        "seed": files.trial.seed,
        "checkpoint": study.experiment.evaluation.checkpoint,
        "train": files.train_file.name,
        "train_sha256": files.train_sha256,
        "results": os.path.relpath(files.run_dir, configs_dir),
        "eval_results": os.path.relpath(files.eval_dir, configs_dir),
    }
    told["tasks"] = [
        {
            "task": task.entry.name,
            "file": os.path.relpath(task.file, configs_dir),
            "function": task.function.function,
            "registered": task.function.registered,
            "args": dict(task.args),
            "code_sha256": task.code_sha256,
        }
        for task in tasks
    ]
    return told


def sha256_of(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _named(study: Study, path: Path) -> str:
    return Path(os.path.relpath(path, study.folder)).as_posix()


# --- on disk --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnDisk:
    """How a generation stands to what is in its folder: file names by what is to be done. `other`
    ones are as an earlier generate wrote them, `edited` ones are somebody's."""

    new: list[Path]
    same: list[Path]
    other: list[Path]
    edited: list[Path]
    left_over: list[Path]  # of an earlier generation, which this one does not have


def compare_with_disk(generation: Generation) -> OnDisk:
    """Look at what is there. The map counts as the same where only its time is another."""
    found = OnDisk([], [], [], [], [])
    recorded = generation.recorded
    written = {} if recorded is None else recorded.written
    begun = _begun(generation.study.configs_dir)
    for file, text in generation.texts.items():
        content = _content_of(file)
        if content is None:
            found.new.append(file)
        elif content == text.encode():
            found.same.append(file)
        else:
            sha256 = hashlib.sha256(content).hexdigest()
            is_ours = sha256 == written.get(file.name) or begun.get(sha256) == file.name
            (found.other if is_ours else found.edited).append(file)
    _compare_map(generation, found)
    folder = generation.study.configs_dir
    kept = set(generation.texts)
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    found.left_over.extend(p for p in there if _GENERATED.fullmatch(p.name) and p not in kept)
    return found


def _compare_map(generation: Generation, found: OnDisk) -> None:
    content, recorded = _content_of(generation.mapping_file), generation.recorded
    if content is None or recorded is None:
        where = found.new
    elif recorded.is_damaged:
        where = found.edited
    else:
        is_same = _without_time(content) == dump_yaml(generation.mapping).encode()
        where = found.same if is_same else found.other
    where.append(generation.mapping_file)


def _without_time(content: bytes) -> bytes:
    first, _, rest = content.partition(b"\n")
    return rest if first.startswith(STAMP.encode()) else content


def _content_of(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""  # there, and nothing of ours


def bring_up_to_date(generation: Generation, *, is_forced: bool = False) -> OnDisk:
    """Write what is not as the study says; returns what was found.

    Raises `ConfigError` naming a file that somebody edited by hand, before anything is written,
    unless it `is_forced` to overwrite these as well, and `StorageError`.
    """
    found = compare_with_disk(generation)
    if not is_forced:
        refuse_edited(found)
    write_generation(generation, found)
    return found


def refuse_edited(found: OnDisk) -> None:
    """Raise `ConfigError` for files that would be overwritten and are somebody's."""
    if found.edited:
        num_more = len(found.edited) - 1
        raise ConfigError(
            f"{found.edited[0]}: it is there, neither as generate wrote it nor what the study says "
            "now" + (f", and so are {num_more} more" if num_more else "") + ". Take what was "
            "changed by hand over into experiment.yaml, and overwrite the file with generate "
            "--force; --dry-run shows what would be written."
        )


def write_generation(generation: Generation, found: OnDisk) -> None:
    """Write what is not the same, each file whole, the map last. Raises `StorageError`."""
    to_write = {*found.new, *found.other, *found.edited}
    if not to_write:
        return
    texts = {file: text for file, text in generation.texts.items() if file in to_write}
    begun = generation.study.configs_dir / BEGUN
    names = {sha256_of_text(text): file.name for file, text in texts.items()}
    write_whole(begun, [json.dumps(_begun(begun.parent) | names)])
    for file, text in texts.items():
        write_whole(file, [text])
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_whole(generation.mapping_file, [dump_yaml({STAMP: stamp, **generation.mapping})])
    begun.unlink()


def _begun(folder: Path) -> dict[str, Any]:
    """What a generate that was cut short was writing, which the map does not have: names by the
    sha256 of the content."""
    try:
        return parse_object((folder / BEGUN).read_bytes())
    except (OSError, ValueError):
        return {}

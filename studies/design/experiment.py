"""experiment.yaml: the question of a study, what it varies and holds fixed, and how it evaluates.

The format is that of the first documents; what is ours stands in `study`. An unknown key is refused
with the nearest known one and its line. What the parameters mean is the framework's to say.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from errors import ConfigError
from ledger.registry_file import PREFIX, is_version
from settings.groups import BudgetSettings, Name, Settings
from settings.yaml_file import YamlFile, as_value, read_yaml, shown
from studies.design.paths import is_file, is_folder, is_there

FILE_NAME = "experiment.yaml"
MAX_PROBLEMS = 10
MAX_SEEDS = 100
# What is to stand where pydantic would name its own types, and what its patterns mean.
MEANT = {
    "dict_type": "a mapping of keys to values goes here",
    "model_type": "a mapping of keys to values goes here",
    "list_type": "a list goes here, as [a, b]",
    "int_type": "a whole number goes here",
    "string_type": "a text goes here, a number in quotes",
    "bool_type": "true or false goes here",
    "too_long": "longer than it may be",
    "too_short": "at least one goes here",
}
PATTERNS = {
    "name": "files and folders are named by it, so letters, digits, '.', '_' and '-' alone, at "
    "most 64, no sign first",
    "function": "the name of a Python function goes here",
    "date": "a date is YYYY-MM-DD",
    "as_of": "a date is YYYY-MM-DD",
}

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
FolderName = Annotated[Name, Field(max_length=100)]
Text = Annotated[str, Field(max_length=10_000)]


class AboutSection(Settings):
    """What is asked, by whom and when."""

    name: Word
    framework: Literal["tinker", "torchtune"]
    question: Text | None = None
    hypothesis: Text | None = None
    researcher: Text | None = None
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    tags: list[Text] = Field(default=[])
    notes: Text | None = None


class FrameworkSection(Settings):
    """What the parameters are merged onto."""

    base_config: Name | None = None
    base_config_file: Name | None = None


class TaskEntry(Settings):
    """An Inspect task: a function under `@task` in a file below `tasks_dir`."""

    name: Word
    file: Annotated[Name, Field(min_length=1)]
    function: Annotated[str, Field(pattern=r"^[^\W\d]\w*$")]
    args: dict[str, Any] | None = None


class EvaluationSection(Settings):
    """What is asked of each trial's weights. `enabled` counts as true where tasks are given."""

    enabled: bool | None = None
    framework: Literal["inspect"] = "inspect"
    checkpoint: Literal["last", "best"] = "last"
    model_format: Literal["hf", "adapter"] | None = None
    base_model: Name | None = None
    merge_adapters: bool | None = None
    tasks_dir: Name = "evals/"
    tasks: list[TaskEntry] = Field(default=[])


class OutputSection(Settings):
    """Folders below the study's own."""

    configs_dir: FolderName = "configs/"
    results_dir: FolderName = "results/"
    eval_results_dir: FolderName = "eval_results/"


class ArmEntry(Settings):
    """What is compared without training: the base model, a prompt before it, or old weights."""

    name: Word
    prompt: Text | None = None
    checkpoint: Name | None = None


Claim = Literal["rises", "falls", "diminishing", "differs", "same"]


class StudySection(Settings):
    """What the first documents do not have: replicates, early stopping, a bound, further arms, and
    the hypothesis in a form that can be tested."""

    seeds: int = Field(default=1, ge=1, le=MAX_SEEDS)
    stop: Literal["halving"] | None = None
    budget: BudgetSettings = BudgetSettings()
    arms: list[ArmEntry] = Field(default=[])
    expects: dict[str, Annotated[list[Claim], Field(min_length=1)]] = Field(default={})


class Experiment(Settings):
    """A whole experiment.yaml. `variables` are lists of values, `controls` are single ones."""

    experiment: AboutSection
    framework_config: FrameworkSection = FrameworkSection()
    variables: dict[str, Any] = Field(min_length=1, max_length=20)
    controls: dict[str, Any] = Field(default={})
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()
    study: StudySection = StudySection()


@dataclass(frozen=True)
class Study:
    """An experiment that was read, and the folder that its names start at."""

    folder: Path
    file: YamlFile
    experiment: Experiment

    @property
    def name(self) -> str:
        return self.experiment.experiment.name

    @property
    def is_evaluated(self) -> bool:
        evaluation = self.experiment.evaluation
        return bool(evaluation.tasks) if evaluation.enabled is None else evaluation.enabled

    @property
    def tasks(self) -> list[TaskEntry]:
        return self.experiment.evaluation.tasks if self.is_evaluated else []

    @property
    def configs_dir(self) -> Path:
        return self.folder / self.experiment.output.configs_dir

    @property
    def results_dir(self) -> Path:
        return self.folder / self.experiment.output.results_dir

    @property
    def eval_results_dir(self) -> Path:
        return self.folder / self.experiment.output.eval_results_dir


def load_study(folder: Path) -> Study:
    """Read DIR/experiment.yaml. Raises `ConfigError`, with file, line and remedy."""
    if folder.name == FILE_NAME and is_file(folder):
        folder = folder.parent
    if not is_folder(folder):
        raise ConfigError(
            f"{folder}: there is no such folder. Name the folder that holds {FILE_NAME}."
        )
    folder = folder.resolve()
    file = read_yaml(folder / FILE_NAME, "an experiment")
    study = Study(folder, file, _validated(file))
    _check_output(study)
    _check_evaluation(study)
    _check_arms(study)
    return study


def _validated(file: YamlFile) -> Experiment:
    # `args:` with nothing after it means the same as leaving it out, in every section.
    given = {key: value for key, value in file.content.items() if value is not None}
    try:
        return Experiment.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key makes the one that was meant missing; it is what has to be corrected.
        problems.sort(key=lambda one: one["type"] != "extra_forbidden")
        told = dict.fromkeys(_explain(problem, file) for problem in problems[:MAX_PROBLEMS])
        raise ConfigError(f"{file.path} {' '.join(told)}") from None


def _explain(problem: Any, file: YamlFile) -> str:
    place = tuple(problem["loc"])
    key, line = ".".join(map(str, place)), file.line_of(place)
    if problem["type"] == "extra_forbidden":
        known = known_keys(place[:-1])
        return f"line {line}: {shown(key)} is not known here; {nearest(str(place[-1]), known)}"
    if problem["type"] == "missing":
        return f"line {line}: {key} is missing. Add it."
    if key == "variables" and problem["type"] == "too_short":
        return f"line {line}: variables is empty, so nothing is compared. Name one and its values."
    message = problem["msg"][0].lower() + problem["msg"][1:].rstrip(".")
    message = MEANT.get(problem["type"], message)
    if problem["type"] == "string_pattern_mismatch":
        message = PATTERNS[str(place[-1])]
    return f"line {line}: {shown(key)}: {message}; found {as_value(problem['input'])}."


def known_keys(place: Sequence[str | int]) -> list[str]:
    """The keys that a section of the file may have."""
    model: type[Settings] = Experiment
    for part in place:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            kinds = [annotation, *typing.get_args(annotation)]
            model = next(k for k in kinds if isinstance(k, type) and issubclass(k, Settings))
    return list(model.model_fields)


def nearest(key: str, known: Sequence[str]) -> str:
    """A hint at the key that was meant."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."


def as_folder(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/").lower())  # some file systems know no case


def _check_output(study: Study) -> None:
    """Folders of the study's own, none in another, or what is generated would be mixed up."""
    seen = {"evaluation.tasks_dir": as_folder(study.experiment.evaluation.tasks_dir)}
    for key, name in study.experiment.output.model_dump().items():
        folder, place = as_folder(name), ("output", key)
        if folder.is_absolute() or ".." in folder.parts or not folder.parts or ":" in name:
            raise study.file.error(
                place, f"output.{key}: {shown(name)} is no folder below the study's. Name one."
            )
        for other_key, other in seen.items():
            if folder.is_relative_to(other) or other.is_relative_to(folder):
                raise study.file.error(
                    place,
                    f"output.{key} {shown(name)} and {other_key} {shown(str(other))} are one "
                    "folder, or one lies in the other. Name different ones.",
                )
        for path in (study.folder / name, *(study.folder / name).parents):
            if is_there(path) and not is_folder(path):
                raise study.file.error(
                    place, f"output.{key}: {path} is a file. Move it, or name another folder."
                )
        seen[f"output.{key}"] = folder


def _check_evaluation(study: Study) -> None:
    evaluation, error = study.experiment.evaluation, study.file.error
    if study.is_evaluated and not evaluation.tasks:
        raise error(
            ("evaluation", "tasks"),
            "evaluation.tasks is empty and evaluation.enabled is true. Name a task with name, file "
            "and function, or set enabled to false.",
        )
    refuse_twice([task.name for task in study.tasks], ("evaluation", "tasks"), study.file)


def _check_arms(study: Study) -> None:
    place = ("study", "arms")
    arms = study.experiment.study.arms
    refuse_twice([arm.name for arm in arms], place, study.file)
    for number, arm in enumerate(arms):
        if arm.checkpoint is None or arm.checkpoint.startswith("tinker://"):
            continue
        if arm.checkpoint.startswith(PREFIX):
            if (problem := moves(f"study.arms.{number}.checkpoint", arm.checkpoint)) is not None:
                raise study.file.error((*place, number, "checkpoint"), problem)
            continue
        run_dir = study.folder / arm.checkpoint.partition("@")[0]
        if not is_folder(run_dir):
            raise study.file.error(
                (*place, number, "checkpoint"),
                f"study.arms.{number}.checkpoint names {shown(arm.checkpoint)}, but {run_dir} is "
                "no folder. Give RUN_DIR@best, RUN_DIR@round_02, registry:NAME@3 or tinker://...",
            )


def moves(key: str, name: str) -> str | None:
    """Why a name of a registry cannot be that of a study, whose runs begin at different times; None
    where it can."""
    if is_version(name):
        return None
    return (
        f"{key} names {shown(name)}, which may mean another checkpoint when a later run begins. "
        "Give the one that stays, as registry:NAME@3; registry.py show says which it is."
    )


def refuse_twice(names: Sequence[str], place: tuple[str, ...], file: YamlFile) -> None:
    """Raise `ConfigError` for a name that two entries have, also where only case differs, which a
    file system may not tell apart."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if name.lower() in seen:
            raise file.error(
                (*place, number),
                f"{'.'.join(place)} has the name {shown(name)} twice, as entries "
                f"{seen[name.lower()]} and {number}. Give each its own.",
            )
        seen[name.lower()] = number

"""Trials of `framework: tinker`: each is a config of the loop, as `--config` takes it.

A trial takes its whole training in one round unless the study says otherwise, and its gate neither
stops it, lowers its rate nor goes back: trials that are compared train alike.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config_schema import TrainingConfig, check, describe_settings
from errors import ConfigError
from ledger.registry_file import PREFIX
from settings.config_file import read_object
from settings.price_file import with_prices
from settings.yaml_file import as_value, shown
from studies.design.expansion import OVERRIDE, Given, Trial, TrialText, given_in, leaves_of, overlap
from studies.design.experiment import Study, moves, nearest
from studies.design.moved_files import (
    FILE_KEYS,
    MODEL_KEYS,
    moved_files,
    named_from,
    names_in,
    rename_tasks,
    task_file,
)
from studies.design.nesting import flat, merged, nested, put
from studies.design.paths import is_file, is_there
from studies.design.study_section import check_budget, check_halving
from studies.design.task_files import StudyTask
from user_code.finding import code_of

LORA_ALPHA = 32
NAMES = {"dataset": "train_file", "epochs": "num_epochs"}
DEFAULTS: dict[str, Any] = {
    "max_rounds": 1,
    "lr_decay": 1.0,
    "gate": {"rollback": False, "stop": False},
}
# What the format knows and this framework does not, and what to do about it.
OF_TORCHTUNE = {
    "packed": "rows are not packed here. Take it out.",
    "dataset_template": "columns are named in data.columns here. Set that instead.",
    "checkpointer": "weights are saved after every round here. Take it out.",
    "metric_logger": "every loss is in the run's ledger here. Take it out.",
    "output_dir": "a trial lives in output.results_dir. Take it out.",
    "optimizer": "the optimizer is AdamW here, set by learning_rate and weight_decay. Use these.",
    "model": "the model is base_model here, its adapter lora_rank. Use these.",
    "gradient_accumulation_steps": "a step's examples are batch_size here. Raise that instead.",
    "max_steps_per_epoch": "steps are bounded by max_steps here. Set that instead.",
}
OF_THE_STUDY = {
    "run_name": "the study names its trials. Take it out.",
    "evaluation.task_args": (
        "arguments stand with their task in evaluation.tasks. Move them there; of a sealed test, "
        "write a second function under @task that calls the first with them."
    ),
}
TEST_TASKS, TEST_ON = "evaluation.test_tasks", "evaluation.test_on"
OF_THE_WINNER = "the sealed test of a study is opened once, by the study, for its winner alone."


def named(key: str) -> str:
    """The setting that a parameter of the format is."""
    return NAMES.get(key, key)


@dataclass(frozen=True)
class TinkerConfigs:
    """What the trials of a study are made from: `fixed` is what they share, `base` the part of it
    that comes from a config file."""

    study: Study
    tasks: Sequence[StudyTask]
    base: dict[str, Any]
    base_file: Path | None
    fixed: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def first_seed(self) -> Any:
        """The seed that a trial has which is no replicate."""
        return self.fixed.get("seed", TrainingConfig.model_fields["seed"].default)

    def text_of(self, trial: Trial) -> TrialText:
        """The config of a trial as its file has it. Raises `ConfigError` for one that the loop
        would refuse."""
        raw = self._settings_of(trial)
        self._refuse_missing_files(self._checked(raw, trial))
        return TrialText(self._text_of_settings(raw))

    def text_of_arm(self, run_name: str, prompt: str | None, first: Trial) -> str:
        """The config of an arm that is asked what the first trial is asked, with a prompt of its
        own instead of the trials' where it has one. Raises `ConfigError`."""
        raw = self._settings_of(first)
        raw["run_name"] = run_name
        if prompt is not None:
            put(raw, "evaluation.system_prompt", prompt)
        self._checked(raw, first)
        return self._text_of_settings(raw)

    def _settings_of(self, trial: Trial) -> dict[str, Any]:
        raw = self.fixed
        params = {key: value for key, value in trial.params.items() if key != "lora_alpha"}
        raw = merged(raw, nested(params, named))
        _walk_on(raw)
        raw["run_name"] = f"{self.study.name[:48]}-{trial.run_id}"
        if trial.is_replicate:
            raw["seed"] = trial.seed
        self._add_tasks(raw)
        return raw

    def _checked(self, raw: dict[str, Any], trial: Trial) -> TrainingConfig:
        checked = check(raw)
        if not isinstance(checked, TrainingConfig):
            raise self._refused(checked.told[0].key, checked.told[0].sentence, trial)
        return checked

    def _text_of_settings(self, raw: dict[str, Any]) -> str:
        moved = moved_files(raw, self.study.folder, self.study.configs_dir, not self.tasks)
        return json.dumps(moved, indent=2, ensure_ascii=False) + "\n"

    def data_files(self) -> list[Path]:
        """The files that trials train on and are asked from, as far as they lie here, and the base
        config."""
        found = [] if self.base_file is None else [self.base_file]
        values = [(key, value) for key, value in flat(self.fixed).items()]
        for key, varied in self.study.experiment.variables.items():
            values += [(named(key), value) for value in varied]
        for key, value in values:
            names = names_in(value) if key in FILE_KEYS else []
            if key == TEST_TASKS or (key == "eval_tasks" and not self.tasks):
                names = [file for name in names_in(value) if (file := task_file(name)) is not None]
            paths = [path for name in names if (path := self._find(name)) is not None]
            code = [Path(one) for path in paths if path.suffix == ".py" for one in code_of(path)]
            found += [*paths, *code]
        return [path for path in dict.fromkeys(found) if is_file(path)]

    def _add_tasks(self, raw: dict[str, Any]) -> None:
        if not self.tasks:
            return
        names = {task.entry.name: self._task_name(task) for task in self.tasks}
        raw["eval_tasks"] = list(names.values())
        evaluation = raw.setdefault("evaluation", {})
        args = {names[task.entry.name]: dict(task.args) for task in self.tasks if task.args}
        if not isinstance(evaluation, dict):
            return  # the schema says what it is
        if args:
            evaluation["task_args"] = args
        rename_tasks(raw, names)

    def _task_name(self, task: StudyTask) -> str:
        return f"{named_from(self.study.configs_dir, task.file)}@{task.function.function}"

    # --- files --------------------------------------------------------------------------------

    def _refuse_missing_files(self, config: TrainingConfig) -> None:
        held = flat(config.model_dump(mode="json"))
        for key in FILE_KEYS:
            for name in names_in(held.get(key)):
                if not name.startswith("hf:") and self._find(name) is None:
                    raise self._refused(
                        key,
                        f"{key} names {shown(name)}, but there is no {self.study.folder / name}. "
                        "Put the file there; a path starts at the study's folder.",
                        None,
                    )
        if config.base_model.startswith((".", "/")) and self._find(config.base_model) is None:
            raise self._refused(
                "base_model",
                f"base_model names {shown(config.base_model)}, but there is no such directory. A "
                "path starts at the study's folder.",
                None,
            )
        if (problem := self._start_problem(config.start_from)) is not None:
            raise self._refused("start_from", problem, None)
        own = [("eval_tasks", name) for name in config.eval_tasks if not self.tasks]
        for key, name in [*own, *((TEST_TASKS, name) for name in config.evaluation.test_tasks)]:
            file = task_file(name)
            if file and self._find(file) is None:
                raise self._refused(
                    key,
                    f"{key} names {shown(name)}, but there is no {self.study.folder / file}. "
                    "Put the file there; a path starts at the study's folder.",
                    None,
                )

    def _start_problem(self, start: str | None) -> str | None:
        if start is None or start.startswith("tinker://"):
            return None
        if start.startswith(PREFIX):
            return moves("start_from", start)
        if self._find(start.partition("@")[0]) is None:
            return (
                f"start_from names {shown(start)}, but there is no such folder. A path starts at "
                "the study's folder."
            )
        return None

    def _find(self, name: str) -> Path | None:
        try:
            path = self.study.folder / name
            return path.resolve() if is_there(path) else None
        except (OSError, ValueError):
            return None

    # --- messages -----------------------------------------------------------------------------

    def _refused(self, key: str, sentence: str, trial: Trial | None) -> ConfigError:
        """What the schema says of a setting, with the line that it was given in."""
        given = given_in(self.study, named)
        meant = [one for one in given if key and overlap(one.name, key)]
        meant = meant or sorted(
            (one for one in given if _named_in(sentence, one.name)),
            key=lambda one: -_named_in(sentence, one.name),
        )
        place = meant[0].place if meant else ("controls",)
        if not meant and key.split(".")[0] in flat(self.base) and self.base_file is not None:
            return ConfigError(f"{self.base_file}: {sentence}")
        if meant and place[0] == "variables" and trial is not None:
            sentence = f"variables, {trial.run_id} ({shown(trial.shown)}): {sentence}"
        if sentence.endswith("it has no default."):
            other = " or name tasks in evaluation.tasks" if key == "eval_tasks" else ""
            sentence += f" Give it in controls{other}."
        return self.study.file.error(place, sentence)


def _walk_on(raw: dict[str, Any]) -> None:
    """Have later rounds go on through the shuffle of the first, where the study says nothing of
    what they train on: by the scores, trials of several rounds would differ in their data."""
    rounds = raw.get("max_rounds")
    if isinstance(rounds, int) and rounds > 1 and raw.get("mining", {}) == {}:
        raw["mining"] = {"replay_share": 1.0}


def open_configs(study: Study, tasks: Sequence[StudyTask]) -> TinkerConfigs:
    """Check all that holds for every trial. Raises `ConfigError`."""
    framework = study.experiment.framework_config
    if framework.base_config is not None:
        raise study.file.error(
            ("framework_config", "base_config"),
            "framework_config.base_config names a config that comes with torchtune. Give settings "
            "in controls, or a JSON config of the loop as base_config_file.",
        )
    base_file, base = None, {}
    if framework.base_config_file is not None:
        base_file = study.folder / framework.base_config_file
        if not is_file(base_file):
            raise study.file.error(
                ("framework_config", "base_config_file"),
                f"framework_config.base_config_file: there is no {base_file}. A path starts at the "
                "study's folder.",
            )
        held = with_prices(read_object(base_file), base_file.parent, str(base_file))
        base = moved_files(held, base_file.parent, study.folder, True)
        base = _without_tasks(base, base_file, bool(tasks))
    _check_names(study, bool(tasks))
    _check_evaluation(study)
    _refuse_one_task_twice(study, tasks)
    controls = dict(study.experiment.controls)
    controls.pop("lora_alpha", None)
    override = controls.pop(OVERRIDE, None) or {}
    fixed = merged(DEFAULTS, base)
    fixed = merged(fixed, nested(controls, named))
    fixed = merged(fixed, nested(override, str))
    if not _sets(study, base, "gate.stop") and _sets(study, base, "eval_threshold"):
        put(fixed, "gate.stop", True)  # a study that names a threshold wants to stop there
    if flat(fixed).get(TEST_TASKS):
        put(fixed, TEST_ON, "winner")
        _refuse_open_test(study, tasks, flat(fixed)[TEST_TASKS])
    check_halving(study, named, fixed["max_rounds"])
    check_budget(study, _models_of(study, fixed))
    return TinkerConfigs(study, tasks, base, base_file, fixed)


def _sets(study: Study, base: dict[str, Any], key: str) -> bool:
    """Whether a study says something of a setting."""
    names = [*(one.name for one in given_in(study, named)), *flat(base)]
    return any(overlap(name, key) for name in names)


def _models_of(study: Study, fixed: dict[str, Any]) -> list[str]:
    """The models that trials use, each with a price of its own."""
    found = list(flat(fixed).items())
    found += [pair for one in given_in(study, named) for pair in leaves_of(one)]
    models = [v for k, v in found if k in MODEL_KEYS and isinstance(v, str)]
    return list(dict.fromkeys(models))


def _without_tasks(base: dict[str, Any], base_file: Path, has_tasks: bool) -> dict[str, Any]:
    """A base config without what is the study's to say."""
    if (test_on := flat(base).get(TEST_ON, "winner")) != "winner":
        raise ConfigError(f"{base_file}: {_test_on(test_on)}")
    made = copy.deepcopy(base)
    if has_tasks:
        made.pop("eval_tasks", None)
        if isinstance(made.get("evaluation"), dict):
            made["evaluation"].pop("task_args", None)
    return made


def _check_names(study: Study, has_tasks: bool) -> None:
    known = [row.key for row in describe_settings()]
    offered = [*known, *NAMES, "lora_alpha"]
    for one in given_in(study, named):
        error = study.file.error
        top = one.name.split(".")[0]
        if one.name == "lora_alpha":
            _check_alpha(study, one)
        elif (why := OF_TORCHTUNE.get(top)) is not None:
            raise error(one.place, f"{shown(one.name)} is torchtune's: {why}")
        elif (why := _said_of(one, has_tasks)) is not None:
            raise error(one.place, f"{shown(one.name)}: {why}")
        elif not any(overlap(one.name, key) for key in known):
            given = ".".join(map(str, one.place[1:])).removeprefix("_override.")
            hint = nearest(given, offered)
            hint = hint if hint.startswith("did") else "docs/settings.md lists the settings."
            raise error(one.place, f"{shown(given)} is not a setting; {hint}")
        elif "${" in str(one.value):
            raise error(
                one.place,
                f"{shown(one.name)} is {as_value(one.value)}: ${{...}} is torchtune's, and a "
                "config of the loop refers to nothing. Write the value.",
            )


def _said_of(one: Given, has_tasks: bool) -> str | None:
    """Why a parameter is not the study's to set, or not in this way."""
    if one.name == "eval_tasks" and has_tasks:
        return "the tasks are those of evaluation.tasks. Take one of the two out."
    is_varied = one.place[0] == "variables"
    for name, value in leaves_of(one):
        for key, why in OF_THE_STUDY.items():
            if f"{name}.".startswith(f"{key}."):
                return why
        if name == TEST_TASKS and is_varied:
            return f"{OF_THE_WINNER} Name one test for all trials, in controls."
        if name == TEST_ON and (is_varied or value != "winner"):
            return _test_on(value)
    return None


def _test_on(value: Any) -> str:
    return f"evaluation.test_on is {as_value(value)}, but {OF_THE_WINNER} Take it out."


def _refuse_open_test(study: Study, tasks: Sequence[StudyTask], sealed: Any) -> None:
    """A task that trials are chosen by is no sealed test."""
    seen = {
        f"{task.file}@{name}": task.entry.name
        for task in tasks
        for name in (task.function.function, task.function.registered)
    }
    for name in names_in(sealed):
        file, _, function = name.rpartition("@")
        if is_file(study.folder / file) and (
            task := seen.get(f"{(study.folder / file).resolve()}@{function}")
        ):
            given = [one for one in given_in(study, named) if one.name == TEST_TASKS]
            raise study.file.error(
                given[0].place if given else ("framework_config", "base_config_file"),
                f"evaluation.test_tasks names {shown(name)}, which is {task} of evaluation.tasks "
                "as well. A sealed test holds questions that no trial is chosen by: take it out "
                "of one of the two.",
            )


def _check_alpha(study: Study, one: Given) -> None:
    values = one.value if one.place[0] == "variables" else [one.value]
    wrong = [v for v in values if isinstance(v, bool) or v != LORA_ALPHA]
    if wrong or len(values) > 1:
        raise study.file.error(
            one.place,
            f"lora_alpha is {as_value(one.value)}, but the service scales every adapter by "
            f"{LORA_ALPHA} / lora_rank and takes no other alpha. Write {LORA_ALPHA}, or leave it "
            "out; the report says that a study of ranks changes the scale as well.",
        )


def _check_evaluation(study: Study) -> None:
    evaluation, error = study.experiment.evaluation, study.file.error
    if evaluation.merge_adapters:
        raise error(
            ("evaluation", "merge_adapters"),
            "evaluation.merge_adapters is true, but weights are sampled as an adapter on their "
            "base model here. Write false; export.py merges one afterwards.",
        )
    if evaluation.model_format == "hf":
        raise error(
            ("evaluation", "model_format"),
            "evaluation.model_format is hf, a whole model, but what is trained and evaluated here "
            "is an adapter on its base model. Write adapter, or leave it out.",
        )
    if evaluation.base_model is not None:
        raise error(
            ("evaluation", "base_model"),
            "evaluation.base_model is set, but an adapter is evaluated on the model that it was "
            "trained on. Set base_model in controls.",
        )


def _refuse_one_task_twice(study: Study, tasks: Sequence[StudyTask]) -> None:
    seen: dict[tuple[Path, str], str] = {}
    for number, task in enumerate(tasks):
        key = (task.file, task.function.function)
        if key in seen:
            raise study.file.error(
                ("evaluation", "tasks", number),
                f"evaluation.tasks: {task.entry.name} and {seen[key]} are one function, and the "
                "loop measures a task once. Write a second function under @task that calls the "
                "first with other arguments.",
            )
        seen[key] = task.entry.name


def _named_in(sentence: str, dotted: str) -> int:
    """How much of a dotted name a sentence has: characters of its longest part from the left."""
    parts = dotted.split(".")
    beginnings = (".".join(parts[: n + 1]) for n in range(len(parts)))
    return max(
        (len(one) for one in beginnings if re.search(rf"\b{re.escape(one)}\b", sentence)), default=0
    )

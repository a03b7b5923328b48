"""Arms of a study that are not trained: the base model, a prompt before it, old weights.

Each is asked what the trials are asked, by a config that is the first trial's; nothing of the
training in it is used.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from config_schema import TrainingConfig, validate
from ledger.registry_file import PREFIX
from settings.yaml_file import as_value, shown
from studies.design.expansion import Trial, given_in, leaves_of, overlap
from studies.design.experiment import ArmEntry, Study
from studies.design.tinker_trials import TinkerConfigs, named

SAME_FOR_ALL = ("base_model", "renderer_name", "evaluation")
CHECKPOINT = re.compile(r"[^@]+(@(best|round_\d+))?|tinker://[^@\s]+|registry:[^@\s]+@[1-9]\d*")


@dataclass(frozen=True)
class ArmFiles:
    """An arm that is not trained, and what is generated of it.

    `checkpoint` is as `--evaluate` takes it from any folder; with neither it nor a prompt the arm
    is the base model.
    """

    name: str
    prompt: str | None
    checkpoint: str | None
    config_file: Path
    config_text: str
    run_dir: Path

    @functools.cached_property
    def config(self) -> TrainingConfig:
        return validate(json.loads(self.config_text), str(self.config_file))

    @property
    def run_id(self) -> str:
        return self.run_dir.name


def arms_of(configs: TinkerConfigs, first: Trial) -> list[ArmFiles]:
    """The arms of a study, asked as its first trial is. Raises `ConfigError`."""
    study = configs.study
    _check_arms(configs)
    return [_files_of(configs, first, arm) for arm in study.experiment.study.arms]


def _files_of(configs: TinkerConfigs, first: Trial, arm: ArmEntry) -> ArmFiles:
    study, called = configs.study, f"arm_{arm.name}"
    return ArmFiles(
        name=arm.name,
        prompt=arm.prompt,
        checkpoint=_found(study, arm),
        config_file=study.configs_dir / f"{called}.json",
        config_text=configs.text_of_arm(f"{study.name[:32]}-{called}"[:64], arm.prompt, first),
        run_dir=study.results_dir / called,
    )


def _found(study: Study, arm: ArmEntry) -> str | None:
    """A checkpoint by a name that holds from any folder; the best one where it does not say."""
    if arm.checkpoint is None or arm.checkpoint.startswith(("tinker://", PREFIX)):
        return arm.checkpoint
    run_dir, _, which = arm.checkpoint.partition("@")
    return f"{normpath(study.folder / run_dir)}@{which or 'best'}"


def _check_arms(configs: TinkerConfigs) -> None:
    study, arms = configs.study, configs.study.experiment.study.arms
    if not arms:
        return
    _refuse_varied(study, named)
    seen: dict[tuple[str | None, str | None], str] = {}
    for number, arm in enumerate(arms):
        place = ("study", "arms", number)
        if arm.prompt is not None and not arm.prompt.strip():
            raise study.file.error(
                (*place, "prompt"),
                f"study.arms.{number}.prompt is empty. Write one, or leave it out, and the arm is "
                "asked without.",
            )
        if arm.checkpoint is not None and CHECKPOINT.fullmatch(arm.checkpoint) is None:
            raise study.file.error(
                (*place, "checkpoint"),
                f"study.arms.{number}.checkpoint is {as_value(arm.checkpoint)}. Give RUN_DIR@best, "
                "RUN_DIR@round_02, registry:NAME@3 or tinker://...",
            )
        asked = _prompt_of(configs, arm), _found(study, arm)
        if asked in seen:
            raise study.file.error(
                place,
                f"study.arms: {shown(arm.name)} and {shown(seen[asked])} are the same, with one "
                "prompt and one checkpoint. Take one out.",
            )
        seen[asked] = arm.name


def _prompt_of(configs: TinkerConfigs, arm: ArmEntry) -> Any:
    """What is put before its questions; without a prompt of its own, what the trials have."""
    evaluation = configs.fixed.get("evaluation")
    shared = evaluation.get("system_prompt") if isinstance(evaluation, dict) else None
    return shared if arm.prompt is None else arm.prompt


def _refuse_varied(study: Study, named: Callable[[str], str]) -> None:
    for one in given_in(study, named):
        names = [name for name, _ in leaves_of(one) if one.place[0] == "variables"]
        if any(overlap(name, key) for name in names for key in SAME_FOR_ALL):
            raise study.file.error(
                one.place,
                f"{shown(one.name)} varies, and study.arms are asked once, which would have to be "
                "with one of its values. Move it to controls, or take the arms out.",
            )

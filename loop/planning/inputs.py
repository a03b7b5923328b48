"""The settings with their files read, cleaned and checked: no tokenizer, no network.

Whatever a setting left open is resolved once and said, with its source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hyperparam_utils
from config_schema import LoadedConfig, TrainingConfig
from data_loader import CleanSplit, LoadedData, clean_split, split_validation
from errors import ConfigError, DataError, one_line
from evaluation.environments import Environment
from evaluation.held_out import HeldOutFile
from evaluation.inspect_tasks import InspectTask
from evaluation.preferences import PairFile
from evaluation.rewards import Reward
from evaluation.surroundings import set_aside
from evaluation.tasks import EvalTask
from hyperparam_utils import RunSteps, Schedule
from ledger.records import Teacher
from loop.planning.models import find_grader_path
from loop.planning.rewards import environment_of, reward_of
from loop.planning.row_files import load_rows
from loop.planning.steps import SettledSteps, settle_steps
from loop.planning.tasks import load_eval_tasks, load_test_tasks
from loop.planning.teacher import find_teacher
from rows.contamination import EvalTexts
from rows.examples import DropLog, ExampleTable
from rows.places import place_text
from rows.words import normalise
from scores.resolution import TaskSize
from settings.task_names import SPLIT_TASK, is_inspect_task

NUM_SHOWN = 5  # of what is refused
QUESTION_CHARS = 200


@dataclass(frozen=True)
class Inputs:
    """The settings with their files read, cleaned and checked."""

    loaded: LoadedConfig
    model_dir: Path | None
    grader_path: str | None  # what the grader is loaded from
    files: dict[str, LoadedData]  # by the setting that names them
    split: CleanSplit
    eval_texts: EvalTexts
    tasks: tuple[EvalTask, ...]
    test_tasks: tuple[EvalTask, ...]
    settled: SettledSteps  # with `num_epochs` by the rows as read, until they are rendered
    learning_rate_source: str
    set_aside: tuple[str, ...] = ()  # what lies around the evaluations and is not used
    reward: Reward | None = None  # of `method` rl,
    environment: Environment | None = None  # which has one of the two
    teacher: Teacher | None = None  # that the run is distilled from

    @property
    def train_weights(self) -> dict[str, float]:
        """The shares of the training sources by their names; empty where they have none."""
        sources = [file.source for file in self.files["train_file"].files]
        return {one.name: one.weight for one in sources if one.weight is not None}

    def with_rows(self, num_rows: int, kept: Mapping[str, Any]) -> Inputs:
        """The same with the steps that `num_epochs` comes to for so many rows."""
        learning_rate = self.settled.schedule.learning_rate
        settled = settle_steps(self.loaded, kept, num_rows, learning_rate)
        return replace(self, settled=settled)

    @property
    def config(self) -> TrainingConfig:
        return self.loaded.config

    @property
    def rewarding_code(self) -> Mapping[str, str]:
        """The user's files that give the rewards, with their sha256."""
        giving = self.reward or self.environment
        return {} if giving is None else giving.code

    @property
    def drop_logs(self) -> list[DropLog]:
        """What was dropped in reading and in cleaning, in that order; not what is similar."""
        return [*(data.dropped for data in self.files.values()), self.split.dropped]

    @property
    def scored_sizes(self) -> list[TaskSize]:
        return [TaskSize(t.n, t.num_clusters) for t in self.tasks if t.role == "score"]

    @property
    def model_path(self) -> str:
        """What the tokenizer is loaded from: a directory, or the hub name."""
        return model_path_of(self.config, self.model_dir)


def model_path_of(config: TrainingConfig, model_dir: Path | None) -> str:
    """What the base model is loaded from: a directory, or the hub name."""
    return config.base_model if model_dir is None else str(model_dir)


def read_inputs(
    loaded: LoadedConfig, model_dir: Path | None, kept: Mapping[str, Any] | None = None
) -> Inputs:
    """Read all files and resolve the schedule. `kept` holds a resumed run's resolved values."""
    config, kept = loaded.config, kept or {}
    unused = _set_aside(config)
    tasks, test_tasks = load_eval_tasks(loaded), load_test_tasks(loaded)
    _refuse_missing_grader(config, (*tasks, *test_tasks))
    _refuse_opened_test(tasks, test_tasks)
    files = {"train_file": load_rows(loaded, "train_file", config.train_file)}
    if config.mining.pool_file is not None:
        pool_file, beside = config.mining.pool_file, files["train_file"]
        files["mining.pool_file"] = load_rows(loaded, "mining.pool_file", pool_file, beside)
    train = files["train_file"].examples
    if config.data.val_share:
        train, split_task = _hold_out_share(config, files["train_file"])
        tasks = (*tasks, split_task)
    keeps_near = config.data.contamination == "list"
    eval_texts = eval_texts_of(tasks, test_tasks, keeps_near=keeps_near)
    pool = files["mining.pool_file"].examples if "mining.pool_file" in files else ExampleTable()
    split = clean_split(train, pool, eval_texts)
    if config.data.contamination == "stop":
        _refuse_contaminated(split)
    learning_rate, source = _resolve_learning_rate(config, kept, model_dir)
    return Inputs(
        loaded=loaded,
        model_dir=model_dir,
        grader_path=find_grader_path(loaded),
        files=files,
        split=split,
        eval_texts=eval_texts,
        tasks=tasks,
        test_tasks=test_tasks,
        settled=settle_steps(loaded, kept, len(split.train), learning_rate),
        learning_rate_source=source,
        set_aside=unused,
        reward=reward_of(loaded),
        environment=environment_of(loaded),
        teacher=find_teacher(loaded, model_path_of(config, model_dir), kept),
    )


def read_eval_inputs(loaded: LoadedConfig, model_dir: Path | None) -> Inputs:
    """What an evaluation outside a run needs: the tasks."""
    config = loaded.config
    unused = _set_aside(config)
    tasks = load_eval_tasks(loaded)
    _refuse_missing_grader(config, tasks)
    if config.data.val_share:  # the one thing that only the training file tells
        data = load_rows(loaded, "train_file", config.train_file)
        tasks = (*tasks, _hold_out_share(config, data)[1])
    return replace(model_inputs(loaded, model_dir), tasks=tasks, set_aside=unused)


def model_inputs(loaded: LoadedConfig, model_dir: Path | None) -> Inputs:
    """What asking a model alone needs: no rows and no tasks."""
    config = loaded.config
    return Inputs(
        loaded=loaded,
        model_dir=model_dir,
        grader_path=find_grader_path(loaded),
        files={},
        split=CleanSplit(ExampleTable(), ExampleTable(), DropLog(), DropLog()),
        eval_texts=EvalTexts(()),
        tasks=(),
        test_tasks=(),
        settled=SettledSteps(
            RunSteps(0, 0, 0), Schedule(config.learning_rate, config.min_lr, config.lr_decay, 0, 1)
        ),
        learning_rate_source="not used",
    )


def _set_aside(config: TrainingConfig) -> tuple[str, ...]:
    """Keep away from Inspect's tasks, where there are any, what would decide on them unseen."""
    names = (*config.measured_tasks, *config.evaluation.test_tasks)
    return tuple(set_aside()) if any(map(is_inspect_task, names)) else ()


def _hold_out_share(config: TrainingConfig, data: LoadedData) -> tuple[ExampleTable, EvalTask]:
    """Take `data.val_share` out of the training rows, as a held-out task."""
    train, validation = split_validation(data.examples, config.data.val_share)
    for example in validation:
        if not example.has_answer:
            raise DataError(
                f"{example.source} line {example.line_no}: it has no answer, and data.val_share "
                "holds rows out for the loss of their answers. Leave data.val_share out; "
                "eval_tasks asks held-out questions."
            )
    path = Path(str(data.files[0].source))
    work = HeldOutFile(SPLIT_TASK, path, validation.sha256, validation, is_split=True)
    every = config.evaluation.every.get(SPLIT_TASK, 1)
    return train, EvalTask(SPLIT_TASK, 1, "report", every, work)


def eval_texts_of(
    tasks: Sequence[EvalTask], test_tasks: Sequence[EvalTask], *, keeps_near: bool
) -> EvalTexts:
    """Everything that evaluations ask, which no row may teach; with `keeps_near` a near copy of a
    question may be trained on."""
    ids = [
        example.id
        for task in (*tasks, *test_tasks)
        if isinstance(task.work, HeldOutFile | PairFile)
        for example in task.work.examples
    ]
    texts = (text for task in (*tasks, *test_tasks) for text in task.eval_texts)
    return EvalTexts(texts, ids, keeps_near=keeps_near)


def _refuse_contaminated(split: CleanSplit) -> None:
    hits = [row for row in split.dropped if row.kind == "contaminated"]
    if hits:
        found = [f"{place_text(row.file, row.line_no, row.text)} {row.reason}" for row in hits]
        raise DataError(
            f"{len(hits)} of the rows hold what an evaluation asks: {first_of(found)}. Take them "
            "out, or set data.contamination to drop."
        )


def _refuse_missing_grader(config: TrainingConfig, tasks: tuple[EvalTask, ...]) -> None:
    graded = [t.name for t in tasks if isinstance(t.work, InspectTask) and t.work.uses_grader]
    if graded and config.evaluation.grader_model is None:
        raise ConfigError(
            f"{graded[0]}: its answers are graded by a model, and evaluation.grader_model is not "
            "set, so the trained model would grade itself. Name a base model that the service has."
        )


def _refuse_opened_test(tasks: tuple[EvalTask, ...], test_tasks: tuple[EvalTask, ...]) -> None:
    """A sealed test may not hold questions that rounds are decided by."""
    asked = {normalise(one.of_user): one.where for task in tasks for one in task.asked}
    asked.pop("", None)  # a sample without text
    found = [
        f"{one.where} ({shown(one.of_user)}) stands in {where}"
        for test in test_tasks
        for one in test.asked
        if (where := asked.get(normalise(one.of_user))) is not None
    ]
    if found:
        raise ConfigError(
            f"evaluation.test_tasks: {counted(len(found), 'question')} of the sealed test "
            f"{'is' if len(found) == 1 else 'are'} asked every round as well, so the test is not "
            f"sealed: {first_of(found)}. Take {'it' if len(found) == 1 else 'them'} out of one of "
            "the two."
        )


def _resolve_learning_rate(
    config: TrainingConfig, kept: Mapping[str, Any], model_dir: Path | None
) -> tuple[float, str]:
    if "learning_rate" in kept:
        return float(kept["learning_rate"]), "as the run began"
    if not config.use_recommended_lr:
        return config.learning_rate, "learning_rate"
    if model_dir is not None:
        # The cookbook would match "llama" or "qwen" anywhere in the path and call that a model.
        raise ConfigError(
            f"use_recommended_lr: there is no recommended learning rate for a model directory "
            f"({model_dir}). Set learning_rate to a number, and leave use_recommended_lr out: "
            "LoRA's rate is about ten times that of full fine-tuning, and small models take "
            "higher ones (demo_config.json has 0.003 for the demo model)."
        )
    rate = hyperparam_utils.recommended_lr(config.base_model)
    return rate, f"the cookbook's rate; learning_rate {config.learning_rate:g} is not used"


def num_dropped(logs: list[DropLog]) -> Counter[str]:
    return sum((log.counts for log in logs), Counter())


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def first_of(found: Sequence[str]) -> str:
    """The first few of what was found, and how many more there are."""
    more = len(found) - NUM_SHOWN
    return "; ".join([*found[:NUM_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def shown(question: str) -> str:
    return repr(one_line(question, QUESTION_CHARS))

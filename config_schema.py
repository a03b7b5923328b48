"""The settings of a run: names, types, limits, defaults and one line on each.

A config is one JSON object. Unknown keys are refused with the nearest known name. `null` means
"resolve for me"; what was resolved is printed once and written to `config.resolved.json`.
This file reads the config and nothing else: no data rows, no network, no tinker.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from errors import ConfigError
from hyperparam_utils import RunSteps
from settings.addresses import Address
from settings.config_file import as_shown, read_object, type_name, with_overrides
from settings.groups import (
    MAX_COUNT,
    BudgetSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    MiningSettings,
    Name,
    Positive,
    Settings,
    Sources,
    SourceSettings,
    TrackingSettings,
    check_columns,
    check_prices,
    check_sources,
)
from settings.method_groups import (
    DistillSettings,
    DpoSettings,
    MethodName,
    RlSettings,
    check_method,
    with_group,
)
from settings.price_file import with_prices
from settings.problems import MAX_PROBLEMS, Problem, Problems, message_of, place_of
from settings.sameness import hash_of
from settings.table import SettingRow, rows_of, table_of
from settings.task_names import SPLIT_TASK, check_task_names, is_inspect_task, known_tasks

MAX_ROUNDS = 10_000  # each has its line in the schedule and its share of `gate.alpha`


class TrainingConfig(Settings):
    """All settings; the flat keys are the public interface."""

    run_name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="short name, used in the run directory's name",
    )
    base_model: Name = Field(
        min_length=1, description="model to fine-tune: a hub name, or a model directory"
    )
    base_url: Address | None = Field(
        default=None, description="address of a Tinker-compatible service; null: chosen by rule"
    )
    method: MethodName = Field(
        default="sft",
        description="how it is trained: `sft` on answers, `dpo` on preferences, `rl` on rewards, "
        "`distill` from a teacher",
    )
    start_from: Name | None = Field(
        default=None,
        description="saved weights to train on from, of another run: `RUN_DIR`, `RUN_DIR@best`, "
        "`RUN_DIR@round_02`, `registry:NAME@3` or a `tinker://` path of a state; or a folder with "
        "an adapter in PEFT's layout; null: a new adapter",
    )
    start_from_optimizer: bool = Field(
        default=False, description="take over the optimizer's state with these weights"
    )
    train_file: Sources = Field(
        description=(
            "JSONL, JSON, CSV or TSV (also `.gz`, `.zst`), Parquet, a directory saved by "
            "`datasets`, or `hf:NAME` of the hub; or a list of them"
        ),
    )
    val_file: Name | None = Field(
        default=None,
        description="held-out file like `train_file`; its loss is measured each round",
    )
    eval_tasks: list[Name] = Field(
        min_length=1,
        description=(
            "what is evaluated each round: `simple_qa` (built in), `qa:FILE.jsonl`, "
            "`pref:FILE.jsonl`, `nll:FILE.jsonl`, or an Inspect task, `FILE.py@TASK` or "
            "`PACKAGE/TASK`"
        ),
    )
    renderer_name: Name | None = Field(
        default=None,
        description="chat format, a renderer of the cookbook; null: the known one that agrees with "
        "the model's chat template, else the nearest with its difference shown",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="seed of adapter, data order, selection and sampling"
    )
    lora_rank: int = Field(
        default=16,
        ge=1,
        le=256,
        description="rank of the LoRA matrices (alpha is 32 for each)",
    )
    train_attn: bool = Field(default=True, description="train the attention layers")
    train_mlp: bool = Field(default=True, description="train the MLP layers")
    train_unembed: bool = Field(default=True, description="train the unembedding layer")

    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="highest learning rate")
    use_recommended_lr: bool = Field(
        default=False, description="take the cookbook's rate for the model instead"
    )
    lr_decay: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="factor on the learning rate after each missed threshold",
    )
    min_lr: float = Field(default=1e-6, ge=0, description="lower bound of the learning rate")
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        le=MAX_COUNT,
        description="linear warm-up at the start of the run; null: 100, at most a tenth of the run",
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay")
    max_steps: Positive = Field(
        default=1000, description="most steps of a run, and the length of the cosine decay"
    )
    batch_size: Positive = Field(default=8, description="examples in one step")
    steps_per_round: Positive | None = Field(
        default=1, description="optimizer steps in one round; with `num_epochs` they follow from it"
    )
    num_epochs: float | None = Field(
        default=None,
        gt=0,
        le=MAX_ROUNDS,
        description=(
            "instead of `steps_per_round`: passes through the cleaned `train_file` in the whole run"
        ),
    )
    max_seq_length: int = Field(
        default=2048,
        ge=8,
        le=MAX_COUNT,
        description="longest training example in tokens; longer ones are cut",
    )

    eval_threshold: float = Field(
        default=0.85, ge=0, le=1, description="score at which the run stops"
    )
    max_rounds: int = Field(default=3, ge=1, le=MAX_ROUNDS, description="most rounds of a run")
    checkpoint_every_steps: Positive | None = Field(
        default=None,
        description="save state inside a round every so many steps; null: every 10 minutes",
    )
    checkpoint_names: Literal["rounds", "steps"] = Field(
        default="rounds", description="saved weights are called `round_02`, or `checkpoint-0005k`"
    )
    checkpoint_ttl_days: float | None = Field(
        default=30.0,
        ge=1 / 24,
        le=3650,
        description="days until saved weights expire, the best round's apart; null: never",
    )

    evalops_enabled: bool = Field(default=False, description="post every round to EvalOps")
    evalops_test_suite_id: Name | None = Field(
        default=None, description="the EvalOps test suite that rounds are posted to"
    )
    evalops_api_url: Name | None = Field(
        default=None, description="EvalOps address; null: `EVALOPS_API_URL`, else the public one"
    )
    evalops_budget_file: Name | None = Field(
        default=None,
        description="limits in EvalOps' `budget.yaml` format, which each round is held against",
    )
    evalops_environment: Name | None = Field(
        default=None, description="the entry under `environments` of that file that applies"
    )

    dpo: DpoSettings | None = Field(default=None, description="of `method` `dpo`")
    rl: RlSettings | None = Field(default=None, description="of `method` `rl`")
    distill: DistillSettings | None = Field(default=None, description="of `method` `distill`")
    data: DataSettings = Field(default=DataSettings(), description="how rows become steps")
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(), description="what is asked of a checkpoint, and how"
    )
    gate: GateSettings = Field(default=GateSettings(), description="when a round passes")
    budget: BudgetSettings = Field(default=BudgetSettings(), description="how much a run may use")
    mining: MiningSettings = Field(
        default=MiningSettings(), description="what later rounds train on"
    )
    tracking: TrackingSettings = Field(
        default=TrackingSettings(), description="which trackers are told of the run"
    )

    def steps(self, per_round: int) -> RunSteps:
        """The steps of the run, with so many in a round."""
        return RunSteps(per_round, self.max_rounds, self.max_steps)

    @model_validator(mode="before")
    @classmethod
    def _make_room(cls, data: Any) -> Any:
        """Where `num_epochs` is given, `steps_per_round` has no default; a method's group has."""
        if not isinstance(data, dict):
            return data
        has_epochs = data.get("num_epochs") is not None
        return with_group({"steps_per_round": None, **data} if has_epochs else data)

    @model_validator(mode="after")
    def _check_across_keys(self) -> TrainingConfig:
        if self.min_lr > self.learning_rate and not self.use_recommended_lr:
            raise ValueError(
                f"min_lr {self.min_lr:g} is above learning_rate {self.learning_rate:g}, so every "
                "step would train at min_lr. Lower min_lr or raise learning_rate."
            )
        if self.steps_per_round is not None:
            if self.num_epochs is not None:
                raise ValueError(
                    f"num_epochs {self.num_epochs:g} and steps_per_round {self.steps_per_round} "
                    "are both given, and one follows from the other. Leave one out."
                )
            self.steps(self.steps_per_round).refuse_misfits(self.warmup_steps, None)
        elif self.num_epochs is None:
            raise ValueError(
                "steps_per_round is null, and num_epochs is not given either. Give one of them."
            )
        if self.data.accumulate > self.batch_size:
            raise ValueError(
                f"data.accumulate {self.data.accumulate} is more than batch_size "
                f"{self.batch_size}: a batch cannot be split into more parts than it has examples."
            )
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ValueError(
                "train_attn, train_mlp and train_unembed are all false: nothing would be trained."
            )
        if self.evalops_enabled and not self.evalops_test_suite_id:
            raise ValueError(
                "evalops_enabled is true but evalops_test_suite_id is not set. Set it to your "
                "suite's id."
            )
        if self.start_from_optimizer and self.start_from is None:
            raise ValueError(
                "start_from_optimizer is true, and start_from names no weights whose optimizer it "
                "could be. Set start_from, or leave start_from_optimizer out."
            )
        groups = {"dpo": self.dpo, "rl": self.rl, "distill": self.distill}
        check_method(self.method, groups, self.data, self.mining)
        self._check_tasks()
        self._check_sources()
        self._check_held_out_every_steps()
        if self.gate.margin and self.gate.rule != "paired":
            raise ValueError(
                f"gate.margin is {self.gate.margin:g}, and only the rule `paired` uses it, but "
                f"gate.rule is {self.gate.rule}. Set gate.rule to paired, or leave gate.margin out."
            )
        self._check_maps()
        self._check_roles()
        models = [self.base_model, *filter(None, [self.evaluation.grader_model])]
        check_prices("budget", self.budget, models)
        if self.evaluation.num_repeats > 1 and self.evaluation.temperature == 0:
            raise ValueError(
                f"evaluation.num_repeats is {self.evaluation.num_repeats} at temperature 0, where "
                "every repeat gives the same answer. Set evaluation.temperature above 0, or "
                "num_repeats to 1."
            )
        return self

    def _check_tasks(self) -> None:
        for group, names in (
            ("eval_tasks", self.eval_tasks),
            ("evaluation.test_tasks", self.evaluation.test_tasks),
        ):
            check_task_names(group, names)
        for name in self.evaluation.test_tasks:
            if name in self.eval_tasks or name.startswith("nll:"):
                why = "is no score" if name.startswith("nll:") else "is in eval_tasks as well"
                raise ValueError(
                    f"evaluation.test_tasks names {name!r}, which {why}. A sealed test holds "
                    "questions that no round is decided by."
                )
        if self.evaluation.test_on != "end" and not self.evaluation.test_tasks:
            raise ValueError(
                f"evaluation.test_on is {self.evaluation.test_on}, and there is no sealed test to "
                "open. Name one in evaluation.test_tasks, or leave evaluation.test_on out."
            )
        if SPLIT_TASK in self.eval_tasks and not self.data.val_share:
            raise ValueError(
                f"eval_tasks names {SPLIT_TASK!r}, the share of train_file that data.val_share "
                "holds out, and that is 0. Set data.val_share, or take the task out."
            )

    def _check_sources(self) -> None:
        for key, sources in (
            ("train_file", self.sources(self.train_file)),
            ("mining.pool_file", self.sources(self.mining.pool_file)),
        ):
            check_sources(key, sources)
            for columns in [self.data.columns, *(source.columns or {} for source in sources)]:
                check_columns(columns)
        if self.mining.replay_share + self.mining.new_share > 1:
            raise ValueError(
                f"mining.replay_share {self.mining.replay_share:g} and mining.new_share "
                f"{self.mining.new_share:g} are more than 1 together."
            )
        if self.val_file is not None and self.data.val_share:
            raise ValueError(
                "val_file and data.val_share are both set. Hold out a file, or a share of "
                "train_file."
            )

    @staticmethod
    def sources(given: Sources | None) -> list[SourceSettings]:
        """The sources that a setting names, one or several."""
        named = [] if given is None else [given] if isinstance(given, str) else given
        return [SourceSettings(file=one) if isinstance(one, str) else one for one in named]

    def _check_held_out_every_steps(self) -> None:
        every = self.evaluation.held_out_every_steps
        if every is None:
            return
        if not self.held_out_tasks:
            raise ValueError(
                "evaluation.held_out_every_steps is set, but there is no held-out file to measure. "
                "Set val_file, or add an nll: task to eval_tasks."
            )
        if self.steps_per_round is not None:
            self.steps(self.steps_per_round).refuse_misfits(None, every)

    def _check_maps(self) -> None:
        """Every key of a map names a task of its kind."""
        scored = [name for name in self.eval_tasks if not name.startswith("nll:")]
        inspect = [name for name in (*scored, *self.evaluation.test_tasks) if is_inspect_task(name)]
        evaluation = self.evaluation
        for key, keys, known in (
            ("evaluation.every", evaluation.every, self.measured_tasks),
            ("evaluation.layers", evaluation.layers, scored),
            ("evaluation.task_args", evaluation.task_args, inspect),
            ("evaluation.limit", evaluation.limit, inspect),
            ("evaluation.score_key", evaluation.score_key, inspect),
            ("evaluation.cluster_key", evaluation.cluster_key, inspect),
            ("gate.guards", self.gate.guards, scored),
        ):
            for name in keys:
                if key == "gate.guards" and name.startswith("nll:"):
                    raise ValueError(
                        f"gate.guards names {name!r}, a held-out loss, which has no score that "
                        "could fall. Guards are question files and Inspect tasks."
                    )
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                    hint = f"did you mean {near[0]}?" if near else known_tasks(known)
                    raise ValueError(f"{key} names {name!r}; {hint}")

    def _check_roles(self) -> None:
        if not self.scored_tasks:
            raise ValueError(
                f"nothing in eval_tasks ({', '.join(self.eval_tasks)}) enters the score: held-out "
                "losses and guards never do. Add questions, held-out pairs or an Inspect task."
            )
        for name in self.scored_tasks:
            if name in self.evaluation.every:
                raise ValueError(
                    f"evaluation.every names {name!r}, which enters the score and so is measured "
                    "every round. Take it out, or make the task a guard."
                )

    @property
    def held_out_tasks(self) -> tuple[str, ...]:
        """The `nll:` tasks, `val_file` and the held-out share among them."""
        of_val_file = [] if self.val_file is None else [f"nll:{self.val_file}"]
        of_val_file += [SPLIT_TASK] if self.data.val_share else []
        named = [name for name in self.eval_tasks if name.startswith("nll:")]
        return tuple(dict.fromkeys([*of_val_file, *named]))

    @property
    def measured_tasks(self) -> tuple[str, ...]:
        """Everything that is measured on a checkpoint, the sealed test apart."""
        return tuple(dict.fromkeys([*self.eval_tasks, *self.held_out_tasks]))

    @property
    def scored_tasks(self) -> tuple[str, ...]:
        """The tasks that enter the score: those of the highest layer that there is."""
        candidates = [
            name
            for name in self.eval_tasks
            if not name.startswith("nll:") and name not in self.gate.guards
        ]
        top = max((self.layer_of(name) for name in candidates), default=0)
        return tuple(name for name in candidates if self.layer_of(name) == top)

    def layer_of(self, name: str) -> int:
        """1 held-out loss or pairs, 2 public benchmark, 3 the application's own."""
        usual = {"inspect_evals": 2, "pref": 1}.get(re.split("[/:]", name)[0], 3)
        return 1 if name.startswith("nll:") else self.evaluation.layers.get(name, usual)


class LoadedConfig(NamedTuple):
    """A valid config and where it came from. `directory` is None when there is no config file."""

    config: TrainingConfig
    file: Path
    directory: Path

    def find(self, key: str, name: str, *, or_directory: bool = False) -> Path:
        """Return the file that a setting names, looked for beside the config, then in the cwd."""
        candidates = list(dict.fromkeys([self.directory / name, Path.cwd() / name]))
        for candidate in candidates:
            with contextlib.suppress(OSError, ValueError):  # a name that no file can have
                if candidate.is_file() or (or_directory and candidate.is_dir()):
                    return candidate.resolve()
        tried = " and ".join(str(candidate) for candidate in candidates)
        raise ConfigError(
            f"{self.file}: {key} names {name!r}, but there is no such file. Looked at {tried}."
        )


def load_and_validate_config(path: str | Path, overrides: list[str] | None = None) -> LoadedConfig:
    """Read a JSON config, apply `KEY=VALUE` overrides, and validate it.

    Raises `ConfigError`, one paragraph naming file and key, for anything that is wrong with it.
    """
    file = Path(path)
    raw = with_overrides(read_object(file), overrides or [])
    folder = file.resolve().parent
    return LoadedConfig(validate(with_prices(raw, folder, str(file)), str(file)), file, folder)


def validate(raw: dict[str, Any], where: str) -> TrainingConfig:
    """Validate a config given as a dictionary; `where` names it in errors."""
    checked = check(raw)
    if isinstance(checked, TrainingConfig):
        return checked
    told = dict.fromkeys(problem.sentence for problem in checked.told)
    left = checked.num - len(checked.told)
    more = f" And {left} more problems." if left > 0 else ""
    raise ConfigError(f"{where}: {' '.join(told)}{more}")


def check(raw: dict[str, Any]) -> TrainingConfig | Problems:
    """The config that a dictionary is, or what is wrong with it; of much the first part."""
    try:
        return TrainingConfig.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
        told = [
            Problem(".".join(map(str, place_of(problem))), _explain(problem))
            for problem in found[:MAX_PROBLEMS]
        ]
        return Problems(told, len(found))


def _explain(problem: Any) -> str:
    """Turn one pydantic error into a sentence with key, what was found and what to do."""
    place = place_of(problem)
    key = as_shown(".".join(str(part) for part in place), limit=200)
    if problem["type"] == "extra_forbidden":
        known = [setting.key for setting in describe_settings()]
        if any(isinstance(part, int) for part in place):  # one of several sources
            known = [".".join(map(str, (*place[:-1], n))) for n in SourceSettings.model_fields]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see docs/settings.md."
        return f"{key} is not a setting; {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing; it has no default."
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    found = problem["input"]
    shown = as_shown(json.dumps(found, default=str, ensure_ascii=False))
    return f"{key}: {message_of(problem)}; found {shown} ({type_name(found)})."


def describe_settings() -> Iterator[SettingRow]:
    """Yield every setting, groups dotted, in the order of the schema."""
    yield from rows_of(TrainingConfig.model_fields)


def settings_table() -> str:
    """The settings as a Markdown table, as it stands in docs/settings.md."""
    return table_of(describe_settings())


def config_hash(config: TrainingConfig) -> str:
    """sha256 of everything that a resumed run must share with the run it continues."""
    return hash_of(config.model_dump(mode="json"))

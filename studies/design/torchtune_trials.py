"""Trials of `framework: torchtune`: each is a config for `tune run`, which is not run here.

The study's parameters are merged onto a config of the user's or one that comes with torchtune,
whose file is read without importing it: mappings key by key, all else whole, and a mapping with
another `_component_` whole, since the new component need not take what the old one did. torchtune
adds a misspelt key without a word and trains nothing on small data; both are refused here.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from settings.yaml_file import as_value, dump_yaml, shown
from studies.design.expansion import OVERRIDE, Given, Trial, TrialText, given_in
from studies.design.experiment import Study, nearest
from studies.design.nesting import flat, merged, nested
from studies.design.paths import is_file, is_folder
from studies.design.study_section import refuse_for_torchtune
from studies.design.task_files import StudyTask
from studies.design.torchtune_base import base_of, check_references, referred
from studies.design.torchtune_rows import is_of_hub, num_rows_in, source_of

COMPONENT = "_component_"
NAMES = {
    "learning_rate": "optimizer.lr",
    "dataset": "dataset.source",
    "packed": "dataset.packed",
    "lora_rank": "model.lora_rank",
    "lora_alpha": "model.lora_alpha",
}
# What a component or the recipe takes although a stock config may not hold it.
ALSO_TAKEN = {
    "": (
        *("seed", "clip_grad_norm", "max_steps_per_epoch", "gradient_accumulation_steps"),
        *("save_adapter_weights_only", "log_every_n_steps", "log_peak_memory_stats", "collate_fn"),
        *("cudnn_deterministic_mode", "low_cpu_ram", "resume_from_checkpoint", "shuffle"),
    ),
    "dataset": (
        *("train_on_input", "source", "data_files", "data_dir", "name", "split", "column_map"),
        *("packed", "new_system_prompt", "conversation_column", "conversation_style"),
    ),
    "model": (
        *("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output", "lora_rank"),
        *("lora_alpha", "lora_dropout", "use_dora", "quantize_base"),
    ),
    "optimizer": ("lr", "weight_decay", "betas", "eps", "fused", "foreach", "amsgrad"),
    "lr_scheduler": ("num_warmup_steps", "num_cycles"),
    "tokenizer": ("max_seq_len", "prompt_template"),
    "checkpointer": (
        *("checkpoint_dir", "checkpoint_files", "output_dir", "model_type", "recipe_checkpoint"),
        *("adapter_checkpoint", "safe_serialization"),
    ),
    "metric_logger": ("log_dir", "filename", "project", "entity", "group", "name", "organize_logs"),
}
COMPONENTS = (*(key for key in ALSO_TAKEN if key), "loss", "profiler")
NEEDED = ("checkpoint_dir", "checkpoint_files", "model_type", "output_dir")  # by the checkpointer
MASKS_PROMPTS = (
    *("alpaca_dataset", "alpaca_cleaned_dataset", "grammar_dataset", "samsum_dataset"),
    *("slimorca_dataset", "chat_dataset", "instruct_dataset", "hh_rlhf_helpful_dataset"),
    *("preference_dataset", "stack_exchange_paired_dataset"),
)
HF_CHECKPOINTER = """\
controls:
  _override:
    checkpointer:
      _component_: torchtune.training.FullModelHFCheckpointer
      checkpoint_dir: FOLDER OF THE BASE MODEL
      checkpoint_files: [model.safetensors]
      model_type: LLAMA3_2
      output_dir: ${output_dir}/hf_model"""


def named(key: str) -> str:
    """The place in torchtune's configs that a parameter of the format is."""
    return NAMES.get(key, key)


@dataclass(frozen=True)
class TorchtuneConfigs:
    """What the trials of a study are made from. `fixed` is the base with what trials share."""

    study: Study
    base_file: Path
    fixed: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def first_seed(self) -> Any:
        """The seed that a trial has which is no replicate; None is torchtune's "by chance"."""
        return self.fixed.get("seed")

    def text_of(self, trial: Trial) -> TrialText:
        """The config of a trial as its file has it. Raises `ConfigError` for one that would train
        nothing, or refers to what is not there."""
        config = copy.deepcopy(self.fixed)
        for key, value in trial.params.items():
            if key == "dataset":
                _put_source(self.study, config, value, ("variables", key))
            else:
                config = _merged_components(config, nested({key: value}, named))
        if trial.is_replicate:
            config["seed"] = trial.seed
        config["output_dir"] = str(self.study.results_dir / trial.run_id)
        check_references(config, self.study.file)
        _refuse_shared_weights(self.study, config)
        steps = _steps_of(self.study, config, trial)
        told = "its rows are not known here, nor its steps" if steps is None else steps.shown
        header = f"# {trial.run_id}: {trial.shown}\n# {told}\n"
        return TrialText(header + dump_yaml(config), _short_warm_up(config, steps))

    def data_files(self) -> list[Path]:
        """The base config, and the files of rows that trials train on, as far as they lie here."""
        values = [self.study.experiment.controls.get("dataset")]
        values += self.study.experiment.variables.get("dataset", [])
        files = [self.study.folder / value for value in values if isinstance(value, str)]
        return [path for path in dict.fromkeys([self.base_file, *files]) if is_file(path)]


def open_configs(study: Study, tasks: Sequence[StudyTask]) -> TorchtuneConfigs:
    """Merge what trials share, and check all that holds for every trial. Raises `ConfigError`."""
    refuse_for_torchtune(study)
    base = base_of(study)
    given = given_in(study, named)
    _check_pair(study, given)
    controls = dict(study.experiment.controls)
    override = controls.pop(OVERRIDE, None) or {}
    has_source = "dataset" in controls
    source = controls.pop("dataset", None)
    own = merged(nested(controls, named), nested(override, str))
    dropped = _check_keys(study, base.content, own, given)
    fixed = _merged_components(base.content, nested(controls, named))
    fixed = _merged_components(fixed, nested(override, str))
    if has_source:
        _refuse_second_source(study, override.get("dataset"))
        _put_source(study, fixed, source, ("controls", "dataset"))
    warnings = [
        *dropped,
        *_about_hub(study),
        *_mask_prompts(study, fixed),
        *_about_evaluation(study, fixed, tasks),
    ]
    return TorchtuneConfigs(study, base.path, fixed, tuple(warnings))


def _merged_components(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`merged`, but for mappings that another component gets."""
    made = copy.deepcopy(below)
    for key, value in above.items():
        before = made.get(key)
        if (
            not isinstance(before, dict)
            or not isinstance(value, dict)
            or _is_replaced(before, value)
        ):
            made[key] = copy.deepcopy(value)
        else:
            made[key] = _merged_components(before, value)
    return made


def _is_replaced(before: Any, value: Any) -> bool:
    is_named = isinstance(value, dict) and COMPONENT in value
    return is_named and isinstance(before, dict) and before.get(COMPONENT) != value[COMPONENT]


# --- what is given --------------------------------------------------------------------------------


def _check_pair(study: Study, given: Sequence[Given]) -> None:
    """A rank without its alpha would silently train at another scale."""
    by_name = {one.name: one for one in given}
    rank, alpha = by_name.get("model.lora_rank"), by_name.get("model.lora_alpha")
    if (rank is None) == (alpha is None):
        return
    one, lacks = (rank, "lora_alpha") if alpha is None else (alpha, "lora_rank")
    assert one is not None
    raise study.file.error(
        one.place,
        f"{one.place[-1]} is given without {lacks}, and the scale of an adapter is lora_alpha / "
        f"lora_rank. Give {lacks} as well, in variables or controls.",
    )


def _check_keys(
    study: Study, base: dict[str, Any], own: dict[str, Any], given: Sequence[Given]
) -> list[str]:
    """Raise `ConfigError` for a parameter that no torchtune config has, or of another type; `own`
    is what the study gives, nested.

    Returns a line on each component that is replaced, with what went with the old one.
    """
    replaced = [key for key, value in own.items() if _is_replaced(base.get(key), value)]
    added = [key for key in COMPONENTS if key not in base and COMPONENT in (own.get(key) or {})]
    for one in itertools.chain.from_iterable(map(_taken_apart, given)):
        if one.name == "output_dir":
            raise study.file.error(
                one.place, "output_dir is the trial's own, below output.results_dir. Take it out."
            )
        if one.place[-1] == "dataset_template":
            raise study.file.error(
                one.place,
                "dataset_template: torchtune 0.6.1 has no templates of datasets. Set "
                "tokenizer.prompt_template, or dataset.column_map.",
            )
        if one.name.split(".")[0] not in (*replaced, *added):
            _check_key(study, base, one)
    return [
        f"{key}: the component is replaced, and with it goes "
        f"{', '.join(k for k in base[key] if k != COMPONENT and k not in own[key]) or 'nothing'}"
        for key in replaced
    ]


def _taken_apart(one: Given) -> Iterator[Given]:
    """A variable with a parameter for each of its values, and for each key of those that are
    mappings; others as they are."""
    if one.place[0] != "variables":
        yield one
        return
    for number, value in enumerate(one.value):
        for key, inner in flat({one.name: value}).items():
            yield Given(key, inner, (*one.place, number) if key != one.name else one.place)


def _check_key(study: Study, base: dict[str, Any], one: Given) -> None:
    top, *inner = one.name.split(".")
    is_known_group = bool(inner) and top in base
    parent, key = _parent_of(base, one.name) if is_known_group else (base, top)
    known = [*(parent or {}), *ALSO_TAKEN.get(top if is_known_group else "", ())]
    if key not in known:
        offered = [*known, *(() if is_known_group else COMPONENTS if inner else NAMES)]
        raise study.file.error(
            one.place,
            f"{shown(one.name)} is in no torchtune config of this kind; "
            f"{nearest(key, offered)} If it is meant, put it into a base_config_file of yours.",
        )
    if "dataset" not in one.place:
        _check_type(study, one, (parent or {}).get(key))


def _parent_of(base: dict[str, Any], dotted: str) -> tuple[dict[str, Any] | None, str]:
    """The mapping that the part of a dotted key lies in that decides whether it is known."""
    top, *inner = dotted.split(".")
    parent: Any = base.get(top)
    for number, key in enumerate(inner):
        if not isinstance(parent, dict):
            return None, key
        if number == len(inner) - 1 or not isinstance(parent.get(key), dict):
            return parent, key
        parent = parent[key]
    return None, inner[-1]


def _check_type(study: Study, one: Given, before: Any) -> None:
    value = one.value
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if one.name == "model.lora_rank" and not is_whole:
        raise study.file.error(
            one.place, f"lora_rank is {as_value(value)}. Give whole numbers from 1."
        )
    kinds = {_kind_of(value), _kind_of(before)}
    if None not in kinds and len(kinds) > 1 and kinds != {"a list", "a mapping"}:
        raise study.file.error(
            one.place,
            f"{shown(one.name)} is {as_value(value)}, {_kind_of(value)}, where the base config "
            f"has {as_value(before)}, {_kind_of(before)}. Write one like it.",
        )


def _kind_of(value: Any) -> str | None:
    """The type of a value; None for what may stand for any."""
    if value is None or (isinstance(value, str) and "${" in value):
        return None
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "a mapping", list: "a list", str: "a text"}
    return kinds.get(type(value), "a number")


# --- data -----------------------------------------------------------------------------------------


def _refuse_second_source(study: Study, override: Any) -> None:
    for key in ("source", "data_files"):
        if isinstance(override, dict) and key in override:
            raise study.file.error(
                ("controls", OVERRIDE, "dataset", key),
                f"controls.dataset and controls._override.dataset.{key} both say where rows come "
                "from. Keep one of them.",
            )


def _put_source(study: Study, config: dict[str, Any], value: Any, place: tuple[str, ...]) -> None:
    dataset = config.get("dataset")
    if not isinstance(value, str) or not isinstance(dataset, dict):
        raise study.file.error(
            place,
            f"dataset is {as_value(value)}. It is a file or the name of a hub's data set, and the "
            "base config's dataset one mapping; its other keys stand in _override.dataset.",
        )
    config["dataset"] = {**dataset, **source_of(study, value, place)}


def _about_hub(study: Study) -> list[str]:
    experiment = study.experiment
    names = [experiment.controls.get("dataset"), *experiment.variables.get("dataset", [])]
    return [
        f"dataset {shown(name)} is taken for one of the hub's, which is not asked; its rows, and "
        "so the steps of its trials, are not known here"
        for name in names
        if isinstance(name, str) and is_of_hub(study, name)
    ]


def _mask_prompts(study: Study, config: dict[str, Any]) -> list[str]:
    """Say in the config what carries loss; the defaults of torchtune's builders differ."""
    told = []
    datasets = config.get("dataset")
    for one in datasets if isinstance(datasets, list) else [datasets]:
        if not isinstance(one, dict) or "train_on_input" in one:
            continue
        if str(one.get(COMPONENT)).rpartition(".")[2] in MASKS_PROMPTS:
            one["train_on_input"] = False
            told.append(
                "dataset.train_on_input is set to false: answers alone carry loss. Some of "
                "torchtune's data sets train on prompts too where it is not set"
            )
    return told


class Steps(NamedTuple):
    """The optimizer steps of a trial, as torchtune counts them."""

    num_rows: int
    per_epoch: int
    epochs: int

    @property
    def total(self) -> int:
        return self.per_epoch * self.epochs

    @property
    def shown(self) -> str:
        return f"{self.num_rows} rows: {self.per_epoch} steps an epoch, {self.total} in all"


def _steps_of(study: Study, config: dict[str, Any], trial: Trial) -> Steps | None:
    """The steps of a trial; None where its rows are not known. Raises `ConfigError` for none.

    torchtune takes no step, saves weights as they were and exits 0 where an epoch has fewer rows
    than one step needs.
    """
    num_rows = num_rows_in(config.get("dataset"))
    batch_size = referred(config, config.get("batch_size"))
    accumulated = referred(config, config.get("gradient_accumulation_steps", 1))
    epochs = referred(config, config.get("epochs", 1))
    most = referred(config, config.get("max_steps_per_epoch"))
    for name, value in (
        ("batch_size", batch_size),
        ("gradient_accumulation_steps", accumulated),
        ("epochs", epochs),
        ("max_steps_per_epoch", 1 if most is None else most),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise study.file.error(
                _place_of(study, name), f"{name} is {as_value(value)}. Give a whole number from 1."
            )
    if num_rows is None:
        return None
    per_epoch = num_rows // batch_size // accumulated
    if per_epoch > 0:
        return Steps(num_rows, min(per_epoch, most or per_epoch), epochs)
    raise study.file.error(
        _place_of(study, "batch_size"),
        f"{trial.run_id} ({shown(trial.shown)}) would take no step: {num_rows} rows make "
        f"{num_rows // batch_size} batches of batch_size {batch_size}, and a step takes "
        f"gradient_accumulation_steps {accumulated} of them. torchtune would end without a word "
        f"and save the base model. Lower one of them to at most {num_rows} rows together, or add "
        "rows.",
    )


def _short_warm_up(config: dict[str, Any], steps: Steps | None) -> str | None:
    scheduler = config.get("lr_scheduler")
    warm_up = scheduler.get("num_warmup_steps") if isinstance(scheduler, dict) else None
    if steps is None or not isinstance(warm_up, int) or warm_up < steps.total:
        return None
    return (
        f"the {steps.total} steps of a trial are not more than lr_scheduler.num_warmup_steps "
        f"{warm_up}, so it never reaches its learning rate. Set lr_scheduler.num_warmup_steps"
    )


def _place_of(study: Study, name: str) -> tuple[str, ...]:
    """Where a parameter is given, else where the base config is named."""
    for one in given_in(study, named):
        if one.name == name:
            return tuple(map(str, one.place))
    return ("framework_config",)


def _refuse_shared_weights(study: Study, config: dict[str, Any]) -> None:
    """Trials that save to one folder would overwrite each other."""
    checkpointer = config.get("checkpointer")
    if not isinstance(checkpointer, dict) or "output_dir" not in checkpointer:
        return
    given = checkpointer["output_dir"]
    found = str(referred(config, given))
    if "${" in found or not found.startswith(config["output_dir"]):
        raise study.file.error(
            _place_of(study, "checkpointer.output_dir"),
            f"checkpointer.output_dir is {as_value(given)}, which is not below the trial's own "
            "output_dir, so trials would overwrite each other's weights. Write ${output_dir}, or a "
            "folder below it.",
        )


# --- evaluation -----------------------------------------------------------------------------------


def _about_evaluation(
    study: Study, config: dict[str, Any], tasks: Sequence[StudyTask]
) -> list[str]:
    """What stands between training and evaluation: refused, or a warning."""
    if not tasks:
        return []
    evaluation, error = study.experiment.evaluation, study.file.error
    if evaluation.checkpoint != "last":
        raise error(
            ("evaluation", "checkpoint"),
            "evaluation.checkpoint is best, but torchtune scores nothing while it trains. Write "
            "last, which is the last epoch's.",
        )
    if evaluation.model_format == "adapter" or evaluation.merge_adapters is False:
        key = "model_format" if evaluation.model_format == "adapter" else "merge_adapters"
        raise error(
            ("evaluation", key),
            f"evaluation.{key}: torchtune writes whole, merged weights, and these are evaluated. "
            "Write model_format: hf, and leave merge_adapters and base_model out.",
        )
    if config.get("save_adapter_weights_only"):
        raise error(
            _place_of(study, "save_adapter_weights_only"),
            "save_adapter_weights_only is true, so there would be no merged weights to evaluate. "
            "Set it to false in controls.",
        )
    checkpointer = config.get("checkpointer")
    if not isinstance(checkpointer, dict) or not str(checkpointer.get(COMPONENT)).endswith(
        "HFCheckpointer"
    ):
        return [
            "no Hugging Face checkpointer is configured, so the weights cannot be loaded for "
            f"evaluation. Add these lines:\n{HF_CHECKPOINTER}"
        ]
    return _about_weights(study, checkpointer)


def _about_weights(study: Study, checkpointer: dict[str, Any]) -> list[str]:
    lacking = [key for key in NEEDED if checkpointer.get(key) is None]
    told = [f"the Hugging Face checkpointer lacks {', '.join(lacking)}"] if lacking else []
    folder = checkpointer.get("checkpoint_dir")
    if isinstance(folder, str) and folder.startswith("${output_dir}"):
        told.append(
            f"checkpointer.checkpoint_dir is {folder}, a new folder of the trial's, but torchtune "
            "reads the base model from there. Name the folder that holds the base model"
        )
    elif isinstance(folder, str) and "${" not in folder and not is_folder(study.folder / folder):
        told.append(
            f"checkpointer.checkpoint_dir {folder}: there is no such folder on this machine"
        )
    return told

"""What is settled before the first paid step: files, data, renderer, schedule, and where it runs.

`read_inputs` needs no tokenizer and no network, `make_plan` adds the rendering. Nothing here talks
to a service; whatever a setting left open is resolved once and said, with its source.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import config_schema
import hyperparam_utils
from config_schema import LoadedConfig, TrainingConfig
from data_loader import (
    CleanSplit,
    LoadedData,
    LoadedFile,
    clean_split,
    load_examples,
    split_validation,
)
from data_selector import Mining
from errors import ConfigError, DataError, RunStoreError
from evaluation import EvalTask, load_eval_tasks, load_test_tasks
from hyperparam_utils import Schedule
from inspect_eval import DEFAULT_MAX_TOKENS as INSPECT_MAX_TOKENS
from inspect_eval import InspectTask, code_of
from nll_eval import HeldOutFile, render_held_out
from rows.contamination import HeldOut
from rows.examples import DropLog, DroppedRow, ExampleTable
from rows.quality import Filters
from rows.rendering import RenderedTable, Rendering, load_renderer, resolve_renderer_name
from rows.sources import HUB_PREFIX, Source, as_text, hub_name, is_saved_dataset
from rows.words import normalise
from run_store import RunStore, Usage
from scores.decision import Gate
from scores.resolution import TaskSize, describe_gate
from services.place import ServiceChoice
from settings.groups import Sources
from settings.task_names import SPLIT_TASK
from simple_eval import DEFAULT_MAX_TOKENS, SamplingSettings

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer

    from data_selector import Pick, Selection


NUM_LISTED = 100  # dropped rows that the manifest itself lists


@dataclass(frozen=True)
class Inputs:
    """The settings with their files read, cleaned and checked."""

    loaded: LoadedConfig
    model_dir: Path | None
    grader_path: str | None  # what the grader is loaded from
    files: dict[str, LoadedData]  # by the setting that names them
    split: CleanSplit
    held_out: HeldOut
    tasks: tuple[EvalTask, ...]
    test_tasks: tuple[EvalTask, ...]
    schedule: Schedule
    learning_rate_source: str

    @property
    def config(self) -> TrainingConfig:
        return self.loaded.config

    @property
    def drop_logs(self) -> list[DropLog]:
        """What was dropped in reading and in cleaning, in that order."""
        return [*(data.dropped for data in self.files.values()), self.split.dropped]

    @property
    def scored_sizes(self) -> list[TaskSize]:
        return [TaskSize(t.n, t.num_clusters) for t in self.tasks if t.role == "score"]

    @property
    def model_path(self) -> str:
        """What the tokenizer is loaded from: a directory, or the hub name."""
        return self.config.base_model if self.model_dir is None else str(self.model_dir)


@dataclass(frozen=True)
class Plan:
    """Inputs with everything rendered; what the loop works from."""

    inputs: Inputs
    config_hash: str
    gate: Gate
    sampling: SamplingSettings
    renderer_name: str
    renderer: Renderer
    rendering: Rendering
    train: RenderedTable
    pool: RenderedTable
    dropped_of_split: DropLog  # rows that `data.val_share` held out and that have no loss
    grader_renderer: Renderer | None

    @property
    def config(self) -> TrainingConfig:
        return self.inputs.config

    @property
    def tasks(self) -> tuple[EvalTask, ...]:
        return self.inputs.tasks

    @property
    def test_tasks(self) -> tuple[EvalTask, ...]:
        return self.inputs.test_tasks

    @property
    def dropped_in_rendering(self) -> list[DropLog]:
        return [self.train.dropped, self.pool.dropped, self.dropped_of_split]

    @property
    def mining(self) -> Mining:
        settings = self.config.mining
        return Mining(
            strategy=settings.strategy,
            replay_share=settings.replay_share,
            new_share=settings.new_share,
            noise_cap=settings.noise_cap,
            num_candidates=settings.num_candidates,
        )

    @property
    def train_weights(self) -> dict[str, float]:
        """The shares of the training sources by their names; empty where they have none."""
        sources = [file.source for file in self.inputs.files["train_file"].files]
        return {one.name: one.weight for one in sources if one.weight is not None}

    def held_out_picks(self, selection: Selection) -> list[Pick]:
        """The picks of a selection that may not be trained on; there are none."""
        return [pick for pick in selection.picks if not self._may_train(pick.example_id)]

    def _may_train(self, example_id: str) -> bool:
        for table in (self.train.examples, self.pool.examples):
            position = table.find(example_id)
            if position is not None:
                hit = self.inputs.held_out.find_in(example_id, table[position].messages)
                return hit is None or hit.kind == "similar"
        return False

    def cost_usd(self, usage: Usage) -> float | None:
        return cost_usd(self.config, usage)

    @property
    def schedule(self) -> Schedule:
        return self.inputs.schedule


def cost_usd(config: TrainingConfig, usage: Usage) -> float | None:
    """What tokens cost by the user's table; None where there is none."""
    table = config.budget.prices
    prices = None if table is None else table.usd_per_million_tokens.get(config.base_model)
    if prices is None:
        return None
    return (
        usage.train_tokens * prices.train
        + usage.prompt_tokens * prices.prefill
        + usage.sampled_tokens * prices.sample
    ) / 1e6


# --- where it runs -----------------------------------------------------------------------------


def find_model_dir(loaded: LoadedConfig) -> Path | None:
    """The directory that `base_model` names, beside the config file or in the working directory."""
    return _model_dir(loaded, "base_model", loaded.config.base_model)


def find_grader_path(loaded: LoadedConfig) -> str | None:
    """What the grader is loaded from: a directory that its setting names, or the hub name."""
    name = loaded.config.evaluation.grader_model
    if name is None:
        return None
    return str(_model_dir(loaded, "evaluation.grader_model", name) or name)


def _model_dir(loaded: LoadedConfig, key: str, name: str) -> Path | None:
    for base in (loaded.directory, Path.cwd()):
        candidate = base / name
        is_directory = is_file = False
        with contextlib.suppress(OSError, ValueError):  # a name that no directory can have
            is_directory, is_file = candidate.is_dir(), candidate.is_file()
        if is_file:
            raise ConfigError(
                f"{loaded.file}: {key} names the file {candidate}, and a model is a directory. "
                "Give a Hugging Face model directory, or the name of a hub model."
            )
        if is_directory:
            if not (candidate / "config.json").is_file():
                raise ConfigError(
                    f"{loaded.file}: {key} names the directory {candidate}, which holds no "
                    "config.json. Give a Hugging Face model directory, with weights and tokenizer."
                )
            _model_config(candidate, key)
            return candidate.resolve()
    return None


def _model_config(directory: Path, key: str) -> dict[str, Any]:
    """A model directory's config.json. Raises `ConfigError` where that is no JSON object."""
    file = directory / "config.json"
    try:
        model_config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(model_config, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"{file}: not a JSON object. Give {key} a complete model directory."
        ) from None
    return model_config


# --- reading ------------------------------------------------------------------------------------


def read_inputs(
    loaded: LoadedConfig, model_dir: Path | None, kept: Mapping[str, Any] | None = None
) -> Inputs:
    """Read all files and resolve the schedule. `kept` holds a resumed run's resolved values."""
    config, kept = loaded.config, kept or {}
    tasks, test_tasks = load_eval_tasks(loaded), load_test_tasks(loaded)
    _refuse_missing_grader(config, (*tasks, *test_tasks))
    _refuse_opened_test(tasks, test_tasks)
    files = {"train_file": _load_rows(loaded, "train_file", config.train_file)}
    if config.mining.pool_file is not None:
        pool_file, beside = config.mining.pool_file, files["train_file"]
        files["mining.pool_file"] = _load_rows(loaded, "mining.pool_file", pool_file, beside)
    train = files["train_file"].examples
    if config.data.val_share:
        train, split_task = _hold_out_share(config, files["train_file"])
        tasks = (*tasks, split_task)
    held_out = held_out_of(tasks, test_tasks)
    pool = files["mining.pool_file"].examples if "mining.pool_file" in files else ExampleTable()
    split = clean_split(train, pool, held_out)
    if config.data.contamination == "stop":
        _refuse_contaminated(split)
    learning_rate, source = _resolve_learning_rate(config, kept, model_dir)
    warmup_steps = kept.get("warmup_steps")
    if warmup_steps is None:
        total = config.total_steps
        warmup_steps = hyperparam_utils.resolve_warmup_steps(config.warmup_steps, total)
    return Inputs(
        loaded=loaded,
        model_dir=model_dir,
        grader_path=find_grader_path(loaded),
        files=files,
        split=split,
        held_out=held_out,
        tasks=tasks,
        test_tasks=test_tasks,
        schedule=Schedule(
            learning_rate=learning_rate,
            min_lr=config.min_lr,
            lr_decay=config.lr_decay,
            warmup_steps=warmup_steps,
            max_steps=config.max_steps,
        ),
        learning_rate_source=source,
    )


def task_code(loaded: LoadedConfig) -> dict[str, str]:
    """The Python files that the settings name as tasks, and what these import from beside them,
    with their sha256; to load one is to run it. Raises `ConfigError`."""
    groups = {
        "eval_tasks": loaded.config.measured_tasks,
        "evaluation.test_tasks": loaded.config.evaluation.test_tasks,
    }
    code: dict[str, str] = {}
    for key, names in groups.items():
        for name in names:
            if ".py@" in name:
                try:
                    code |= code_of(loaded.find(key, name.rpartition("@")[0]))
                except OSError as error:
                    raise ConfigError(f"{loaded.file}: {key}: {name}: {error}.") from None
    return code


def read_eval_inputs(loaded: LoadedConfig, model_dir: Path | None) -> Inputs:
    """What an evaluation outside a run needs: the tasks."""
    config = loaded.config
    tasks = load_eval_tasks(loaded)
    _refuse_missing_grader(config, tasks)
    if config.data.val_share:  # the one thing that only the training file tells
        data = _load_rows(loaded, "train_file", config.train_file)
        tasks = (*tasks, _hold_out_share(config, data)[1])
    return Inputs(
        loaded=loaded,
        model_dir=model_dir,
        grader_path=find_grader_path(loaded),
        files={},
        split=CleanSplit(ExampleTable(), ExampleTable(), DropLog()),
        held_out=HeldOut(()),
        tasks=tasks,
        test_tasks=(),
        schedule=Schedule(config.learning_rate, config.min_lr, config.lr_decay, 0, 1),
        learning_rate_source="not used",
    )


def sources_of(
    loaded: LoadedConfig, key: str, given: Sources, taken: Collection[str] = ()
) -> list[Source]:
    """Find the sources that a setting names, each under a name of its own, not among `taken`.

    Raises `ConfigError` for one that is not there.
    """
    sources: list[Source] = []
    for one in loaded.config.sources(given):
        name, path, on_hub = one.file, None, None
        if one.file.startswith(HUB_PREFIX):
            try:
                on_hub = hub_name(one.file)
            except ConfigError as error:
                raise ConfigError(f"{loaded.file}: {key}: {error}") from None
        else:
            path = loaded.find(key, one.file, or_directory=True)
            if path.is_dir() and not is_saved_dataset(path):
                raise ConfigError(
                    f"{loaded.file}: {key} names the directory {path}, which holds no dataset that "
                    "`datasets` has saved. Name a file in it."
                )
            name = as_text(path.name)
        part = " ".join(filter(None, (one.subset, one.split if one.split != "train" else None)))
        name = f"{name} {part}" if part else name
        used = {*taken, *(other.name for other in sources)}
        if name in used:
            name = f"{one.file} {part}" if part else one.file
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        name = name if name not in used else next(one for one in numbered if one not in used)
        columns = loaded.config.data.columns if one.columns is None else one.columns
        sources.append(
            Source(name, path, on_hub, one.subset, one.split, one.revision, columns, one.weight)
        )
    return sources


def _load_rows(
    loaded: LoadedConfig, key: str, given: Sources, beside: LoadedData | None = None
) -> LoadedData:
    """Read the rows of a setting; those that are nearly one of `beside` are no use."""
    data = loaded.config.data
    taken = () if beside is None else [file.source.name for file in beside.files]
    return load_examples(
        sources_of(loaded, key, given, taken),
        beside=ExampleTable() if beside is None else beside.examples,
        on_bad_row=data.on_bad_row,
        filters=Filters(data.min_words, data.max_words, data.max_repetition),
        near_duplicates_from=data.near_duplicates,
    )


def _hold_out_share(config: TrainingConfig, data: LoadedData) -> tuple[ExampleTable, EvalTask]:
    """Take `data.val_share` out of the training rows, as a held-out task."""
    train, validation = split_validation(data.examples, config.data.val_share)
    path = Path(str(data.files[0].source))
    work = HeldOutFile(SPLIT_TASK, path, validation.sha256, validation)
    every = config.evaluation.every.get(SPLIT_TASK, 1)
    return train, EvalTask(SPLIT_TASK, 1, "report", every, work)


def held_out_of(tasks: Sequence[EvalTask], test_tasks: Sequence[EvalTask]) -> HeldOut:
    """Everything that evaluations ask, which no row may teach."""
    ids = [
        example.id
        for task in tasks
        if isinstance(task.work, HeldOutFile)
        for example in task.work.examples
    ]
    return HeldOut((text for t in (*tasks, *test_tasks) for text in t.held_out_texts), ids)


def _refuse_contaminated(split: CleanSplit) -> None:
    hits = [row for row in split.dropped if row.kind == "contaminated"]
    if hits:
        shown = "; ".join(
            f"{row.file} line {row.line_no}, {row.text!r}, {row.reason}" for row in hits[:5]
        )
        raise DataError(
            f"{len(hits)} of the rows hold what an evaluation asks: {shown}. Take them out, or set "
            "data.contamination to drop."
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
    asked = {normalise(q): task.name for task in tasks if task.layer > 1 for q in task.questions}
    for test in test_tasks:
        for question in test.questions:
            if normalise(question) in asked:
                raise ConfigError(
                    f"evaluation.test_tasks: {test.name} holds the question {question!r}, which "
                    f"{asked[normalise(question)]} asks every round, so the test is not sealed. "
                    "Take it out of one of them."
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
            f"({model_dir}). Set use_recommended_lr to false and learning_rate to a number."
        )
    rate = hyperparam_utils.recommended_lr(config.base_model)
    return rate, f"the cookbook's rate; learning_rate {config.learning_rate:g} is not used"


def gate_of(config: TrainingConfig) -> Gate:
    return Gate(
        threshold=config.eval_threshold,
        max_rounds=config.max_rounds,
        max_steps=config.max_steps,
        lr_decay=config.lr_decay,
        rule=config.gate.rule,
        alpha=config.gate.alpha,
        margin=config.gate.margin,
        patience=config.gate.patience,
        rollback=config.gate.rollback,
        guards=config.gate.guards,
        max_tokens=config.budget.tokens,
        max_minutes=config.budget.minutes,
        max_usd=config.budget.usd,
    )


def make_plan(inputs: Inputs, kept: Mapping[str, Any] | None = None) -> Plan:
    """Load the tokenizer, render all rows, and put the plan together."""
    config = inputs.config
    name = (kept or {}).get("renderer_name") or config.renderer_name
    renderer_name = resolve_renderer_name(name, inputs.model_path)
    renderer = load_renderer(renderer_name, inputs.model_path)
    rendering = Rendering(renderer, config.max_seq_length, config.data.train_on)
    train, pool = rendering.render_all(inputs.split.train), rendering.render_all(inputs.split.pool)
    tasks, dropped_of_split = _render_tasks(inputs.tasks, rendering)
    if config.data.on_bad_row == "stop":
        _refuse_dropped([train.dropped, pool.dropped, dropped_of_split])
    _refuse_empty_sources(inputs, train)
    inputs = replace(inputs, tasks=tasks)
    grader, grader_renderer = inputs.grader_path, None
    if grader is not None:
        format_name = resolve_renderer_name(None, grader, key="evaluation.grader_model")
        grader_renderer = load_renderer(format_name, grader)
    return Plan(
        inputs=inputs,
        config_hash=config_schema.config_hash(config),
        gate=gate_of(config),
        sampling=SamplingSettings(
            temperature=config.evaluation.temperature,
            max_tokens=config.evaluation.max_tokens,
            seed=config.seed,
            num_repeats=config.evaluation.num_repeats,
            concurrency=config.evaluation.concurrency,
        ),
        renderer_name=renderer_name,
        renderer=renderer,
        rendering=rendering,
        train=train,
        pool=pool,
        dropped_of_split=dropped_of_split,
        grader_renderer=grader_renderer,
    )


def _render_tasks(
    tasks: tuple[EvalTask, ...], rendering: Rendering
) -> tuple[tuple[EvalTask, ...], DropLog]:
    """Render the held-out rows. A file must have a loss in every row; what is held out of the
    training rows loses those that have none, as the training rows do."""
    rendered, dropped = [], DropLog()
    for task in tasks:
        if task.name == SPLIT_TASK and isinstance(task.work, HeldOutFile):
            table = rendering.render_all(task.work.examples)
            dropped, digest = table.dropped, table.examples.sha256
            task = replace(task, work=replace(task.work, examples=table.examples, sha256=digest))
        elif isinstance(task.work, HeldOutFile):
            render_held_out(task.work, rendering)
        rendered.append(task)
    return tuple(rendered), dropped


def _refuse_dropped(logs: list[DropLog]) -> None:
    dropped = [row for log in logs for row in log]
    if dropped:
        shown = "; ".join(f"{row.file} line {row.line_no}: {row.reason}" for row in dropped[:20])
        more = f"; and {len(dropped) - 20} more" if len(dropped) > 20 else ""
        raise DataError(
            f"{_counted(len(dropped), 'row')} cannot be trained on: {shown}{more}. Correct or "
            "remove them, raise max_seq_length, or set data.on_bad_row to skip, which leaves them "
            "out and lists them."
        )


def _refuse_empty_sources(inputs: Inputs, train: RenderedTable) -> None:
    """A source with a weight must have rows to take its share from."""
    logs = [*inputs.drop_logs, train.dropped]
    files = inputs.files["train_file"].files if "train_file" in inputs.files else ()
    left = {train.examples.source_of(position) for position in range(len(train.examples))}
    for file in files:
        if file.source.weight is not None and file.source.name not in left:
            reasons = (r for log in logs for r in log if r.file == file.source.name)
            shown = "; ".join(f"line {r.line_no}: {r.reason}" for r in itertools.islice(reasons, 3))
            raise DataError(
                f"{file.source}: none of its {_counted(file.num_rows, 'row')} is left to train on "
                f"({shown}), and train_file gives it the weight {file.source.weight:g}. Correct "
                "the rows, or take it out."
            )


# --- on disk ------------------------------------------------------------------------------------


def resolved_config(
    plan: Plan, choice: ServiceChoice, versions: Mapping[str, str]
) -> dict[str, Any]:
    """What config.resolved.json holds: the settings as used, and what `null` stood for."""
    return {
        "config": plan.config.model_dump(mode="json"),
        "config_hash": plan.config_hash,
        "config_file": str(plan.inputs.loaded.file.resolve()),
        "resolved": {
            "renderer_name": plan.renderer_name,
            "learning_rate": plan.schedule.learning_rate,
            "warmup_steps": plan.schedule.warmup_steps,
            "service": choice.kind,
        },
        "files": {
            "base_model": plan.inputs.model_path,
            **{name: str(file.source) for name, file in _named_files(plan.inputs).items()},
            **{
                f"eval_tasks.{task.name}": str(task.work.path)
                for task in (*plan.tasks, *plan.test_tasks)
                if not isinstance(task.work, InspectTask)
            },
        },
        "versions": dict(versions),
    }


def _named_files(inputs: Inputs) -> dict[str, LoadedFile]:
    """The files of rows by the setting that names them, numbered where it names several."""
    return {
        key if len(data.files) == 1 else f"{key}[{number}]": file
        for key, data in inputs.files.items()
        for number, file in enumerate(data.files)
    }


def dropped_rows(plan: Plan) -> Iterator[DroppedRow]:
    """Every row that is not trained on, and the similar ones, which are."""
    return itertools.chain.from_iterable(_drop_logs(plan))


def _drop_logs(plan: Plan) -> list[DropLog]:
    return [*plan.inputs.drop_logs, *plan.dropped_in_rendering]


def _num_dropped(logs: list[DropLog]) -> Counter[str]:
    return sum((log.counts for log in logs), Counter())


def data_manifest(plan: Plan) -> dict[str, Any]:
    """What data_manifest.json holds: counts, hashes, and the first dropped rows with reasons.

    All of them are in data_dropped.jsonl.
    """
    rendered = {"train_file": plan.train, "mining.pool_file": plan.pool}
    return {
        "files": {
            name: {
                "path": str(file.source),
                "sha256": file.sha256,
                "num_rows": file.num_rows,
            }
            for name, file in _named_files(plan.inputs).items()
        },
        "examples": {
            key: {
                "num_examples": len(rendered[key].examples),
                "num_tokens": sum(rendered[key].num_tokens),
                "num_loss_tokens": sum(rendered[key].num_loss_tokens),
                "num_truncated": rendered[key].num_truncated,
            }
            for key in plan.inputs.files
        },
        "eval_tasks": {
            task.name: {
                "path": task.name if isinstance(task.work, InspectTask) else str(task.work.path),
                "sha256": task.work.sha256,
                "num_questions": task.n,
            }
            for task in (*plan.tasks, *plan.test_tasks)
        },
        "code": {
            path: sha256
            for task in (*plan.tasks, *plan.test_tasks)
            if isinstance(task.work, InspectTask)
            for path, sha256 in task.work.code.items()
        },
        "num_dropped": dict(_num_dropped(_drop_logs(plan))),
        "dropped": [asdict(row) for row in itertools.islice(dropped_rows(plan), NUM_LISTED)],
    }


def refuse_foreign_records(plan: Plan, store: RunStore) -> None:
    """Raise `RunStoreError` for results and selections that this plan cannot have led to."""
    tasks = (*plan.tasks, *plan.test_tasks)
    store.refuse_other_results({task.name: task.sample_ids for task in tasks})
    num_picks, selection = 0, None
    for event in store.events("selected"):
        before = store.checkpoint(event["round"] - 1)
        num_left = plan.config.max_steps - (0 if before is None else before.step)
        num_slots = min(plan.config.steps_per_round, num_left) * plan.config.batch_size
        selection = store.selection(event["round"])
        assert selection is not None, "there is an event of it"
        num_picks += num_slots
        numbers = selection.train_cursor, *selection.times_drawn.values()
        is_of_plan = (selection.round, selection.seed) == (event["round"], plan.config.seed)
        if len(selection.picks) != num_slots or max(numbers) > num_picks or not is_of_plan:
            raise _foreign(store, event["file"], "other rows or counts than the settings ask for")
    if selection is not None and (held_out := plan.held_out_picks(selection)):
        name = f"selections/round_{selection.round:02d}.json"
        raise _foreign(store, name, f"{held_out[0].example_id}, which may not be trained on")


def _foreign(store: RunStore, name: str, what: str) -> RunStoreError:
    return RunStoreError(
        f"{store.run_dir / name}: it names {what}. The file was changed by something else; "
        "restore it or start a new run."
    )


# --- what the user is told ------------------------------------------------------------------------


def describe_inputs(inputs: Inputs) -> Iterator[str]:
    """Yield the lines about files and schedule, each resolved value with its source."""
    config = inputs.config
    for key, data in inputs.files.items():
        kept = inputs.split.train if key == "train_file" else inputs.split.pool
        names = ", ".join(file.source.name for file in data.files)
        yield f"{key}: {len(kept)} examples of {data.num_rows} rows in {names}"
    logs = inputs.drop_logs
    dropped = _num_dropped(logs)
    num_similar = dropped.pop("similar", 0)
    if dropped:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(dropped.items()))
        where = "a run lists each, with file, line and reason, in its data_dropped.jsonl"
        yield f"dropped rows: {counts} ({where})"
        rows = (row for log in logs for row in log if row.kind != "similar")
        for row in itertools.islice(rows, 3):
            yield f"  {row.file} line {row.line_no}: {row.reason}"
    if num_similar:
        yield (
            f"similar rows: {num_similar} are near an evaluation question and have another answer; "
            "they are trained on, and listed in data_dropped.jsonl"
        )
    repeats = config.evaluation.num_repeats
    for task in inputs.tasks:
        yield f"evaluation: {_describe_task(task, repeats)}{_when(task)}"
    for task in inputs.test_tasks:
        yield f"sealed test: {_describe_task(task, repeats)}"
    yield from describe_gate(gate_of(config), inputs.scored_sizes)
    source = "warmup_steps" if config.warmup_steps is not None else "resolved from null"
    yield (
        f"schedule: at most {config.total_steps} steps "
        f"(max_rounds {config.max_rounds} x steps_per_round {config.steps_per_round}, "
        f"max_steps {config.max_steps}) of {config.batch_size} examples; "
        f"warm-up {inputs.schedule.warmup_steps} steps ({source})"
    )
    yield (
        f"learning rate: {inputs.schedule.learning_rate:g} ({inputs.learning_rate_source}), "
        f"times {config.lr_decay:g} after each missed threshold, not below {config.min_lr:g}"
    )


def describe_tasks(inputs: Inputs) -> Iterator[str]:
    """Yield a line for each task of an evaluation outside a run."""
    repeats = inputs.config.evaluation.num_repeats
    return (f"evaluation: {_describe_task(task, repeats)}" for task in inputs.tasks)


def _describe_task(task: EvalTask, num_repeats: int) -> str:
    kind = "conversation" if task.layer == 1 else "question"
    topics = f" in {_counted(len(task.topics), 'topic')}" if task.topics else ""
    role = {"guard": ", a guard", "report": ", beside the score", "score": ""}[task.role]
    notes = "".join(f"; {note}" for note in _inspect_notes(task.work, num_repeats))
    return f"{task.name}, {_counted(task.n, kind)}{topics}{role}{notes}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _inspect_notes(work: object, num_repeats: int) -> Iterator[str]:
    """What of an Inspect task's own settings is not used."""
    if not isinstance(work, InspectTask):
        return
    if work.task.epochs not in (None, 1, num_repeats):
        yield f"its own {work.task.epochs} epochs are evaluation.num_repeats {num_repeats} here"
    if len(work.task.scorer or []) > 1 and work.score_key is None:
        yield f"the first of its {len(work.task.scorer or [])} scorers counts"


def _when(task: EvalTask) -> str:
    if task.every == 1 or task.role == "score":
        return ""
    return ", at the end" if task.every == "end" else f", every {task.every} rounds"


def describe_plan(plan: Plan) -> Iterator[str]:
    """Yield the lines about what only the tokenizer can tell: renderer, tokens, capacity."""
    config = plan.config
    source = "renderer_name" if config.renderer_name else "resolved from null"
    yield f"renderer: {plan.renderer_name} ({source})"
    dropped = [row for log in plan.dropped_in_rendering for row in log]
    if dropped:
        first = f"{dropped[0].file} line {dropped[0].line_no}: {dropped[0].reason}"
        yield f"dropped in rendering: {len(dropped)} rows, the first {first}"
    tables = plan.train, plan.pool
    num_truncated = sum(table.num_truncated for table in tables)
    if num_truncated:
        yield (
            f"truncated: {num_truncated} examples are longer than max_seq_length "
            f"{config.max_seq_length}"
        )
    num_examples = sum(len(table.examples) for table in tables)
    mean_tokens = sum(sum(table.num_tokens) for table in tables) / num_examples
    num_trained = round(mean_tokens * config.total_steps * config.batch_size)
    yield f"tokens at most: about {num_trained:,} trained, {_describe_eval_tokens(plan)}"
    num_loss_tokens = sum(sum(table.num_loss_tokens) for table in tables)
    yield hyperparam_utils.capacity_sentence(
        _lora_param_count(plan.inputs), num_loss_tokens, config.lora_rank
    )


def _describe_eval_tokens(plan: Plan) -> str:
    """The most tokens that all evaluations of the run read and sample, one turn to a question."""
    config = plan.config
    num_rounds = math.ceil(config.total_steps / config.steps_per_round)
    num_prompt = num_sampled = 0
    for task in plan.tasks:
        times = sum(task.is_due(round_no) for round_no in range(num_rounds + 1))
        if times <= num_rounds:  # also where a round is stopped on, and a guard before a rollback
            times = num_rounds + 1 if task.role == "guard" else times + 1
        every = config.evaluation.held_out_every_steps
        if every is not None and task.layer == 1:
            times += config.total_steps // every
        per_time = _eval_tokens(plan, task)
        num_prompt += times * per_time.num_prompt
        num_sampled += times * per_time.num_sampled
        if task.needs_rehearsal:
            num_prompt += per_time.num_prompt // task.n
            num_sampled += _max_tokens(plan, task)
    num_prompt += _num_mining_tokens(plan, num_rounds)
    for task in plan.test_tasks:
        num_prompt += _eval_tokens(plan, task).num_prompt
        num_sampled += _eval_tokens(plan, task).num_sampled
    sealed = " and the sealed test" if plan.test_tasks else ""
    judged = (
        "; what the grader reads and says comes on top" if config.evaluation.grader_model else ""
    )
    return (
        f"{num_prompt:,} prompt and {num_sampled:,} sampled in {num_rounds + 1} evaluations"
        f"{sealed}{judged}"
    )


def _num_mining_tokens(plan: Plan, num_rounds: int) -> int:
    """Tokens of the rows whose losses are measured before each later round, and once untrained,
    were they the longest ones."""
    if not plan.mining.needs_losses:
        return 0
    rendered = plan.pool if len(plan.pool.examples) else plan.train
    num_slots = plan.config.steps_per_round * plan.config.batch_size
    num_hard = plan.mining.slots(num_slots, has_pool=rendered is plan.pool).num_hard
    longest = sorted((number + 1 for number in rendered.num_tokens), reverse=True)
    at_once = plan.mining.num_to_measure(num_hard)
    num_tokens = (num_rounds - 1) * sum(longest[:at_once])
    if plan.mining.needs_losses_before:
        num_tokens += sum(longest[: (num_rounds - 1) * at_once])
    return num_tokens


class _EvalTokens(NamedTuple):
    num_prompt: int
    num_sampled: int


def _eval_tokens(plan: Plan, task: EvalTask) -> _EvalTokens:
    """Tokens of measuring a task once, at the most."""
    if isinstance(task.work, HeldOutFile):
        infos = [plan.rendering[example.id].info for example in task.work.examples]
        return _EvalTokens(sum(info.num_tokens + 1 for info in infos), 0)
    num_prompt = sum(
        plan.renderer.build_generation_prompt([{"role": "user", "content": question}]).length
        for question in task.questions
    )
    repeats = plan.sampling.num_repeats
    return _EvalTokens(repeats * num_prompt, repeats * task.n * _max_tokens(plan, task))


def _max_tokens(plan: Plan, task: EvalTask) -> int:
    """The longest answer of one turn."""
    if plan.sampling.max_tokens is not None:
        return plan.sampling.max_tokens
    if not isinstance(task.work, InspectTask):
        return DEFAULT_MAX_TOKENS
    return task.work.task.config.max_tokens or INSPECT_MAX_TOKENS


def _lora_param_count(inputs: Inputs) -> int | None:
    config = inputs.config
    flags = {
        "train_attn": config.train_attn,
        "train_mlp": config.train_mlp,
        "train_unembed": config.train_unembed,
    }
    if inputs.model_dir is None:
        return hyperparam_utils.known_lora_param_count(config.base_model, config.lora_rank, **flags)
    model_config = _model_config(inputs.model_dir, "base_model")
    try:
        return hyperparam_utils.lora_param_count(model_config, config.lora_rank, **flags)
    except (TypeError, ValueError, ZeroDivisionError):
        raise ConfigError(
            f"{inputs.model_dir / 'config.json'}: its sizes are not all positive numbers. Give "
            "base_model a complete model directory."
        ) from None


def schedule_table(inputs: Inputs) -> Iterator[str]:
    """Yield the learning rate of each step that will be taken if every threshold is missed."""
    config = inputs.config
    yield "round  steps  learning rate, first to last step"
    for round_no in range(1, config.max_rounds + 1):
        first = (round_no - 1) * config.steps_per_round
        end = min(first + config.steps_per_round, config.total_steps)
        if first >= end:
            return
        start_lr = inputs.schedule.lr(first, round_no - 1)
        end_lr = inputs.schedule.lr(end - 1, round_no - 1)
        yield f"{round_no:>5}  {first}-{end - 1}  {start_lr:.4g} -> {end_lr:.4g}"


def unchecked_without_service(choice: ServiceChoice | None) -> list[str]:
    """What a dry run cannot know."""
    if choice is not None and choice.kind == "embedded":
        return ["whether the model's weights load and train"]
    return [
        "whether the service can be reached and accepts the key",
        "whether it serves base_model",
    ]

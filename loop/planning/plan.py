"""What is settled before the first paid step: files, data, renderer, schedule, and where it runs.

`read_inputs` needs no tokenizer and no network, `make_plan` adds the rendering. Nothing here talks
to a service; whatever a setting left open is resolved once and said, with its source.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import config_schema
from config_schema import TrainingConfig
from data_selector import Mining, Pick, Selection
from errors import DataError
from evaluation.held_out import HeldOutFile, render_held_out
from evaluation.preferences import PairFile, render_pairs
from evaluation.tasks import EvalTask
from hyperparam_utils import RunSteps, Schedule
from ledger.records import Origin, Usage
from loop.planning.fitting import (
    ModelLimits,
    held_out_tables,
    infos_of,
    limits_of,
    refuse_long_prompts,
    refuse_long_questions,
    refuse_long_rows,
    refuse_unheard_prompt,
    refuse_unknown_ids,
)
from loop.planning.inputs import Inputs, counted
from loop.planning.rewards import refuse_unfit_references
from loop.planning.steps import mining_of
from loop.planning.teacher import refuse_other_tokenizer, refuse_same_weights, with_system
from rows.chat_formats import ChatFormat, choose_format, former_name, load_renderer
from rows.control_tokens import guard
from rows.examples import DropLog, find_example
from rows.rendering import PAIRS_TRAIN_ON, RenderedTable, Rendering
from scores.decision import UNTOUCHED, Gate
from simple_eval import SamplingSettings

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer, TrainOnWhat


@dataclass(frozen=True)
class Plan:
    """Inputs with everything rendered; what the loop works from."""

    inputs: Inputs
    config_hash: str
    gate: Gate
    sampling: SamplingSettings
    max_seq_length: int  # that rows are cut at
    chat_format: ChatFormat
    rendering: Rendering
    train: RenderedTable
    pool: RenderedTable
    dropped_of_split: DropLog  # rows that `data.val_share` held out and that have no loss
    grader_format: ChatFormat | None
    model_files: Mapping[str, str] | None = None  # sha256 by name, once a run is to begin
    origin: Origin | None = None  # what the run is started from, where it is not the base model

    @property
    def config(self) -> TrainingConfig:
        return self.inputs.config

    @property
    def renderer_name(self) -> str:
        return self.chat_format.name

    @property
    def renderer(self) -> Renderer:
        return self.chat_format.renderer

    @property
    def grader_renderer(self) -> Renderer | None:
        return None if self.grader_format is None else self.grader_format.renderer

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
        return mining_of(self.config)

    @property
    def train_weights(self) -> dict[str, float]:
        """The shares of the training sources by their names; empty where they have none."""
        return self.inputs.train_weights

    def contaminated_picks(self, selection: Selection) -> list[Pick]:
        """The picks of a selection that may not be trained on; there are none."""
        return [pick for pick in selection.picks if not self._may_train(pick.example_id)]

    def _may_train(self, example_id: str) -> bool:
        example = find_example(example_id, self.train.examples, self.pool.examples)
        if example is None:
            return False
        hit = self.inputs.eval_texts.find_in(example_id, example.turns)
        return hit is None or hit.kind == "similar"

    def cost_usd(self, usage: Usage) -> float | None:
        return cost_usd(self.config, usage)

    @property
    def steps(self) -> RunSteps:
        return self.inputs.settled.steps

    @property
    def schedule(self) -> Schedule:
        return self.inputs.settled.schedule


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
        stops=config.gate.stop,
        guards=config.gate.guards,
        max_tokens=config.budget.tokens,
        max_minutes=config.budget.minutes,
        max_usd=config.budget.usd,
        baseline=config.start_from or UNTOUCHED,
    )


def make_plan(
    inputs: Inputs, kept: Mapping[str, Any] | None = None, origin: Origin | None = None
) -> Plan:
    """Load the tokenizer, render all rows, and put the plan together."""
    config = inputs.config
    kept = kept or {}
    chat_format = _chat_format(inputs, kept)
    limits, is_new = limits_of(inputs.model_dir), "learning_rate" not in kept
    # A run that an older version began on rows beyond the context goes on with them cut there.
    max_seq_length = config.max_seq_length if is_new else limits.cut_at(config.max_seq_length)
    rendering = Rendering(chat_format.renderer, max_seq_length, _train_on(config, kept))
    train, pool = rendering.render_all(inputs.split.train), rendering.render_all(inputs.split.pool)
    tasks, dropped_of_split = _render_tasks(inputs.tasks, rendering)
    _render_tasks(inputs.test_tasks, rendering)
    if config.data.on_bad_row == "stop":
        _refuse_dropped([train.dropped, pool.dropped, dropped_of_split])
    _refuse_empty_sources(inputs, train)
    tables = {"train_file": train, "mining.pool_file": pool}
    if is_new:
        refuse_unheard_prompt(chat_format, config.evaluation.system_prompt)
        if config.distill is not None:
            prompt = config.distill.teacher_prompt
            refuse_unheard_prompt(chat_format, prompt, "distill.teacher_prompt")
            refuse_same_weights(inputs.teacher, origin, inputs.model_path, prompt)
        renderer = chat_format.renderer
        _refuse_what_cannot_fit(limits, replace(inputs, tasks=tasks), rendering, renderer, tables)
    _refuse_unfit_prompts(inputs, (limits.context, max_seq_length), rendering, tables)
    inputs = replace(inputs, tasks=tasks)
    refuse_other_tokenizer(inputs.teacher, chat_format.renderer.tokenizer, inputs.model_path)
    grader_format = _grader_format(inputs, chat_format, kept)
    if grader_format is not None:
        guard(grader_format.renderer)
    if "train_file" in inputs.files:
        inputs = inputs.with_rows(len(train.examples), kept)
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
            system_prompt=config.evaluation.system_prompt,
        ),
        max_seq_length=max_seq_length,
        chat_format=chat_format,
        rendering=rendering,
        train=train,
        pool=pool,
        dropped_of_split=dropped_of_split,
        grader_format=grader_format,
        origin=origin,
    )


def _chat_format(inputs: Inputs, kept: Mapping[str, Any]) -> ChatFormat:
    """The chat format as a run began, which is not compared or refused again, or chosen now."""
    explicit = inputs.config.renderer_name
    if (name := kept.get("renderer_name")) is None:
        of_start = kept.get("renderer_of_start")
        chosen = choose_format(explicit or of_start, inputs.model_path)
        if explicit is None and of_start is not None:
            chosen = replace(chosen, source="by default: that of what the run starts from")
        return chosen
    source = f"{'renderer_name' if explicit else 'by default'}, as recorded"
    return ChatFormat(name, load_renderer(name, inputs.model_path), source)


def _train_on(config: TrainingConfig, kept: Mapping[str, Any]) -> TrainOnWhat | str | None:
    """Which messages carry loss: what a run that goes on began with is refused no more."""
    from tinker_cookbook.renderers import TrainOnWhat

    if config.method == "dpo":  # what the pairs are trained on anyway
        return TrainOnWhat(PAIRS_TRAIN_ON)
    recorded = kept.get("train_on") or config.data.train_on
    if kept.get("renderer_name") is None or recorded is None:
        return config.data.train_on
    return TrainOnWhat(recorded)


def _grader_format(
    inputs: Inputs, of_base: ChatFormat, kept: Mapping[str, Any]
) -> ChatFormat | None:
    """The judge's own format, or what the run began with. The untouched model as its own judge has
    what it is trained with, where it has no chat template to go by."""
    grader = inputs.grader_path
    if grader is None:
        return None
    name = kept.get("grader_renderer_name")
    if name is None and "service" in kept and "train_on" not in kept:
        name = former_name(grader)  # of a run that began before it was recorded
    if name is not None:
        return ChatFormat(name, load_renderer(name, grader), "by default, as recorded")
    fallback = of_base if grader == inputs.model_path else None
    return choose_format(None, grader, key="evaluation.grader_model", fallback=fallback)


def _render_tasks(
    tasks: tuple[EvalTask, ...], rendering: Rendering
) -> tuple[tuple[EvalTask, ...], DropLog]:
    """Render the held-out rows. A file must have a loss in every row; what is held out of the
    training rows loses those that have none, as the training rows do."""
    rendered, dropped = [], DropLog()
    for task in tasks:
        if isinstance(task.work, HeldOutFile) and task.work.is_split:
            table = rendering.render_all(task.work.examples)
            dropped, digest = table.dropped, table.examples.sha256
            task = replace(task, work=replace(task.work, examples=table.examples, sha256=digest))
        elif isinstance(task.work, HeldOutFile):
            render_held_out(task.work, rendering)
        elif isinstance(task.work, PairFile):
            render_pairs(task.work, rendering)
        rendered.append(task)
    return tuple(rendered), dropped


def _refuse_what_cannot_fit(
    limits: ModelLimits,
    inputs: Inputs,
    rendering: Rendering,
    renderer: Renderer,
    tables: Mapping[str, RenderedTable],
) -> None:
    """Raise `DataError` for rows and questions that the model cannot take."""
    config, all_tasks = inputs.config, (*inputs.tasks, *inputs.test_tasks)
    setting, has_losses = config.max_seq_length, mining_of(config).needs_losses
    mined = "mining.pool_file" if len(tables["mining.pool_file"].examples) else "train_file"
    for key, table in tables.items():
        is_measured = has_losses and config.max_rounds > 1 and key == mined
        counts = table.longest
        refuse_long_rows(limits, setting, key, table.examples, counts, is_measured=is_measured)
    held_out = dict(held_out_tables(all_tasks))
    for key, rows in held_out.items():
        counts = (max(i.num_tokens for i in infos_of(rendering, row)) for row in rows)
        refuse_long_rows(limits, setting, key, rows, counts, is_measured=True)
    of_files = {key: table.examples for key, table in tables.items()}
    refuse_unknown_ids(limits, rendering, renderer.tokenizer, of_files | held_out)
    asked = config.evaluation.max_tokens, config.evaluation.system_prompt
    refuse_long_questions(limits, all_tasks, renderer, *asked)


def _refuse_unfit_prompts(
    inputs: Inputs,
    longest: tuple[int | None, int],
    rendering: Rendering,
    tables: Mapping[str, RenderedTable],
) -> None:
    """Raise `DataError` for rows whose answers cannot be sampled, or cannot be rewarded."""
    rl, distill = inputs.config.rl, inputs.config.distill
    for key, table in tables.items():
        rows = table.examples
        if rl is not None:
            if inputs.reward is not None:
                refuse_unfit_references(inputs.reward, rows)
            refuse_long_prompts(longest, key, rows, rendering, rl.max_tokens)
        if distill is not None:
            told = distill.teacher_prompt
            asked = rows if told is None else [with_system(one, told) for one in rows]
            beside = None if told is None else "distill.teacher_prompt"
            refuse_long_prompts(longest, key, asked, rendering, distill.max_tokens, beside)


def _refuse_dropped(logs: list[DropLog]) -> None:
    dropped = [row for log in logs for row in log]
    if dropped:
        shown = "; ".join(f"{row.file} line {row.line_no}: {row.reason}" for row in dropped[:20])
        more = f"; and {len(dropped) - 20} more" if len(dropped) > 20 else ""
        raise DataError(
            f"{counted(len(dropped), 'row')} cannot be trained on: {shown}{more}. Correct or "
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
                f"{file.source}: none of its {counted(file.num_rows, 'row')} is left to train on "
                f"({shown}), and train_file gives it the weight {file.source.weight:g}. Correct "
                "the rows, or take it out."
            )

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
from evaluation.tasks import EvalTask
from hyperparam_utils import Schedule
from ledger.records import Usage
from loop.planning.inputs import Inputs, counted
from rows.chat_formats import load_renderer, resolve_renderer_name
from rows.examples import DropLog
from rows.rendering import RenderedTable, Rendering
from scores.decision import Gate
from simple_eval import SamplingSettings

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer


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

    def contaminated_picks(self, selection: Selection) -> list[Pick]:
        """The picks of a selection that may not be trained on; there are none."""
        return [pick for pick in selection.picks if not self._may_train(pick.example_id)]

    def _may_train(self, example_id: str) -> bool:
        for table in (self.train.examples, self.pool.examples):
            position = table.find(example_id)
            if position is not None:
                turns = [(message.role, message.content) for message in table[position].messages]
                hit = self.inputs.eval_texts.find_in(example_id, turns)
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
        if isinstance(task.work, HeldOutFile) and task.work.is_split:
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

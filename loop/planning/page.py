"""What is said before the first step: files, evaluation, gate, schedule, tokens, capacity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import hyperparam_utils
from errors import one_line
from evaluation.held_out import HeldOutFile
from evaluation.inspect_tasks import InspectTask
from evaluation.preferences import PairFile
from evaluation.tasks import EvalTask
from loop.planning.environments import describe_rewards
from loop.planning.inputs import Inputs, counted
from loop.planning.left_out import LARGE_SHARE, describe_large_losses, describe_left_out
from loop.planning.methods import describe_method, train_on_text, words_for
from loop.planning.models import lora_param_count, model_config
from loop.planning.origin import describe_origin
from loop.planning.plan import Plan, gate_of
from loop.planning.question_notes import describe_questions
from loop.planning.row_notes import describe_rendering, describe_unused
from loop.planning.steps import describe_steps, passes_of
from loop.planning.teacher import describe_teacher
from loop.planning.tokens import describe_tokens, tokens_of
from rows.examples import ExampleTable
from rows.places import dropped_text
from scores.measures import SFT
from scores.resolution import describe_gate

MAX_PROMPT_SHOWN = 80


def describe_inputs(inputs: Inputs) -> Iterator[str]:
    """Yield the lines about files, evaluation and gate."""
    yield from describe_large_losses(inputs)
    yield from describe_data(inputs)
    yield from describe_evaluation(inputs)


def describe_data(inputs: Inputs) -> Iterator[str]:
    """Yield the lines about the files, and what of them is not used."""
    for key, data in inputs.files.items():
        kept = inputs.split.train if key == "train_file" else inputs.split.pool
        names = ", ".join(file.source.name for file in data.files)
        yield f"{key}: {len(kept)} examples of {data.num_rows} rows in {names}"
    yield from describe_unused(inputs)
    yield from describe_left_out(inputs)


def describe_evaluation(inputs: Inputs) -> Iterator[str]:
    """Yield the lines about what is asked, and what the gate can tell by it."""
    config = inputs.config
    yield from inputs.set_aside
    repeats = config.evaluation.num_repeats
    yield from _describe_prompt(inputs)
    for task in inputs.tasks:
        yield f"evaluation: {_describe_task(task, repeats)}{_when(task)}"
    for task in inputs.test_tasks:
        when = ", opened only when the gate has passed"
        if config.evaluation.test_on == "winner":
            when = ", opened only when a study names this run its winner"
        elif config.evaluation.test_on == "end":
            when = (
                ", opened at the end whatever the score; after that the run is not trained further "
                "(with evaluation.test_on pass it stays sealed until the gate has passed)"
            )
        yield f"sealed test: {_describe_task(task, repeats)}{when}"
    yield from _describe_varying((*inputs.tasks, *inputs.test_tasks))
    yield from describe_questions(inputs.tasks, inputs.test_tasks)
    yield from describe_gate(gate_of(config), inputs.scored_sizes)


def describe_schedule(inputs: Inputs, train: ExampleTable, pool: ExampleTable) -> Iterator[str]:
    """Yield the lines about steps, passes through the rows, and the learning rate."""
    config, settled = inputs.config, inputs.settled
    passes = passes_of(config, settled.steps, train, pool, inputs.train_weights)
    yield from describe_steps(config, settled, passes)
    yield (
        f"learning rate: {settled.schedule.learning_rate:g} ({inputs.learning_rate_source}), "
        f"times {config.lr_decay:g} after each missed threshold, not below {config.min_lr:g}"
    )
    highest = max(settled.schedule.learning_rate, config.min_lr)
    if (warning := hyperparam_utils.lr_warning(highest, _hidden_size(inputs))) is not None:
        yield warning


def _hidden_size(inputs: Inputs) -> int | None:
    if inputs.model_dir is None:
        return None
    size = model_config(inputs.model_dir, "base_model").get("hidden_size")
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def describe_tasks(inputs: Inputs) -> Iterator[str]:
    """Yield a line for each task of an evaluation outside a run."""
    repeats = inputs.config.evaluation.num_repeats
    yield from inputs.set_aside
    yield from _describe_prompt(inputs)
    yield from (f"evaluation: {_describe_task(task, repeats)}" for task in inputs.tasks)
    yield from _describe_varying(inputs.tasks)
    yield from describe_questions(inputs.tasks)


def _describe_varying(tasks: Sequence[EvalTask]) -> Iterator[str]:
    for task in tasks:
        if isinstance(task.work, InspectTask) and task.work.varies:
            yield (
                f"warning: {task.name}: loaded twice, it had other content the second time "
                "(samples shuffled without a seed, ids or times drawn anew), so what is ended "
                "early cannot be resumed, nor scores be compared with those of other runs. Give "
                "each shuffle in the task a seed."
            )


def _describe_prompt(inputs: Inputs) -> Iterator[str]:
    if (prompt := inputs.config.evaluation.system_prompt) is not None:
        yield f"before every question: the system prompt {one_line(prompt, MAX_PROMPT_SHOWN)!r}"


def _describe_task(task: EvalTask, num_repeats: int) -> str:
    kind = "question"
    if isinstance(task.work, HeldOutFile | PairFile):
        kind = "pair" if isinstance(task.work, PairFile) else "conversation"
    topics = f" in {counted(len(task.topics), 'topic')}" if task.topics else ""
    role = {"guard": ", a guard", "report": ", beside the score", "score": ""}[task.role]
    notes = "".join(f"; {note}" for note in _inspect_notes(task.work, num_repeats))
    return f"{task.name}, {counted(task.n, kind)}{topics}{role}{notes}"


def _inspect_notes(work: object, num_repeats: int) -> Iterator[str]:
    """What of an Inspect task's own settings is not used."""
    if not isinstance(work, InspectTask):
        return
    from inspect_ai.scorer._reducer.registry import reducer_log_name

    if work.task.epochs not in (None, 1, num_repeats):
        yield f"its own {work.task.epochs} epochs are evaluation.num_repeats {num_repeats} here"
    reducers = [reducer_log_name(one) for one in work.task.epochs_reducer or ()]
    if reducers not in ([], ["mean"]):
        yield f"the mean counts here, not its own {', '.join(reducers)}"
    if len(work.scorers) > 1 and work.score_key is None:
        yield (
            f"of its scorers {', '.join(work.scorers)} the first counts, the others are kept "
            "beside it (evaluation.score_key names another)"
        )


def _when(task: EvalTask) -> str:
    if task.every == 1 or task.role == "score":
        return ""
    return ", at the end" if task.every == "end" else f", every {task.every} rounds"


def describe_plan(plan: Plan) -> Iterator[str]:
    """Yield the lines about the schedule, and about what only the tokenizer can tell: renderer,
    tokens, capacity; each resolved value with its source."""
    if plan.origin is not None:
        yield from describe_origin(plan.origin)
    yield from describe_method(plan.config)
    yield from describe_teacher(plan.inputs.teacher, plan.config, plan.chat_format)
    yield from describe_schedule(plan.inputs, plan.train.examples, plan.pool.examples)
    yield from describe_formats(plan)
    yield train_on_text(plan.config, plan.rendering.train_on_what.value)
    yield from describe_rewards(plan)
    yield from describe_rendered(plan)
    yield describe_tokens(plan, tokens_of(plan))
    yield describe_capacity(plan)


def describe_rendered(plan: Plan) -> Iterator[str]:
    """Yield the lines about what rendering left out, changed and cut."""
    dropped = [row for log in plan.dropped_in_rendering for row in log]
    if dropped:
        num_rows = len(dropped) + sum(len(table.examples) for table in (plan.train, plan.pool))
        warning = "warning: " if len(dropped) > LARGE_SHARE * num_rows else ""
        first = dropped_text(dropped[0])
        yield f"{warning}dropped in rendering: {len(dropped)} rows, the first {first}"
    yield from describe_rendering(plan)
    num_truncated = sum(table.num_truncated for table in (plan.train, plan.pool))
    if num_truncated:
        is_of_model = plan.max_seq_length < plan.config.max_seq_length
        what = "the model's context of" if is_of_model else "max_seq_length"
        yield f"truncated: {num_truncated} examples are longer than {what} {plan.max_seq_length}"


def describe_capacity(plan: Plan) -> str:
    """The line about the parameters, and the tokens of supervised rows that carry loss."""
    num_params = lora_param_count(plan.config, plan.inputs.model_dir, plan.origin)
    if words_for(plan.config) is not SFT:  # the rule counts against those of supervised rows
        return parameters_text(plan.config.lora_rank, num_params)
    num_loss_tokens = num_loss_tokens_of(plan)
    return hyperparam_utils.capacity_sentence(num_params, num_loss_tokens, plan.config.lora_rank)


def parameters_text(rank: int, num_params: int | None) -> str:
    """The line about the adapter's parameters alone."""
    known = "their number is not known here" if num_params is None else f"{num_params:,} parameters"
    return f"LoRA rank {rank}: {known}"


def num_loss_tokens_of(plan: Plan) -> int:
    """Tokens that carry loss, in all rows that the run may train on."""
    return sum(sum(table.num_loss_tokens) for table in (plan.train, plan.pool))


def describe_formats(plan: Plan) -> Iterator[str]:
    """Yield the lines about the chat format, and the judge's."""
    yield from plan.chat_format.lines()
    if plan.grader_format is not None:
        yield from (f"grader's {line}" for line in plan.grader_format.lines(is_trained=False))


def schedule_table(inputs: Inputs) -> Iterator[str]:
    """Yield the learning rate of each step that will be taken if every threshold is missed."""
    steps, schedule = inputs.settled
    yield "round  steps  learning rate, first to last step"
    for round_no in range(1, steps.max_rounds + 1):
        first = (round_no - 1) * steps.per_round
        end = min(first + steps.per_round, steps.total)
        if first >= end:
            return
        start_lr = schedule.lr(first, round_no - 1)
        end_lr = schedule.lr(end - 1, round_no - 1)
        yield f"{round_no:>5}  {first}-{end - 1}  {start_lr:.4g} -> {end_lr:.4g}"

"""What may make the run's result worth little, told before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from loop.plan_page.policy import LARGE_BATCH
from loop.plan_page.view import Planned
from loop.planning.inputs import counted, num_dropped
from loop.planning.methods import words_for
from loop.planning.steps import MANY_PASSES, Passes

SMALL_DEV_SET = 100  # questions
MOST = 0.5  # of the rows
FEW_ROWS, FEW_PASSES = 100, 5


class Risk(NamedTuple):
    """`name` is its key in --json; the sentence says what, and what to do."""

    name: str
    sentence: str


def risks_of(view: Planned, passes: Sequence[Passes], verdict: str) -> list[Risk]:
    """All of them, those of the score first. `verdict` is that on the adapter's room."""
    risks = [*_of_score(view), *_of_suite(view), *_of_training(view, passes)]
    if verdict == "far_below":
        what = "the adapter has far too little room for what the rows hold; raise lora_rank"
        risks.append(Risk("little_room", what))
    return risks


def _of_score(view: Planned) -> Iterator[Risk]:
    config = view.config
    num_questions = sum(size.n for size in view.inputs.scored_sizes)
    if num_questions < SMALL_DEV_SET:
        yield Risk(
            "small_dev_set",
            f"only {num_questions} question{'s' * (num_questions != 1)} decide when it stops; "
            f"from {SMALL_DEV_SET} on chance counts less",
        )
    threshold, earlier = config.eval_threshold, view.earlier
    if threshold == 0:
        yield Risk("threshold_met", "every round passes eval_threshold 0; raise it")
    elif earlier is not None and earlier.baseline is not None and earlier.baseline >= threshold:
        yield Risk(
            "threshold_met",
            f"what the run starts from scored {earlier.baseline:.4f} in {earlier.run}, so "
            f"eval_threshold {threshold:g} is met before the first step; raise it",
        )
    if threshold == 1:
        yield Risk(
            "threshold_out_of_reach",
            "at eval_threshold 1 a single answer that is judged wrong misses it; lower it",
        )


def _of_suite(view: Planned) -> Iterator[Risk]:
    config, inputs = view.config, view.inputs
    if not config.gate.guards:
        yield Risk(
            "no_guard",
            "no guard against losing other skills; name a task in gate.guards",
        )
    if not any(task.layer == 3 for task in inputs.tasks):
        what = "a public benchmark may rise while that does not"
        if all(task.layer == 1 for task in inputs.tasks):
            what = "how likely given answers are is measured, and no answer of the model's is read"
        yield Risk("no_application_task", f"no task of your application's own: {what}")
    if not inputs.test_tasks:
        yield Risk(
            "no_sealed_test",
            "no sealed test: the best round's score is flattered, as it was chosen by it; name "
            "other questions in evaluation.test_tasks",
        )
    grader = config.evaluation.grader_model
    if grader is not None and grader == config.base_model:
        yield Risk(
            "judge_is_the_model",
            "the judge is the model that is trained, untouched, and may like what it would say "
            "itself; set evaluation.grader_model to another",
        )


def _of_training(view: Planned, passes: Sequence[Passes]) -> Iterator[Risk]:
    config, inputs = view.config, view.inputs
    if config.train_attn and not config.train_mlp:
        yield Risk(
            "attention_only",
            "LoRA on attention alone learns less than on the MLP layers for as many parameters; "
            "set train_mlp to true",
        )
    is_sampled = words_for(config).is_sampled
    if config.batch_size > LARGE_BATCH and not is_sampled:
        yield Risk(
            "large_batch",
            f"batch_size {config.batch_size} is large, which LoRA bears badly; compare with "
            f"{LARGE_BATCH} or less",
        )
    logs = [*inputs.drop_logs, *([] if view.plan is None else view.plan.dropped_in_rendering)]
    num_rows = sum(data.num_rows for data in inputs.files.values())
    num_gone = sum(num_dropped(logs).values())
    if num_gone > MOST * num_rows:
        yield Risk(
            "most_rows_dropped",
            f"{num_gone:,} of the {num_rows:,} rows are left out; the lists below say why",
        )
    short = inputs.split.other_answers.num_short
    if short and config.method != "distill":
        yield Risk(
            "contradicting_rows",
            f"{counted(short, 'row')} with a short answer {'has' if short == 1 else 'have'} "
            "another one in other rows of the same prompt, so that some are probably wrong; the "
            "lists below say where",
        )
    for one in passes:
        # More of them are a warning of the schedule's own.
        is_few = one.num_rows < FEW_ROWS and FEW_PASSES < one.number <= MANY_PASSES
        if is_few and not is_sampled:
            yield Risk(
                "few_rows_many_passes",
                f"{one.number:.1f} passes through the {counted(one.num_rows, 'row')} of "
                f"{one.source}: they may be learnt by heart; hold some out (data.val_share)",
            )

"""Tasks measured on one checkpoint: question files, pairs, held-out losses and Inspect tasks.

What is done is given out as it is done, so that none of it is lost to what fails after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from errors import ConfigError
from evaluation.held_out import HeldOutFile, measure_losses
from evaluation.inspect_model import inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_scores import InspectScores
from evaluation.inspect_tasks import InspectTask, without_questions
from evaluation.preferences import PairFile, judge_pairs, pair_metrics
from evaluation.tasks import EvalTask
from scores.results import Measured, SampleResult, TaskResult, task_result
from simple_eval import QuestionTask, Sampler, ask_questions
from storage.journal import Journal


@dataclass(frozen=True)
class Measuring:
    """A checkpoint that is measured, what grades it, and where and under which marks logs go."""

    sampler: Sampler
    grader: Sampler | None
    run_dir: Path
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    say: Callable[[str], None] = lambda text: None  # what a person is to know
    begin: Callable[[str], None] = lambda task: None  # what is measured from now on
    graded: Callable[[SampleResult], None] = lambda sample: None  # an answer of it
    turn: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext  # in Inspect

    def in_inspect(self) -> InspectSetting:
        """The same, for Inspect."""
        settings, log_dir = self.sampler.settings, self.run_dir / "inspect_logs"
        # The system prompt is for the questions, and no grader's.
        model, grader = (
            None
            if one is None
            else inspect_model(one.client, one.renderer, settings.seed, one.name, self.say, prompt)
            for one, prompt in ((self.sampler, settings.system_prompt), (self.grader, None))
        )
        assert model is not None
        return InspectSetting(model, grader, settings, log_dir, self.tags, self.metadata)


class RehearsalUsage(NamedTuple):
    """Tokens that a rehearsal read and sampled."""

    num_prompt_tokens: int
    num_sampled_tokens: int


async def rehearse_tasks(
    tasks: Sequence[EvalTask], sealed: Sequence[EvalTask], measuring: Measuring
) -> RehearsalUsage:
    """Ask one sample of each Inspect task; its score counts nowhere.

    A `sealed` task is asked an empty phrase instead of its question, which may well fail; what is
    learnt is whether its scores can be read. Raises `EvalError` for another task whose sample
    fails, `ConfigError` for any that is scored in a way that cannot be read.
    """
    works = [task.work for task in tasks if isinstance(task.work, InspectTask)]
    num_open = len(works)
    works += [without_questions(task.work) for task in sealed if isinstance(task.work, InspectTask)]
    if not works:
        return RehearsalUsage(0, 0)
    setting = measuring.in_inspect()
    once = setting._replace(settings=replace(setting.settings, num_repeats=1))
    async with measuring.turn():
        done = await run_inspect(works, once, limit=1)
    num_prompt_tokens = num_sampled_tokens = 0
    for position, scores in enumerate(done):
        if isinstance(scores, InspectScores):
            num_prompt_tokens += sum(sample.num_prompt_tokens for sample in scores.samples)
            num_sampled_tokens += sum(sample.num_sampled_tokens for sample in scores.samples)
        elif position < num_open or isinstance(scores, ConfigError):
            raise scores
        else:
            num_prompt_tokens += scores.num_prompt_tokens
            num_sampled_tokens += scores.num_sampled_tokens
    return RehearsalUsage(num_prompt_tokens, num_sampled_tokens)


async def measure(
    tasks: Sequence[EvalTask], measuring: Measuring, journal: Journal
) -> AsyncIterator[Measured]:
    """Measure tasks on one checkpoint, giving out what is done as it is done.

    What an attempt before this one had done of a task is in the journal, or in Inspect's log.
    Raises `EvalError` (`ConfigError` for scores that cannot be read) when one of them cannot be
    completed, after the others are given out.
    """
    sampler = measuring.sampler
    for task in tasks:
        if isinstance(task.work, QuestionTask):
            measuring.begin(task.name)
            samples = await ask_questions(task.work, sampler, journal, measuring.graded)
            result = task_result(task.name, samples, layer=task.layer, role=task.role)
            yield Measured((replace(result, max_tokens=_max_tokens(task, sampler)),))
    for task in tasks:
        if isinstance(task.work, PairFile):
            measuring.begin(task.name)
            yield Measured((await _judged(task, task.work, measuring, journal),))
    for task in tasks:
        if isinstance(task.work, HeldOutFile):
            measuring.begin(task.name)
            loss = await measure_losses(task.work.name, task.work.examples, sampler, journal)
            yield Measured(held_out=(loss,))
    of_inspect = [task for task in tasks if isinstance(task.work, InspectTask)]
    if not of_inspect:
        return
    works = [task.work for task in of_inspect if isinstance(task.work, InspectTask)]
    async with measuring.turn():
        measuring.begin(", ".join(task.name for task in of_inspect))
        done = await run_inspect(works, measuring.in_inspect())
    errors = [scores for scores in done if not isinstance(scores, InspectScores)]
    results = tuple(
        replace(
            task_result(
                task.name,
                scores.samples,
                layer=task.layer,
                role=task.role,
                metrics=scores.metrics,
                log=str(scores.log.relative_to(measuring.run_dir.resolve())),
            ),
            max_tokens=_max_tokens(task, sampler),
        )
        for task, scores in zip(of_inspect, done, strict=True)
        if isinstance(scores, InspectScores)
    )
    if results:
        yield Measured(results)
    if errors:
        first = errors[0]
        first.num_prompt_tokens = sum(error.num_prompt_tokens for error in errors)
        first.num_sampled_tokens = sum(error.num_sampled_tokens for error in errors)
        raise first


async def _judged(
    task: EvalTask, work: PairFile, measuring: Measuring, journal: Journal
) -> TaskResult:
    samples = await judge_pairs(work, measuring.sampler, journal, measuring.graded)
    metrics = pair_metrics(samples)
    return task_result(task.name, samples, layer=task.layer, role=task.role, metrics=metrics)


def _max_tokens(task: EvalTask, sampler: Sampler) -> int | None:
    return task.max_tokens(sampler.settings.max_tokens)

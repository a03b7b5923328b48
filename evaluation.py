"""What is measured on a checkpoint, and when: question files, Inspect tasks and held-out losses.

A task's layer follows from its name, its role from its layer: layer 3 (the application's own)
enters the score, layer 2 (public benchmarks) only where there is no layer 3, guards and held-out
losses never. What does not enter the score may be measured every few rounds, or only at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import inspect_eval
import simple_eval
from config_schema import LoadedConfig
from errors import ConfigError
from inspect_eval import InspectScores, InspectTask
from nll_eval import HeldOutFile, load_held_out, measure_held_out
from rows.contamination import HeldOutText
from rows.rendering import Rendering
from scores.results import Measured, Role, task_result
from settings.task_names import SPLIT_TASK, is_inspect_task
from simple_eval import QuestionTask, SamplingSettings
from storage.journal import Journal

if TYPE_CHECKING:
    import tinker
    from inspect_ai.model import Model
    from tinker_cookbook.renderers import Renderer


@dataclass(frozen=True)
class EvalTask:
    """One entry of `eval_tasks`, loaded."""

    name: str
    layer: int
    role: Role
    every: int | Literal["end"]
    work: QuestionTask | InspectTask | HeldOutFile

    def is_due(self, round_no: int) -> bool:
        """Whether a round measures it; the baseline also measures what guards are compared with."""
        if self.every == "end":
            return round_no == 0 and self.role == "guard"
        return round_no % self.every == 0

    @property
    def needs_rehearsal(self) -> bool:
        """Whether only a rehearsal shows before the first step what its task lacks."""
        return isinstance(self.work, InspectTask) and not self.is_due(0)

    @property
    def questions(self) -> tuple[str, ...]:
        """What is asked; of held-out conversations those of a single turn."""
        return tuple(text.question for text in self.held_out_texts if text.question)

    @property
    def held_out_texts(self) -> tuple[HeldOutText, ...]:
        """What must not be trained on."""
        if isinstance(self.work, QuestionTask):
            return tuple(
                HeldOutText(self.name, question.question, question.answers)
                for question in self.work.questions
            )
        return self.work.held_out_texts

    @property
    def n(self) -> int:
        """Questions, or held-out conversations."""
        if isinstance(self.work, HeldOutFile):
            return len(self.work.examples)
        return len(self.work.questions)

    @property
    def sample_ids(self) -> frozenset[str]:
        """The ids that its results have."""
        if isinstance(self.work, HeldOutFile):
            return frozenset(example.id for example in self.work.examples)
        if isinstance(self.work, QuestionTask):
            return frozenset(f"{self.name}/{question.id}" for question in self.work.questions)
        return frozenset(f"{self.name}/{sample.id}" for sample in self.work.task.dataset)

    @property
    def num_clusters(self) -> int:
        """Questions that share no cluster; `n` where none do."""
        if isinstance(self.work, QuestionTask):
            return len({question.cluster or question.id for question in self.work.questions})
        return self.work.num_clusters if isinstance(self.work, InspectTask) else self.n

    def num_requests(self, num_repeats: int) -> int:
        """Requests that an evaluation makes, where each question takes one turn."""
        return self.n * (1 if isinstance(self.work, HeldOutFile) else num_repeats)

    @property
    def topics(self) -> frozenset[str]:
        if isinstance(self.work, QuestionTask):
            return frozenset(q.topic for q in self.work.questions if q.topic is not None)
        if isinstance(self.work, InspectTask):
            return self.work.topics
        return frozenset(e.topic for e in self.work.examples if e.topic is not None)


@dataclass(frozen=True)
class Sampler:
    """One checkpoint, ready to be measured, and what its scores depend on besides."""

    name: str  # in logs
    client: tinker.SamplingClient
    renderer: Renderer
    rendering: Rendering
    settings: SamplingSettings


def load_eval_tasks(loaded: LoadedConfig) -> tuple[EvalTask, ...]:
    """Load everything that rounds measure. Raises `LoopError` children saying what is missing."""
    config = loaded.config
    tasks = []
    for name in config.measured_tasks:
        if name == SPLIT_TASK:
            continue  # its rows are those of train_file
        role: Role = "report"
        if name in config.gate.guards:
            role = "guard"
        elif name in config.scored_tasks:
            role = "score"
        every = config.evaluation.every.get(name, 1)
        key = "val_file" if name == f"nll:{config.val_file}" else "eval_tasks"
        tasks.append(EvalTask(name, config.layer_of(name), role, every, _load(loaded, key, name)))
    return tuple(tasks)


def load_test_tasks(loaded: LoadedConfig) -> tuple[EvalTask, ...]:
    """Load the sealed test; all of its tasks enter its score."""
    key = "evaluation.test_tasks"
    return tuple(
        EvalTask(name, loaded.config.layer_of(name), "score", "end", _load(loaded, key, name))
        for name in loaded.config.evaluation.test_tasks
    )


def _load(loaded: LoadedConfig, key: str, name: str) -> QuestionTask | InspectTask | HeldOutFile:
    if name == "simple_qa":
        return simple_eval.load_questions(name, simple_eval.SIMPLE_QA)
    if not is_inspect_task(name):
        kind, _, file = name.partition(":")
        path = loaded.find(key, file)
        if kind == "nll":
            return load_held_out(name, path, loaded.config.data.columns)
        return simple_eval.load_questions(name, path)
    spec = name
    if ".py@" in name:
        file, _, task = name.rpartition("@")
        spec = f"{loaded.find(key, file)}@{task}"
    settings = loaded.config.evaluation
    return inspect_eval.load_inspect_task(
        name,
        spec,
        args=settings.task_args.get(name, {}),
        limit=settings.limit.get(name),
        score_key=settings.score_key.get(name),
        cluster_key=settings.cluster_key.get(name),
    )


def protocol_of(
    tasks: Sequence[EvalTask],
    settings: SamplingSettings,
    renderer_name: str,
    grader_model: str | None,
) -> dict[str, Any]:
    """Everything that changes a score; results with one protocol can be compared."""
    return {
        "renderer": renderer_name,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "num_repeats": settings.num_repeats,
        "seed": settings.seed,
        "grader_model": grader_model,
        "tasks": {task.name: {"sha256": task.work.sha256, "role": task.role} for task in tasks},
    }


class RehearsalUsage(NamedTuple):
    """Tokens that a rehearsal read and sampled."""

    num_prompt_tokens: int
    num_sampled_tokens: int


async def rehearse_tasks(
    tasks: Sequence[EvalTask],
    sealed: Sequence[EvalTask],
    sampler: Sampler,
    *,
    grader: Sampler | None,
    run_dir: Path,
    tags: Sequence[str],
    metadata: Mapping[str, Any],
) -> RehearsalUsage:
    """Ask one sample of each Inspect task; its score counts nowhere.

    A `sealed` task is asked an empty phrase instead of its question, which may well fail; what is
    learnt is whether its scores can be read. Raises `EvalError` for another task whose sample
    fails, `ConfigError` for any that is scored in a way that cannot be read.
    """
    works = [task.work for task in tasks if isinstance(task.work, InspectTask)]
    num_open = len(works)
    works += [
        inspect_eval.without_questions(task.work)
        for task in sealed
        if isinstance(task.work, InspectTask)
    ]
    if not works:
        return RehearsalUsage(0, 0)
    model, grader_model = _inspect_models(sampler, grader)
    done = await inspect_eval.run_inspect(
        works,
        model,
        replace(sampler.settings, num_repeats=1),
        log_dir=run_dir / "inspect_logs",
        tags=tags,
        metadata=metadata,
        grader=grader_model,
        limit=1,
    )
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


def _inspect_models(sampler: Sampler, grader: Sampler | None) -> tuple[Model, Model | None]:
    seed = sampler.settings.seed
    models = [
        inspect_eval.inspect_model(one.client, one.renderer, seed, one.name)
        for one in (sampler, grader)
        if one is not None
    ]
    return models[0], models[1] if grader is not None else None


async def measure(
    tasks: Sequence[EvalTask],
    sampler: Sampler,
    *,
    journal: Journal,
    grader: Sampler | None,
    run_dir: Path,
    tags: Sequence[str],
    metadata: Mapping[str, Any],
) -> AsyncIterator[Measured]:
    """Measure tasks on one checkpoint, giving out what is done as it is done.

    What an attempt before this one had done of a task is in the journal, or in Inspect's log.
    Raises `EvalError` (`ConfigError` for scores that cannot be read) when one of them cannot be
    completed, after the others are given out.
    """
    for task in tasks:
        if isinstance(task.work, QuestionTask):
            samples = await simple_eval.ask_questions(
                task.work, sampler.client, sampler.renderer, sampler.settings, journal
            )
            yield Measured((task_result(task.name, samples, layer=task.layer, role=task.role),))
    for task in tasks:
        if isinstance(task.work, HeldOutFile):
            loss = await measure_held_out(
                task.work,
                sampler.client,
                sampler.rendering,
                sampler.renderer.tokenizer,
                sampler.settings.concurrency,
                journal,
            )
            yield Measured(held_out=(loss,))
    of_inspect = [task for task in tasks if isinstance(task.work, InspectTask)]
    if not of_inspect:
        return
    model, grader_model = _inspect_models(sampler, grader)
    done = await inspect_eval.run_inspect(
        [task.work for task in of_inspect if isinstance(task.work, InspectTask)],
        model,
        sampler.settings,
        log_dir=run_dir / "inspect_logs",
        tags=tags,
        metadata=metadata,
        grader=grader_model,
    )
    errors = [scores for scores in done if not isinstance(scores, InspectScores)]
    results = tuple(
        task_result(
            task.name,
            scores.samples,
            layer=task.layer,
            role=task.role,
            metrics=scores.metrics,
            log=str(scores.log.relative_to(run_dir.resolve())),
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

"""What is evaluated: what each task measures and needs, and what its questions can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from evaluation.benchmarks import PACKAGE, READ_IN, Benchmark, benchmark_of
from evaluation.inspect_tasks import InspectTask
from evaluation.preferences import PairFile
from evaluation.tasks import EvalTask
from loop.plan_page.view import Part, Planned
from loop.planning.inputs import counted
from loop.planning.page import describe_evaluation
from pages.document import Block, Column, Table
from scores.power import questions_needed, smallest_difference
from scores.resolution import effective_n
from scores.results import Role
from settings.groups import EvaluationSettings

SMALLER = (0.1, 0.05, 0.02)  # differences below the threshold that more questions would show
POWER = (
    "Questions are counted as right or wrong and none of them alike, so that 8 of 10 tries find "
    "the difference, at 1 false alarm in 20, by the normal distribution."
)
LAYERS = {1: "1, held-out loss or pairs", 2: "2, public benchmark", 3: "3, the application's own"}
ROLES: Mapping[Role, str] = {"score": "decides", "guard": "guard", "report": "beside the score"}


class Asked(NamedTuple):
    """A task as the plan tells of it; None is what is not known here."""

    task: str
    layer: int
    role: str
    num_questions: int
    measures: str
    version: str | None
    asks: str | None  # examples in the prompt, and whether steps are asked for
    limit: int | None
    args: Mapping[str, Any]
    needs: tuple[str, ...]
    judge: str | None


def asked_of(evaluation: EvaluationSettings, task: EvalTask, *, is_sealed: bool = False) -> Asked:
    """What is known of a task: of a public benchmark by the catalogue and its own metadata."""
    known = benchmark_of(task.name)
    args = evaluation.task_args.get(task.name, {})
    return Asked(
        task=task.name,
        layer=task.layer,
        role="sealed test" if is_sealed else ROLES[task.role],
        num_questions=task.n,
        measures=_measures(task, known),
        version=_version_of(task, known),
        asks=None if known is None else known.asks(args),
        limit=evaluation.limit.get(task.name),
        args=args,
        needs=() if known is None else known.needs,
        judge=_judge_of(evaluation, task, known),
    )


def _measures(task: EvalTask, known: Benchmark | None) -> str:
    if known is not None:
        return known.measures
    if isinstance(task.work, PairFile):
        return "how often the preferred one of two answers is the likelier one"
    if task.layer == 1:
        return "how surely the model says what held-out rows answer (loss, not a score)"
    if task.name == "simple_qa":
        return "short answers to questions that come with this project: facts, sums, words"
    if task.name.startswith("qa:"):
        return "your own questions with known answers, graded by code"
    if ".py@" in task.name:
        return "your own Inspect task; what it measures is in its file"
    return "not in the catalogue here; its package says what it measures"


def _version_of(task: EvalTask, known: Benchmark | None) -> str | None:
    """The version that the loaded task names, and where the catalogue was read in another one."""
    if not isinstance(task.work, InspectTask):
        return None
    loaded = (task.work.task.metadata or {}).get("full_task_version")
    if not isinstance(loaded, str):
        return None if known is None else f"{known.version} ({READ_IN}; what is loaded names none)"
    if known is None or loaded == known.version:
        return loaded
    return f"{loaded} (what is said here was read in {known.version}, {READ_IN})"


def _judge_of(
    evaluation: EvaluationSettings, task: EvalTask, known: Benchmark | None
) -> str | None:
    if isinstance(task.work, InspectTask) and task.work.uses_grader:
        return evaluation.grader_model
    return None if known is None else known.judge


def suite_part(view: Planned) -> Part:
    """The suite with its power."""
    inputs, evaluation = view.inputs, view.config.evaluation
    told = [asked_of(evaluation, task) for task in inputs.tasks]
    told += [asked_of(evaluation, task, is_sealed=True) for task in inputs.test_tasks]
    needed = dict(_needed(view.config.eval_threshold))
    lines = list(describe_evaluation(inputs))
    if needed:
        (low, number), *others = needed.items()
        more = "".join(f", from {low:g} {number:,}" for low, number in others)
        told_apart = f"to tell {view.config.eval_threshold:g} from {low:g} takes"
        lines.append(f"{told_apart} {counted(number, 'question')}{more}")
    lines += _needs(told)
    num_questions = sum(size.n for size in inputs.scored_sizes)
    num_clusters = sum(size.num_clusters for size in inputs.scored_sizes)
    threshold = view.config.eval_threshold
    facts = {
        "threshold": threshold,
        "rule": view.config.gate.rule,
        "num_scored_questions": num_questions,
        "num_scored_clusters": num_clusters,
        "smallest_difference": smallest_difference(effective_n(inputs.scored_sizes), threshold)
        if 0 < threshold < 1
        else None,
        "questions_needed": [
            {"from": low, "to": threshold, "questions": number} for low, number in needed.items()
        ],
        "tasks": [{**one._asdict(), "args": dict(one.args)} for one in told],
    }
    return Part("evaluation", "Evaluation", lines, facts, _tables(told), [POWER])


def _needed(threshold: float) -> Iterator[tuple[float, int]]:
    """Yield scores below the threshold with the questions that tell the threshold from them."""
    for difference in SMALLER:
        low = round(threshold - difference, 6)
        if 0 <= low < threshold < 1:
            yield low, questions_needed(low, threshold)


def _needs(told: list[Asked]) -> Iterator[str]:
    """What has to be there for public benchmarks; what each measures is on the page."""
    for one in told:
        if one.needs or one.judge:
            judge = [] if one.judge is None else [f"a judge: {one.judge}"]
            yield f"{one.task}: needs {'; '.join([*one.needs, *judge])}"


def _tables(told: list[Asked]) -> list[Block]:
    columns = [
        *(Column("Task"), Column("Layer"), Column("Role"), Column("Questions", True)),
        *(Column("Measures"), Column("Version"), Column("Asks with"), Column("Needs")),
    ]
    rows = [
        (
            one.task,
            LAYERS[one.layer],
            one.role,
            f"{one.num_questions:,}" + ("" if one.limit is None else f" (limit {one.limit:,})"),
            one.measures,
            one.version or "-",
            _asks_words(one),
            "; ".join([*one.needs, *([] if one.judge is None else [f"a judge: {one.judge}"])])
            or "-",
        )
        for one in told
    ]
    is_public = any(one.task.startswith(PACKAGE) for one in told)
    note = f"Of public benchmarks as {READ_IN} has them." if is_public else ""
    return [Table("The evaluation suite", columns, rows, note=note)]


def _asks_words(one: Asked) -> str:
    args = ", ".join(f"{key}={value}" for key, value in one.args.items())
    asks = one.asks or ("-" if one.layer == 1 else "as the file has it")
    return f"{asks} ({args})" if args else asks

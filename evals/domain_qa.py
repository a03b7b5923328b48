"""Questions of your own with known answers, graded by plain rules.

Reads the project's question format (see simple_eval.py): `{"question", "answer" (a string or a list
of accepted ones), "system"?, "messages"?, "topic"?, "grader"? includes|exact|numeric, "id"?}`.
Measures whether an answer holds what the file accepts. It does not measure style, reasoning or
whether the rest of the answer is true, and a right answer in words the file does not list counts as
wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
)
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Score,
    Scorer,
    Target,
    accuracy,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate

# Inspect loads this file by path, from any directory, and makes only its own folder importable.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from grading.graders import GRADERS
from simple_eval import Question, load_questions

HERE = Path(__file__).resolve().parent


@task
def domain_qa(file: str = "simple_qa.jsonl") -> Task:
    """Ask every question of `file`; a relative path starts at the folder of this task file."""
    path = (HERE / file).resolve()
    questions = load_questions(path.stem, path)
    if questions.graders:
        raise ValueError(
            f"{path}: {next(iter(questions.graders))} is a grader of its own, which this task does "
            "not call. Name the file as qa:FILE.jsonl in eval_tasks instead."
        )
    return Task(
        dataset=MemoryDataset([to_sample(one) for one in questions.questions], name=path.stem),
        solver=generate(),
        scorer=question_grader(),
        version=1,
        metadata={"questions_sha256": questions.sha256},
    )


def to_sample(question: Question) -> Sample:
    """Turn a question into a sample; one without a topic gets the topic `general`."""
    metadata = {"topic": question.topic or "general", "grader": question.grader}
    if question.cluster is not None:
        metadata["cluster"] = question.cluster
    return Sample(
        id=question.id,
        input=_input_of(question),
        target=list(question.answers),
        metadata=metadata,
    )


def _input_of(question: Question) -> str | list[ChatMessage]:
    """The question, or the conversation that it ends."""
    if len(question.turns) == 1:
        return question.question
    kinds = {
        "system": ChatMessageSystem,
        "user": ChatMessageUser,
        "assistant": ChatMessageAssistant,
    }
    return [kinds[turn.role](content=turn.content) for turn in question.turns]


@scorer(metrics=[accuracy(), stderr()])
def question_grader() -> Scorer:
    """Grade with the grader that the question names."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        is_right = GRADERS[state.metadata["grader"]](answer, list(target))
        return Score(value=CORRECT if is_right else INCORRECT, answer=answer)

    return score

"""Sums of graded difficulty, generated from a seed, so that no model has seen the file.

Measures whether the last number of the answer is the result: addition, subtraction,
multiplication, division without remainder, and word problems of two steps, each at four levels of
growing numbers (`metadata["level"]`). It does not measure the reasoning, nor any mathematics beyond
these operations on integers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
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

from grading.graders import grade_numeric

NUM_LEVELS = 4
MAX_QUESTIONS = 2_000  # the first level has too few different sums for more
INSTRUCTION = "Give the result as one number at the end of your answer."


class Sum(NamedTuple):
    """One question with its result."""

    id: str
    topic: str
    level: int
    question: str
    result: int


# --- operations: each draws its numbers for a level from 1 to 4 -----------------------------------


def _number(rng: random.Random, level: int) -> int:
    low, high = {1: (2, 20), 2: (21, 99), 3: (100, 999), 4: (1_000, 99_999)}[level]
    return rng.randint(low, high)


def _factor(rng: random.Random, level: int) -> int:
    low, high = {1: (2, 12), 2: (11, 30), 3: (31, 99), 4: (101, 999)}[level]
    return rng.randint(low, high)


def add(rng: random.Random, level: int) -> tuple[str, int]:
    """Draw an addition."""
    a, b = _number(rng, level), _number(rng, level)
    return f"What is {a} + {b}?", a + b


def subtract(rng: random.Random, level: int) -> tuple[str, int]:
    """Draw a subtraction; results below zero come from level 3 on."""
    a, b = _number(rng, level), _number(rng, level)
    if level < 3:
        a, b = max(a, b), min(a, b)
    return f"What is {a} - {b}?", a - b


def multiply(rng: random.Random, level: int) -> tuple[str, int]:
    """Draw a multiplication."""
    a, b = _factor(rng, level), _factor(rng, level)
    return f"What is {a} * {b}?", a * b


def divide(rng: random.Random, level: int) -> tuple[str, int]:
    """Draw a division without remainder."""
    divisor, result = _factor(rng, level), _factor(rng, level)
    return f"What is {divisor * result} / {divisor}?", result


def tell(rng: random.Random, level: int) -> tuple[str, int]:
    """Draw a word problem of two steps."""
    a, b, c = _factor(rng, level), _factor(rng, level), _factor(rng, level)
    story = rng.randrange(4)
    if story == 0:
        sold = min(c, a * b)
        return (
            f"A shop gets {a} boxes with {b} pens in each and then sells {sold} pens. "
            "How many of these pens does it have left?",
            a * b - sold,
        )
    if story == 1:
        return (
            f"Mia saves {a} coins each week for {b} weeks and then gets {c} more coins. "
            "How many coins does she have?",
            a * b + c,
        )
    if story == 2:
        return (
            f"A train carries {a + b} people. At the first stop {a} people get off and {c} people "
            "get on. How many people does it carry now?",
            b + c,
        )
    return (
        f"A farmer has {a * b} apples. He packs them evenly into {a} crates and then adds {c} "
        "apples to one of the crates. How many apples are in that crate?",
        b + c,
    )


OPERATIONS: dict[str, Callable[[random.Random, int], tuple[str, int]]] = {
    "addition": add,
    "subtraction": subtract,
    "multiplication": multiply,
    "division": divide,
    "two_step": tell,
}


def make_sums(num_questions: int, seed: int) -> list[Sum]:
    """Draw different questions, topics in turn and levels in turn within a topic.

    The questions of a smaller number are the first of a larger one. The seed is part of the ids, so
    that questions of different seeds are never taken for the same ones.
    """
    if not 1 <= num_questions <= MAX_QUESTIONS:
        raise ValueError(f"num_questions is {num_questions}; give 1 to {MAX_QUESTIONS}.")
    rng = random.Random(seed)
    topics = list(OPERATIONS)
    sums: list[Sum] = []
    seen: set[str] = set()
    while len(sums) < num_questions:
        topic = topics[len(sums) % len(topics)]
        level = len(sums) // len(topics) % NUM_LEVELS + 1
        question, result = OPERATIONS[topic](rng, level)
        if question not in seen:
            seen.add(question)
            sums.append(Sum(f"{seed}-{len(sums):04d}-{topic}", topic, level, question, result))
    return sums


# --- task -----------------------------------------------------------------------------------------


@task
def arithmetic(num_questions: int = 200, seed: int = 0) -> Task:
    """Ask `num_questions` generated sums."""
    samples = [
        Sample(
            id=one.id,
            input=f"{one.question} {INSTRUCTION}",
            target=str(one.result),
            metadata={"topic": one.topic, "level": one.level},
        )
        for one in make_sums(num_questions, seed)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"arithmetic_{num_questions}_{seed}"),
        solver=generate(),
        scorer=last_number(),
        version=1,
    )


@scorer(metrics=[accuracy(), stderr()])
def last_number() -> Scorer:
    """The last number of the answer must be the result."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        is_right = grade_numeric(answer, list(target))
        return Score(value=CORRECT if is_right else INCORRECT, answer=answer)

    return score

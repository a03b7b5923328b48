"""Sums and products, as a public benchmark asks them: a question with one number for an answer.

The seed of this study took two subjects of MMLU, which need the hub; these need no network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate

SIGNS = {"addition": "+", "multiplication": "x"}
NUMBERS = range(2, 7)


@task
def arithmetic_subset(subjects: list[str] | None = None) -> Task:
    """Ask every sum of two small numbers, for the subjects that are named."""
    samples = [one for subject in subjects or SIGNS for one in samples_of(subject)]
    return Task(
        dataset=MemoryDataset(samples, name="arithmetic_subset"),
        solver=generate(),
        scorer=match(location="begin", numeric=True),
        version=1,
    )


def samples_of(subject: str) -> Iterator[Sample]:
    for one, other in itertools.combinations_with_replacement(NUMBERS, 2):
        answer = one + other if subject == "addition" else one * other
        yield Sample(
            id=f"{subject}-{one}-{other}",
            input=f"What is {one} {SIGNS[subject]} {other}?",
            target=str(answer),
            metadata={"topic": subject},
        )

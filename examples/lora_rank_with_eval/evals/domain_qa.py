"""Questions of a domain with known answers, from a file beside this one."""

from __future__ import annotations

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

HERE = Path(__file__).resolve().parent


@task
def domain_qa(split: str = "test", max_samples: int | None = None) -> Task:
    """Ask the questions of `data/domain_qa_<split>.jsonl`, at most `max_samples` of them."""
    return Task(
        dataset=json_dataset(
            str(HERE / "data" / f"domain_qa_{split}.jsonl"),
            FieldSpec(input="input", target="target", metadata=["topic"]),
            limit=max_samples,
        ),
        solver=generate(),
        scorer=includes(),
        version=1,
    )

"""How a run asked its questions, for whoever asks the export."""

from __future__ import annotations

from typing import Any

from exports.ollama import AnswerSettings
from exports.source import Source
from loop.planning.fitting import limits_of


def asked_by(source: Source) -> AnswerSettings:
    """Temperature and longest answer as the checkpoint was evaluated, and the model's context."""
    context = limits_of(source.base_dir).context
    if source.store is None or source.checkpoint is None:
        return AnswerSettings(context=context)
    evaluation: Any = source.store.settled_config()["config"].get("evaluation")
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    temperature = evaluation.get("temperature")
    # A checkpoint that was not evaluated is asked as the start of its run was.
    result = source.store.result(source.checkpoint.round) or source.store.result(0)
    tasks = [] if result is None else result.tasks
    asked = [task.max_tokens for task in tasks if task.max_tokens is not None]
    return AnswerSettings(
        temperature=float(temperature) if isinstance(temperature, int | float) else 0.0,
        max_tokens=evaluation.get("max_tokens") or max(asked, default=None),
        context=context,
    )

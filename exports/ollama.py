"""Ollama's Modelfile."""

from __future__ import annotations

from dataclasses import dataclass

from exports.served_template import ServedTemplate


@dataclass(frozen=True)
class AnswerSettings:
    """How the run asked its questions."""

    temperature: float = 0.0
    max_tokens: int | None = None
    context: int | None = None  # the model's longest text in tokens


def modelfile(template: ServedTemplate, gguf_name: str, asked: AnswerSettings) -> str:
    """The Modelfile beside a GGUF file. Raises `ExportError` where there is no Go template."""
    raise NotImplementedError

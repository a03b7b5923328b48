"""Ollama's Modelfile: the model's file, the template in Go's language, stops, how it is asked.

Ollama was not run here. The template was, by Go's own `text/template` with the data that Ollama's
source gives it (benchmarks/ollama_template.py). A Modelfile knows no escapes: what stands between
quotes is taken as it is, line breaks too, and characters that cannot be printed are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from errors import ExportError
from exports.served_template import ServedTemplate

MAX_CONTEXT = 8192  # Ollama takes the memory for all of it at once; raised by whoever needs more
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class AnswerSettings:
    """How the run asked its questions."""

    temperature: float = 0.0
    max_tokens: int | None = None
    context: int | None = None  # the longest text to serve, in tokens


def modelfile(template: ServedTemplate, gguf_name: str, asked: AnswerSettings) -> str:
    """The Modelfile beside a GGUF file.

    Raises `ExportError` where the template cannot be said in Go's language, or where the
    Modelfile's own marks stand in it.
    """
    if template.go is None:
        raise ExportError(
            f"There is no Modelfile for Ollama: {template.no_go or 'its template is not known'}. "
            "Take --format gguf: llama.cpp runs the chat template that is in the file."
        )
    if not _PLAIN_NAME.fullmatch(gguf_name):
        raise ExportError(
            f"A Modelfile names its model's file in letters, digits, '.', '_' and '-', and this "
            f"one is {gguf_name!r}."
        )
    lines = [
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{template.go}"""',
        *(f"PARAMETER stop {_quoted(text)}" for text in template.stop_texts),
        f"PARAMETER temperature {asked.temperature!r}",
        # Of all tokens, as the run sampled, and nothing held against what was said already.
        *([] if asked.temperature == 0 else ["PARAMETER top_k 0", "PARAMETER top_p 1.0"]),
        "PARAMETER repeat_penalty 1.0",
    ]
    if asked.max_tokens is not None:
        lines.append(f"PARAMETER num_predict {asked.max_tokens}")
    if asked.context is not None:
        lines.append(f"PARAMETER num_ctx {min(asked.context, MAX_CONTEXT)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"' in text or not text.replace("\n", "").isprintable():
        raise ExportError(
            f"There is no Modelfile for Ollama: answers end at {text!r}, which cannot be written "
            "between quotes there. Take --format gguf."
        )
    return f'"{text}"'

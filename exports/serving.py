"""How an export is served, as sections of Markdown with commands."""

from __future__ import annotations

from typing import NamedTuple

from exports.ollama import AnswerSettings
from exports.served_template import ServedTemplate
from loop.plan_page.serving import Adapter


class Served(NamedTuple):
    """What is served: one of the formats, and the files that the commands name."""

    format: str  # peft, merged, gguf, gguf-adapter or ollama
    base: str  # the base model's directory or hub name
    adapter: Adapter
    template: ServedTemplate
    asked: AnswerSettings
    gguf: str = "model.gguf"  # the model's, or the adapter's file in the folder
    base_gguf: str = "BASE.gguf"  # what an adapter in GGUF is put on


def how_to_serve(served: Served) -> str:
    """Markdown: a section (`### ...`) for each program, with its commands and what it cannot do."""
    raise NotImplementedError

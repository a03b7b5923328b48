"""The chat template that writes a conversation as the renderer did, proven on samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedTemplate:
    """A template for transformers, vLLM and llama.cpp, and the same for Ollama where there is one.

    `limits` are sentences on what it does not write as the renderer does (tool calls, say), with
    the exact place; `plain_limits` say the same to a reader of the card. The template writes the
    token that begins a text itself. Where the tokenizer puts one before plain text too, so does the
    reader of a GGUF file: llama.cpp then takes the template's away, and Ollama's template has none.
    """

    jinja: str
    go: str | None  # None where Ollama's language cannot say the same
    stop_texts: tuple[str, ...]
    stop_ids: tuple[int, ...]  # none where answers end by a text that is no token
    origin: str  # "the model's own" or how it was made
    proven_on: tuple[str, ...]  # names of the conversations that are equal, token by token
    limits: tuple[str, ...] = ()
    plain_limits: tuple[str, ...] = ()
    opens_with_bos: bool = False  # prompts begin with the token that begins a text
    reader_adds_bos: bool = False  # the reader of a GGUF file puts it there, also for Ollama
    # Of a model's own: one made from the renderer in plain constructs, for an engine that does not
    # run it; None where none is proven.
    plain: ServedTemplate | None = None
    no_go: str = ""  # why there is none for Ollama
    go_limits: tuple[str, ...] = ()  # what Ollama alone writes otherwise

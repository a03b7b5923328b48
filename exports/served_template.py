"""The chat template that writes a conversation as the renderer did, proven on samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedTemplate:
    """A template for transformers, vLLM and llama.cpp, and the same for Ollama where there is one.

    `limits` are sentences on what it does not write as the renderer does (tool calls, say). The
    template writes the token that begins a text itself; a GGUF file says with `opens_with_bos`
    whether its reader puts one there too (llama.cpp then takes the template's away, and Ollama's
    template has none).
    """

    jinja: str
    go: str | None  # None where Ollama's language cannot say the same
    stop_texts: tuple[str, ...]
    stop_ids: tuple[int, ...]  # none where answers end by a text that is no token
    origin: str  # "the model's own" or how it was made
    proven_on: tuple[str, ...]  # names of the conversations that are equal, token by token
    limits: tuple[str, ...] = ()
    opens_with_bos: bool = False
    no_go: str = ""  # why there is none for Ollama
    go_limits: tuple[str, ...] = ()  # what Ollama alone writes otherwise

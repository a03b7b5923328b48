"""What kind of export is asked for, and what was written of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from errors import ConfigError

Format = Literal["peft", "merged", "gguf", "gguf-adapter", "ollama"]
Quantization = Literal["f32", "f16", "q8_0"]
LLAMA_CPP: tuple[Format, ...] = ("gguf", "gguf-adapter", "ollama")  # needs requirements-gguf.txt
DEFAULT_QUANTIZATION: Quantization = "f16"


@dataclass(frozen=True)
class Wanted:
    """The format and what goes with it."""

    format: Format
    out: Path  # where the folder appears, absolute
    quantization: Quantization | None = None
    dtype: str | None = None
    fold_unembed: bool = False


@dataclass(frozen=True)
class Written:
    """What an export consists of, and how it is loaded to be checked."""

    base_dir: Path  # the model that an adapter is loaded on
    dtype: str | None = None  # of merged weights
    quantization: Quantization | None = None
    gguf: Path | None = None  # the model that llama.cpp loads
    gguf_adapter: Path | None = None
    notes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # that took part beside the usual ones


def refuse_options(wanted: Wanted) -> None:
    """Raise `ConfigError` for an option that this format has no use for."""
    of_format = f"--format {wanted.format}"
    if wanted.quantization is not None and wanted.format not in LLAMA_CPP:
        raise ConfigError(f"--quantization is for GGUF, and {of_format} writes none. Leave it out.")
    if wanted.dtype is not None and wanted.format != "merged":
        raise ConfigError(f"--dtype is for --format merged, and not for {of_format}. Leave it out.")
    if wanted.fold_unembed and wanted.format != "peft":
        raise ConfigError(
            f"--fold-unembed leaves an adapter beside a changed base model, and {of_format} has no "
            "adapter. Leave it out, or give --format peft."
        )
    if wanted.format in LLAMA_CPP:
        from exports.gguf_model import need_gguf

        need_gguf()

"""Which files an export has: the weights of each format, and what goes with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from errors import ConfigError, ExportError
from exports.answer_settings import asked_by
from exports.merged import Merge, merge, own_dtype, unembedding_of
from exports.peft_folder import read_adapter, write_adapter, write_part
from exports.served_template import ServedTemplate
from exports.source import Source
from exports.tokenizer_files import (
    TEMPLATE,
    copy_tokenizer,
    generation_settings,
    names_its_class,
    write_generation_settings,
)
from exports.wanted import DEFAULT_QUANTIZATION, Wanted, Written
from storage.folders import copy_plain, emptied, write_plain

if TYPE_CHECKING:
    from exports.gguf_model import About

BASE = "base"  # the folder of a base model whose unembedding was changed
MODELFILE = "Modelfile"
PACKAGES = ("gguf", "xllamacpp")  # that take part where llama.cpp's files are written


def write_weights(
    source: Source, wanted: Wanted, template: ServedTemplate, folder: Path
) -> Written:
    """Write what the format is about into a folder aside. Raises `ExportError`."""
    zero = ()
    if read_adapter(source.adapter_dir).is_zero:
        zero = ("the adapter changes nothing: all of its lora_B matrices are zero",)
    writers: dict[str, Callable[[], Written]] = {
        "peft": lambda: _peft(source, wanted, template, folder),
        "merged": lambda: _merged(source, wanted, template, folder),
        "gguf": lambda: _gguf(source, wanted, template, folder),
        "gguf-adapter": lambda: _gguf_adapter(source, wanted, template, folder),
        "ollama": lambda: _ollama(source, wanted, template, folder),
    }
    written = writers[wanted.format]()
    return replace(written, notes=(*written.notes, *zero))


def base_place(source: Source) -> str:
    """Where a loader finds the base model: its name on the hub, or a directory of this machine,
    from wherever it is loaded."""
    return source.base_name if source.base_is_hub else str(source.base_dir)


def _peft(source: Source, wanted: Wanted, template: ServedTemplate, folder: Path) -> Written:
    if wanted.fold_unembed:
        return _folded(source, wanted, template, folder)
    write_adapter(source.adapter_dir, folder, base_place(source))
    notes = [
        f"loaded on the base model at {base_place(source)}, which adapter_config.json names; where "
        "it lies elsewhere it is known by its sha256 in export.json"
    ]
    adapter = read_adapter(source.adapter_dir)
    has_head = unembedding_of(source.base_dir) in adapter.modules
    if has_head:
        notes.append(
            "the adapter changes the unembedding as well: load it with PeftModel.from_pretrained; "
            "AutoModelForCausalLM.from_pretrained would leave that part out, and refuses this "
            "folder because the base model's config.json is in it"
        )
    # Beside an adapter that file makes transformers look for whole weights, and find none.
    if has_head or not names_its_class(source.base_dir):
        copy_plain(source.base_dir / "config.json", folder / "config.json")
    if adapter.has_experts:
        notes.append(
            "the adapter changes experts, in a layout of PEFT's own: servers do not take it; "
            "export with --format merged to serve it"
        )
    notes += _files_beside(source, template, folder)
    return Written(source.base_dir, notes=tuple(notes))


def _folded(source: Source, wanted: Wanted, template: ServedTemplate, folder: Path) -> Written:
    """The part on the unembedding merged into a copy of the base, and the adapter without it."""
    head, base = unembedding_of(source.base_dir), folder / BASE
    if read_adapter(source.adapter_dir).has_experts:
        raise ConfigError(
            "--fold-unembed: the adapter changes experts, in a layout that servers do not take. "
            "Use --format merged."
        )
    with emptied(folder / ".head") as part:
        write_part(source.adapter_dir, part, base_place(source), head, is_head=True)
        done = merge(source.base_dir, part, base, own_dtype(source.base_dir))
    write_part(source.adapter_dir, folder, str(wanted.out / BASE), head, is_head=False)
    if not names_its_class(source.base_dir):
        copy_plain(base / "config.json", folder / "config.json")
    notes = [
        f"the adapter's part on the unembedding ({head}) was merged into the base model in "
        f"{BASE}/, and the adapter beside it is without it: the two belong together",
        *done.notes,
        *_files_beside(source, template, folder),
    ]
    _files_beside(source, template, base)
    return Written(base, dtype=done.dtype, notes=tuple(notes))


def _merged(source: Source, wanted: Wanted, template: ServedTemplate, folder: Path) -> Written:
    dtype = wanted.dtype or own_dtype(source.base_dir)
    done = merge(source.base_dir, source.adapter_dir, folder, dtype)
    notes = (*done.notes, *_files_beside(source, template, folder))
    return Written(source.base_dir, dtype=dtype, notes=notes)


def _gguf(source: Source, wanted: Wanted, template: ServedTemplate, folder: Path) -> Written:
    from exports.gguf_model import write_gguf

    quantization = wanted.quantization or DEFAULT_QUANTIZATION
    refuse_for_llama_cpp(source, template)  # before the work of merging
    with _merged_aside(source, template, folder) as (model_dir, done):
        file = folder / gguf_name(wanted)
        limits = write_gguf(model_dir, file, quantization, template.jinja, _about(source, template))
    write_plain(folder / TEMPLATE, template.jinja.encode())
    return Written(
        source.base_dir,
        quantization=quantization,
        gguf=file,
        notes=(*done.notes, f"written as {quantization}", *limits),
        packages=PACKAGES,
    )


def refuse_for_llama_cpp(source: Source, template: ServedTemplate) -> None:
    """Raise `ExportError` for an architecture or a tokenizer that llama.cpp reads otherwise."""
    from exports.gguf_shape import read_shape
    from exports.gguf_tokenizer import read_tokens

    shape = read_shape(source.base_dir)
    read_tokens(source.base_dir, shape.vocab_size, template.jinja, template.stop_ids)


def _about(source: Source, template: ServedTemplate, *, own_head: bool = False) -> About:
    """What a GGUF file says of itself; no place on this machine is in it."""
    from exports.gguf_model import About

    name = Path(source.base_name).name
    if source.store is not None and source.checkpoint is not None:
        name = f"{source.store.settled_config()['config'].get('run_name', name)}"
        name += f", round {source.checkpoint.round}"
    return About(name=name, stop_ids=template.stop_ids, own_head=own_head)


def _ollama(source: Source, wanted: Wanted, template: ServedTemplate, folder: Path) -> Written:
    from exports.ollama import modelfile

    # Before the work of merging: not every template can be said in Ollama's language.
    text = modelfile(template, gguf_name(wanted), asked_by(source))
    written = _gguf(source, wanted, template, folder)
    write_plain(folder / MODELFILE, text.encode())
    return written


def gguf_name(wanted: Wanted) -> str:
    return f"model-{wanted.quantization or DEFAULT_QUANTIZATION}.gguf"


def _gguf_adapter(
    source: Source, wanted: Wanted, template: ServedTemplate, folder: Path
) -> Written:
    """The adapter and the base model that it is loaded on, which llama.cpp wants as GGUF too."""
    from exports.gguf_adapter import write_gguf_adapter
    from exports.gguf_model import write_gguf

    quantization = wanted.quantization or DEFAULT_QUANTIZATION
    adapter, base = folder / "adapter.gguf", folder / f"base-{quantization}.gguf"
    refuse_for_llama_cpp(source, template)
    done = write_gguf_adapter(source.adapter_dir, source.base_dir, adapter)
    about = _about(source, template, own_head=done.needs_own_head)
    limits = write_gguf(source.base_dir, base, quantization, template.jinja, about)
    write_plain(folder / TEMPLATE, template.jinja.encode())
    notes = [f"{base.name} is the untouched base model, which {adapter.name} is loaded on"]
    if done.needs_own_head:
        notes.append(
            "the adapter changes the unembedding, which the base model ties to its embedding: it "
            f"fits {base.name} alone, where the unembedding is written as a matrix of its own"
        )
    return Written(
        source.base_dir,
        quantization=quantization,
        gguf=base,
        gguf_adapter=adapter,
        notes=(*notes, *limits),
        packages=PACKAGES,
    )


@contextmanager
def _merged_aside(
    source: Source, template: ServedTemplate, folder: Path
) -> Iterator[tuple[Path, Merge]]:
    """The merged model in float32, which a file is made from and nobody is given."""
    with emptied(folder / ".merged") as aside:
        done = merge(source.base_dir, source.adapter_dir, aside, "float32")
        copy_tokenizer(source.base_dir, aside, template)
        yield aside, done


def _files_beside(source: Source, template: ServedTemplate, folder: Path) -> list[str]:
    """Tokenizer, chat template and generation settings."""
    notes = copy_tokenizer(source.base_dir, folder, template)
    settings = generation_settings(source.base_dir, template, asked_by(source))
    write_generation_settings(folder, settings)
    return notes


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write text files by their names below a folder. Raises `ExportError` for a name outside."""
    for name, text in texts.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{name}: this name leads out of the export.")
        write_plain(path, text.encode("utf-8", "backslashreplace"))  # half a surrogate pair

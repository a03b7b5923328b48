"""An export made from beginning to end: found, written aside, checked, and only then named."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import is_normalized

from errors import ExportError
from exports.check import Check
from exports.downloading import download, refuse_unreachable
from exports.merged import own_dtype
from exports.publishing import CARD, export_record, write_record, write_sums
from exports.room import refuse_no_room
from exports.source import Asked, Source, find_source
from exports.tokenizer_files import normalizes
from exports.wanted import LLAMA_CPP, Wanted, Written, refuse_options
from exports.writing import write_texts, write_weights
from storage.folders import emptied, folder_aside, refuse_occupied

if TYPE_CHECKING:
    from exports.loaded import Loaded
    from exports.reference import Reference
    from exports.rounding import Rounding
    from exports.self_check import Noise
    from exports.served_template import ServedTemplate
    from loop.reports.progress import Progress

ADAPTER = Path("adapter")  # in the folder of what is downloaded
ROUNDINGS: dict[str, Rounding] = {
    "float32": "float32",
    "gguf-f32": "gguf-f32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "gguf-f16": "gguf-f16",
    "gguf-q8_0": "gguf-q8_0",
}
IN_PLACE_OF_OWN = (
    "the chat template is {origin}, in the place of the model's own, with which llama.cpp does not "
    "write the prompts of training: {why}"
)
DOWNLOADED = ".download"  # in the folder aside, and gone before it appears


@dataclass(frozen=True)
class Made:
    """An export that is there, and what was found of it."""

    source: Source
    wanted: Wanted
    checks: tuple[Check, ...]
    sums: dict[str, str]  # sha256 by file
    record: dict[str, Any]  # export.json
    base: str  # what an adapter is loaded on
    gguf: str | None = None  # the name of the file that llama.cpp loads
    advice: str | None = None  # on serving the adapter


def make_export(asked: Asked, wanted: Wanted, env: Mapping[str, str], progress: Progress) -> Made:
    """Make an export, whole or not at all.

    Raises `InputError` children before anything costs, and other `LoopError`s where it fails.
    """
    refuse_options(wanted)
    refuse_occupied("OUT", wanted.out)
    progress.live("looking up the checkpoint, and reading its base model's files")
    source = find_source(asked)
    progress.line(f"{source.label}: {_told(source)}")
    touches_base = wanted.format != "peft" or wanted.fold_unembed
    refuse_no_room(source, wanted, own_dtype(source.base_dir) if touches_base else None)
    if source.is_downloaded:
        refuse_unreachable(source, env, progress.line)
    with folder_aside(wanted.out) as folder, called(folder, wanted.out):
        with emptied(folder / DOWNLOADED) as downloads:
            if source.is_downloaded:
                source = replace(source, adapter_dir=downloads / ADAPTER)
                progress.line(
                    "for the download the service loads the state into a new training session, "
                    "and exports it encrypted for this machine alone; the session is closed and "
                    "that export deleted again. What this costs there is not known here"
                )
                with _timed(progress, f"downloading {source.state_path}"):
                    download(source, env, downloads, progress.line)
            if source.adapter is not None:
                from exports.gathering import adopt

                with _timed(progress, "holding the adapter against its base model"):
                    source = adopt(source, env, progress, downloads)
            filled = _fill(source, wanted, env, progress, folder)
        return replace(filled, sums=write_sums(folder))


@contextlib.contextmanager
def called(folder: Path, out: Path) -> Iterator[None]:
    """Let an error name the export, and not the hidden folder that is gone when it is read."""
    try:
        yield
    except ExportError as error:
        if str(folder) not in str(error):
            raise
        raise ExportError(str(error).replace(str(folder), str(out))) from error


def _told(source: Source) -> str:
    """What is exported, in a line."""
    store, checkpoint = source.store, source.checkpoint
    where = ""
    if store is not None and checkpoint is not None:
        where = f"round {checkpoint.round}, {store.num_steps_in(checkpoint)} steps, "
    return f"{where}{source.sampler_path} on {source.base_name}, renderer {source.renderer}"


@contextlib.contextmanager
def _timed(progress: Progress, what: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    began = time.monotonic()
    progress.live(what)
    yield
    progress.line(f"{what}: {time.monotonic() - began:.1f} s")


def _fill(
    source: Source, wanted: Wanted, env: Mapping[str, str], progress: Progress, folder: Path
) -> Made:
    """Write all of an export, and hold it against the service before it is called finished."""
    from exports.gathering import gather_reference
    from exports.templates import served_template
    from exports.using import advice_on, base_of

    with _timed(progress, f"the chat template of {source.renderer}"):
        template = served_template(source.base_dir, source.renderer)
    progress.line(f"chat template: {template.origin}")
    with _timed(progress, f"writing {wanted.format}"):
        written = write_weights(source, wanted, template, folder)
    with _timed(progress, "asking the service"):
        reference = gather_reference(source, env, progress)
    with _timed(progress, "loading the export and comparing it"):
        checks, problem = compare(source, wanted, written, reference, folder)
    if problem is not None and template.plain is not None and wanted.format in LLAMA_CPP:
        template = template.plain
        with _timed(progress, f"writing it again, with the chat template {template.origin}"):
            written = write_weights(source, wanted, template, folder)
            checks, again = compare(source, wanted, written, reference, folder)
        if again is None:
            notes = (*written.notes, IN_PLACE_OF_OWN.format(origin=template.origin, why=problem))
            written = replace(written, notes=notes)
    refuse_failed(wanted, checks)
    record = export_record(source, wanted, written, template, checks)
    record["asked"] = {"questions": reference.origin, "notes": list(reference.notes)}
    write_texts(folder, texts_beside(source, wanted, written, template, checks))
    write_record(folder, record)
    return Made(
        source,
        wanted,
        tuple(checks),
        {},
        record,
        base=base_of(source, wanted),
        gguf=None if written.gguf is None else written.gguf.name,
        advice=advice_on(source, wanted),
    )


# --- the check ------------------------------------------------------------------------------------


def compare(
    source: Source, wanted: Wanted, written: Written, reference: Reference, folder: Path
) -> tuple[list[Check], str | None]:
    """The checks, and why the chat template may be to blame where they fail: llama.cpp has an
    engine of its own for templates, and does not even load a file whose template it cannot read."""
    try:
        checks = check_written(source, wanted, written, reference, folder)
    except ExportError as error:
        if "template" not in str(error):
            raise
        return [Check("loading", False, str(error))], str(error)
    failed = (one.sentence for one in checks if one.name == "prompts" and not one.passed)
    return checks, next(failed, None)


def check_written(
    source: Source, wanted: Wanted, written: Written, reference: Reference, folder: Path
) -> list[Check]:
    """What comes of each comparison with the service, of the export as a user loads it."""
    from exports.self_check import check

    noise = _noise(source, wanted, written, reference)
    if wanted.format in LLAMA_CPP and normalizes(source.base_dir):
        # llama.cpp does not bring a text into this form, which a note says; such ones are left out.
        texts = tuple(pair for pair in reference.texts if is_normalized("NFC", pair[0]))
        reference = replace(reference, texts=texts)
    with _loaded(wanted, written, folder, longest_of(reference)) as loaded:
        return check(loaded, reference, noise)


def longest_of(reference: Reference) -> int:
    """How many tokens the longest comparison takes, a prompt with its answer. Pure."""
    answers = (len(one.prompt) + reference.max_tokens for one in reference.answers)
    return max((*answers, *(len(one.tokens) for one in reference.scored)), default=0)


def _noise(source: Source, wanted: Wanted, written: Written, reference: Reference) -> Noise | None:
    """How far rounding as in this export moves the checkpoint's figures by itself."""
    from exports.rounding import rounding_noise

    rounding = ROUNDINGS[_precision(wanted, written)]
    return rounding_noise(source.base_dir, source.adapter_dir, rounding, reference)


def _precision(wanted: Wanted, written: Written) -> str:
    if wanted.format in LLAMA_CPP:
        return f"gguf-{written.quantization}"
    return written.dtype or "float32"


@contextlib.contextmanager
def _loaded(wanted: Wanted, written: Written, folder: Path, longest: int) -> Iterator[Loaded]:
    """The export, loaded by what a user would load it with; `longest` is what it will be asked."""
    if wanted.format in LLAMA_CPP:
        from exports.loaded_llama_cpp import CONTEXT, open_llama_cpp

        assert written.gguf is not None, "these formats have one"
        context = max(CONTEXT, longest + 1)
        with open_llama_cpp(written.gguf, written.gguf_adapter, context=context) as loaded:
            yield loaded
        return
    from exports.loaded_transformers import open_transformers

    yield open_transformers(folder, written.base_dir, wanted.format)


def refuse_failed(wanted: Wanted, checks: Sequence[Check]) -> None:
    """Raise `ExportError` where the export does not do what the checkpoint does."""
    failed = [one for one in checks if not one.passed]
    if failed or not checks:
        why = " ".join(one.sentence for one in failed) or "Nothing could be compared."
        raise ExportError(
            f"{wanted.out}: the export does not do what the checkpoint does, so none was written: "
            f"{len(failed)} of {len(checks)} checks failed. {why}"
        )


# --- what is written beside the weights -----------------------------------------------------------


def texts_beside(
    source: Source,
    wanted: Wanted,
    written: Written,
    template: ServedTemplate,
    checks: Sequence[Check],
) -> dict[str, str]:
    """The card, and the files that mirror the run's training."""
    from exports.card import card_of
    from exports.mirror import training_files
    from exports.using import serving_of

    serving = serving_of(source, wanted, written, template)
    notes = [*source.notes, *written.notes]
    card = card_of(source, wanted.format, template, serving, checks, notes)
    return {CARD: card, **training_files(source)}

"""The card of an export, `README.md`: what it is, what it was measured to do, and what not.

All of it is read from the run that trained the checkpoint. What was not measured is said to be so,
and of a checkpoint of no known run it is said that nothing is known of its results. Front matter as
Hugging Face reads it stands above; a model index is left out, as its results are looked up by the
hub's names of data sets, which no run has. Places on the disk are not written, but for those in the
commands that serve it: cards are given away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from exports.card_failures import failures_section
from exports.card_results import decision_section, results_section
from exports.card_story import Story, places_of, shorter, story_of
from exports.card_training import data_section, training_section
from exports.check import Check
from exports.served_template import ServedTemplate
from exports.source import Source
from pages.document import (
    Block,
    Bullets,
    Code,
    Column,
    Document,
    Paragraph,
    Section,
    Table,
)
from pages.markdown import markdown
from rows.sources import HUB_PREFIX

LIBRARIES = {"peft": "peft", "merged": "transformers"}  # others are GGUF files
RELATIONS = {"peft": "adapter", "gguf-adapter": "adapter"}  # others are whole models
KINDS = {
    "peft": "A LoRA adapter in PEFT's layout",
    "merged": "A model with its LoRA adapter merged into the weights",
    "gguf": "A model with its LoRA adapter merged into the weights, as a GGUF file",
    "gguf-adapter": "A LoRA adapter as a GGUF file",
    "ollama": "A model with its LoRA adapter merged into the weights, as a GGUF file with a "
    "Modelfile",
}
MAX_CARD_BYTES = 65_536  # of a base model's own card, in which its license is looked for
LICENSE = re.compile(r"""^license:[ \t]*["']?([A-Za-z0-9][A-Za-z0-9.+-]*)["']?[ \t]*$""", re.M)
LICENSE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)


def card_of(
    source: Source,
    format: str,
    template: ServedTemplate | None,
    serving: str,
    checks: Sequence[Check],
    notes: Sequence[str] = (),
) -> str:
    """The card in Markdown, with the front matter that Hugging Face reads.

    `serving` is Markdown with headings of the third level: how it is served. `notes` are
    sentences on how it was made: which merge, what was folded, which dtype.
    """
    story = story_of(source)
    name = "Exported checkpoint" if story is None else str(story.config["run_name"])
    title = name if story is None else f"{name}, round {story.checkpoint.round}"
    above: list[Block] = [*_opening(source, format, story)]
    if story is not None:
        above += [results_section(story), decision_section(story)]
    above += [failures_section(story), _use_section(template)]
    below: list[Block] = [_model_section(source, format, story, notes)]
    if story is not None:
        below += [training_section(story), data_section(story)]
    below.append(_checks_section(checks))
    if story is not None:
        below.append(_evidence_section(story))
    places = [*places_of(source, story)]
    first = shorter(markdown(Document(title, above)), places)
    _, _, rest = shorter(markdown(Document(title, below)), places).partition("\n\n")
    parts = [first, *([f"{serving.strip()}\n"] if serving.strip() else []), rest]
    return f"---\n{front_matter(source, format, story)}---\n\n" + "\n".join(parts)


# --- front matter ---------------------------------------------------------------------------------


def front_matter(source: Source, format: str, story: Story | None) -> str:
    """The YAML between the dashes, in ASCII."""
    library = LIBRARIES.get(format, "gguf")
    matter: dict[str, Any] = {}
    if (hub_name := hub_name_of(source)) is not None:
        matter["base_model"] = hub_name
        matter["base_model_relation"] = RELATIONS.get(format, "finetune")
    matter["library_name"] = library
    matter["pipeline_tag"] = "text-generation"
    if (license_name := license_of(source.base_dir)) is not None:
        matter["license"] = license_name
    if datasets := _datasets(story):
        matter["datasets"] = datasets
    tags = ["lora", "fine-tuned", "text-generation"]
    matter["tags"] = tags if library in ("peft", "transformers") else [*tags, "gguf"]
    return yaml.safe_dump(matter, sort_keys=False, default_flow_style=False)


def hub_name_of(source: Source) -> str | None:
    """What the hub calls the base model; None for a folder, which the hub could not find.

    A folder of the hub's cache says of which repository it is.
    """
    kept_as = f"models--{source.base_name.replace('/', '--')}"
    is_cached = kept_as in source.base_dir.parts
    return source.base_name if is_cached and REPOSITORY.fullmatch(source.base_name) else None


def license_of(base_dir: Path) -> str | None:
    """The license that the base model's own card names in its front matter."""
    try:
        with open(base_dir / "README.md", encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_CARD_BYTES)
    except (OSError, ValueError):
        return None
    parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.M)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = LICENSE.search(parts[1])
    is_name = found is not None and LICENSE_NAME.fullmatch(found[1]) is not None
    return found[1].lower() if found is not None and is_name else None


def _datasets(story: Story | None) -> list[str]:
    """The hub's data sets that were trained on; files have no name there."""
    if story is None:
        return []
    paths = (file.path for name, file in story.manifest.files.items() if name != "val_file")
    names = (path.removeprefix(HUB_PREFIX) for path in paths if path.startswith(HUB_PREFIX))
    return list(dict.fromkeys(name for name in names if REPOSITORY.fullmatch(name)))


# --- what it is, and how it is used ---------------------------------------------------------------


def _opening(source: Source, format: str, story: Story | None) -> Iterator[Block]:
    what = KINDS.get(format, f"An export of the format {format}")
    of = f"{what}, of the base model {_base_name(source)}."
    if story is None:
        yield Paragraph(
            f"{of} No run is known that saved this checkpoint: nothing is known of how it was "
            "trained, nor of what it was measured to do."
        )
        return
    checkpoint = story.checkpoint
    origin = story.store.origin
    after = "" if origin is None else f", on from {origin.parent}"
    number = story.store.num_steps_in(checkpoint)
    made = (
        f"It was trained by run {story.store.run_id}: round {checkpoint.round}, "
        f"{number:,} optimizer step{'s' * (number != 1)}{after}."
    )
    yield Paragraph(f"{of} {made}")
    yield Paragraph(story.headline, is_lead=True)


def _base_name(source: Source) -> str:
    """The hub's name, or the folder's without where it lies."""
    return hub_name_of(source) or Path(source.base_name).name or source.base_name


def _use_section(template: ServedTemplate | None) -> Section:
    title = "How to use it"
    if template is None:
        text = "No chat template is in this folder, so prompts are to be written by hand."
        return Section(title, [Paragraph(text)])
    number = len(template.proven_on)
    text = (
        f"The chat template in this folder, {template.origin}, writes a conversation as it was "
        f"written in training, token by token. That was tried on {number:,} kinds of conversation, "
        "which export.json names."
    )
    blocks: list[Block] = [Paragraph(text)]
    if template.plain_limits:
        intro = (
            "Not written quite as in training, so answers to these may be worse than the results "
            "above (export.json has the exact places):"
        )
        blocks += [Paragraph(intro), Bullets(template.plain_limits)]
    return Section(title, blocks)


def _model_section(
    source: Source, format: str, story: Story | None, notes: Sequence[str]
) -> Section:
    where = (
        "It is a model of the hub."
        if hub_name_of(source) is not None
        else "It is a folder of whoever trained this, so the hub does not know it by this name."
    )
    blocks: list[Block] = [
        Paragraph(f"Base model: {_base_name(source)}. {where} It is the one with these files:"),
    ]
    digests = [[name, digest] for name, digest in source.base_sha256.items()]
    blocks.append(
        Table("Files of the base model", [Column("file"), Column("sha256")], digests)
        if digests
        else Paragraph("Digests of its files were not taken.")
    )
    facts = [f"Format: {format}.", f"Chat format in training: {source.renderer}."]
    if story is not None:
        facts.append(f"{story.lora_text}.")
    blocks.append(Bullets([*facts, *map(_as_sentence, notes)]))
    return Section("Model", blocks)


def _as_sentence(text: str) -> str:
    end = "" if text.endswith((".", "!", "?")) else "."
    is_name = ":" in text.split(" ", 1)[0]  # registry:champion, which is written so
    return f"{text if is_name else text[:1].upper() + text[1:]}{end}"


def _checks_section(checks: Sequence[Check]) -> Section:
    if not checks:
        text = "This export was not loaded again and compared with the checkpoint."
        return Section("Checks of this export", [Paragraph(text)])
    rows = [[one.name, "holds" if one.passed else "does not hold", one.sentence] for one in checks]
    columns = [Column("check"), Column("outcome"), Column("what was found")]
    return Section(
        "Checks of this export",
        [
            Paragraph(
                "Before it was called finished the folder was loaded by the program that it is "
                "for, and compared with the service that trained the checkpoint."
            ),
            Table("Checks", columns, rows),
        ],
    )


def _evidence_section(story: Story) -> Section:
    checkpoint = story.checkpoint
    facts = [f"Run: {story.store.run_id}."]
    paths = [path for path in (checkpoint.sampler_path, checkpoint.state_path) if path]
    if story.result is not None:
        facts.append(f"Protocol of the evaluation, by its hash: {story.result.protocol_hash}")
    facts.append(f"Settings, sha256: {story.recorded.get('config_hash', 'not recorded')}")
    versions = story.recorded.get("versions")
    if isinstance(versions, dict):
        text = ", ".join(f"{name} {version}" for name, version in versions.items())
        facts.append(f"Trained with: {text}.")
    return Section(
        "Where the evidence lies",
        [
            Paragraph(
                "In the run's directory: ledger.jsonl (every step and decision), evals/ (every "
                "question with its answer), selections/ (what was trained on, and why), "
                "data_manifest.json, and report.html with all of it on one page."
            ),
            Bullets(facts),
            Paragraph("The checkpoint's weights, and the state that training goes on from:"),
            Code(paths),
        ],
    )

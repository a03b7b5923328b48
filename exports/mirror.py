"""The run's LoRA config and a QLoRA script that mirrors the run, as files of an export.

The script trains on answers, so of a run by another method there is the config alone.

The script (exports/qlora_train.py) is copied as it is; what is this run's own lies beside it in
`run.json`: the batches by file and line, each step's learning rate and loss, AdamW's settings. Of a
run that took rows which no line of a file stands for, the batches are left out, and that is said.
No rows and no folders of this machine are among it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from exports.source import Source
from exports.tokenizer_files import AS_IN_FILE
from hyperparam_utils import ADAM_BETAS, ADAM_EPS
from ledger.records import Checkpoint, Manifest
from ledger.store import RunStore
from local_tinker.tokenizer import reading_note
from rows.chat_formats import load_tokenizer
from scores.measures import SFT, method_words
from storage.stored_json import parse_object

FOLDER = "training"
CONFIG, SCRIPT, RUN = (
    f"{FOLDER}/{name}" for name in ("peft_config.json", "qlora_train.py", "run.json")
)
JSON_LINES = (".jsonl", ".ndjson")
DATA_FILES = ("train_file", "mining.pool_file")  # of a manifest, with what tells several apart


@dataclass(frozen=True)
class DataFile:
    """A data file of the run, where it lay, and its sha256."""

    path: str
    sha256: str
    columns: dict[str, str] = field(default_factory=dict)  # our name of a column -> the file's


@dataclass(frozen=True)
class MirroredStep:
    """An optimizer step: rows are pairs of a file's place in the list and a line from 1."""

    round: int
    step: int
    lr: float
    nll: float  # of the run, the mean over its loss tokens
    rows: tuple[tuple[int, int], ...] | None  # None where not every row is a line of a file


def training_files(source: Source) -> dict[str, str]:
    """What to train the adapter again with, by name below the export; none of no known run. The
    script trains on rows as they are, so that of other methods there is the adapter's config alone.
    """
    if source.store is None or source.checkpoint is None:
        return {}
    if method_words(source.store.settled_config()["config"]) is not SFT:
        return {CONFIG: _as_text(lora_config(source))}
    script = Path(__file__).with_name("qlora_train.py").read_text(encoding="utf-8")
    return {
        CONFIG: _as_text(lora_config(source)),
        SCRIPT: script,
        RUN: _as_text(_mirrored(source, source.store, source.checkpoint)),
    }


def _as_text(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"


def lora_config(source: Source) -> dict[str, Any]:
    """The adapter's own config, to begin training with."""
    text = (source.adapter_dir / "adapter_config.json").read_text(encoding="utf-8")
    config = parse_object(text)
    modules = config.get("target_modules")
    if isinstance(modules, list):
        config["target_modules"] = sorted(map(str, modules))
    return {**config, "base_model_name_or_path": source.base_name, "inference_mode": False}


def _mirrored(source: Source, store: RunStore, checkpoint: Checkpoint) -> dict[str, Any]:
    settled = store.settled_config()
    config: Mapping[str, Any] = settled["config"]
    files = data_files(store.manifest(), config)
    steps = list(mirrored_steps(store, checkpoint, files))
    return {
        "run_id": settled.get("run_id"),
        "checkpoint": {"round": checkpoint.round, "step": checkpoint.step},
        "base_model": source.base_name,
        "renderer": checkpoint.renderer,
        "tokenizer": _tokenizer_class(source),
        "train_on": settled["resolved"].get("train_on") or "all_assistant_messages",
        "max_seq_length": config.get("max_seq_length"),
        "batch_size": config.get("batch_size"),
        "seed": config.get("seed"),
        "adam": {
            "betas": list(ADAM_BETAS),
            "eps": ADAM_EPS,
            "weight_decay": config.get("weight_decay"),
        },
        # Where they lay is nobody's business; they are known by their sha256.
        "files": [{**asdict(file), "path": PurePath(file.path).name} for file in files],
        "steps": [asdict(step) for step in steps],
        "notes": list(_notes(store, checkpoint, steps)),
    }


def _tokenizer_class(source: Source) -> str:
    """What of transformers reads the tokenizer as the run did."""
    note = reading_note(load_tokenizer(str(source.base_dir)))
    return "AutoTokenizer" if note is None else AS_IN_FILE


def _notes(store: RunStore, checkpoint: Checkpoint, steps: list[MirroredStep]) -> Iterator[str]:
    if (origin := store.origin) is not None:
        parent = origin.parent
        which = "" if parent.run_id is None else f" of run {parent.run_id}, round {parent.round}"
        taken = " and the optimizer's state" if origin.with_optimizer else ""
        yield f"it went on from other weights{which}{taken}; give that adapter with --adapter"
    is_straight = len(store.lineage(checkpoint.round)) == checkpoint.round  # none rolled back
    if is_straight and len(steps) != checkpoint.step:
        yield f"{len(steps)} of its {checkpoint.step} steps are in its ledger"
    without = sum(step.rows is None for step in steps)
    if without:
        yield (
            f"the rows of {without} of its {len(steps)} steps are not all lines of JSON-lines "
            "files, so its batches cannot be taken again"
        )


def data_files(manifest: Manifest, config: Mapping[str, Any]) -> list[DataFile]:
    """The JSON-lines files that rows were taken from; the others have no lines to name."""
    return [
        DataFile(file.path, file.sha256, _columns(key, config))
        for key, file in manifest.files.items()
        if key.startswith(DATA_FILES) and PurePath(file.path).suffix in JSON_LINES
    ]


def _columns(key: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a source, its own or those of all; of several a key ends in `[1]`, say."""
    found: Any = config
    name, _, number = key.partition("[")
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, list):
        place = int(number[:-1]) if number[:-1].isdecimal() else 0
        found = found[place] if place < len(found) else None
    own = found.get("columns") if isinstance(found, Mapping) else None
    data = config.get("data")
    return dict(own or (data.get("columns") if isinstance(data, Mapping) else None) or {})


def mirrored_steps(
    store: RunStore, checkpoint: Checkpoint, files: list[DataFile]
) -> Iterator[MirroredStep]:
    """The steps that a checkpoint's weights came from, without those that were rolled back."""
    for round_no in (*store.lineage(checkpoint.round), checkpoint.round):
        selection = store.selection(round_no)
        picks = () if selection is None else selection.picks
        places = {pick.example_id: _place(pick.file, pick.line_no, files) for pick in picks}
        for event in store.events("step", round_no):
            rows = tuple(
                place for one in event.get("example_ids", ()) if (place := places.get(one))
            )
            is_whole = bool(rows) and len(rows) == len(event["example_ids"])
            yield MirroredStep(
                round_no, event["step"], event["lr"], event["nll"], rows if is_whole else None
            )


def _place(name: str | None, line_no: int | None, files: list[DataFile]) -> tuple[int, int] | None:
    """A row's file and line; None where no file is known, or several of that name."""
    if name is None or line_no is None:
        return None
    wanted = PurePath(name).parts
    found = [
        number
        for number, file in enumerate(files)
        if PurePath(file.path).parts[-len(wanted) :] == wanted
    ]
    return (found[0], line_no) if len(found) == 1 else None

"""The tokenizer of an export: copied byte for byte, its chat template that of the training.

Saving a loaded tokenizer again would leave keys out and write others. transformers takes
`chat_template.jinja` before the key `chat_template` of `tokenizer_config.json`; llama.cpp's tools
and others take the key first, so where there is one it is written to say the same. A class that
would lose the spaces of texts (local_tinker/tokenizer.py) is replaced by the one that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import ExportError
from exports.ollama import AnswerSettings
from exports.served_template import ServedTemplate
from local_tinker.tokenizer import reading_note
from loop.planning.models import TOKENIZER_FILES
from rows.chat_formats import load_tokenizer
from storage.folders import copy_plain, write_plain

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_KEY = "chat_template"
CLASS_KEY, AS_IN_FILE = "tokenizer_class", "PreTrainedTokenizerFast"
# Not among what tells one model from another, but read all the same where they are.
ALSO_READ = ("merges.json", "normalizer.json", "special_tokens.json", "spiece.vocab")
GENERATION = "generation_config.json"
TAKEN_OVER = ("bos_token_id", "pad_token_id", "decoder_start_token_id")


def copy_tokenizer(base_dir: Path, folder: Path, template: ServedTemplate) -> list[str]:
    """Put the base's tokenizer files and the served template into a folder. Returns sentences on
    what was changed. Raises `ExportError` where there is no tokenizer."""
    patterns = (*TOKENIZER_FILES, *ALSO_READ)
    files = {path for pattern in patterns for path in base_dir.glob(pattern) if path.is_file()}
    if not files:
        raise ExportError(
            f"{base_dir}: this base model has no tokenizer files, so the export would have none. "
            "Give the complete model directory with --base-model."
        )
    for path in sorted(files):
        copy_plain(path, folder / path.name)
    write_plain(folder / TEMPLATE, template.jinja.encode())
    is_read_as_file = reading_note(load_tokenizer(str(base_dir))) is not None
    return _agree(folder / CONFIG, template, is_read_as_file=is_read_as_file)


def _agree(file: Path, template: ServedTemplate, *, is_read_as_file: bool) -> list[str]:
    """Let tokenizer_config.json say what the files beside it say: its template, where it has one,
    and its class, where another was trained."""
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(
            f"{file.name} of the base model is not JSON: {error}. Give a complete model directory."
        ) from None
    if not isinstance(config, dict):
        return []
    notes: list[str] = []
    if config.get(TEMPLATE_KEY) not in (None, template.jinja):
        config[TEMPLATE_KEY] = template.jinja
        notes.append(
            f"the base model's own chat template in {CONFIG} was replaced by the one in {TEMPLATE},"
            " which is the training's"
        )
    if is_read_as_file:
        notes.append(
            f"{CLASS_KEY} in {CONFIG} is {AS_IN_FILE} in the place of {config.get(CLASS_KEY)}, "
            "with which transformers would read texts otherwise"
        )
        config[CLASS_KEY] = AS_IN_FILE
    if not notes:
        return []
    write_plain(file, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    return [*notes[:-1], f"{notes[-1]}; all other keys are unchanged"]


def names_its_class(base_dir: Path) -> bool:
    """Whether a tokenizer is loaded without the model's config.json beside it."""
    return isinstance(_object_in(base_dir / CONFIG).get("tokenizer_class"), str)


def normalizes(base_dir: Path) -> bool:
    """Whether a tokenizer changes a text before it cuts it, as Qwen's does."""
    return _object_in(base_dir / "tokenizer.json").get("normalizer") is not None


def generation_settings(
    base_dir: Path, template: ServedTemplate, asked: AnswerSettings
) -> dict[str, Any]:
    """What generation_config.json holds: stop tokens, and sampling as the run evaluated.

    For greedy answers no temperature is written, which transformers would warn of.
    """
    settings: dict[str, Any] = {}
    for name in ("config.json", GENERATION):  # the second knows better
        known = _object_in(base_dir / name)
        settings |= {key: known[key] for key in TAKEN_OVER if known.get(key) is not None}
    if template.stop_ids:
        settings["eos_token_id"] = list(template.stop_ids)
    else:  # an empty list breaks `generate`, which says with this what it needs: a tokenizer
        settings["stop_strings"] = list(template.stop_texts)
    settings["do_sample"] = asked.temperature > 0
    if asked.temperature > 0:
        settings |= {"temperature": asked.temperature, "top_k": 0, "top_p": 1.0}
    # An adapter's base model may have a penalty in its own settings, which transformers takes where
    # these say nothing; nothing is held against what was said already.
    settings["repetition_penalty"] = 1.0
    if asked.max_tokens is not None:
        settings["max_new_tokens"] = asked.max_tokens
    return settings


def write_generation_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    write_plain(folder / GENERATION, (json.dumps(settings, indent=2) + "\n").encode())


def _object_in(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # a file that need not be there
        return {}
    return found if isinstance(found, dict) else {}

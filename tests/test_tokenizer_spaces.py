"""Tokenizers that transformers would read without spaces: as their file says, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from errors import TokenizerError
from exports.served_template import ServedTemplate
from exports.tokenizer_files import copy_tokenizer
from local_tinker.engine import Engine
from local_tinker.tokenizer import CHANGED, KEPT, RUN_TOGETHER, grade_of, worst_loss
from model_dirs import LLAMA3_TEMPLATE, make_model_dir
from rows.chat_formats import choose_format, load_renderer, load_tokenizer
from rows.control_tokens import guard
from rows.turns import taking_marks

TEXT = "Is it 75 km,\nor 76?"
CLASS = "tokenizer_class"


def encoded(tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(TEXT, add_special_tokens=False))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a byte-level tokenizer that transformers reads as it is."""
    return make_model_dir(tmp_path_factory.mktemp("right") / "model", "llama")


def renamed(right: Path, folder: Path, name: str | None) -> Path:
    shutil.copytree(right, folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config[CLASS]
    file.write_text(json.dumps(config if name is None else {**config, CLASS: name}))
    return folder


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", None])
def test_a_byte_level_tokenizer_keeps_its_spaces(
    name: str | None, right: Path, tmp_path: Path
) -> None:
    model = renamed(right, tmp_path / "model", name)
    misread = worst_loss(AutoTokenizer.from_pretrained(model))
    assert misread.grade >= RUN_TOGETHER, "transformers reads it: this is not needed any more"
    expected = encoded(AutoTokenizer.from_pretrained(right))
    found = load_tokenizer(str(model))
    assert encoded(found) == expected and found.decode(expected) == TEXT
    assert encoded(Engine.load("m", str(model), "cpu").tokenizer) == expected
    said = [line for line in choose_format(None, str(model)).lines() if "tokenizer" in line]
    assert misread.found in said[0]
    assert not any("tokenizer: " in line for line in choose_format(None, str(right)).lines())

    folder = tmp_path / "export"
    folder.mkdir()
    shutil.copyfile(model / "config.json", folder / "config.json")
    template = ServedTemplate(LLAMA3_TEMPLATE, None, (), (3,), "a test's", ())
    notes = copy_tokenizer(model, folder, template)
    assert f"{CLASS} in tokenizer_config.json is PreTrainedTokenizerFast" in notes[0]
    assert encoded(AutoTokenizer.from_pretrained(folder)) == expected
    before, after = (
        json.loads((one / "tokenizer_config.json").read_text()) for one in (model, folder)
    )
    assert {**before, CLASS: after[CLASS]} == after


def test_rows_with_marks_are_rendered_by_the_tokenizer_that_was_loaded(
    right: Path, tmp_path: Path
) -> None:
    """The cookbook's renderers, copied, load a model's tokenizer anew, and run the code in it."""
    renderer = load_renderer("llama3", str(renamed(right, tmp_path / "model", None)))
    guarded = guard(renderer)
    assert taking_marks(renderer).tokenizer is guarded is renderer.tokenizer


def test_a_tokenizer_that_loses_spaces_in_any_reading_is_refused(
    right: Path, tmp_path: Path
) -> None:
    model = renamed(right, tmp_path / "model", "LlamaTokenizerFast")
    file = model / "tokenizer.json"
    described = json.loads(file.read_text())
    described["normalizer"] = {"type": "Replace", "pattern": {"Regex": r"\s"}, "content": ""}
    file.write_text(json.dumps(described))
    with pytest.raises(TokenizerError, match="WhatisthecapitalofFrance") as refused:
        load_tokenizer(str(model))
    assert "without spaces" in str(refused.value) and "tokenizer_class" in str(refused.value)


def test_what_is_changed_otherwise_is_not_taken_for_lost() -> None:
    assert grade_of("A b\nc", " A b\nc") == KEPT
    assert grade_of("A b\nc", "a b c") == CHANGED  # without capitals and line breaks
    assert grade_of("A b\nc", "<unk> b\nc") == CHANGED
    assert grade_of("A b\nc", "A<unk>b<unk>c") == CHANGED
    assert grade_of("A b\nc", "A bc") == RUN_TOGETHER

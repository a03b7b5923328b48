"""Tokenizers that transformers would read without spaces: as their file says, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from errors import TokenizerError
from exports.served_template import ServedTemplate
from exports.tokenizer_files import copy_tokenizer
from local_tinker.engine import Engine
from local_tinker.tokenizer import (
    CHANGED,
    FAILED,
    KEPT,
    LOST,
    READ_BACK,
    RUN_TOGETHER,
    Loss,
    TextLostError,
    grade_of,
    load_by_auto,
    loss_note,
    losses_of,
    reading_note,
)
from model_dirs import LLAMA3_TEMPLATE, make_model_dir
from rows.chat_formats import choose_format, load_renderer, load_tokenizer
from rows.control_tokens import guard
from rows.turns import taking_marks

TEXT = "Is it 75 km,\nor 76?"
CLASS = "tokenizer_class"


def encoded(tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(TEXT, add_special_tokens=False))


def worst_loss(tokenizer: Any) -> Loss:
    """What becomes of the text that a tokenizer keeps least of."""
    return max(losses_of(tokenizer), key=lambda one: one.grade)


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


def test_characters_that_are_gone_are_refused_and_unknown_ones_are_told(
    right: Path, tmp_path: Path
) -> None:
    model = renamed(right, tmp_path / "model", "PreTrainedTokenizerFast")
    file = model / "tokenizer.json"
    described = json.loads(file.read_text())
    normalizer = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": ""}
    file.write_text(json.dumps({**described, "normalizer": normalizer}))
    with pytest.raises(TokenizerError, match="without what is missing there"):
        load_tokenizer(str(model))
    with pytest.raises(TextLostError):
        load_by_auto(str(model))
    file.write_text(json.dumps({**described, "normalizer": {"type": "Lowercase"}}))
    said = [line for line in choose_format("llama3", str(model)).lines() if "tokenizer: " in line]
    assert len(said) == 1 and "- THEY" in said[0] and "- they" in said[0]


def toy(folder: Path, unknown: str | None) -> Path:
    """A tokenizer of whole words, as beginners make one; it knows few of them."""
    kept = ["What", "is", "the", "capital", "of", "France", "?"]
    words = {word: n for n, word in enumerate([*kept, *([unknown] if unknown else [])])}
    made = Tokenizer(models.WordLevel(words, unk_token=unknown or "<no>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_a_toy_with_few_words_loads_and_is_told(tmp_path: Path) -> None:
    told = loss_note(load_tokenizer(str(toy(tmp_path / "toy", "<unk>"))))
    assert told is not None and "<unk>" in told
    failing = load_tokenizer(str(toy(tmp_path / "failing", None)))
    assert worst_loss(failing).grade == FAILED
    assert "it cannot encode " in str(loss_note(failing))


# --- as the file says, or as the class does -------------------------------------------------------

# As Llama 3 cuts a text: numbers in threes.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
# As deepseek-coder does: each digit for itself.
DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
)


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*READ_BACK, TEXT] * 3, trainer)
    return made


def metaspace(scheme: str) -> Tokenizer:
    """As Llama 2's: a mark for each space, and one before a text but with the scheme `never`."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    made.train_from_iterator([*READ_BACK, TEXT] * 3, trainer)
    return made


def saved(made: Tokenizer, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize("more", [{}, {"add_bos_token": True, "legacy": False}, {"legacy": True}])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", None])
@pytest.mark.parametrize("cut", [LLAMA3, DIGITS], ids=["R1-Distill-Llama", "deepseek-coder"])
def test_byte_level_files_that_call_themselves_llamas(
    cut: pre_tokenizers.PreTokenizer, name: str | None, more: dict[str, Any], tmp_path: Path
) -> None:
    made = byte_level(cut)
    config = more if name is None else {**more, CLASS: name}
    found = load_tokenizer(str(saved(made, tmp_path / "model", **config)))
    assert all(one.grade == KEPT for one in losses_of(found))
    for text in (*READ_BACK, TEXT):
        assert found.encode(text, add_special_tokens=False) == made.encode(text).ids
    assert reading_note(found) is not None and loss_note(found) is None


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizer"])
def test_a_class_that_cuts_bytes_otherwise_makes_way_for_the_file(
    name: str, tmp_path: Path
) -> None:
    """No text is lost by it, and yet the model would be asked with tokens that it never saw."""
    made = byte_level(LLAMA3)
    model = saved(made, tmp_path / "model", **{CLASS: name})
    assert worst_loss(AutoTokenizer.from_pretrained(model)).grade == KEPT
    found = load_tokenizer(str(model))
    for text in READ_BACK:
        assert found.encode(text, add_special_tokens=False) == made.encode(text).ids
    assert "makes other tokens of " in str(reading_note(found))


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_files_of_the_llama_kind_are_read_by_their_class(
    scheme: str, name: str, tmp_path: Path
) -> None:
    model = saved(metaspace(scheme), tmp_path / "model", **{CLASS: name})
    found, by_auto = load_tokenizer(str(model)), AutoTokenizer.from_pretrained(model)
    assert encoded(found) == encoded(by_auto) and found.decode(encoded(found)) == TEXT
    assert reading_note(found) is None and loss_note(found) is None


def test_what_is_changed_otherwise_is_not_taken_for_lost() -> None:
    assert grade_of("A b\nc", " A b\nc") == KEPT
    assert grade_of("A b\nc", "a b c") == CHANGED  # without capitals and line breaks
    assert grade_of("A b\nc", "<unk> b\nc") == CHANGED
    assert grade_of("A b\nc", "A<unk>b<unk>c") == CHANGED
    assert grade_of("A b\nc", "A bc") == RUN_TOGETHER
    assert grade_of("A 1b!", "A b!") == LOST and grade_of("A 1b!", "A 1b") == LOST
    assert grade_of("A \u4f60b", "A b") == CHANGED  # of a script that is none of the model's
    assert grade_of("A 1b", "A 1B") == grade_of("A 1b", "A 2b") == CHANGED

"""Exports for llama.cpp: its engine of templates, and what its rounding does to experts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import export
from exports.gguf_model import write_gguf
from exports.loaded_llama_cpp import open_llama_cpp
from exports.loaded_transformers import model_logprobs
from exports.reference import GreedyAnswer, Reference, ScoredText
from exports.rounding import RoundedModel
from exports.self_check import difference
from llama_models import QWEN_TEMPLATE, make_llama_model, needs_llama_cpp
from model_dirs import QWEN3_TEMPLATE
from test_loop import Workspace

pytestmark = needs_llama_cpp


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on a Qwen3 whose own chat template llama.cpp's engine does not run."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    before = Path.cwd()
    os.chdir(folder)
    try:
        model = make_llama_model(folder / "model", "qwen3")
        (model / "chat_template.jinja").write_text(QWEN3_TEMPLATE)
        assert Workspace(folder, model).run("run", max_rounds=1) == 0
        yield folder
    finally:
        os.chdir(before)


def test_a_plain_template_takes_the_place_of_one_that_llama_cpp_does_not_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    assert export.main(["run", "out", "--format", "gguf", "--quantization", "f32"]) == 0
    record = json.loads((run / "out" / "export.json").read_text())
    (note,) = [one for one in record["notes"] if "chat template" in one]
    assert "made from the renderer qwen3" in note and "parsing error" in note
    assert ".unfinished-" not in note
    assert "index(message)" not in (run / "out" / "chat_template.jinja").read_text()
    assert all(one["passed"] for one in record["checks"])
    assert "made from the renderer qwen3" in " ".join(capsys.readouterr().out.split())


def test_experts_are_rounded_as_llama_cpp_rounds_them(tmp_path: Path) -> None:
    """Token by token, also where rounding makes the router pick other experts."""
    folder = make_llama_model(tmp_path / "model", "qwen3_moe")
    write_gguf(folder, tmp_path / "model.gguf", "q8_0", QWEN_TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(20, 300, (60,), generator=generator).tolist() for _ in range(4)]
    exact = [model_logprobs(model, tokens) for tokens in texts]
    rounded = RoundedModel(model, "gguf-q8_0")
    control = [rounded.logprobs(tokens) for tokens in texts]
    with open_llama_cpp(tmp_path / "model.gguf") as loaded:
        found = [loaded.logprobs(tokens) for tokens in texts]
    assert difference(exact, control).mean > 20 * difference(found, control).mean


def test_the_longest_question_finds_room() -> None:
    from exports.making import longest_of

    answer = GreedyAnswer("q", (), tuple(range(5000)), (1,))
    scored = (ScoredText(tuple(range(9)), ()),)
    assert longest_of(Reference("embedded", scored, (answer,), (), 64, ())) == 5064
    assert longest_of(Reference("embedded", scored, (), (), 64, ())) == 9

"""How an export is served, and the files that train its adapter again without Tinker."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exports.loaded_transformers import open_transformers
from exports.mirror import (
    CONFIG,
    RUN,
    SCRIPT,
    DataFile,
    data_files,
    mirrored_steps,
    training_files,
)
from exports.ollama import AnswerSettings
from exports.served_template import ServedTemplate
from exports.serving import NAME, Served, how_to_serve
from exports.source import Asked, Source, find_source
from exports.templates import served_template
from ledger.records import manifest_from_json
from loop.plan_page.serving import Adapter
from test_loop import Workspace

ADAPTER = Adapter("llama", is_tied=False, has_experts=False, train_unembed=False, rank=24)
COLON = ServedTemplate(
    "{{ 1 }}", "{{ 1 }}", ("\n\nUser:",), (), "made from the renderer role_colon", ("one question",)
)
ODD = "it's ```a``` \U0001f600 </script>"


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code, as a reader of Markdown finds them."""
    found = re.finditer(rf"^(`{{3,}}){language}\n(.*?)\n\1$", text, re.M | re.S)
    return [block[2] for block in found]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    """Two rounds on a file and a pool, with rows of more than one form."""
    workspace = Workspace(tmp_path_factory.mktemp("run"), llama_dir)
    rows: list[dict[str, Any]] = [
        {"prompt": f"Which word \u00e9 {i}? </script>", "completion": "x", "topic": "a"}
        for i in range(8)
    ]
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    rows.append({"messages": [{"role": role, "content": text} for role, text in talk]})
    rows.append({"instruction": "heavy", "output": "y", "weight": 3, "system": "Be kind."})
    workspace.write_rows("train.jsonl", rows)
    assert workspace.run("run", steps_per_round=2) == 0
    return workspace


@pytest.fixture(scope="module")
def source(run: Workspace) -> Source:
    return find_source(Asked(f"{run.folder / 'run'}@round_02"))


# --- serving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["peft", "merged", "gguf", "gguf-adapter", "ollama"])
def test_each_program_has_its_commands_or_says_what_it_takes(format: str) -> None:
    served = Served(format, "models/mine", ADAPTER, COLON, AnswerSettings(0.0, 64, 512), "a.gguf")
    text = how_to_serve(served)
    sections = dict(re.findall(r"^### ([^\n]*)\n\n(.*?)(?=\n### |\Z)", text, re.M | re.S))
    assert list(sections)[:4] == ["transformers", "vLLM", "llama.cpp", "Ollama"]
    for program, formats in (
        ("transformers", ("peft", "merged")),
        ("vLLM", ("peft", "merged")),
        ("llama.cpp", ("gguf", "gguf-adapter", "ollama")),
        ("Ollama", ("ollama",)),
    ):
        assert ("Not from this folder" in sections[program]) == (format not in formats)
    for command in blocks(text, "bash"):
        assert shlex.split(command)
        if command.startswith("curl"):
            sent = json.loads(shlex.split(command)[-1])
            assert sent["stop"] == ["\n\nUser:"] and sent["max_tokens"] == 64
    if format == "peft":  # the next rank that vLLM takes
        assert "--max-lora-rank 32" in sections["vLLM"] and f"{NAME}=." in sections["vLLM"]
    if format == "gguf-adapter":
        assert "-m BASE.gguf --lora a.gguf" in sections["llama.cpp"]


def test_hostile_names_stay_inside_their_quotes() -> None:
    template = replace(COLON, stop_texts=(ODD,))
    adapter = ADAPTER._replace(train_unembed=True, is_tied=True)
    text = how_to_serve(Served("peft", ODD, adapter, template, AnswerSettings(0.7), "a.gguf"))
    (code,) = blocks(text, "python")
    compile(code, "card", "exec")
    assert repr(ODD) in code and "temperature=0.7" in code
    installed, *commands = [shlex.split(command) for command in blocks(text, "bash")]
    assert installed[:2] == ["pip", "install"] and installed[-1].startswith("peft==")
    assert ODD in commands[0]
    assert json.loads(commands[1][-1])["stop"] == [ODD]
    assert "PEFT alone loads all of it" in text and "`pipeline` has settings of its own" in text
    assert "It is not known to take this adapter" in text
    assert "Export with `--format merged`, or with `--format peft --fold-unembed` instead." in text
    for format in ("gguf", "gguf-adapter"):
        text = how_to_serve(Served(format, ODD, adapter, template, AnswerSettings(0.7), ODD, ODD))
        (code,) = blocks(text, "python")
        compile(code, "card", "exec")
        assert code.count(repr(ODD)) == (3 if format == "gguf-adapter" else 2)  # and as the stop


def test_thoughts_of_a_template_that_has_them_are_said_to_come_apart() -> None:
    thinking = replace(COLON, jinja="{{ '<think>' }}")
    told = [
        "reasoning_content" in how_to_serve(Served("gguf", "a", ADAPTER, one, AnswerSettings()))
        for one in (thinking, COLON)
    ]
    assert told == [True, False]


def test_model_without_a_go_template_is_refused_for_ollama_by_name() -> None:
    template = replace(COLON, go=None, no_go="the prompt holds the day's date")
    for format in ("ollama", "gguf"):
        text = how_to_serve(Served(format, "a", ADAPTER, template, AnswerSettings()))
        assert "Not this model: the prompt holds the day's date" in text


@pytest.mark.parametrize("renderer", ["llama3", "role_colon"])
def test_code_for_transformers_answers(
    renderer: str, run: Workspace, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the run asks: a base model in half precision, whose own settings are other ones."""
    from exports.peft_folder import write_adapter
    from exports.tokenizer_files import (
        copy_tokenizer,
        generation_settings,
        write_generation_settings,
    )

    template = served_template(source.base_dir, renderer)
    base, asked = tmp_path / "base", AnswerSettings(0.0, 8, 512)
    folder = tmp_path / "out"
    shutil.copytree(source.base_dir, base)
    (base / "generation_config.json").write_text('{"repetition_penalty": 9.0, "top_k": 1}')
    folder.mkdir()
    write_adapter(source.adapter_dir, folder, str(base))
    copy_tokenizer(base, folder, template)
    write_generation_settings(folder, generation_settings(base, template, asked))
    text = how_to_serve(Served("peft", str(base), ADAPTER, template, asked, half_dtype="bfloat16"))
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks(text, "python")[0], "card", "exec"), names)
    assert printed.getvalue().endswith("\n")
    assert next(names["model"].parameters()).dtype == torch.float32
    exported = open_transformers(folder, base, "peft")
    prompt = names["prompt"]["input_ids"][0].tolist()
    answer = names["answer"][0, len(prompt) :].tolist()
    assert answer == exported.greedy(prompt, 8, template.stop_ids)


def test_stops_that_are_no_tokens_are_settings_all_the_same(tmp_path: Path) -> None:
    """An empty list of tokens would break transformers' `generate`."""
    from exports.tokenizer_files import generation_settings

    settings = generation_settings(tmp_path, COLON, AnswerSettings())
    assert "eos_token_id" not in settings and settings["stop_strings"] == ["\n\nUser:"]
    tokens = generation_settings(tmp_path, replace(COLON, stop_ids=(3,)), AnswerSettings())
    assert tokens["eos_token_id"] == [3] and "stop_strings" not in tokens


# --- the mirror -----------------------------------------------------------------------------------


def written(source: Source, folder: Path) -> dict[str, Any]:
    for name, text in training_files(source).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return json.loads((folder / RUN).read_text(encoding="utf-8"))


def test_config_is_the_adapters_and_names_no_folder_of_data(
    run: Workspace, source: Source, tmp_path: Path
) -> None:
    from peft import LoraConfig

    told = written(source, tmp_path)
    config = LoraConfig(**json.loads((tmp_path / CONFIG).read_text()))
    assert (config.r, config.lora_alpha, config.inference_mode) == (4, 32, False)
    assert {"lm_head", "q_proj"} <= set(config.target_modules or [])
    assert [file["path"] for file in told["files"]] == ["train.jsonl", "pool.jsonl"]
    assert told["renderer"] == "llama3" and told["adam"]["betas"] == [0.9, 0.95]
    steps = list(run.store("run").events("step"))
    assert [(one["round"], one["step"], one["lr"]) for one in told["steps"]] == [
        (one["round"], one["step"], one["lr"]) for one in steps
    ]
    assert told["notes"] == []


def test_columns_are_those_of_each_source() -> None:
    paths = {
        "train_file[0]": "/a/one.jsonl",
        "train_file[1]": "/a/two.jsonl",
        "train_file[2]": "/a/three.csv",
        "val_file": "/a/four.jsonl",
        "mining.pool_file": "/a/five.jsonl",
    }
    files = {key: {"path": path, "sha256": "0" * 64} for key, path in paths.items()}
    manifest = manifest_from_json({"files": files, "eval_tasks": {}})
    own = {"file": "two.jsonl", "columns": {"output": "answer"}}
    config = {
        "train_file": ["one.jsonl", own, "three.csv"],
        "data": {"columns": {"output": "said"}},
        "mining": {"pool_file": "five.jsonl"},
    }
    found = {file.path: file.columns for file in data_files(manifest, config)}
    assert found == {
        "/a/one.jsonl": {"output": "said"},
        "/a/two.jsonl": {"output": "answer"},
        "/a/five.jsonl": {"output": "said"},
    }


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(folder / SCRIPT), *arguments, "--no-quantization"])
    runpy.run_path(str(folder / SCRIPT), run_name="__main__")


def test_script_takes_the_runs_steps_again(
    run: Workspace,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On the embedded service the adapter begins alike, so the losses are the run's own."""
    from safetensors.torch import load_file

    told = written(source, tmp_path)
    data = [str(run.folder / name) for name in ("pool.jsonl", "train.jsonl")]
    train(tmp_path, monkeypatch, "--data", *data, "--out", str(tmp_path / "again"))
    said = [re.findall(r"loss ([\d.]+) a token \(in the run ([\d.]+)\)", one.message)
            for one in caplog.records if one.name == "qlora_train"]  # fmt: skip
    losses = [(float(ours), float(theirs)) for found in said for ours, theirs in found]
    assert len(losses) == len(told["steps"]) == 4
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, abs=2e-3)
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == load_file(source.adapter_dir / "adapter_model.safetensors").keys()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [{"role": "tool", "content": "4"}]}, "line 1: this script reads rows"),
        ({"prompt": "a", "completion": "b", "images": ["c"]}, "line 1: this script reads rows"),
        ({"question": "a", "answer": "b"}, "line 1: this script reads rows"),
        ({"prompt": "a", "completion": ["b"]}, "line 1: this script reads rows"),
        (7, "line 1: this script reads rows"),
        (None, "there is no row in it"),
    ],
)
def test_script_refuses_rows_that_it_would_train_otherwise(
    row: Any, why: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(source, tmp_path)
    (tmp_path / "own.jsonl").write_text("" if row is None else json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match=why):
        train(tmp_path, monkeypatch, "--data", str(tmp_path / "own.jsonl"), "--other-data")


def test_script_knows_the_runs_files_by_their_sha256(
    run: Workspace, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(source, tmp_path)
    other = tmp_path / "train.jsonl"  # where it would be looked for
    other.write_bytes((run.folder / "train.jsonl").read_bytes() + b"\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"train\.jsonl, pool\.jsonl: no data file here has"):
        train(tmp_path, monkeypatch)


def test_rows_of_files_with_one_name_are_not_guessed(run: Workspace) -> None:
    store = run.store("run")
    checkpoint = store.checkpoint(1)
    assert checkpoint is not None
    known = [DataFile("/a/train.jsonl", "0" * 64), DataFile("/a/pool.jsonl", "1" * 64)]
    twice = [*known, DataFile("/b/train.jsonl", "2" * 64)]
    assert all(step.rows for step in mirrored_steps(store, checkpoint, known))
    assert [step.rows for step in mirrored_steps(store, checkpoint, twice)] == [None] * 2

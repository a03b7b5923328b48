"""A run goes on with the base model that it began with: the files tell, not the place."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from errors import ConfigError
from loop.planning.manifest import LARGE_GB
from loop.planning.models import model_change, model_digests
from test_loop import Workspace
from trainer_with_eval import main


@pytest.fixture
def begun(tmp_path: Path, llama_dir: Path) -> Workspace:
    """A finished round of a run in runs/r, over a copy of the model that tests may change."""
    model_dir = shutil.copytree(llama_dir, tmp_path / "model")
    workspace = Workspace(tmp_path, model_dir)
    workspace.settings |= {"base_model": "model", "steps_per_round": 1, "max_rounds": 1}
    workspace.settings["mining"] = {"strategy": "topics"}
    assert workspace.run("runs/r") == 0
    return workspace


def resume(workspace: Workspace, *overrides: str) -> int:
    flags = [word for one in ("max_rounds=2", *overrides) for word in ("--set", one)]
    return main(["--resume", str(workspace.folder / "runs/r"), *flags])


def evaluate(workspace: Workspace, *flags: str, **changes: Any) -> int:
    arguments = workspace.arguments("evaluated", **changes)
    return main([*arguments, "--evaluate", str(workspace.folder / "runs/r"), *flags])


def add_noise(model_dir: Path) -> None:
    file = model_dir / "model.safetensors"
    tensors = {name: tensor + 0.1 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def swap_two_words(model_dir: Path) -> None:
    file = model_dir / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    one, other = list(vocab)[100:102]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    file.write_text(json.dumps(tokenizer))


# --- digests --------------------------------------------------------------------------------------


def test_what_a_model_is_loaded_from_is_hashed_whole(tmp_path: Path) -> None:
    def write(name: str, content: str = "x") -> None:
        (tmp_path / name).write_text(content)

    for name in ("config.json", "tokenizer.json", "tokenizer.model", "README.md", "notes.txt"):
        write(name)
    write("generation_config.json")
    write("pytorch_model.bin")
    of_bin = ["config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer.model"]
    assert list(model_digests(tmp_path)) == of_bin
    write("model.safetensors", "weights")
    write("consolidated.safetensors")
    digests = model_digests(tmp_path)
    assert list(digests) == ["config.json", "model.safetensors", *of_bin[2:]]
    assert digests["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    write("model.safetensors.index.json", json.dumps(index))
    write("model-1-of-2.safetensors")
    write("model-2-of-2.safetensors")
    assert list(model_digests(tmp_path))[1:4] == [
        *("model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json")
    ]
    write("model.safetensors.index.json", "[]")  # no index: all weights that are there
    assert "consolidated.safetensors" not in model_digests(tmp_path)
    assert "model.safetensors" in model_digests(tmp_path)


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "config.json"))

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(ConfigError, match=r"config.json: this file of the base model cannot be"):
        model_digests(tmp_path)


def test_changes_are_told_by_name() -> None:
    assert model_change({"a": "1"}, {"a": "1"}) is None
    assert model_change({"a": "1", "b": "2"}, {"a": "3"}) == (
        "a (sha256 was 1, is 3, and 1 more differ)"
    )
    assert model_change({}, {"a": "3"}) == "a (sha256 was not there, is 3)"


# --- resumption -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"), [(add_noise, "model.safetensors"), (swap_two_words, "tokenizer.json")]
)
def test_a_base_model_that_has_changed_is_refused(
    begun: Workspace, capsys: pytest.CaptureFixture, change: Any, name: str
) -> None:
    manifest = json.loads((begun.folder / "runs/r/data_manifest.json").read_text())
    assert manifest["base_model"]["path"] == str(begun.folder / "model")
    assert manifest["base_model"]["files"] == model_digests(begun.folder / "model")
    ledger = (begun.folder / "runs/r/ledger.jsonl").read_bytes()
    change(begun.folder / "model")
    capsys.readouterr()
    assert resume(begun) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"error: {begun.folder / 'model'}: this is not the base model that")
    assert f": {name} (sha256 was " in message
    assert "restore them, or start a new run" in message
    assert (begun.folder / "runs/r/ledger.jsonl").read_bytes() == ledger
    assert evaluate(begun) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f": {name} (sha256 was " in message
    assert not (begun.folder / "evaluated").exists()


@pytest.mark.trains
def test_a_moved_folder_is_the_same_model(begun: Workspace, capsys: pytest.CaptureFixture) -> None:
    moved = begun.folder / "elsewhere" / "renamed"
    moved.parent.mkdir()
    (begun.folder / "model").rename(moved)
    capsys.readouterr()
    assert resume(begun) == 2
    said = capsys.readouterr().err
    assert f"began with, {begun.folder / 'model'}, is not there" in said
    assert "--set base_model=DIRECTORY" in said
    assert evaluate(begun, base_model=str(moved)) == 0
    assert resume(begun, f"base_model={moved}") == 0
    recorded = json.loads((begun.folder / "runs/r/config.resolved.json").read_text())
    assert recorded["config"]["base_model"] == "model"  # it keeps the name that it began with
    assert begun.store("runs/r").checkpoint(2) is not None
    capsys.readouterr()
    add_noise(moved)
    overrides = ["--set", "max_rounds=3", "--set", f"base_model={moved}"]
    assert main(["--resume", str(begun.folder / "runs/r"), *overrides]) == 2
    assert "model.safetensors (sha256 was " in capsys.readouterr().err


@pytest.mark.trains
def test_a_run_without_digests_goes_on_and_says_so(
    begun: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """As versions before left it."""
    file = begun.folder / "runs/r/data_manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["base_model"]
    file.write_text(json.dumps(manifest))
    capsys.readouterr()
    assert evaluate(begun) == 0
    assert capsys.readouterr().err.count("cannot be told, because the version that began it") == 1
    assert resume(begun, "base_model=other") == 2
    assert "base_model was 'model', is 'other'" in capsys.readouterr().err
    assert resume(begun) == 0
    assert capsys.readouterr().err.count("cannot be told, because the version that began it") == 1


def test_a_large_model_is_announced(
    begun: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGE_GB > 1
    monkeypatch.setattr("loop.planning.manifest.LARGE_GB", 0.0)
    monkeypatch.setattr("loop.planning.manifest.GB_PER_S", 1e-6)
    capsys.readouterr()
    assert resume(begun) == 0
    assert "GB of its 4 files for their sha256, about " in capsys.readouterr().err


def test_weights_are_found_whatever_the_config_calls_their_model(begun: Workspace) -> None:
    """The service finds the base model of saved weights by the name that it had in their run."""
    assert evaluate(begun, base_model=f"{begun.folder}/./model") == 0

"""`export.py`: what is found, what is refused, what is left, and what the folder holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import export
import forked
import local_tinker
from conftest import REPO
from errors import ConfigError, ExportError, LoopError, ServiceError, StorageError
from exports import gathering
from exports.check import Check
from exports.downloading import download
from exports.gathering import gather_reference
from exports.making import called, check_written, refuse_failed
from exports.room import refuse_no_room
from exports.source import Asked, find_source
from exports.templates import served_template
from exports.wanted import Wanted
from exports.writing import write_weights
from loop.reports.progress import Progress
from model_dirs import make_model_dir
from run_records import Shape, begun, evaluated
from sdk_client import checkpoint_dir
from storage.folders import MARK, folder_aside, refuse_occupied
from test_loop import Workspace

FILES = {"README.md", "SHA256SUMS", "export.json", "chat_template.jinja", "tokenizer.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of two rounds, in `runs/one` beside its model; the working directory."""
    folder = tmp_path_factory.mktemp("exports")
    before = Path.cwd()
    os.chdir(folder)
    try:
        model = make_model_dir(folder / "model", "llama", is_lively=True)
        workspace = Workspace(folder, model)
        assert workspace.run("runs/one", lora_rank=4) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def there(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run, as the working directory."""
    monkeypatch.chdir(run)
    return run


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    """The run's best checkpoint, merged by the command."""
    before = Path.cwd()
    os.chdir(run)
    try:
        assert export.main(["runs/one", "merged", "--format", "merged"]) == 0
    finally:
        os.chdir(before)
    return run / "merged"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if MARK in path.name)


# --- the folder -----------------------------------------------------------------------------------


def test_the_folder_is_complete_and_its_sums_hold(merged: Path, there: Path) -> None:
    names = {path.relative_to(merged).as_posix() for path in merged.rglob("*") if path.is_file()}
    assert names >= FILES | {"config.json", "model.safetensors", "generation_config.json"}
    for line in (merged / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((merged / name).read_bytes()).hexdigest() == digest
        names.discard(name)
    assert names == {"SHA256SUMS"}
    assert {oct((merged / name).stat().st_mode & 0o777) for name in FILES} == {
        oct((merged / "model.safetensors").stat().st_mode & 0o777)
    }
    assert not left(there)


def test_the_record_says_what_was_exported_and_how_it_was_checked(merged: Path, run: Path) -> None:
    record = json.loads((merged / "export.json").read_text())
    assert record["format"] == "merged" and record["dtype"] == "float32"
    assert record["checkpoint"]["run_id"] and record["checkpoint"]["sampler_path"]
    assert record["lora"]["rank"] == 4 and record["renderer"] == "llama3"
    assert record["base_model"]["path"] == str(run / "model")
    weights = (run / "model" / "model.safetensors").read_bytes()
    assert (
        record["base_model"]["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    )
    assert len(record["checks"]) >= 4 and all(check["passed"] for check in record["checks"])
    assert {"peft", "transformers", "torch"} <= record["versions"].keys()
    settings = json.loads((merged / "generation_config.json").read_text())
    assert settings["do_sample"] is False and settings["max_new_tokens"] == 4
    assert settings["eos_token_id"]


def test_json_prints_one_object(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["runs/one@round_01", "adapter", "--format", "peft", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["out"] == str(there / "adapter")
    assert printed["files"]["adapter_model.safetensors"]
    assert printed["checkpoint"]["round"] == 1
    config = json.loads((there / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(there / "model")


def test_an_error_names_the_export_and_not_its_hidden_folder(tmp_path: Path) -> None:
    aside, out = tmp_path / f".out{MARK}7", tmp_path / "out"
    with pytest.raises(ExportError) as caught, called(aside, out):
        raise ExportError(f"{aside}/model.safetensors: it cannot be loaded.")
    assert str(caught.value) == f"{out}/model.safetensors: it cannot be loaded."


OCCUPIED = {"file/below": "is no folder", "bad\udcffname": "is no UTF-8", "file": "is no folder"}


@pytest.mark.parametrize("name", OCCUPIED)
def test_a_place_that_cannot_be_filled_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=OCCUPIED[name]):
        refuse_occupied("OUT", tmp_path / name)


# --- what is found --------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_each_of_its_names(there: Path) -> None:
    found = find_source(Asked("runs/one@round_02"))
    assert found.checkpoint is not None and found.checkpoint.sampler_path is not None
    for name in (found.checkpoint.sampler_path, found.checkpoint.state_path):
        assert find_source(Asked(name)).adapter_dir == found.adapter_dir
    assert find_source(Asked("runs/one")).checkpoint in (
        found.checkpoint,
        find_source(Asked("runs/one@round_01")).checkpoint,
    )


def test_a_run_that_was_moved_with_its_model_finds_it(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there, tmp_path / "moved", ignore=shutil.ignore_patterns("merged", "adapter"))
    source = find_source(Asked(str(tmp_path / "moved" / "runs" / "one")))
    assert source.base_dir == tmp_path / "moved" / "model"
    assert source.adapter_dir.is_relative_to(tmp_path)
    alone = tmp_path / "alone"
    shutil.copytree(there / "runs" / "one", alone)
    assert find_source(Asked(str(alone))).base_dir == there / "model"
    shutil.copytree(there / "model", tmp_path / "other")
    named = find_source(Asked(str(alone), base_model=str(tmp_path / "other")))
    assert named.base_dir == tmp_path / "other"


def test_another_base_model_is_refused(there: Path, tmp_path: Path) -> None:
    other = make_model_dir(tmp_path / "other", "llama", seed=1)
    with pytest.raises(ConfigError, match="not the base model that the run"):
        find_source(Asked("runs/one", base_model=str(other)))


REFUSED = {
    "runs/one@round_00": "round 0 of this run is the untouched model",
    "runs/one@round_07": "no weights of round 7",
    "runs/one@last": "names no checkpoint",
    "runs/none": "not a run directory",
    "tinker://a:train:0/weights/x": "Give --base-model and --renderer",
    "tinker://a:train:0/sampler_weights/x": "Give the state",
    "registry:nobody@3": "registry",
    "": "not a run directory",
    "\u0000": "not a run directory",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_refused_before_anything_is_made(
    name: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([name, "out", "--format", "peft"]) == 2
    assert REFUSED[name] in " ".join(capsys.readouterr().err.split())
    assert not (there / "out").exists() and not left(there)


def test_weights_that_are_gone_are_named(there: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(there / "runs" / "one", copy)
    for folder in copy.glob("checkpoints/*/sampler_weights/round_02"):
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="does not hold the weights any more"):
        find_source(Asked(f"{copy}@round_02"))


def test_runs_that_have_trained_nothing_are_refused(tmp_path: Path) -> None:
    store = begun(tmp_path / "runs" / "empty")
    for name in ("runs/empty", "runs/empty@round_01"):
        with pytest.raises(ConfigError):
            find_source(Asked(name))
    evaluated(store, 0, 0.1, Shape())
    with pytest.raises(ConfigError):
        find_source(Asked("runs/empty"))
    begun(tmp_path / "runs" / "evaluation", evaluated=["a"])
    with pytest.raises(ConfigError, match="holds an earlier evaluation"):
        find_source(Asked("runs/evaluation"))


# --- options and places ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "peft", "--dtype", "float32"], "--dtype is for --format merged"),
        (["--format", "merged", "--quantization", "f16"], "--quantization is for GGUF"),
        (["--format", "merged", "--fold-unembed"], "--fold-unembed leaves an adapter"),
        (["--format", "peft", "--base-model", "nowhere"], "is no model directory"),
        (["--format", "peft", "--renderer", "qwen3"], "Leave --renderer out"),
        (["--format", "gguf", "--registry", "x", "--dtype", "float16"], "--dtype is for"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], said: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["runs/one", "out", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_place_that_is_taken_is_refused(there: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "file", "link", "a" * 300, "nul\0"):
        with pytest.raises(ConfigError):
            refuse_occupied("OUT", tmp_path / name)
    for place in (Path("/"), tmp_path / ".."):
        with pytest.raises(ConfigError):
            refuse_occupied("OUT", place)
    (tmp_path / "empty").mkdir()
    refuse_occupied("OUT", tmp_path / "empty")
    assert export.main(["runs/one", str(tmp_path / "full"), "--format", "peft"]) == 2
    assert (tmp_path / "full" / "mine").read_text() == "kept"


def test_room_is_looked_at_before_the_work(there: Path, tmp_path: Path) -> None:
    source, wanted = find_source(Asked("runs/one")), Wanted("merged", there / "nowhere" / "out")
    refuse_no_room(source, wanted, "float32")
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(8 * 2**40)  # with nothing in it, so that it takes no room itself
    huge = replace(source, base_dir=tmp_path)
    with pytest.raises(ExportError, match="GiB are free there"):
        refuse_no_room(huge, wanted, "float32")
    with pytest.raises(ExportError, match="GiB of memory"):
        refuse_no_room(huge, Wanted("peft", there / "out"), None)


# --- whole or not at all --------------------------------------------------------------------------


def test_a_failed_check_leaves_nothing(tmp_path: Path) -> None:
    checks = [Check("a", True, "All is well."), Check("b", False, "3 of 4 answers differ.")]
    with pytest.raises(ExportError, match=r"1 of 2 checks failed\. 3 of 4 answers differ\."):
        refuse_failed(Wanted("peft", tmp_path / "out"), checks)
    with pytest.raises(ExportError, match="Nothing could be compared"):
        refuse_failed(Wanted("peft", tmp_path / "out"), [])
    with pytest.raises(LoopError), folder_aside(tmp_path / "out") as folder:
        (folder / "weights").write_text("half")
        refuse_failed(Wanted("peft", tmp_path / "out"), checks)
    assert not list(tmp_path.iterdir())


def test_a_spoilt_export_is_found_out(there: Path, tmp_path: Path) -> None:
    source, wanted = find_source(Asked("runs/one")), Wanted("merged", tmp_path / "out")
    template = served_template(source.base_dir, source.renderer)
    reference = gather_reference(source, dict(os.environ), Progress(verbose=False))

    def attempt(factor: float) -> None:
        with folder_aside(wanted.out) as folder:
            written = write_weights(source, wanted, template, folder)
            tensors = load_file(folder / "model.safetensors")
            tensors["model.layers.1.mlp.up_proj.weight"] *= factor
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            refuse_failed(wanted, check_written(source, wanted, written, reference, folder))

    with pytest.raises(ExportError, match="does not do what the checkpoint does"):
        attempt(1.5)
    assert not list(tmp_path.iterdir())
    attempt(1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import sys, time
from pathlib import Path
from storage.folders import folder_aside
with folder_aside(Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / name)]
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        return process

    killed, at_work = begin("one"), begin("two")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(left(tmp_path)) == 2 and not (tmp_path / "one").exists()
        with folder_aside(tmp_path / "three") as folder:
            (folder / "a").write_text("x")
        assert [name.split(MARK)[0] for name in left(tmp_path)] == [".two"]
        assert (tmp_path / "three" / "a").read_text() == "x"
    finally:
        at_work.kill()
        at_work.wait()
        for process in (killed, at_work):
            assert process.stdout is not None
            process.stdout.close()


def test_a_folder_that_was_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StorageError, match="meanwhile, and is kept"), folder_aside(out) as folder:
        (folder / "mine").write_text("x")
        out.mkdir()
        (out / "other").write_text("y")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "other").read_text() == "y"


def test_ctrl_c_leaves_nothing(there: Path, tmp_path: Path) -> None:
    command = (REPO / "export.py", "runs/one", tmp_path / "out", "--format", "peft")
    process = forked.Process(*command, stderr=subprocess.PIPE)
    give_up_at = time.monotonic() + 60
    while not left(tmp_path) and process.poll() is None and time.monotonic() < give_up_at:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Nothing was written" in said
    assert not list(tmp_path.iterdir())


# --- from a service -------------------------------------------------------------------------------

KEY = "tml-of-the-one-who-trained-it"


@pytest.fixture(scope="module")
def on_service(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The run as if it had been made on a compatible service, and that service's address."""
    copy = tmp_path_factory.mktemp("on_service") / "runs" / "there"
    shutil.copytree(run / "runs" / "one", copy)
    served = copy.parents[1] / "served"
    shutil.move(copy / "checkpoints", served)
    with local_tinker.start([(str(run / "model"), str(run / "model"))]) as service:
        service.open_folder(served, KEY)
        settled = json.loads((copy / "config.resolved.json").read_text())
        settled["resolved"] |= {"service": "compatible", "base_url": service.base_url}
        (copy / "config.resolved.json").write_text(json.dumps(settled))
        yield copy, service.base_url


def exported(run_dir: Path | str, out: Path, *options: str) -> int:
    return export.main([str(run_dir), str(out), "--format", "peft", *options])


def test_a_run_on_a_service_is_downloaded_by_its_state(
    on_service: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the address that holds now; what was exported for it is deleted again."""
    copy, address = on_service
    source = find_source(Asked(str(copy)))
    assert source.is_downloaded and source.state_path is not None
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    served = copy.parents[1] / "served"
    monkeypatch.setenv("TINKER_BASE_URL", address.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    assert exported(copy, tmp_path / "out") == 0
    (exports,) = served.glob("*/external_weights")
    assert not list(exports.iterdir())
    said = capsys.readouterr()
    assert "loads the state into a new training session" in said.err
    assert "DEPRECATED" not in said.err and KEY not in said.err + said.out
    # of no known run the service says what it calls the base model
    model = shutil.copytree(source.base_dir, copy.parents[1] / "moved")
    stranger = find_source(Asked(source.state_path, str(model), "llama3"))
    monkeypatch.setattr(gathering, "NUM_QUESTIONS", 1)
    env = {"TINKER_API_KEY": KEY, "TINKER_BASE_URL": address}
    reference = gather_reference(stranger, env, Progress(verbose=False))
    assert "of no run that is known here" in stranger.notes[0] and len(reference.answers) == 1
    assert reference.untouched[0] != reference.scored[0].logprobs
    sampled = load_file(checkpoint_dir(served, source.state_path) / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == sampled.keys()
    assert all(torch.equal(found[key], sampled[key]) for key in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_service_that_does_not_give_it_out_is_quoted(
    on_service: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, address = on_service
    source = find_source(Asked(str(copy)))
    assert source.state_path is not None
    state = checkpoint_dir(copy.parents[1] / "served", source.state_path)
    state.rename(state.with_name("elsewhere"))
    cases = (
        ({}, 2, "TINKER_API_KEY is not set"),
        ({"TINKER_API_KEY": KEY}, 1, "is not stored here'}. If these weights have expired"),
        ({"TINKER_API_KEY": f"{KEY}x"}, 1, "Check that TINKER_API_KEY is the key of the account"),
        ({"TINKER_API_KEY": KEY, "TINKER_BASE_URL": "http://127.0.0.1:9"}, 2, "Nothing answers at"),
    )
    for environment, code, part in cases:
        with monkeypatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            assert exported(copy, tmp_path / "out") == code
        said = capsys.readouterr().err
        assert part in said and KEY not in said
        assert said.count("is not stored here") <= 1
        assert not list(tmp_path.iterdir())
    with pytest.raises(
        ServiceError, match=r"is not stored here'\}\. If these weights have expired or were deleted"
    ):
        download(source, {"TINKER_API_KEY": KEY}, tmp_path, lambda said: None)
    state.with_name("elsewhere").rename(state)
    assert "TINKER_API_KEY" not in os.environ
    assert address in str(source.store and source.store.settled_config()["resolved"])

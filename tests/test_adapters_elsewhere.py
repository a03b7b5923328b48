"""Adapters that other programs wrote: the service computes what PEFT does, in whatever layout they
lie, and what cannot be computed is refused by its name."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tinker
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import export
import local_tinker
from conftest import pairs, thorough_only
from errors import ConfigError
from exports.merged import merge
from ledger.references import find_start, find_subjects
from ledger.registry_weights import path_in
from ledger.run_directory import EVALUATED
from local_tinker import peft_folders
from local_tinker.engine import Engine
from local_tinker.peft_folders import FolderError, PeftFolder, find_folder, read_folder
from local_tinker.wire import UserError
from loop.planning.adapters import base_note
from model_dirs import make_model_dir
from promotion.evidence import find_candidate
from test_loop import Workspace
from trainer_with_eval import main

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS = list(range(5, 45))
NUM_ANSWER = 12
QV = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8}
# What plain PEFT writes, by what its config says.
FORMS: dict[str, dict[str, Any]] = {
    "two layers": QV,
    "all, rsLoRA": {"target_modules": "all-linear", "r": 8, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "target_modules": r".*\.(q_proj|o_proj)",
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"o_proj": 2},
        "alpha_pattern": {r"1\.self_attn\.q_proj": 12},
    },
    "one layer": {**QV, "layers_to_transform": [1]},
    "head": {"target_modules": ["k_proj", "lm_head"], "r": 4, "lora_alpha": 8},
    "excluded": {**QV, "target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.0\..*"},
    "as our own": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "lora_alpha": 32},
}


class Places(NamedTuple):
    service: local_tinker.Service
    models: dict[str, Path]
    root: Path  # of checkpoints
    client: tinker.ServiceClient


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """A service with three models whose answers follow from their inputs."""
    folder = tmp_path_factory.mktemp("elsewhere")
    families = {"llama": False, "qwen3": True, "gemma3": False, "qwen3_moe": False}
    models = {
        name: make_model_dir(folder / name, name, tied=tied, is_lively=True)
        for name, tied in families.items()
    }
    with local_tinker.start([(name, str(path)) for name, path in models.items()]) as service:
        key = service.open_folder(folder / "root")
        client = tinker.ServiceClient(base_url=service.base_url, api_key=key)
        yield Places(service, models, folder / "root", client)
        client.close("success").result()


def write(model_dir: Path, out: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Save an adapter as PEFT does, with weights that do something; the model with it."""
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(1)
    with warnings.catch_warnings():  # of an unembedding that is tied
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = (0.1 * torch.randn_like(parameter)).to(dtype).float()
    with warnings.catch_warnings():  # that it saves the head's own matrix as well
        warnings.simplefilter("ignore")
        model.save_pretrained(str(out))
    if dtype != torch.float32:
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(out / WEIGHTS).items()}
        save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    return model


def logprobs_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        rows = torch.log_softmax(model(torch.tensor([TOKENS])).logits[0, :-1].float(), -1)
    return rows.gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


def is_greedy(model: Any, answer: list[int]) -> bool:
    """Whether each token of an answer is the likeliest one, or as likely as rounding can tell."""
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS + answer[:-1]])).logits[0, len(TOKENS) - 1 :]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return bool((logits.max(-1).values - chosen < 1e-4).all())


class Said(NamedTuple):
    logprobs: torch.Tensor
    answer: list[int]


def asked(places: Places, base: str, folder: PeftFolder) -> Said:
    """What the service computes with an adapter."""
    places.service.adopt(base, folder, places.root)
    client = places.client.create_sampling_client(folder.path("sampler_weights")).result()
    prompt = tinker.ModelInput.from_ints(TOKENS)
    params = tinker.SamplingParams(max_tokens=NUM_ANSWER, temperature=0.0, stop=[0])
    (answer,) = client.sample(prompt, 1, params).result().sequences
    logprobs = client.compute_logprobs(prompt).result()[1:]
    return Said(torch.tensor(logprobs), list(answer.tokens))


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "family"), pairs(list(FORMS), ["llama", "qwen3", "gemma3"]))
def test_it_computes_what_peft_does(places: Places, tmp_path: Path, form: str, family: str) -> None:
    model = write(places.models[family], tmp_path / "a", **FORMS[form])
    said = asked(places, family, read_folder(tmp_path / "a"))
    assert gap(said.logprobs, logprobs_of(model)) < 1e-5
    with model.disable_adapter():
        assert gap(said.logprobs, logprobs_of(model)) > 1e-3
    assert is_greedy(model, said.answer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(
    places: Places, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = write(places.models["llama"], tmp_path / "a", dtype, **QV)
    said = asked(places, "llama", read_folder(tmp_path / "a"))
    assert gap(said.logprobs, logprobs_of(model)) < 1e-5


def test_a_head_saved_in_half_precision_is_the_base_models_own(
    places: Places, tmp_path: Path
) -> None:
    """PEFT saves the head's own matrix beside its LoRA, rounded where it was trained so."""
    model = write(places.models["qwen3"], tmp_path / "a", torch.bfloat16, **FORMS["head"])
    assert load_file(tmp_path / "a" / WEIGHTS)[HEAD].dtype == torch.bfloat16
    said = asked(places, "qwen3", read_folder(tmp_path / "a"))
    assert gap(said.logprobs, logprobs_of(model)) < 1e-5


def _double(layers: list[Any]) -> None:
    for layer in layers:
        layer.scaling["default"] *= 2


def _without_root(layers: list[Any]) -> None:
    for layer in layers:
        layer.scaling["default"] = 8 / 16


def _drop(layers: list[Any]) -> None:
    layers[-1].lora_B["default"].weight.data.zero_()


def _only_two_of_seven(layers: list[Any]) -> None:
    for layer in layers:
        if layer.base_layer.weight.shape == (48, 32):  # the MLP's
            layer.lora_B["default"].weight.data.zero_()


def _swap(layers: list[Any]) -> None:
    for layer in layers:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if a.shape == b.T.shape:
            a.data, b.data = b.data.T.contiguous(), a.data.T.contiguous()


@pytest.mark.parametrize("read_wrongly", [_double, _without_root, _drop, _only_two_of_seven, _swap])
def test_a_wrong_reading_would_be_seen(
    places: Places, tmp_path: Path, read_wrongly: Callable[[list[Any]], None]
) -> None:
    settings = {"target_modules": "all-linear", "r": 16, "lora_alpha": 8, "use_rslora": True}
    model = write(places.models["llama"], tmp_path / "a", **settings)
    said = asked(places, "llama", read_folder(tmp_path / "a"))
    assert gap(said.logprobs, logprobs_of(model)) < 1e-5
    read_wrongly([one for one in model.modules() if hasattr(one, "lora_A")])
    assert gap(said.logprobs, logprobs_of(model)) > 1e-3


# --- the layouts ----------------------------------------------------------------------------------


def _as_skyrl(folder: Path) -> Path:
    """SkyRL's JAX backend names no layers in its config, and has no metadata in its file."""
    _change(folder, target_modules=None, peft_version="0.18.1")
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    return folder


def _as_tuft(folder: Path) -> Path:
    """TuFT puts the adapter into a folder of its checkpoint."""
    shutil.copytree(folder, folder.parent / "checkpoint/adapter")
    (folder.parent / "checkpoint/metadata.json").write_text('{"model_id": "m"}')
    return folder.parent / "checkpoint"


def _as_torchtune(folder: Path) -> Path:
    """torchtune's epochs hold the merged model and its base's files beside a short config."""
    short = json.loads((folder / CONFIG).read_text())
    keys = ("r", "lora_alpha", "target_modules", "peft_type")
    (folder / CONFIG).write_text(
        json.dumps({**{key: short[key] for key in keys}, "base_model_name_or_path": ""})
    )
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model-00001-of-00001.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "adapter_model.pt").write_bytes(b"pickled")
    return folder


@pytest.mark.parametrize("lay_out", [_as_skyrl, _as_tuft, _as_torchtune])
def test_each_writers_layout_is_read(
    places: Places, tmp_path: Path, lay_out: Callable[[Path], Path]
) -> None:
    all_seven = {**QV, "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]}
    model = write(places.models["llama"], tmp_path / "a", **all_seven)
    found = find_folder(lay_out(tmp_path / "a"))
    assert found is not None
    said = asked(places, "llama", read_folder(found))
    assert gap(said.logprobs, logprobs_of(model)) < 1e-5


def test_a_folder_with_an_adapter_is_no_base_model(places: Places, tmp_path: Path) -> None:
    shutil.copytree(places.models["llama"], tmp_path / "epoch_0")
    write(places.models["llama"], tmp_path / "epoch_0", **QV)
    with pytest.raises(UserError, match="there is an adapter in it"):
        Engine.load("m", str(tmp_path / "epoch_0"))


def test_experts_are_read_in_the_form_that_this_service_writes(
    places: Places, tmp_path: Path
) -> None:
    making = places.client.create_lora_training_client("qwen3_moe", rank=2, train_unembed=False)
    training = making.result()
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs={"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)},  # pyright: ignore
    )
    for _ in range(2):
        training.forward_backward([datum], "cross_entropy").result()
        training.optim_step(tinker.AdamParams(learning_rate=0.02)).result()
    path = training.save_weights_for_sampler("own").result().path
    client = places.client.create_sampling_client(path).result()
    own = client.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result()[1:]
    run, kind, name = path.removeprefix("tinker://").split("/")
    shutil.copytree(places.root / run.replace(":", "_") / kind / name, tmp_path / "a")
    said = asked(places, "qwen3_moe", read_folder(tmp_path / "a"))
    assert said.logprobs.tolist() == torch.tensor(own).tolist()
    _change(tmp_path / "a", lora_alpha=16)
    with pytest.raises(FolderError, match="are read with lora_alpha 32"):
        places.service.adopt("qwen3_moe", read_folder(tmp_path / "a"))


# --- what is refused ------------------------------------------------------------------------------


def _change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return changed


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B_OF_FIRST = FIRST.replace("lora_A", "lora_B")
MAGNITUDE = FIRST.replace("lora_A.weight", "lora_magnitude_vector")
EMBEDDING = "base_model.model.model.embed_tokens.weight"
OF_EMBEDDING = EMBEDDING.replace("weight", "lora_A.weight")  # as SkyRL names it
HEAD = "base_model.model.lm_head.base_layer.weight"
REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: _change(folder, use_dora=True), "use_dora is true: DoRA scales each row"),
    (lambda folder: _change(folder, bias="lora_only"), 'bias is "lora_only": it trains biases'),
    (lambda folder: _change(folder, modules_to_save=["lm_head"]), "replaces whole matrices"),
    (lambda folder: _change(folder, a_new_key=[1]), "a_new_key is .1.: what it does"),
    (lambda folder: _change(folder, peft_type="IA3"), 'peft_type is "IA3", and LORA alone'),
    (lambda folder: _change(folder, init_lora_weights="pissa"), "path_initial_model_for_weight"),
    (lambda folder: _change(folder, r=8), "is of rank 4, and adapter_config.json says 8"),
    (lambda folder: _change(folder, r=None), "r is null; expected a rank"),
    (lambda folder: _change(folder, lora_alpha=0), "lora_alpha is 0; expected a number above 0"),
    (lambda folder: _change(folder, lora_alpha=None), "lora_alpha is null"),
    (lambda folder: _change(folder, rank_pattern={"q_proj": 2}), "is of rank 4, and .* says 2"),
    (lambda folder: _change(folder, target_modules=["q_proj"]), "tensors of .*v_proj.* not name"),
    (lambda folder: _change(folder, target_modules=5), "target_modules is 5, which PEFT does not"),
    (lambda folder: _change(folder, use_rslora="false"), 'use_rslora is "false", which PEFT'),
    (lambda folder: _change(folder, target_modules="(q"), "is no pattern of names: missing"),
    (lambda folder: _change(folder, target_modules="all-linear"), "no tensors of .* and 7 more, "),
    (lambda folder: (folder / CONFIG).write_text("{"), "is no JSON"),  # pyright: ignore
    (_pickled, "there is adapter_model.bin. Pickled"),
    (_tensors(lambda t: t.pop(FIRST)), "q_proj has lora_B alone"),
    (_tensors(lambda t: (t.pop(FIRST), t.pop(B_OF_FIRST))), "no tensors of .*layers.0.*q_proj, wh"),
    (_tensors(lambda t: t.update({MAGNITUDE: torch.ones(32)})), "lora_magnitude_vector.*DoRA"),
    (_tensors(lambda t: t.update({EMBEDDING: torch.ones(9, 32)})), "vocabulary that was resized"),
    (_tensors(lambda t: t.update({OF_EMBEDDING: torch.ones(9, 4)})), "adapters on the embedding"),
    (_tensors(lambda t: t.update({HEAD: torch.ones(9, 32)})), "not the base model's own matrix"),
    (_tensors(lambda t: t.update({FIRST[17:]: t.pop(FIRST)})), "expected the names base_model.m"),
    (_tensors(lambda t: t.update({FIRST: t[FIRST].double()})), "lora_A.weight is F64; F32, BF16"),
    (_tensors(lambda t: t.update({FIRST: t[FIRST][:2]})), "lora_A of 2 rows and lora_B of 4"),
    (_tensors(lambda t: t.update({FIRST: t[FIRST][:, :7].contiguous()})), "made for 7 inputs"),
    (_tensors(lambda t: t[FIRST].fill_(float("nan"))), "has values that are no numbers"),
    (_tensors(lambda t: t.clear()), "there are no tensors in it"),
]


@pytest.fixture(scope="module")
def written(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "a"
    write(places.models["llama"], folder, **QV)
    return folder


@pytest.mark.parametrize(("spoil", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_computed_is_refused_by_name(
    places: Places, written: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(written, tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(FolderError, match=said) as error:
        places.service.adopt("llama", read_folder(tmp_path / "a"))
    assert str(tmp_path / "a") in str(error.value)


def test_patterns_that_take_too_long_are_refused(
    places: Places, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(written, tmp_path / "a")
    _change(tmp_path / "a", target_modules=r".*\.(q|v)_proj")
    places.service.adopt("llama", read_folder(tmp_path / "a"))
    monkeypatch.setattr(peft_folders, "PATTERNS_S", 0.0)
    with pytest.raises(FolderError, match=r"takes more than 0 s\. Write the names"):
        places.service.adopt("llama", read_folder(tmp_path / "a"))


def test_other_models_and_vocabularies_are_refused(places: Places, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"model llama has no layer .*\.self_attn\.dense"):
        phi = make_model_dir(tmp_path / "phi", "phi")
        write(phi, tmp_path / "p", target_modules=["dense"], r=4)
        places.service.adopt("llama", read_folder(tmp_path / "p"))
    base = AutoModelForCausalLM.from_pretrained(places.models["llama"])
    base.resize_token_embeddings(320)
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head"], r=4))
    model.save_pretrained(str(tmp_path / "v"), save_embedding_layers=False)
    with pytest.raises(FolderError, match="vocabulary was resized to 320 tokens"):
        places.service.adopt("llama", read_folder(tmp_path / "v"))


def test_another_kind_of_peft_is_refused(places: Places, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(places.models["llama"])
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(base, config).save_pretrained(str(tmp_path / "a"))
    with pytest.raises(FolderError, match='peft_type is "IA3"'):
        read_folder(tmp_path / "a")


def test_several_adapters_in_a_folder_are_named(written: Path, tmp_path: Path) -> None:
    for name in ("epoch_0", "epoch_1"):
        shutil.copytree(written, tmp_path / "out" / name)
    with pytest.raises(ConfigError, match=r"several adapters in it \(epoch_0, epoch_1\)"):
        find_subjects([str(tmp_path / "out")], Path("runs"))
    assert find_start(str(tmp_path / "out/epoch_1"), [Path()]).adapter is not None


def test_what_names_its_base_model_is_said(places: Places, written: Path, tmp_path: Path) -> None:
    llama, qwen = places.models["llama"], places.models["qwen3"]
    copy = shutil.copytree(llama, tmp_path / "copy")
    for named, base, part in (
        (str(llama), llama, f"names this base model, {llama}"),
        (str(copy), llama, f"names this base model, in {copy}"),
        (None, llama, "names no base model; what is compared, once the model is"),
        ("org/model", llama, "names the base model org/model, and base_model is "),
    ):
        shutil.copytree(written, tmp_path / "a", dirs_exist_ok=True)
        _change(tmp_path / "a", base_model_name_or_path=named)
        assert part in base_note("a", read_folder(tmp_path / "a"), str(base), base)
    _change(tmp_path / "a", base_model_name_or_path=str(qwen))
    with pytest.raises(ConfigError, match="which is another one than base_model"):
        base_note("a", read_folder(tmp_path / "a"), str(llama), llama)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def away(workspace: Workspace, llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter in `away/adapter` of the workspace's folder, which is the working directory."""
    monkeypatch.chdir(workspace.folder)
    workspace.settings["mining"] = {"strategy": "topics"}
    write(llama_dir, workspace.folder / "away/adapter", **QV)
    return workspace.folder / "away"


def adopted_in(checkpoints: Path) -> dict[str, torch.Tensor]:
    (file,) = checkpoints.glob("adapter-*/*/adapter/adapter_model.safetensors")
    return load_file(file)


@pytest.mark.trains
def test_it_is_evaluated_and_what_was_read_is_recorded(
    workspace: Workspace, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = workspace.arguments("e")
    assert main([*command, "--evaluate", "away", "--json"]) == 0
    said = capsys.readouterr()
    (one,) = json.loads(said.out)["checkpoints"]
    assert "LoRA of rank 4, alpha 8, on 4 layers (q_proj, v_proj); " in said.err
    assert "names this base model" in said.err
    assert "service: embedded (adapters of other programs are read there alone)" in said.err
    read = read_folder(away / "adapter")
    (record,) = workspace.store("e").settled_config()[EVALUATED]
    assert record["adapter"]["sha256"] == read.sha256
    assert one["path"] == record["path"] == read.path("sampler_weights")
    ours, theirs = (
        adopted_in(workspace.folder / "e/checkpoints"),
        load_file(read.directory / WEIGHTS),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # it goes on with the same files alone
    ledger = workspace.folder / "e/ledger.jsonl"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(workspace.folder / "e/checkpoints")
    assert main(["--resume", str(workspace.folder / "e"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"][0]["score"] == one["score"]
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    _change(away / "adapter", lora_alpha=9)
    assert main(["--resume", str(workspace.folder / "e")]) == 2
    assert "is another one now, by its sha256" in " ".join(capsys.readouterr().err.split())


@pytest.mark.trains
def test_a_run_starts_from_it_as_it_is(
    workspace: Workspace, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = load_file(away / "adapter" / WEIGHTS)
    start = {"start_from": "away", "max_rounds": 1, "train_mlp": False, "train_unembed": False}
    for changes, part in (
        (
            {"train_mlp": True},
            "these weights have train_mlp false, and the settings train_mlp true",
        ),
        ({"lora_rank": 8}, "these weights have lora_rank 4, and the settings lora_rank 8"),
        ({"start_from_optimizer": True}, "Set start_from_optimizer to false"),
    ):
        assert workspace.run("r", **{**start, **changes}) == 2
        assert part in " ".join(capsys.readouterr().err.split())
    assert not (workspace.folder / "r").exists()
    assert workspace.run("r", **start) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "start: away (LoRA of rank 4, alpha 8, on 4 layers (q_proj, v_proj); " in said
    assert "with a new optimizer" in said
    assert "service: embedded (adapters of other programs are read there alone)" in said
    store = workspace.store("r")
    assert [store.checkpoint(n).lora_alpha for n in (0, 1)] == [8, 8]  # pyright: ignore
    assert store.origin is not None
    assert store.origin.num_params == sum(tensor.numel() for tensor in theirs.values())
    weights = {n: workspace.weights("r", n) for n in (0, 1)}
    for name, tensor in theirs.items():
        assert torch.equal(weights[0][f"adapter_model:{name}"], tensor)
        assert not torch.equal(weights[1][f"adapter_model:{name}"], tensor)
    assert len(weights[1]) == len(weights[0]) + 3 * len(theirs)  # no others, and AdamW's state
    # ended before it had saved the weights itself
    ledger = workspace.folder / "r/ledger.jsonl"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(workspace.folder / "r/checkpoints")
    assert main(["--resume", str(workspace.folder / "r")]) == 0
    again = workspace.weights("r", 1)
    assert all(torch.equal(again[name], tensor) for name, tensor in weights[1].items())
    # and a child of it keeps the scale
    assert workspace.run("c", **{**start, "start_from": "r"}) == 0
    assert workspace.store("c").checkpoint(1).lora_alpha == 8  # pyright: ignore
    adapter = read_folder(next((workspace.folder / "c/checkpoints").glob("*/weights/round_01")))
    assert (adapter.alpha, adapter.rank, len(adapter.pairs)) == (8, 4, 4)


@thorough_only
@pytest.mark.trains
def test_it_is_exported(away: Path, llama_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["away", "peft", "--format", "peft"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Give --base-model and --renderer" in said
    how = ["--base-model", str(llama_dir), "--renderer", "llama3"]
    assert export.main(["away", "peft", "--format", "peft", *how]) == 0
    record = json.loads(Path("peft/export.json").read_text())
    assert any("another program wrote this adapter" in note for note in record["notes"])
    assert all(check["passed"] for check in record["checks"])
    exported, theirs = read_folder(Path("peft")), read_folder(away / "adapter")
    assert (exported.alpha, exported.pairs) == (theirs.alpha, theirs.pairs)


def test_merging_keeps_its_scale(places: Places, tmp_path: Path) -> None:
    model = write(places.models["llama"], tmp_path / "a", **FORMS["head"])
    folder = read_folder(tmp_path / "a")
    places.service.adopt("llama", folder, tmp_path / "root")
    kept = path_in(tmp_path / "root", folder.path("sampler_weights"))
    merge(places.models["llama"], kept, tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert gap(logprobs_of(merged), logprobs_of(model)) < 1e-5


def test_it_answers_by_hand(
    workspace: Workspace, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = workspace.arguments("e")[:2]
    before = os.dup(0)
    try:
        with open("typed", "w+b") as typed:
            typed.write(b"Which word stands at place 1?")
            typed.seek(0)
            os.dup2(typed.fileno(), 0)
        assert main(["--chat", "away", "--json", "--beside", *config]) == 0
    finally:
        os.dup2(before, 0)
        os.close(before)
    said = capsys.readouterr()
    (answer,) = map(json.loads, said.out.splitlines())
    assert answer["answer"] != answer["base_answer"]
    assert "LoRA of rank 4, alpha 8, on 4 layers" in said.err
    capsys.readouterr()
    assert main(["--chat", "away"]) == 2
    assert "--config my_config.json" in " ".join(capsys.readouterr().err.split())


def test_it_is_no_candidate_of_the_registry(away: Path) -> None:
    with pytest.raises(ConfigError, match="another program wrote this adapter"):
        find_candidate(str(away), [], Path("registry.jsonl"))

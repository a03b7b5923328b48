"""What the formats hold, by the libraries that load them: logits, dtypes, tokenizers, layouts."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from errors import ConfigError, ExportError
from exports.downloading import to_peft
from exports.merged import merge, own_dtype, weights_dtype
from exports.peft_folder import read_adapter
from exports.served_template import ServedTemplate
from exports.source import Source
from exports.tokenizer_files import copy_tokenizer
from exports.using import serving_of
from exports.wanted import Wanted
from exports.writing import write_weights
from local_tinker.engine import Engine
from local_tinker.lora import LoraShape
from model_dirs import make_model_dir

# Of the checkpoint as it is on a tied model, where nothing is merged and nothing is wrong.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
TOKENS = torch.arange(5, 45).reshape(2, 20)
SAME = 2e-4  # of logits of some size: another order of sums
TEMPLATE = ServedTemplate(
    jinja="{% for m in messages %}[{{ m.content }}]{% endfor %}",
    go=None,
    stop_texts=("<|eot_id|>",),
    stop_ids=(3, 7),
    origin="a test's",
    proven_on=("one question",),
)
MODELS = {
    "llama": ("llama", False, True),
    "llama-tied": ("llama", True, True),
    "qwen3-tied": ("qwen3", True, True),
    "qwen3-tied-no-head": ("qwen3", True, False),
    "gemma3-tied": ("gemma3", True, True),
    "qwen3-moe": ("qwen3_moe", False, True),
    "mixtral": ("mixtral", False, False),
}


def adapter_on(base_dir: Path, folder: Path, *, train_unembed: bool) -> Path:
    """An adapter as the embedded service saves it, whose matrices are far from zero."""
    engine = Engine.load("m", str(base_dir), "cpu")
    run = engine.create_run("r", LoraShape(4, True, True, train_unembed), 1, {})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in run.named_parameters:
            if "lora_B" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    target = folder / "run" / "sampler_weights" / "round_01"
    engine.save(run, folder, target, with_optimizer=False)
    return target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """A model of each kind and an adapter on it."""
    sources = {}
    for name, (family, tied, train_unembed) in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        base = make_model_dir(folder / "model", family, tied=tied, is_lively=True)
        adapter = adapter_on(base, folder / "saved", train_unembed=train_unembed)
        sources[name] = source_of(adapter, base)
    return sources


def source_of(adapter: Path, base: Path) -> Source:
    return Source(
        label="a test's",
        sampler_path=None,
        adapter_dir=adapter,
        base_dir=base,
        base_name="model",
        base_sha256={},
        renderer="llama3",
        store=None,
        checkpoint=None,
    )


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits.float()


def of_checkpoint(source: Source, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The checkpoint as it was trained: unmerged, on the base model."""
    base = AutoModelForCausalLM.from_pretrained(source.base_dir, dtype=dtype)
    return logits_of(PeftModel.from_pretrained(base, str(source.adapter_dir)))


def loaded(folder: Path) -> Any:
    """A merged folder, of which no key is missing or too many."""
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_does_what_the_checkpoint_does(
    name: str, made: dict[str, Source], tmp_path: Path
) -> None:
    source = made[name]
    write_weights(source, Wanted("merged", tmp_path / "out"), TEMPLATE, tmp_path)
    model = loaded(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(source.base_dir)
    wanted = of_checkpoint(source)
    assert (logits_of(base) - wanted).abs().max() > 0.05, "the adapter does nothing"
    assert (logits_of(model) - wanted).abs().max() < SAME
    _, tied, train_unembed = MODELS[name]
    config = json.loads((tmp_path / "config.json").read_text())
    assert bool(config["tie_word_embeddings"]) is (tied and not train_unembed)
    of_base = json.loads((source.base_dir / "config.json").read_text())
    assert {k for k in config if config[k] != of_base.get(k)} <= {"tie_word_embeddings"}
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    # In the layout of the base model's own files, and in safetensors alone.
    files = sorted(path.name for path in tmp_path.iterdir())
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert keys >= set(load_file(source.base_dir / "model.safetensors"))


@pytest.mark.parametrize("name", ["llama", "qwen3-tied", "qwen3-tied-no-head", "qwen3-moe"])
def test_an_adapter_is_found_with_its_base_from_anywhere(
    name: str, made: dict[str, Source], tmp_path: Path
) -> None:
    source = made[name]
    out = tmp_path / "exported"
    out.mkdir()
    write_weights(source, Wanted("peft", out), TEMPLATE, out)
    # The test's own folder is the working directory, and holds no model.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = AutoPeftModelForCausalLM.from_pretrained(str(out))
    assert not [one for one in warned if "adapter key" in str(one.message)]
    assert torch.equal(logits_of(model), of_checkpoint(source))
    kept = (out / "adapter_model.safetensors").read_bytes()
    assert kept == (source.adapter_dir / "adapter_model.safetensors").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    if name == "qwen3-tied-no-head":
        assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(out)), logits_of(model))
    else:  # which would lose the part on the unembedding, or what is in a layout of PEFT's own
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            AutoModelForCausalLM.from_pretrained(out)
    text = "a b  c\n1234 \u00e9\U0001f600"
    assert (
        tokenizer(text).input_ids == AutoTokenizer.from_pretrained(source.base_dir)(text).input_ids
    )
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "[x]"
    )


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3-tied"])
def test_a_folded_adapter_has_no_part_on_the_unembedding(
    name: str, made: dict[str, Source], tmp_path: Path
) -> None:
    source, out = made[name], tmp_path / "out"
    out.mkdir()
    wanted = Wanted("peft", out, fold_unembed=True)
    written = write_weights(source, wanted, TEMPLATE, out)
    assert "from_pretrained('base')" in serving_of(source, wanted, written, TEMPLATE)
    assert "lm_head" not in read_adapter(out).modules
    assert "lm_head" not in read_adapter(out).config["target_modules"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["base"]
    # Also by the one line of transformers, which leaves out what is on the unembedding.
    by_auto = AutoModelForCausalLM.from_pretrained(str(out))
    assert (logits_of(by_auto) - of_checkpoint(source)).abs().max() < SAME
    base = AutoModelForCausalLM.from_pretrained(written.base_dir)
    assert base.config.tie_word_embeddings is False
    assert read_adapter(out).config["base_model_name_or_path"] == str(out / "base")


@pytest.mark.parametrize("name", ["qwen3-tied-no-head", "qwen3-moe"])
def test_what_cannot_be_folded_is_refused(
    name: str, made: dict[str, Source], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, ExportError), match="--fold-unembed"):
        wanted = Wanted("peft", tmp_path / "out", fold_unembed=True)
        write_weights(made[name], wanted, TEMPLATE, tmp_path)


# --- dtypes ---------------------------------------------------------------------------------------


def in_bfloat16(base_dir: Path, folder: Path, *, says: str | None = None) -> Path:
    """The model with its weights rounded; `says` is what its config.json goes on to say."""
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base_dir / name).read_bytes())
    if says is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": says}))
    return folder


def test_a_bfloat16_merge_rounds_once(made: dict[str, Source], tmp_path: Path) -> None:
    source = made["llama-tied"]
    base = in_bfloat16(source.base_dir, tmp_path / "base")
    assert own_dtype(base) == "bfloat16"
    (tmp_path / "out").mkdir()
    done = merge(base, source.adapter_dir, tmp_path / "out", "bfloat16")
    assert done.is_untied and "rounds once" in done.notes[0]
    exact_dir = tmp_path / "exact"
    exact_dir.mkdir()
    merge(base, source.adapter_dir, exact_dir, "float32")
    exact = load_file(exact_dir / "model.safetensors")
    rounded = load_file(tmp_path / "out" / "model.safetensors")
    assert exact.keys() == rounded.keys()
    for name, tensor in rounded.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name


def test_a_base_is_merged_in_the_wider_of_what_it_says_and_has(
    made: dict[str, Source], tmp_path: Path
) -> None:
    """The demo's model has bfloat16 weights, and is loaded in float32 as its config.json says."""
    base = in_bfloat16(made["llama"].base_dir, tmp_path / "base", says="float32")
    assert (weights_dtype(base), own_dtype(base)) == ("bfloat16", "float32")
    assert own_dtype(made["llama"].base_dir) == "float32"
    (tmp_path / "out").mkdir()
    merge(base, made["llama"].adapter_dir, tmp_path / "out", "float16")
    model = loaded(tmp_path / "out")
    assert model.dtype == torch.float16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_a_quantized_base_is_refused(made: dict[str, Source], tmp_path: Path) -> None:
    base = in_bfloat16(made["llama"].base_dir, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="quantized"):
        own_dtype(base)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", ["left out", "renamed", "not finite", "cut short"])
def test_an_adapter_that_does_not_fit_is_refused(
    spoilt: str, made: dict[str, Source], tmp_path: Path
) -> None:
    source = made["llama"]
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    adapter.mkdir()
    out.mkdir()
    config = source.adapter_dir / "adapter_config.json"
    (adapter / "adapter_config.json").write_bytes(config.read_bytes())
    tensors = load_file(source.adapter_dir / "adapter_model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.0" in name)
    if spoilt == "left out":
        del tensors[name]
    elif spoilt == "renamed":
        tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)
    elif spoilt == "not finite":
        tensors[name][0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    if spoilt == "cut short":
        whole = (adapter / "adapter_model.safetensors").read_bytes()
        (adapter / "adapter_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ExportError):
        wanted = Wanted("merged", out)
        write_weights(replace(source, adapter_dir=adapter), wanted, TEMPLATE, out)
    assert not list(out.glob("*.safetensors"))


def test_a_base_with_other_keys_is_not_merged(made: dict[str, Source], tmp_path: Path) -> None:
    source = made["llama"]
    base = tmp_path / "base"
    base.mkdir()
    for path in source.base_dir.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"missing keys: model\.layers.1.mlp\.up_proj\.weight"):
        merge(base, source.adapter_dir, tmp_path, "float32")


def test_a_downloaded_adapter_is_brought_into_peft_s_layout(
    made: dict[str, Source], tmp_path: Path
) -> None:
    """By the cookbook, as the last step of a download; some services name no layers, of which PEFT
    would guess and load a few."""
    source, raw = made["llama"], tmp_path / "raw"
    raw.mkdir()
    weights = (source.adapter_dir / "adapter_model.safetensors").read_bytes()
    (raw / "adapter_model.safetensors").write_bytes(weights)
    config = json.loads((source.adapter_dir / "adapter_config.json").read_text())
    (raw / "adapter_config.json").write_text(json.dumps({**config, "target_modules": None}))
    to_peft(raw, source.base_dir, tmp_path / "adapter")
    there = replace(source, adapter_dir=tmp_path / "adapter")
    assert torch.equal(of_checkpoint(there), of_checkpoint(source))
    with pytest.raises(ExportError, match="build_lora_adapter"):
        experts = made["qwen3-moe"]
        to_peft(experts.adapter_dir, experts.base_dir, tmp_path / "other")


# --- tokenizer and generation settings ------------------------------------------------------------


def test_another_template_inside_the_tokenizers_config_does_not_win(tmp_path: Path) -> None:
    """transformers takes the file, llama.cpp's tools the key: both have to say the same."""
    base, out = make_model_dir(tmp_path / "base", "llama"), tmp_path / "out"
    out.mkdir()
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    own = {**config, "chat_template": "{{ 'other' }}", "odd": [1.5, None, "\u00e9"]}
    (base / "tokenizer_config.json").write_text(json.dumps(own))
    notes = copy_tokenizer(base, out, TEMPLATE)
    assert len(notes) == 1 and "replaced" in notes[0]
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written == {**own, "chat_template": TEMPLATE.jinja}
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    assert tokenizer.chat_template == TEMPLATE.jinja


def test_generation_settings_are_read_without_a_word(
    made: dict[str, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_weights(made["llama"], Wanted("merged", tmp_path / "x"), TEMPLATE, tmp_path)
    settings = GenerationConfig.from_pretrained(str(tmp_path))
    assert settings.eos_token_id == [3, 7] and settings.do_sample is False
    settings.validate(strict=True)
    assert not caplog.records

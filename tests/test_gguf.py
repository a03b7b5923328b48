"""GGUF files: llama.cpp says of them what transformers says of the model they are made of."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers

from errors import ConfigError, ExportError, StorageError
from exports import gguf_model, gguf_shape
from exports.gguf_adapter import write_gguf_adapter
from exports.gguf_model import About, write_gguf
from exports.loaded import Loaded
from exports.loaded_llama_cpp import open_llama_cpp
from llama_models import KINDS, make_llama_model, needs_llama_cpp

pytestmark = [
    needs_llama_cpp,
    # PEFT 0.21, of an adapter with the head of a tied model.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
]

CONTEXT = 512
CLOSE = 1e-3  # 3e-5 was seen
TEXTS = [
    "Hello world, it's 2024 and I'LL see 12345 things!",
    "  two  spaces\n\n\nnew\r\n\tcaf\u00e9 \u4f60\u597d \U0001f600\u200d",
    "<|im_start|>user\n<think>x</think><|eot_id|>",
    "",
]
TEMPLATE = "{{ messages[0].content }}"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Hi <b> & "x"\n'}]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Made(NamedTuple):
    """A model directory, as transformers loads it."""

    folder: Path
    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The model of a kind, made when it is first asked for."""
    done: dict[str, Made] = {}

    def of(kind: str) -> Made:
        if kind not in done:
            folder = make_llama_model(tmp_path_factory.mktemp(kind), kind)
            done[kind] = Made(
                folder,
                transformers.AutoModelForCausalLM.from_pretrained(folder),
                transformers.AutoTokenizer.from_pretrained(folder),
            )
        return done[kind]

    return of


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More would wait for each other, on matrices of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_tokens(size: int, number: int) -> list[int]:
    """Any tokens, markers, parts of characters and rows without a token among them."""
    chance = random.Random(number)
    return [chance.randrange(size) for _ in range(number)]


@torch.no_grad()
def logprobs(model: Any, tokens: Sequence[int]) -> list[float]:
    all_of_them = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
    return [float(all_of_them[i, token]) for i, token in enumerate(tokens[1:])]


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], number: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(number):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def differences(loaded: Loaded, model: Any, tokens: Sequence[int]) -> list[float]:
    both = zip(loaded.logprobs(tokens), logprobs(model, tokens), strict=True)
    return [abs(one - other) for one, other in both]


def write_adapter(made: Made, folder: Path, **settings: Any) -> Any:
    """Save an adapter that changes much; returns the model with it."""
    modules = LINEAR if "moe" not in made.model.config.model_type else LINEAR[:4]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        **{"r": 4, "lora_alpha": 8, "target_modules": [*modules, "lm_head"], **settings},
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_an_f32_file_and_an_adapter_on_it_say_what_transformers_says(
    kind: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    one = made(kind)
    gguf, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    size = one.model.config.vocab_size
    is_tied = one.model.config.tie_word_embeddings
    tokens = some_tokens(size, 40)
    write_gguf(one.folder, gguf, "f32", one.tokenizer.chat_template)
    with open_llama_cpp(gguf, context=CONTEXT) as loaded:
        assert max(differences(loaded, one.model, tokens)) < CLOSE
        wanted = greedy(one.model, tokens[:8], 12)
        assert loaded.greedy(tokens[:8], 12, []) == wanted
        stop = wanted[5]
        # It does not say that this one ends an answer, so it goes on after it.
        assert loaded.greedy(tokens[:8], 12, [stop]) == wanted
        for text in TEXTS:
            plain = one.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert loaded.tokens_of(text) == plain, text
        chat = one.tokenizer.apply_chat_template(
            CHAT, add_generation_prompt=True, return_dict=False
        )
        assert loaded.prompt_of(CHAT) == chat
    stop_ids = About(stop_ids=(stop,))
    write_gguf(one.folder, tmp_path / "ends.gguf", "f32", one.tokenizer.chat_template, stop_ids)
    with open_llama_cpp(tmp_path / "ends.gguf", context=CONTEXT) as loaded:
        assert loaded.greedy(tokens[:8], 12, [stop]) == wanted[: wanted.index(stop) + 1]
    with_adapter = write_adapter(one, tmp_path / "adapter", use_rslora=kind == "qwen3")
    written = write_gguf_adapter(tmp_path / "adapter", one.folder, adapter)
    assert written.alpha == (16 if kind == "qwen3" else 8)
    assert written.needs_own_head == is_tied
    if is_tied:
        refused = pytest.raises(ExportError, match=r"output\.weight")
        with refused, open_llama_cpp(gguf, adapter, context=CONTEXT):
            pass
        write_gguf(one.folder, gguf, "f32", one.tokenizer.chat_template, About(own_head=True))
    with open_llama_cpp(gguf, adapter, context=CONTEXT) as loaded:
        assert max(differences(loaded, with_adapter, tokens)) < CLOSE
        assert loaded.greedy(tokens[:8], 12, []) == greedy(with_adapter, tokens[:8], 12)
        assert max(differences(loaded, one.model, tokens)) > 0.1


@pytest.mark.parametrize(("quantization", "share"), [("f16", 0.7), ("q8_0", 0.5)])
def test_fewer_bits_are_close(
    quantization: Any, share: float, made: Callable[[str], Made], tmp_path: Path
) -> None:
    one = made("qwen3")
    gguf = tmp_path / "model.gguf"
    write_gguf(one.folder, gguf, quantization, one.tokenizer.chat_template)
    assert gguf.stat().st_size < share * (one.folder / "model.safetensors").stat().st_size
    with open_llama_cpp(gguf, context=CONTEXT) as loaded:
        found = differences(loaded, one.model, some_tokens(one.model.config.vocab_size, 60))
    assert 0 < sum(found) / len(found) < 0.1


def test_rows_in_the_wrong_order_would_be_seen(
    made: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the check is worth: llama.cpp loads such a file without a word."""
    one = made("llama")
    right, wrong, adapter = (tmp_path / name for name in ("right", "wrong", "adapter.gguf"))
    with_adapter = write_adapter(one, tmp_path / "adapter")
    write_gguf(one.folder, right, "f32", one.tokenizer.chat_template)
    monkeypatch.setitem(
        gguf_shape.FAMILIES, "LlamaForCausalLM", gguf_shape.Family("llama", permutes=False)
    )
    write_gguf(one.folder, wrong, "f32", one.tokenizer.chat_template)
    write_gguf_adapter(tmp_path / "adapter", one.folder, adapter)
    tokens = some_tokens(one.model.config.vocab_size, 40)
    with open_llama_cpp(wrong, context=CONTEXT) as loaded:
        assert max(differences(loaded, one.model, tokens)) > 0.1
    with open_llama_cpp(right, adapter, context=CONTEXT) as loaded:
        assert max(differences(loaded, with_adapter, tokens)) > 0.1


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 3.0}}),
        ("llama", {"rope_parameters": {**YARN, "original_max_position_embeddings": 128}}),
        ("qwen3", {"rope_parameters": {**YARN, "original_max_position_embeddings": 128}}),
    ],
)
def test_scaled_positions_are_turned_alike(
    kind: str, settings: dict[str, Any], made: Callable[[str], Made], tmp_path: Path
) -> None:
    folder = shutil.copytree(made(kind).folder, tmp_path / "model")
    edit(folder / "config.json", lambda config: config.update(settings))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    write_gguf(folder, tmp_path / "model.gguf", "f32", made(kind).tokenizer.chat_template)
    tokens = some_tokens(model.config.vocab_size, 150)
    with open_llama_cpp(tmp_path / "model.gguf", context=CONTEXT) as loaded:
        assert max(differences(loaded, model, tokens)) < CLOSE


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def setting(**values: Any) -> tuple[str, Callable[[Any], Any]]:
    return "config.json", lambda config: config.update(values)


def tokenizer_with(*place: str, value: Any) -> tuple[str, Callable[[Any], Any]]:
    def change(described: Any) -> None:
        for key in place[:-1]:
            described = described[key]
        described[place[-1]] = value

    return "tokenizer.json", change


PUNCTUATED = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
REFUSED = {
    "architecture": (setting(architectures=["GemmaForCausalLM"]), "GemmaForCausalLM"),
    "no architecture": (setting(architectures=None), "not named"),
    "activation": (setting(hidden_act="gelu"), "gelu"),
    "mlp_bias": (setting(mlp_bias=True), "mlp_bias"),
    "dynamic rope": (
        setting(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "'dynamic'",
    ),
    "rope settings": (
        setting(rope_parameters={**YARN, "attention_factor": 2.0}),
        "attention_factor",
    ),
    "quantized": (
        setting(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantized weights",
    ),
    "more layers": (setting(num_hidden_layers=3), "lacks model.layers.2"),
    "fewer layers": (setting(num_hidden_layers=1), "also has model.layers.1"),
    "tied by name alone": (setting(tie_word_embeddings=True), "two that differ"),
    "too few rows": (setting(vocab_size=300), "where the model has 300 rows"),
    "prefix space": (tokenizer_with("pre_tokenizer", value=PREFIXED), "add_prefix_space"),
    "another cut": (
        tokenizer_with("pre_tokenizer", value=PUNCTUATED),
        '"type": "Punctuation"',
    ),
    "normalizer": (tokenizer_with("normalizer", value={"type": "Lowercase"}), "Lowercase"),
    "whole words": (tokenizer_with("model", "ignore_merges", value=True), "ignore_merges"),
    "stripping": (
        (
            "tokenizer.json",
            lambda described: described["added_tokens"][0].update(lstrip=True),
        ),
        "lstrip",
    ),
    "ends outside": (
        ("generation_config.json", lambda config: config.update(eos_token_id=99999)),
        "ends answers with token 99999",
    ),
    "no bytes": (  # of which the texts that a tokenizer is tried with have none
        ("tokenizer.json", lambda described: described["model"]["vocab"].pop("\u00ff")),
        "no token for 1 of the 256 bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_read_otherwise_is_refused_by_name(
    name: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    (file, change), words = REFUSED[name]
    folder = shutil.copytree(made("llama").folder, tmp_path / "model")
    edit(folder / file, change)
    out = tmp_path / "out" / "model.gguf"
    out.parent.mkdir()
    with pytest.raises(ExportError, match=r"othing was written\.$") as refused:
        write_gguf(folder, out, "f32", made("llama").tokenizer.chat_template)
    assert words in str(refused.value)
    assert not list(out.parent.iterdir())


def test_a_file_says_all_that_would_be_guessed_otherwise(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    gguf = importlib.import_module("gguf")
    one = made("llama")
    folder = shutil.copytree(one.folder, tmp_path / "model")
    edit(
        folder / "tokenizer.json",
        lambda described: described["added_tokens"].extend(
            [added_token("<a>", one, 0), added_token(">cdef", one, 1)]
        ),
    )
    about = About("a name", "apache-2.0", "https://example.org/base", stop_ids=(3, 2))
    limits = write_gguf(folder, tmp_path / "model.gguf", "f32", TEMPLATE, about)
    assert ["ends as '>cdef' begins" in limit for limit in limits] == [True]
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = {name.removeprefix("tokenizer."): field.contents() for name, field in fields.items()}
    expected = {
        "general.name": "a name",
        "general.license": "apache-2.0",
        "general.source.url": "https://example.org/base",
        "llama.context_length": 512,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.key_length": 16,
        "ggml.pre": "gpt-2",
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 3,
        "ggml.eot_token_id": 2,
        "ggml.add_bos_token": False,
        "ggml.add_eos_token": False,
        "chat_template": TEMPLATE,
    }
    assert {name: said[name] for name in expected} == expected
    size = len(one.tokenizer)
    assert said["ggml.tokens"][size : size + 3] == ["<a>", ">cdef", f"[UNUSED{size + 2}]"]
    assert said["ggml.token_type"][size : size + 3] == [4, 3, 5]
    assert said["ggml.token_type"][:5] == [3, 3, 3, 3, 1]


def added_token(text: str, made: Made, place: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": len(made.tokenizer) + place, "content": text, "special": place == 1, **flags}


def test_a_file_without_a_chat_template_is_not_written(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="no chat template"):
        write_gguf(made("llama").folder, tmp_path / "out.gguf", "f32", " \n")


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("mistral", {"sliding_window": 64}, "sliding window of 64"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64}, "sliding window of 64"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "dense layers"),
    ],
)
def test_settings_of_other_kinds_are_refused_by_name(
    kind: str, settings: dict[str, Any], words: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    folder = shutil.copytree(made(kind).folder, tmp_path / "model")
    edit(folder / "config.json", lambda config: config.update(settings))
    with pytest.raises(ExportError) as refused:
        write_gguf(folder, tmp_path / "out.gguf", "f32", TEMPLATE)
    assert words in str(refused.value)


def test_the_demo_models_tokenizer_is_refused(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent / "demo_model"
    with pytest.raises(ExportError, match="add_prefix_space") as refused:
        write_gguf(demo, tmp_path / "out.gguf", "f32", TEMPLATE)
    assert "--format merged" in str(refused.value)


@pytest.fixture(scope="module")
def adapter_dir(made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(made("llama"), folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_alpha": 0}, "alpha 0"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"r": 8}, "ranks differ"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "not LoRA"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_an_adapter_that_a_file_cannot_say_is_refused_by_name(
    settings: dict[str, Any],
    words: str,
    adapter_dir: Path,
    made: Callable[[str], Made],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    edit(folder / "adapter_config.json", lambda config: config.update(settings))
    with pytest.raises(ExportError, match=words):
        write_gguf_adapter(folder, made("llama").folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.fixture(scope="module")
def loaded(made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    one, gguf = made("llama"), tmp_path_factory.mktemp("loaded") / "model.gguf"
    write_gguf(one.folder, gguf, "f32", one.tokenizer.chat_template)
    with open_llama_cpp(gguf, context=64) as opened:
        yield opened


def test_what_does_not_fit_is_an_error(loaded: Any) -> None:
    assert len(loaded.logprobs([5] * 64)) == 63
    with pytest.raises(ExportError, match="do not fit into the 64"):
        loaded.logprobs([5] * 65)
    with pytest.raises(ExportError, match="do not fit into the 64"):
        loaded.greedy([5] * 60, 5, [])
    with pytest.raises(ExportError, match="refuses /completion"):
        loaded.greedy([10**6], 5, [])


def test_a_crash_of_llama_cpp_is_an_error(made: Callable[[str], Made], tmp_path: Path) -> None:
    one, gguf = made("llama"), tmp_path / "model.gguf"
    write_gguf(one.folder, gguf, "f32", one.tokenizer.chat_template)
    with open_llama_cpp(gguf, context=64) as opened:
        server: Any = opened
        process = server._server._process
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        with pytest.raises(ExportError, match="ended by signal 9"):
            opened.greedy([5], 5, [])
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="does not load it"), open_llama_cpp(gguf, context=64):
        pass


def test_a_disk_that_refuses_leaves_no_file(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made("llama")
    with pytest.raises(StorageError, match="the disk refused"):
        write_gguf(one.folder, tmp_path / "none" / "model.gguf", "f32", TEMPLATE)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-gguf\.txt"):
        gguf_model.need_gguf()

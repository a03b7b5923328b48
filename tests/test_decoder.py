"""The service's own decoder of known families, against transformers with PEFT."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import IS_THOROUGH
from local_tinker import decoder_weights, wire
from local_tinker.engine import Engine
from local_tinker.lora import LoraShape
from local_tinker.sample_requests import check_request
from local_tinker.sample_rows import Row
from local_tinker.sampling import Wave
from local_tinker.wire import UserError
from model_dirs import FAMILIES, make_model_dir

KNOWN = {"llama", "mistral", "qwen2", "qwen3"}
# Prompts and how many tokens follow; one prompt is in two slots. Windows are 6 tokens, attention
# reads 16 more columns at a time, and the cache grows by 64.
WAVES = (
    ([[5], [6 + i for i in range(16)], [7 + i for i in range(17)], list(range(20, 51)), [5]], 36),
    ([[(5 + 3 * i) % 250 + 5 for i in range(n)] for n in (130, 200)], 3),
)
WHOLE = LoraShape(4, True, True, True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the service computes with models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(directory: Path, family: str, tied: bool = False, **config: Any) -> Engine:
    """An engine of a lively model whose configuration says something else in these points."""
    make_model_dir(directory, family, tied=tied, is_lively=True)
    if config:
        own = transformers.AutoConfig.from_pretrained(directory)
        own.update(config)
        torch.manual_seed(1)
        own.initializer_range = 0.2
        model: Any = AutoModelForCausalLM.from_config(own)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(directory)
    return Engine.load(family, str(directory), "cpu")


def save_weights(engine: Engine, root: Path, shape: LoraShape) -> Path:
    """Sampler weights that change what the model says."""
    run = engine.create_run("s:train:0", shape, 1, {})
    with torch.no_grad():
        for index, (_, parameter) in enumerate(run.named_parameters):
            parameter.add_(0.05 * math.sin(index + 1))
    engine.save(run, root, root / "w", with_optimizer=False)
    engine.unload_run(run)
    return root / "w"


def rows_of(
    engine: Engine, weights: Path | None, prompts: list[list[int]], num_tokens: int
) -> list[Row]:
    return [
        Row(
            check_request(
                engine,
                wire.Sample(
                    sampling_session_id="s",
                    seq_id=index,
                    prompt=wire.Prompt(
                        chunks=[wire.PromptChunk(type="encoded_text", tokens=prompt)]
                    ),
                    sampling_params=wire.SamplingParams(
                        max_tokens=num_tokens, temperature=0.7, seed=index, stop=[]
                    ),
                    prompt_logprobs=True,
                ),
                weights,
            ),
            0,
        )
        for index, prompt in enumerate(prompts)
    ]


def assert_agreement(engine: Engine, weights: Path | None, plain: Any) -> None:
    """Every log-probability of prompts and samples is the plain model's."""
    for prompts, num_tokens in WAVES:
        assert_rows_agree(engine, rows_of(engine, weights, prompts, num_tokens), plain)


def assert_rows_agree(engine: Engine, rows: list[Row], plain: Any) -> None:
    """The same for rows that share one wave; the plain model sees each text alone."""
    wave = Wave(engine, rows)
    while not wave.is_done:
        wave.advance()
    wave.close()
    for row in rows:
        prompt = row.request.prompt
        ids = torch.tensor([[*prompt, *row.tokens]])
        end = len(prompt) - 1
        with torch.no_grad():  # the last token's own place is not asked for: it may be outside
            logits_TV = plain(ids[:, :-1]).logits[0]
        own_T1 = ids[0, 1:, None]
        untempered_T = logits_TV.log_softmax(-1).gather(-1, own_T1)[:end, 0]
        assert row.scores is not None
        assert row.scores.logprobs_T is not None
        np.testing.assert_allclose(row.scores.logprobs_T[1:], untempered_T, atol=2e-4)
        tempered_T = (logits_TV / 0.7).log_softmax(-1).gather(-1, own_T1)[end:, 0]
        np.testing.assert_allclose(row.logprobs, tempered_T, rtol=0, atol=2e-4)


def plain_model(directory: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()


def plain_peft(directory: str, weights: Path) -> Any:
    model = plain_model(directory)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    model.config.tie_word_embeddings = False
    return PeftModel.from_pretrained(model, str(weights)).eval()


ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "grouped keys": ("llama", False, {}),
    "biases": ("llama", False, {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "tied": ("llama", True, {}),
    "linear rope": (
        "llama", False, {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}
    ),
    "llama3 rope": (
        "llama", False, {"rope_parameters": {**ROPE, "rope_type": "llama3", "factor": 4.0,
                                             "low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    ),
    "yarn rope": (
        "llama", False, {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0}}
    ),
    "sliding everywhere": ("mistral", False, {}),
    "no window": ("mistral", False, {"sliding_window": None}),
    "biases of queries": ("qwen2", True, {}),
    "sliding in one layer": (
        "qwen2", False, {"use_sliding_window": True, "sliding_window": 6,
                         "layer_types": ["full_attention", "sliding_attention"]}
    ),
    "norms of heads": ("qwen3", False, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_samples_agree_with_transformers_and_peft(tmp_path: Path, case: str) -> None:
    """Through an adapter of all layers and of the unembedding."""
    family, tied, config = CASES[case]
    engine = load(tmp_path / "model", family, tied, **config)
    weights = save_weights(engine, tmp_path, WHOLE)
    assert engine.acquire_sampler(weights).decoder is not None
    assert_agreement(engine, weights, plain_peft(engine.path, weights))


def test_samples_of_the_base_model_agree_while_an_adapter_is_trained(tmp_path: Path) -> None:
    engine = load(tmp_path / "model", "llama", tied=True)
    engine.create_run("s:train:0", WHOLE, 1, {})
    assert_agreement(engine, None, plain_model(engine.path))


def test_an_adapter_of_some_layers_leaves_the_others_alone(tmp_path: Path) -> None:
    engine = load(tmp_path / "model", "qwen3")
    weights = save_weights(engine, tmp_path, LoraShape(3, True, False, False))
    assert_agreement(engine, weights, plain_peft(engine.path, weights))
    assert not any("down_proj" in name for name in load_file(weights / "adapter_model.safetensors"))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_families_are_known_by_their_class(tmp_path: Path, family: str) -> None:
    engine = load(tmp_path / "model", family)
    assert (engine.acquire_sampler(None).decoder is not None) == (family in KNOWN)


def test_what_depends_on_the_length_goes_through_transformers(tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}
    engine = load(tmp_path / "model", "llama", rope_parameters=rope)
    assert engine.acquire_sampler(None).decoder is None
    assert not decoder_weights.is_known(engine.model)


def test_matrices_that_fit_no_layer_are_refused(tmp_path: Path) -> None:
    engine = load(tmp_path / "model", "llama")
    weights = save_weights(engine, tmp_path, WHOLE)
    file = weights / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.mlp.up_proj"
    for changed, message in (
        ({f"{name}.lora_A.weight": torch.zeros(4, 31)}, "31 inputs and 48 outputs"),
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)},
         "'model.layers.9.mlp.up_proj' has A.weight; expected lora_A.weight and lora_B.weight"),
    ):  # fmt: skip
        save_file({**tensors, **changed}, file)
        with pytest.raises(UserError, match=message):
            engine.acquire_sampler(weights)


def test_a_prompt_that_several_samples_share_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the last bits are those of a sample of its own."""
    engine = load(tmp_path / "model", "llama")
    embedded: list[int] = []
    embedding = torch.nn.functional.embedding

    def count(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        embedded.append(ids.numel())
        return embedding(ids, weights)

    monkeypatch.setattr(torch.nn.functional, "embedding", count)
    prompt = list(range(20, 45))
    (alone,) = rows_of(engine, None, [prompt], 5)
    shared = rows_of(engine, None, [prompt, prompt, prompt], 5)
    shared[2] = rows_of(engine, None, [prompt], 5)[0]
    for rows in ([alone], shared):
        wave = Wave(engine, rows)
        embedded.clear()
        wave.advance()
        assert embedded == [256]  # one chunk of 8 rows of 32 tokens
        while not wave.is_done:
            wave.advance()
        wave.close()
    assert (shared[2].tokens, shared[2].logprobs) == (alone.tokens, alone.logprobs)
    assert shared[0].tokens == alone.tokens
    assert shared[1].tokens != alone.tokens  # another seed


@pytest.mark.parametrize("is_small", [True, False])
def test_no_bit_depends_on_company_when_the_cache_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    """In several slots, with windows, beside prompts of other lengths, on two threads."""
    engine = load(tmp_path / "model", "mistral")
    monkeypatch.setitem(engine.__dict__, "is_small", is_small)
    num_slots = engine.num_slots(64, with_prompt_logits=True)
    prompts = [[(5 + 7 * i) % 250 + 5 for i in range(3 + 5 * (n % 6))] for n in range(num_slots)]
    own = list(range(40, 60))
    slots = range(0, num_slots, 3) if IS_THOROUGH else (0, num_slots // 2, num_slots - 1)
    torch.set_num_threads(2)
    made = []
    for slot in (None, *slots):
        company = [own] if slot is None else [*prompts[:slot], own, *prompts[slot + 1 :]]
        rows = rows_of(engine, None, company, 40)
        row = rows[slot or 0] = rows_of(engine, None, [own], 40)[0]
        wave = Wave(engine, rows)
        while not row.is_done:
            wave.advance()
        wave.close()
        assert row.scores is not None
        assert row.scores.logprobs_T is not None
        made.append((row.tokens, row.logprobs, row.scores.logprobs_T.tobytes()))
    assert all(one == made[0] for one in made)


# --- the end of the context -----------------------------------------------------------------------


def load_gpt2(directory: Path) -> Engine:
    """A model with a table of positions, which ends where its context does."""
    make_model_dir(directory, "llama")
    vocabulary = transformers.AutoConfig.from_pretrained(directory).vocab_size
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=4,
        initializer_range=0.2, bos_token_id=0, eos_token_id=3,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    return Engine.load("gpt2", str(directory), "cpu")


DYNAMIC = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize("family", ["llama", "dynamic", "gpt2"])
def test_rows_that_end_with_the_context_leave_the_others_alone(tmp_path: Path, family: str) -> None:
    """Their slots go on while the other rows do, which must reach no position outside: a table has
    none there, and dynamic rotary positions would be others from then on, also for training."""
    directory = tmp_path / "model"
    if family == "gpt2":
        engine = load_gpt2(directory)
    else:
        rope: dict[str, Any] = {"rope_parameters": DYNAMIC} if family == "dynamic" else {}
        engine = load(directory, "llama", max_position_embeddings=64, **rope)
    assert engine.max_context_length == 64
    plain = plain_model(engine.path)
    texts = [[(5 + 3 * i + n) % 250 + 5 for i in range(n)] for n in (62, 40, 33)]
    rows = [*rows_of(engine, None, texts[:1], 2), *rows_of(engine, None, texts[1:], 20)]
    assert_rows_agree(engine, rows, plain)
    assert_rows_agree(engine, rows_of(engine, None, texts[2:], 20), plain)


def test_longrope_is_served_where_no_text_changes_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {
        "rope_theta": 10000.0, "rope_type": "longrope", "original_max_position_embeddings": 32,
        "partial_rotary_factor": 1.0, "factor": 8.0, "short_factor": [1.0] * 4,
        "long_factor": [3.0, 4.0, 5.0, 6.0],
    }  # fmt: skip
    engine = load(
        tmp_path / "model", "phi3", rope_parameters=rope, original_max_position_embeddings=32
    )
    assert engine.max_context_length == 32
    assert "longer than 32 tokens, so it is served up to that length" in caplog.text
    plain = plain_model(engine.path)
    texts = [[5 + i for i in range(n)] for n in (31, 10, 20)]
    rows = [*rows_of(engine, None, texts[:1], 1), *rows_of(engine, None, texts[1:], 12)]
    assert_rows_agree(engine, rows, plain)
    with pytest.raises(UserError, match="33 tokens exceed the model's context of 32"):
        rows_of(engine, None, [list(range(5, 38))], 1)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_text_as_long_as_the_context_can_be_scored(tmp_path: Path, family: str) -> None:
    """`compute_logprobs` asks for one token more, which takes no position."""
    engine = load(tmp_path / "model", family, max_position_embeddings=64)
    text = [(5 + 3 * i) % 250 + 5 for i in range(64)]
    assert_rows_agree(engine, rows_of(engine, None, [text], 1), plain_model(engine.path))
    with pytest.raises(UserError, match="send at most 63, or ask for one token"):
        rows_of(engine, None, [text], 2)

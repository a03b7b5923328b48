"""A random Llama of two layers as a GGUF file, for the scripts here that show llama.cpp.

Its vocabulary is the 256 bytes, written as GPT-2 does, an end token and names that no text holds.
"""

# pyright: reportAttributeAccessIssue=false
# xllamacpp has no types.

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import numpy as np
import xllamacpp

WIDTH, HIDDEN, NUM_LAYERS, NUM_HEADS, NUM_TOKENS = 64, 96, 2, 4, 300
END, NUM_ASCII = 256, 94


def _bytes_as_text() -> list[str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [*map(chr, shown), *(chr(256 + place) for place in range(len(hidden)))]


def random_tensors() -> dict[str, np.ndarray]:
    """All weights of the model by llama.cpp's names; the same at each call."""
    chance = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return chance.normal(0, 0.2, (rows, columns)).astype(np.float32)

    ones = np.ones(WIDTH, np.float32)
    tensors = {
        "token_embd.weight": matrix(NUM_TOKENS, WIDTH),
        "output.weight": matrix(NUM_TOKENS, WIDTH),
        "output_norm.weight": ones,
    }
    for layer in range(NUM_LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}.{name}.weight"] = matrix(WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"{block}.{name}.weight"] = matrix(HIDDEN, WIDTH)
        tensors[f"{block}.ffn_down.weight"] = matrix(WIDTH, HIDDEN)
        tensors |= {f"{block}.attn_norm.weight": ones, f"{block}.ffn_norm.weight": ones}
    return tensors


def write_model(path: str, tensors: Mapping[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(NUM_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(NUM_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    num_names = NUM_TOKENS - END - 1
    names = [*_bytes_as_text(), "<end>", *(f"<name {n}>" for n in range(num_names))]
    writer.add_token_list(names)
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * END
        + [gguf.TokenType.CONTROL]
        + [gguf.TokenType.UNUSED] * num_names
    )
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(END)
    _finish(writer, tensors)


def write_adapter(path: str, factors: Mapping[str, np.ndarray], alpha: float | None) -> None:
    """A LoRA adapter; `factors` are its matrices by llama.cpp's names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    if alpha is not None:
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    _finish(writer, factors)


def _finish(writer: gguf.GGUFWriter, tensors: Mapping[str, np.ndarray]) -> None:
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path: str, adapter: str | None = None) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = path, 256, 1, -1
    if adapter is not None:
        loaded = xllamacpp.CommonAdapterLoraInfo()
        loaded.path, loaded.scale = adapter, 1.0
        params.lora_adapters = [loaded]
    return xllamacpp.Server(params)


def ask(server: xllamacpp.Server, route: str, **body: Any) -> dict[str, Any]:
    """What the server answers on a route of its own."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        server.listening_address + route, json.dumps(body).encode(), head
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def next_logprobs(server: xllamacpp.Server, prompt: Sequence[int]) -> np.ndarray:
    """The log-probabilities of the printable ASCII tokens among themselves, after a prompt.

    Only these are let be the next one: of a token that ends inside a character nothing is listed.
    """
    bias = [[token, -100.0] for token in range(NUM_ASCII, NUM_TOKENS)]
    body = {"n_predict": 1, "n_probs": NUM_TOKENS, "temperature": 0.0, "logit_bias": bias}
    answer = ask(server, "/completion", prompt=list(prompt), **body)
    listed = answer["completion_probabilities"][0]["top_logprobs"]
    by_token = {one["id"]: one["logprob"] for one in listed}
    found = np.array([by_token[token] for token in range(NUM_ASCII)])
    return found - np.logaddexp.reduce(found)

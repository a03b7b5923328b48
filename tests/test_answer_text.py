"""Bits per byte: one span on both sides, the same for every chat format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinker_cookbook.renderers import get_renderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluation.held_out import held_out_row
from model_dirs import LLAMA_TOKENS, QWEN_TOKENS
from rows.examples import Example, ExampleTable, Message
from rows.rendering import Rendering
from scores.results import HeldOutLoss, HeldOutRow, held_out_loss
from scores.wording import loss_text

FORMATS = ("llama3", "qwen3", "qwen3_instruct", "role_colon")
SENTENCE = "The capital of the republic is Paris now."  # 41 bytes


def tokenizer_of(words: dict[str, tuple[str, str]] | None = None) -> Any:
    """A tokenizer whose tokens are bytes, and besides `words` by the two parts they merge of."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*LLAMA_TOKENS, *QWEN_TOKENS, *alphabet])}
    for word in words or {}:
        vocab[word] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=list((words or {}).values())))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|eot_id|>")
    fast.add_special_tokens({"additional_special_tokens": [*LLAMA_TOKENS, *QWEN_TOKENS]})
    return fast


def row_of(format_name: str, *turns: str, num_cut: int = 0, words: Any = None) -> HeldOutRow:
    """A conversation each of whose tokens has 8 bits."""
    tokenizer = tokenizer_of(words)
    renderer = get_renderer(format_name, tokenizer)
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    table = ExampleTable([Example("", messages, "v.jsonl", 1, None)])
    num_tokens = Rendering(renderer, 2048).render_all(table).num_tokens[0] + 1
    rendering = Rendering(renderer, num_tokens - num_cut)
    rendering.render_all(table)
    datum = rendering[table.id_of(0)].datum
    num_targets = len(datum.loss_fn_inputs["target_tokens"].to_numpy())
    return held_out_row(table[0], datum, np.full(num_targets, -8 * math.log(2)), tokenizer)


def loss_of(row: HeldOutRow) -> HeldOutLoss:
    return held_out_loss("nll:v.jsonl", [row], 0)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(
    "answer", ["4", "408", SENTENCE, "think", "User", "im_end", "caf\u00e9 \U0001f600"]
)
def test_eight_bits_a_byte_are_eight_in_every_format(format_name: str, answer: str) -> None:
    row = row_of(format_name, "How much?", answer)
    assert row.num_loss_bytes == len(answer.encode())
    assert loss_of(row).bits_per_byte == pytest.approx(8.0)
    assert loss_of(row).nll == pytest.approx(8 * math.log(2))  # per token, with the end of the turn
    assert row.num_loss_tokens > len(answer.encode())


@pytest.mark.parametrize("format_name", FORMATS)
def test_reasoning_of_the_row_counts_and_the_tags_around_it_do_not(format_name: str) -> None:
    reasoning, answer = "two and two", "4"
    row = row_of(format_name, "2 + 2?", f"<think>{reasoning}</think>{answer}")
    assert row.num_loss_bytes == len(reasoning + answer)
    assert loss_of(row).bits_per_byte == pytest.approx(8.0)


@pytest.mark.parametrize("format_name", ["llama3", "role_colon"])
def test_each_trained_turn_counts(format_name: str) -> None:
    row = row_of(format_name, "4?", "408 is", "and 4?", "4")
    assert row.num_loss_bytes == len("408 is") + len("4")


@pytest.mark.parametrize("format_name", FORMATS)
def test_of_an_answer_that_is_cut_what_is_left_counts(format_name: str) -> None:
    whole = row_of(format_name, "Where?", SENTENCE)
    cut = row_of(format_name, "Where?", SENTENCE, num_cut=30)
    assert 10 < cut.num_loss_bytes < 41 == whole.num_loss_bytes
    assert loss_of(cut).bits_per_byte == pytest.approx(8.0)


def test_a_token_of_text_and_separator_counts_whole_on_both_sides() -> None:
    words = {"\u01204": ("\u0120", "4")}  # " 4" is one token of two bytes and 8 bits
    row = row_of("role_colon", "How much?", "4", words=words)
    assert row.num_loss_bytes == 2
    assert loss_of(row).bits_per_byte == pytest.approx(4.0)


def test_control_tokens_that_stand_in_an_answer_are_its_text() -> None:
    row = row_of("llama3", "What ends a turn?", "It is <|eot_id|> here.")
    assert row.num_loss_bytes == len("It is <|eot_id|> here.")
    assert loss_of(row).bits_per_byte == pytest.approx(8.0)


def test_rows_without_text_have_no_bits_per_byte() -> None:
    """Also those that an older version had measured before it was interrupted."""
    old = HeldOutRow("a", None, 10.0, 10, 30)
    assert loss_of(old).bits_per_byte is None
    assert loss_text(loss_of(old)) == "nll:v.jsonl: loss 1.0000 a token, perplexity 2.718"
    new = HeldOutRow("b", None, 9.0, 9, 4, text_nll_sum=8 * math.log(2))
    assert held_out_loss("nll:v.jsonl", [old, new], 0).bits_per_byte == pytest.approx(2.0)


def test_tokenizers_that_write_spaces_before_words_keep_their_spans(tmp_path: Path) -> None:
    """As sentencepiece does: a word's token alone decodes without the space that it adds."""
    vocab = {
        "<s>": 0,
        "</s>": 1,
        "\u2581It": 2,
        "\u2581is": 3,
        "\u2581Paris": 4,
        ".": 5,
        "<unk>": 6,
    }
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    from evaluation.answer_text import answer_tokens

    tokens = [2, 3, 4, 5, 1]
    found = answer_tokens(["is Paris"], tokens, np.array([True] * 5), tokenizer)
    assert found.positions == [1, 2]
    assert found.num_bytes == len(" is Paris")

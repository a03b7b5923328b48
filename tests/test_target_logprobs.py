"""Log-probabilities of targets, against a plain softmax; and which rows share a pass."""

import itertools

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from local_tinker import lora, target_logprobs
from local_tinker.lora import LoraShape
from local_tinker.micro_batches import PASS_TOKENS, micro_batches

LENGTHS = (9, 4, 12, 1)
SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def make_model(family: str) -> LlamaForCausalLM | Gemma2ForCausalLM:
    torch.manual_seed(3)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval().requires_grad_(False)
    config = Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=2.0)  # caps what it computes
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config).eval().requires_grad_(False)


def make_batch(fill: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens with `fill` behind each row, what is real, two targets per position, a third of them
    trained."""
    generator = torch.Generator().manual_seed(5)
    is_real_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens_BT = torch.randint(50, is_real_BT.shape, generator=generator)
    targets_NK = torch.randint(50, (sum(LENGTHS), 2), generator=generator)
    return (
        tokens_BT.masked_fill(~is_real_BT, fill),
        is_real_BT,
        targets_NK,
        torch.rand(sum(LENGTHS), generator=generator) < 0.3,
    )


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("num_idle_at_a_time", [3, 64])
def test_values_and_gradients_are_those_of_a_plain_softmax(
    family: str, num_idle_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_logprobs, "MAX_IDLE_LOGITS", 0)
    monkeypatch.setattr(target_logprobs, "MIN_IDLE_POSITIONS", num_idle_at_a_time)
    model = make_model(family)
    config = lora.make_config(model, "tiny", LoraShape(4, True, True, True))
    peft = PeftModel(model, config).eval()
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tokens_BT, is_real_BT, targets_NK, is_trained_N = make_batch()
    factors_NK = torch.linspace(-1, 2, targets_NK.numel()).view(targets_NK.shape)
    factors_NK = factors_NK * is_trained_N[:, None]

    made = target_logprobs.target_logprobs(model, tokens_BT, is_real_BT, targets_NK, is_trained_N)
    (made * factors_NK).sum().backward()
    made_gradients = gradients(peft)

    logits = model(input_ids=tokens_BT, attention_mask=is_real_BT.long()).logits
    plain = logits.log_softmax(-1)[is_real_BT].gather(-1, targets_NK)
    (plain * factors_NK).sum().backward()
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-5)
    expected = gradients(peft)
    assert len(expected) == len(made_gradients) == 2 * (2 * 7 + 1)
    for one, other in zip(made_gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_stands_in_the_padding_changes_no_bit() -> None:
    model = make_model("llama")
    model.get_input_embeddings().weight.requires_grad_(True)
    made = []
    for fill in (0, 37):
        logprobs = target_logprobs.target_logprobs(model, *make_batch(fill))
        logprobs.sum().backward()
        made.append((logprobs.detach(), *gradients(model)))
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_nothing_is_kept_for_a_backward_pass_where_nothing_is_trained() -> None:
    model = make_model("llama")
    model.get_input_embeddings().weight.requires_grad_(True)
    tokens_BT, is_real_BT, targets_NK, is_trained_N = make_batch()
    made = target_logprobs.target_logprobs(
        model, tokens_BT, is_real_BT, targets_NK, torch.zeros_like(is_trained_N)
    )
    assert not made.requires_grad
    assert "forward" not in vars(model.get_decoder())  # the model is as it was


def cost(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(PASS_TOKENS + len(rows) * max(lengths[row] for row in rows) for rows in batches)


def test_no_other_split_by_length_costs_less() -> None:
    generator = np.random.default_rng(2)
    for _ in range(50):
        lengths = (generator.lognormal(4, 1.2, 7).astype(int) + 1).tolist()
        batches = micro_batches(lengths, max_tokens=10**9)
        assert sorted(itertools.chain(*batches)) == list(range(7))
        order = sorted(range(7), key=lengths.__getitem__)
        for cuts in itertools.product((False, True), repeat=6):
            split: list[list[int]] = [[order[0]]]
            for row, is_cut in zip(order[1:], cuts, strict=True):
                split.append([row]) if is_cut else split[-1].append(row)
            assert cost(batches, lengths) <= cost(split, lengths)


def test_a_pass_fits_into_memory_unless_one_row_does_not() -> None:
    lengths = [10, 300, 10, 10, 90, 10]
    for rows in micro_batches(lengths, max_tokens=25):
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 25
    assert micro_batches([5, 6, 5], max_tokens=10**9) == [[0, 2, 1]]  # like lengths go together

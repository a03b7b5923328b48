"""The log-probabilities that come with samples are those of the distribution they came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
import torch
from tinker import types

import local_tinker
from local_tinker.choosing import Wish, choose
from local_tinker.wire import SamplingParams
from model_dirs import make_model_dir
from sdk_client import datum, using

PROMPT = [5, 6, 7, 8]
NUM_TOKENS = 12
VOCAB_SIZE = 300
TEMPERATURES = (0.3, 0.7, 1.0, 1.5, 4.0)


class Made(NamedTuple):
    """A sample with the likeliest tokens of each of its positions, and what stands behind it."""

    tokens: list[int]
    logprobs: np.ndarray
    likeliest: list[dict[int, float]]
    untempered_TV: np.ndarray


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_tinker.Service]:
    """A service of a model whose predictions are far from uniform."""
    root = tmp_path_factory.mktemp("lively")
    directory = make_model_dir(root / "lively", "llama", is_lively=True)
    with local_tinker.start([("lively", str(directory))]) as running:
        yield running


async def make(client: tinker.ServiceClient, topk: int = 5, **params: Any) -> Made:
    """Sample, and ask for the whole distribution of every sampled token as the vendor does."""
    sampler = await client.create_sampling_client(base_model="lively")
    response = await sampler.sample(
        types.ModelInput.from_ints(PROMPT),
        1,
        types.SamplingParams(max_tokens=NUM_TOKENS, stop=[], seed=3, **params),
        topk_sample_logprobs=topk,
    )
    made = response.sequences[0]
    assert made.logprobs is not None
    assert made.topk_logprobs is not None
    scored = await sampler.sample(
        types.ModelInput.from_ints([*PROMPT, *made.tokens]),
        1,
        types.SamplingParams(max_tokens=1, temperature=0.5),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=VOCAB_SIZE,
    )
    assert scored.topk_prompt_logprobs is not None
    untempered_TV = np.full((NUM_TOKENS, VOCAB_SIZE), np.nan)
    for place, row in enumerate(scored.topk_prompt_logprobs[len(PROMPT) :]):
        for token, logprob in row or ():
            untempered_TV[place, token] = logprob
    assert np.isfinite(untempered_TV).all()
    return Made(
        list(made.tokens),
        np.array(made.logprobs),
        [dict(row or ()) for row in made.topk_logprobs],
        untempered_TV,
    )


def renormalised(logits_TV: np.ndarray) -> np.ndarray:
    return logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True)


def assert_from(made: Made, expected_TV: np.ndarray) -> None:
    own = expected_TV[np.arange(NUM_TOKENS), made.tokens]
    np.testing.assert_allclose(made.logprobs, own, rtol=0, atol=1e-5)
    for listed, expected_V in zip(made.likeliest, expected_TV, strict=True):
        assert listed.keys() == set(np.argsort(-expected_V)[: len(listed)].tolist())
        for token, logprob in listed.items():
            assert logprob == pytest.approx(expected_V[token], abs=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_logprobs_of_samples_are_the_tempered_distribution(
    lively: local_tinker.Service, tmp_path: Path, temperature: float
) -> None:
    """The vendor's formula: log-probabilities by 1 / temperature, scaled to sum to 1."""
    made: Made = using(lively, tmp_path, lambda c: make(c, temperature=temperature))
    assert_from(made, renormalised(made.untempered_TV / temperature))
    assert all(len(listed) == 5 for listed in made.likeliest)


def test_greedy_samples_come_with_untempered_logprobs(
    lively: local_tinker.Service, tmp_path: Path
) -> None:
    made: Made = using(lively, tmp_path, lambda c: make(c, temperature=0.0))
    assert made.tokens == made.untempered_TV.argmax(-1).tolist()
    assert_from(made, made.untempered_TV)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(3, 1.0), (1, 1.0), (-1, 0.6), (8, 0.6), (8, 1e-6), (VOCAB_SIZE, 0.9)]
)
def test_top_k_and_top_p_leave_a_distribution_that_sums_to_one(
    lively: local_tinker.Service, tmp_path: Path, top_k: int, top_p: float
) -> None:
    """First top-k, then top-p of what it leaves; the likeliest tokens are those that are left."""
    made: Made = using(
        lively,
        tmp_path,
        lambda c: make(c, topk=10, temperature=1.5, top_k=top_k, top_p=top_p),
    )
    expected_TV = np.full_like(made.untempered_TV, -np.inf)
    num_left = []
    for place, logprobs_V in enumerate(renormalised(made.untempered_TV / 1.5)):
        order = np.argsort(-logprobs_V)[: top_k if top_k > 0 else None]
        probs = np.exp(logprobs_V[order])
        before = probs.cumsum() - probs
        left = order[before < top_p * probs.sum()]
        expected_TV[place, left] = renormalised(logprobs_V[left])
        num_left.append(left.size)
    assert_from(made, expected_TV)
    assert [len(listed) for listed in made.likeliest] == np.minimum(num_left, 10).tolist()


def test_importance_sampling_sees_that_a_sample_was_drawn_at_another_temperature(
    lively: local_tinker.Service, tmp_path: Path
) -> None:
    """The loss is minus the sum of p / q, and q is what the sample came with."""

    async def body(client: tinker.ServiceClient) -> None:
        run = await client.create_lora_training_client("lively", rank=4, seed=1)
        for temperature in (0.5, 1.0, 2.0):
            made = await make(client, temperature=temperature)
            whole = [*PROMPT, *made.tokens]
            sampled = [0.0] * (len(PROMPT) - 1) + made.logprobs.tolist()
            advantages = [0.0] * (len(PROMPT) - 1) + [1.0] * NUM_TOKENS
            inputs: dict[str, Any] = {
                "target_tokens": whole[1:],
                "logprobs": sampled,
                "advantages": advantages,
            }
            one = types.Datum(model_input=datum(whole).model_input, loss_fn_inputs=inputs)
            output = await run.forward([one], "importance_sampling")
            forward = output.loss_fn_outputs[0]["logprobs"].to_numpy()[-NUM_TOKENS:]
            untempered = made.untempered_TV[np.arange(NUM_TOKENS), made.tokens]
            np.testing.assert_allclose(forward, untempered, rtol=0, atol=1e-5)
            tempered_TV = renormalised(made.untempered_TV / temperature)
            ratios = np.exp(untempered - tempered_TV[np.arange(NUM_TOKENS), made.tokens])
            assert output.metrics["loss:sum"] == pytest.approx(-ratios.sum(), rel=1e-4)
            assert (np.abs(ratios - 1) < 1e-4).all() == (temperature == 1.0)

    using(lively, tmp_path, body)


def test_no_choice_depends_on_what_the_other_slots_ask_for() -> None:
    """Greedy, free and narrowed draws, with and without their likeliest tokens, bit for bit."""
    torch.manual_seed(0)
    logits_BV = 3 * torch.randn(8, 500)
    kinds = [(0.0, -1, 1.0), (1.0, -1, 1.0), (0.7, 5, 1.0), (1.3, -1, 0.8), (2.0, 40, 0.5)]
    wishes = [
        Wish(
            slot,
            SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p),
            uniform=(slot + 0.5) / 8,
            topk=slot % 4,
        )
        for slot in range(8)
        for temperature, top_k, top_p in [kinds[slot % len(kinds)]]
    ]
    together = choose(logits_BV, wishes)
    for wish, choice in zip(wishes, together, strict=True):
        (alone,) = choose(logits_BV, [wish])
        assert (alone.token, alone.logprob) == (choice.token, choice.logprob)
        for one, other in zip(alone.topk or (), choice.topk or (), strict=True):
            np.testing.assert_array_equal(one, other)

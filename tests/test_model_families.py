"""Every supported model family through the real SDK, against the plain transformers model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from tinker import types
from transformers import AutoModelForCausalLM, MambaConfig

import local_tinker
from local_tinker.lora import LoraShape, check_model, find_targets
from local_tinker.wire import UserError
from model_dirs import FAMILIES, make_model_dir
from sdk_client import ADAM, adapter_of, checkpoint_dir, datum, same_bits, sample, using

TIED = {"qwen2", "gemma2", "gemma3", "phi", "gpt_oss"}  # the others have an unembedding of its own
MOE = {"qwen3_moe", "mixtral", "gpt_oss"}
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [21], [22, 23, 24]]
DATA = [datum([(7 * i + 11 * row) % 290 + 5 for i in range(n)]) for row, n in enumerate((24, 3, 9))]


class Model(NamedTuple):
    name: str  # of the family, and of the base model in the service
    directory: Path

    def plain(self) -> Any:
        """The model as transformers alone loads it. Only eager attention knows all features."""
        return AutoModelForCausalLM.from_pretrained(
            self.directory, attn_implementation="eager", dtype=torch.float32
        ).eval()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        family: make_model_dir(root / family, family, tied=family in TIED, is_lively=True)
        for family in FAMILIES
    }


@pytest.fixture(scope="module")
def families(directories: dict[str, Path]) -> Iterator[local_tinker.Service]:
    models = [(family, str(directory)) for family, directory in directories.items()]
    with local_tinker.start(models) as running:
        yield running


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Model:
    return Model(request.param, directories[request.param])


async def train(*runs: tinker.TrainingClient, num_steps: int) -> list[float]:
    """Take the runs' steps in turn; returns the first run's loss before each of its steps."""
    losses, steps = [], []
    for _ in range(num_steps):
        for run in runs:
            losses.append(run.forward_backward(DATA, "cross_entropy"))
            steps.append(run.optim_step(ADAM))
    for step in steps:
        await step
    return [(await loss).metrics["loss:sum"] for loss in losses[:: len(runs)]]


def logprobs_of(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """The log-probability of each token given those before it, from the second token on."""
    ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).numpy()


def tokens_of(one: types.Datum) -> list[int]:
    return [*one.model_input.to_ints(), int(one.loss_fn_inputs["target_tokens"].to_numpy()[-1])]


def assert_logprobs_of(output: Any, model: Any, *, atol: float) -> None:
    for one, made in zip(DATA, output.loss_fn_outputs, strict=True):
        expected = logprobs_of(model, tokens_of(one))
        assert expected.std() > 0.3 or expected.size < 3  # nearly equal ones would prove nothing
        np.testing.assert_allclose(made["logprobs"].to_numpy(), expected, rtol=0, atol=atol)


def test_logprobs_are_those_of_the_model_also_in_a_ragged_batch(
    families: local_tinker.Service, tmp_path: Path, model: Model
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await client.create_lora_training_client(model.name, rank=4, seed=1)
        together = await run.forward(DATA, "cross_entropy")
        assert_logprobs_of(together, model.plain(), atol=1e-5)
        for index, one in enumerate(DATA):
            alone = (await run.forward([one], "cross_entropy")).loss_fn_outputs[0]
            np.testing.assert_allclose(
                alone["logprobs"].to_numpy(),
                together.loss_fn_outputs[index]["logprobs"].to_numpy(),
                rtol=0,
                atol=1e-5,
            )

    using(families, tmp_path, body)


def test_training_lowers_the_loss_and_gives_a_plain_peft_adapter(
    families: local_tinker.Service, tmp_path: Path, model: Model
) -> None:
    """Also sampling through that adapter, which is the path that evaluation takes."""

    async def body(client: tinker.ServiceClient) -> tuple[str, Any, Any]:
        run = await client.create_lora_training_client(model.name, rank=4, seed=1)
        losses = await train(run, num_steps=3)
        output = await run.forward(DATA, "cross_entropy")
        assert losses[0] > losses[1] > losses[2] > output.metrics["loss:sum"]
        path = (await run.save_weights_for_sampler("x")).path
        sampler = await client.create_sampling_client(path)
        (sampled,) = await sample(sampler, PROMPTS[0], max_tokens=8, temperature=0.0, stop=[])
        return path, output, sampled

    path, output, sampled = using(families, tmp_path, body)
    base = model.plain()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())  # untied
    base.config.tie_word_embeddings = False
    plain = PeftModel.from_pretrained(base, str(checkpoint_dir(tmp_path, path))).eval()
    assert_logprobs_of(output, plain, atol=1e-4)
    expected = logprobs_of(plain, [*PROMPTS[0], *sampled.tokens])[len(PROMPTS[0]) - 1 :]
    np.testing.assert_allclose(sampled.logprobs, expected, rtol=0, atol=1e-4)

    trained = {name.split(".lora_")[0] for name in adapter_of(tmp_path, path)}
    assert any("lm_head" in name for name in trained)
    assert any("self_attn" in name for name in trained)
    assert any(".mlp." in name for name in trained)
    assert not any("router" in name or name.endswith("gate") for name in trained)
    assert any(name.endswith(".experts.base_layer") for name in trained) == (model.name in MOE)


def test_greedy_samples_are_the_argmax_of_the_model(
    families: local_tinker.Service, tmp_path: Path, model: Model
) -> None:
    async def body(client: tinker.ServiceClient) -> list[Any]:
        sampler = await client.create_sampling_client(base_model=model.name)
        params = {"max_tokens": 12, "temperature": 0.0, "stop": []}
        return await asyncio.gather(*(sample(sampler, prompt, **params) for prompt in PROMPTS))

    plain = model.plain()
    for prompt, (made,) in zip(PROMPTS, using(families, tmp_path, body), strict=True):
        whole = [*prompt, *made.tokens]
        with torch.no_grad():
            best = plain(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert list(made.tokens) == best.tolist()
        expected = logprobs_of(plain, whole)[len(prompt) - 1 :]
        np.testing.assert_allclose(made.logprobs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", sorted(MOE))
def test_a_sample_of_a_mixture_of_experts_does_not_depend_on_its_company(
    families: local_tinker.Service, tmp_path: Path, family: str
) -> None:
    """Bit for bit, though how many tokens an expert gets does depend on it."""
    params = {"max_tokens": 6, "temperature": 1.0, "seed": 4, "stop": []}

    async def body(client: tinker.ServiceClient) -> None:
        run = await client.create_lora_training_client(family, rank=4, seed=1)
        await train(run, num_steps=1)
        sampler = await client.create_sampling_client(
            (await run.save_weights_for_sampler("x")).path
        )
        alone = [(await sample(sampler, prompt, **params))[0] for prompt in PROMPTS]
        together = await asyncio.gather(
            *(sample(sampler, prompt, **params) for prompt in (*PROMPTS, *reversed(PROMPTS)))
        )
        for one, (other,) in zip([*alone, *reversed(alone)], together, strict=True):
            assert list(one.tokens) == list(other.tokens)
            assert list(one.logprobs) == list(other.logprobs)

    using(families, tmp_path, body)


def test_a_saved_state_goes_on_with_the_same_bits_beside_a_run_of_another_rank(
    families: local_tinker.Service, tmp_path: Path, model: Model
) -> None:
    """One run alone; one resumed midway; and the same with another run's steps between its own."""

    async def body(client: tinker.ServiceClient) -> list[str]:
        async def new_run(rank: int, train_mlp: bool) -> tinker.TrainingClient:
            return await client.create_lora_training_client(
                model.name, rank=rank, seed=1, train_mlp=train_mlp
            )

        alone, beside, other_alone, other = await asyncio.gather(
            new_run(4, True), new_run(4, True), new_run(2, False), new_run(2, False)
        )
        await train(alone, num_steps=1)
        middle = (await alone.save_state("middle")).path
        await train(alone, num_steps=1)
        resumed = await client.create_training_client_from_state_with_optimizer(middle)
        await train(resumed, num_steps=1)
        await train(other_alone, num_steps=2)
        await train(beside, other, num_steps=2)
        runs = (alone, resumed, beside, other_alone, other)
        return [one.path for one in await asyncio.gather(*(run.save_state("x") for run in runs))]

    alone, resumed, beside, other_alone, other = (
        adapter_of(tmp_path, path) for path in using(families, tmp_path, body)
    )
    assert same_bits(alone, resumed)
    assert same_bits(alone, beside)
    assert same_bits(other_alone, other)


# --- models that are not covered, or not wholly ----------------------------------------------


def test_what_a_model_lacks_is_a_clear_error() -> None:
    shape = LoraShape(4, train_attn=True, train_mlp=True, train_unembed=True)
    settings: dict[str, Any] = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1}
    mamba: Any = AutoModelForCausalLM.from_config(MambaConfig(**settings))
    with pytest.raises(UserError, match=r"MambaForCausalLM has none of that kind; set train_attn="):
        find_targets(mamba, shape)
    mamba.config.is_encoder_decoder = True
    with pytest.raises(UserError, match="encoder beside its decoder"):
        check_model(mamba)

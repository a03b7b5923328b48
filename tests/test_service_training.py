"""Losses, targets, chunks and memory limits of the service, through the unmodified SDK."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from transformers import AutoModelForCausalLM

import local_tinker
from local_tinker.session_routes import CLIENT_CONFIG
from model_dirs import make_model_dir
from sdk_client import (
    ADAM,
    DATA,
    PROMPT,
    adapter_of,
    datum,
    new_run,
    not_with_older_sdk,
    same_bits,
    sample,
    train,
    using,
)

pytestmark = pytest.mark.core

TOKENS = [5, 6, 7, 8, 9, 10]


def policy_datum(
    tokens: list[int], logprobs: list[float], advantages: list[float], **more: list[float]
) -> types.Datum:
    inputs: dict[str, Any] = {
        "target_tokens": tokens[1:], "logprobs": logprobs, "advantages": advantages, **more,
    }  # fmt: skip
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def soft_datum(tokens: list[int], targets: np.ndarray, weights: np.ndarray) -> types.Datum:
    """Several weighted targets per position; torch tensors, which the SDK may send as sparse."""
    inputs: dict[str, Any] = {
        "target_tokens": torch.from_numpy(targets),
        "weights": torch.from_numpy(weights),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


@pytest.mark.parametrize(
    ("loss_fn", "config", "position_loss"),
    [
        ("importance_sampling", {}, lambda r, lp, q, a: -r * a),
        ("ppo", {}, lambda r, lp, q, a: -np.minimum(r * a, np.clip(r, 0.8, 1.2) * a)),
        (
            "ppo",
            {"clip_low_threshold": 0.5, "clip_high_threshold": 1.1},
            lambda r, lp, q, a: -np.minimum(r * a, np.clip(r, 0.5, 1.1) * a),
        ),
        ("cispo", {}, lambda r, lp, q, a: -np.clip(r, 0.0, 4.0) * lp * a),
        ("dro", {"beta": 0.05}, lambda r, lp, q, a: -(lp * a - 0.025 * (lp - q) ** 2)),
    ],
)
def test_policy_losses_are_sums_of_their_published_formulas(
    service: local_tinker.Service,
    tmp_path: Path,
    loss_fn: types.LossFnType,
    config: dict[str, float],
    position_loss: Any,
) -> None:
    """Two rows of different lengths, negative and zero advantages, over the wire in protobuf."""
    advantages = [[1.0, -0.5, 0.0, 2.0, -1.0], [0.7, -0.3]]
    shifts = [[0.3, -0.4, 0.1, -0.2, 0.9], [-0.6, 0.2]]

    async def body(client: tinker.ServiceClient) -> Any:
        run = await new_run(client)
        plain = await run.forward([datum(TOKENS), datum(TOKENS[:3])], "cross_entropy")
        current = [out["logprobs"].to_numpy() for out in plain.loss_fn_outputs]
        sampled = [lp + np.array(s) for lp, s in zip(current, shifts, strict=True)]
        data = [
            policy_datum(TOKENS, sampled[0].tolist(), advantages[0]),
            policy_datum(TOKENS[:3], sampled[1].tolist(), advantages[1]),
        ]
        output = await run.forward_backward(data, loss_fn, config or None)
        await run.optim_step(ADAM)
        after = await run.forward(data, loss_fn, config or None)
        return current, sampled, output, [o["logprobs"].to_numpy() for o in after.loss_fn_outputs]

    current, sampled, output, after = using(service, tmp_path, body)
    expected = sum(
        position_loss(np.exp(lp - q), lp, q, np.array(a)).sum()
        for lp, q, a in zip(current, sampled, advantages, strict=True)
    )
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
    gains = [
        (np.array(a) * (new - old)).sum()
        for a, new, old in zip(advantages, after, current, strict=True)
    ]
    assert sum(gains) > 0  # the step makes good tokens likelier and bad ones less likely
    for made, lp in zip(output.loss_fn_outputs, current, strict=True):
        np.testing.assert_allclose(made["logprobs"].to_numpy(), lp, atol=1e-5)


@not_with_older_sdk("does not know the input of gspo")
def test_gspo_shares_one_ratio_per_sequence(service: local_tinker.Service, tmp_path: Path) -> None:
    async def body(client: tinker.ServiceClient) -> tuple[np.ndarray, float]:
        run = await new_run(client)
        plain = await run.forward([datum(TOKENS)], "cross_entropy")
        lp = plain.loss_fn_outputs[0]["logprobs"].to_numpy()
        q = lp - np.array([0.0, 0.0, 0.3, 0.1, 0.2])
        mask = [0.0, 0.0, 1.0, 1.0, 1.0]
        data = [policy_datum(TOKENS, q.tolist(), [1.0] * 5, sequence_ratio_mask=mask)]
        config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
        output = await run.forward_backward(data, "gspo", config)
        return lp, output.metrics["loss:sum"]

    _, loss = using(service, tmp_path, body)
    assert loss == pytest.approx(-5 * 1.1, rel=1e-5)  # exp(0.2) is clipped at 1.1, five positions


@not_with_older_sdk("lets torch warn of its sparse tensors")
@pytest.mark.parametrize("is_sparse", [False, True])
def test_soft_targets_dense_and_sparse(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path, is_sparse: bool
) -> None:
    """(N, K) targets and weights; the SDK sends mostly empty ones as sparse CSR by itself."""
    num_targets = 40 if is_sparse else 3
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 300, (5, num_targets))
    weights = rng.random((5, num_targets)).astype(np.float32)
    if is_sparse:
        hidden = rng.random((5, num_targets)) < 0.9
        targets[hidden], weights[hidden] = 0, 0.0
    data = [soft_datum(TOKENS, targets, weights), soft_datum(TOKENS[:4], targets[:3], weights[:3])]

    async def body(client: tinker.ServiceClient) -> Any:
        run = await new_run(client)
        return await run.forward_backward(data, "cross_entropy")

    output = using(service, tmp_path, body)
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    with torch.no_grad():
        logprobs = model(torch.tensor([TOKENS[:-1]])).logits[0].log_softmax(-1).numpy()
    gathered = np.take_along_axis(logprobs, targets, axis=-1)
    expected = -(weights * gathered).sum() - (weights * gathered)[:3].sum()
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    for made, num_rows in zip(output.loss_fn_outputs, (5, 3), strict=True):
        array = made["logprobs"].to_numpy().reshape(num_rows, num_targets)
        np.testing.assert_allclose(array, gathered[:num_rows], atol=1e-5)


def test_a_custom_loss_in_the_client_trains_as_the_same_loss_on_the_server(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    def nll(data: list[types.Datum], logprobs: list[torch.Tensor]) -> Any:
        weights = [torch.tensor(d.loss_fn_inputs["weights"].to_numpy()) for d in data]
        terms = [(w * lp).sum() for w, lp in zip(weights, logprobs, strict=True)]
        loss = -torch.stack(terms).sum()
        return loss, {"mine": loss.item()}

    async def body(client: tinker.ServiceClient) -> Any:
        custom, plain = await new_run(client), await new_run(client)
        made = await custom.forward_backward_custom(DATA, nll)
        expected = await plain.forward_backward(DATA, "cross_entropy")
        paths = []
        for run in (custom, plain):
            await run.optim_step(ADAM)
            paths.append((await run.save_weights_for_sampler("x")).path)
        return made.metrics, expected.metrics, paths

    made, expected, paths = using(service, tmp_path, body)
    assert made["loss:sum"] == pytest.approx(expected["loss:sum"], rel=1e-6)
    assert made["mine"] == pytest.approx(expected["loss:sum"], rel=1e-6)
    one, other = (adapter_of(tmp_path, path) for path in paths)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "config", "data", "message"),
    [
        ("importance_sampling", None, DATA, "needs logprobs, advantages"),
        ("stable_reinforce", None, DATA, "use importance_sampling"),
        ("dro", None, [policy_datum([5, 6], [0.0], [1.0])], "beta"),
        ("ppo", {"epsilon": 0.2}, [policy_datum([5, 6], [0.0], [1.0])], "clip_low_threshold"),
        (
            "cross_entropy",
            None,
            [soft_datum([5, 6, 7], np.array([[1, 2]]), np.ones((1, 2), np.float32))],
            "target_tokens has shape",
        ),
    ],
)
def test_losses_that_cannot_be_computed_say_why_and_leave_no_gradient(
    service: local_tinker.Service,
    tmp_path: Path,
    loss_fn: Any,
    config: dict[str, float] | None,
    data: list[types.Datum],
    message: str,
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        with pytest.raises(tinker.RequestFailedError, match=message):
            await run.forward_backward([datum([5, 6, 7]), *data], loss_fn, config)
        with pytest.raises(tinker.RequestFailedError, match="no gradients to apply"):
            await run.optim_step(ADAM)

    using(service, tmp_path, body)


def test_an_infinite_loss_refuses_the_step_even_where_gradients_are_finite(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """dro's square of an infinite difference: the loss overflows, so nothing may be applied."""
    bad = policy_datum([5, 6, 7], [1e30, 0.0], [0.0, 0.0])

    async def body(client: tinker.ServiceClient) -> tuple[str, str]:
        run = await new_run(client)
        before = await run.save_weights_for_sampler("before")
        output = await run.forward_backward([bad], "dro", {"beta": 1.0})
        assert output.metrics["loss:sum"] == float("inf")
        await run.forward_backward(DATA, "cross_entropy")
        with pytest.raises(tinker.RequestFailedError, match="a loss since the last step is inf"):
            await run.optim_step(ADAM)
        after = await run.save_weights_for_sampler("after")
        await train(run, 1)
        return before.path, after.path

    before, after = using(service, tmp_path, body)
    assert same_bits(adapter_of(tmp_path, before), adapter_of(tmp_path, after))


@pytest.mark.parametrize("parallel", [False, True])
def test_a_batch_in_chunks_trains_as_the_whole_batch(
    service: local_tinker.Service,
    tmp_path: Path,
    parallel: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK sends parallel chunks as 2, 3, 1; each adds to the gradient, outputs keep order."""
    data = [datum(list(range(5 + i, 9 + i + i % 3))) for i in range(7)]

    async def body(client: tinker.ServiceClient) -> tuple[Any, str]:
        run = await new_run(client)
        pending = []
        for _ in range(2):
            pending += [run.forward_backward(data, "cross_entropy"), run.optim_step(ADAM)]
        first = await pending[0]
        for future in pending[1:]:
            await future
        return first, (await run.save_weights_for_sampler("x")).path

    whole, whole_path = using(service, tmp_path, body)
    monkeypatch.setitem(CLIENT_CONFIG, "fwdbwd_max_chunk_len", 3)
    monkeypatch.setitem(CLIENT_CONFIG, "parallel_fwdbwd_chunks", parallel)
    chunked, chunked_path = using(service, tmp_path, body)
    assert chunked.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-6)
    assert [len(out["logprobs"].to_numpy()) for out in chunked.loss_fn_outputs] == [
        len(out["logprobs"].to_numpy()) for out in whole.loss_fn_outputs
    ]
    made, expected = adapter_of(tmp_path, chunked_path), adapter_of(tmp_path, whole_path)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


@not_with_older_sdk("lets torch warn of its sparse tensors")
def test_a_small_body_cannot_claim_much_memory(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """Empty sparse tensors of an enormous shape: 4,000 targets for each of 10 x 500 positions."""
    empty = torch.zeros((500, 4000), dtype=torch.int64)
    inputs: dict[str, Any] = {"target_tokens": types.TensorData.from_torch_sparse(empty)}
    rows = [
        types.Datum(model_input=types.ModelInput.from_ints([5] * 500), loss_fn_inputs=dict(inputs))
        for _ in range(10)
    ]

    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        with pytest.raises(tinker.RequestFailedError, match="20000000 targets in all"):
            await run.forward(rows, "cross_entropy")

    using(service, tmp_path, body)


def test_runs_beyond_the_memory_limit_wait_on_disk_and_lose_nothing(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    """Four runs where one fits, parked also between gradient and step: the bits are the same."""

    async def body(client: tinker.ServiceClient) -> list[str]:
        runs = [await new_run(client) for _ in range(4)]
        for _ in range(2):
            for run in runs:
                await run.forward_backward(DATA, "cross_entropy")
            for run in runs:
                await run.optim_step(ADAM)
        return [(await run.save_state("x")).path for run in runs]

    roomy = using(service, tmp_path / "roomy", body)
    with local_tinker.start() as tight:
        tight.serve_model("llama", str(llama_dir))
        memory = tight._memory
        memory.limit_bytes -= memory.room_bytes - 300_000
        cramped = using(tight, tmp_path / "tight", body)
        assert memory.num_run_bytes <= 300_000

        async def too_large(client: tinker.ServiceClient) -> None:
            with pytest.raises(tinker.RequestFailedError, match="smaller rank or raise"):
                await client.create_lora_training_client("llama", rank=64)

        using(tight, tmp_path / "tight", too_large)
    for one, other in zip(roomy, cramped, strict=True):
        assert same_bits(adapter_of(tmp_path / "roomy", one), adapter_of(tmp_path / "tight", other))
    assert not list((tmp_path / "tight").glob(".scratch-*/*"))  # nothing stays parked


def test_a_parked_run_that_cannot_be_read_back_leaves_no_half_of_it(
    tmp_path: Path, llama_dir: Path
) -> None:
    with local_tinker.start([("llama", str(llama_dir))]) as tight:
        memory, engine = tight._memory, tight._state.engines["llama"]

        async def body(client: tinker.ServiceClient) -> None:
            first = await new_run(client)
            memory.limit_bytes -= memory.room_bytes - memory.num_run_bytes
            await new_run(client)
            (parked,) = tmp_path.glob(".scratch-*/*.safetensors")
            parked.write_bytes(b"")
            for _ in range(2):
                with pytest.raises(tinker.RequestFailedError, match="cannot be read back"):
                    await first.forward_backward(DATA, "cross_entropy")
            assert engine._peft is None  # the other one was parked for it

        using(tight, tmp_path, body)


def test_the_copy_of_an_untied_unembedding_counts_as_memory(tmp_path: Path) -> None:
    """What was loaded for sampling before sees the same weights, and holds no copy of its own."""
    model_dir = make_model_dir(tmp_path / "tied", "llama", tied=True)
    with local_tinker.start([("tied", str(model_dir))]) as service:
        engine, memory = service._state.engines["tied"], service._memory
        before = memory.room_bytes

        async def body(client: tinker.ServiceClient) -> None:
            spared = await client.create_lora_training_client("tied", rank=4, train_unembed=False)
            sampler = await spared.save_weights_and_get_sampling_client()
            first = await sample(sampler, PROMPT, max_tokens=8, seed=1, stop=[])
            assert memory.room_bytes == before
            await client.create_lora_training_client("tied", rank=4, train_unembed=True)
            unembedding = engine.model.get_output_embeddings().weight
            assert before - memory.room_bytes == unembedding.nbytes
            second = await sample(sampler, PROMPT, max_tokens=8, seed=1, stop=[])
            assert list(second[0].logprobs) == list(first[0].logprobs)
            (loaded,) = engine._sampler_adapters.values()
            assert loaded.decoder is not None
            embedding = engine.model.get_input_embeddings().weight
            assert loaded.decoder.unembedding.weights[0] is embedding

        using(service, tmp_path / "checkpoints", body)


def test_runs_take_turns(service: local_tinker.Service, tmp_path: Path) -> None:
    """A run that queues forty requests does not keep a second one waiting for all of them."""

    async def body(client: tinker.ServiceClient) -> int:
        busy, late = await new_run(client), await new_run(client)
        queued = [busy.forward(DATA * 20, "cross_entropy") for _ in range(40)]
        tasks = [asyncio.ensure_future(_result(future)) for future in queued]
        await tasks[0]
        await late.forward(DATA, "cross_entropy")
        num_done = sum(task.done() for task in tasks)
        for task in tasks:
            await task
        return num_done

    assert using(service, tmp_path, body) < 40


async def _result(future: Any) -> Any:
    return await future

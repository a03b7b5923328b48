"""The unmodified tinker SDK against the embedded service, with values checked independently."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from tinker import types
from transformers import AutoModelForCausalLM

import local_tinker
from local_tinker.state import RunQueue
from sdk_client import (
    ADAM,
    DATA,
    PROMPT,
    adapter_of,
    checkpoint_dir,
    datum,
    new_run,
    same_bits,
    sample,
    train,
    using,
)
from services.sdk import rest_client

pytestmark = pytest.mark.core

# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "fixture"), [("llama", "llama_dir"), ("qwen3", "qwen_dir")])
def test_loss_and_logprobs_are_those_of_the_model(
    service: local_tinker.Service,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    model: str,
    fixture: str,
) -> None:
    async def body(client: tinker.ServiceClient) -> Any:
        run = await new_run(client, model)
        return await run.forward(DATA, "cross_entropy")

    output = using(service, tmp_path, body)
    reference = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(fixture))
    total = 0.0
    for one, made in zip(DATA, output.loss_fn_outputs, strict=True):
        tokens = torch.tensor([one.model_input.to_ints()])
        targets = torch.tensor(one.loss_fn_inputs["target_tokens"].to_numpy())
        with torch.no_grad():
            logprobs = reference(tokens).logits[0].log_softmax(-1)
        expected = logprobs.gather(-1, targets[:, None]).squeeze(-1).numpy()
        np.testing.assert_allclose(made["logprobs"].to_numpy(), expected, rtol=1e-5, atol=1e-5)
        total -= float(one.loss_fn_inputs["weights"].to_numpy() @ expected)
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)


def test_steps_are_those_of_torch_adamw_on_a_plain_peft_model(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> tuple[str, str]:
        run = await new_run(client)
        before = await run.save_state("before")
        await train(run, 3)
        after = await run.save_state("after")
        return before.path, after.path

    before, after = using(service, tmp_path, body)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama_dir),
        str(checkpoint_dir(tmp_path, before)),
        is_trainable=True,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    for _ in range(3):
        optimizer.zero_grad()
        for one in DATA:
            tokens = torch.tensor([one.model_input.to_ints()])
            targets = torch.tensor(one.loss_fn_inputs["target_tokens"].to_numpy())
            weights = torch.tensor(one.loss_fn_inputs["weights"].to_numpy())
            logprobs = model(tokens).logits[0].log_softmax(-1)
            (-(weights * logprobs.gather(-1, targets[:, None]).squeeze(-1)).sum()).backward()
        optimizer.step()
    made = adapter_of(tmp_path, after)
    expected = {
        name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad
    }
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_parts_of_a_batch_add_up(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> list[str]:
        paths = []
        for parts in ([DATA], [DATA], [DATA[:1], DATA[1:]]):
            run = await new_run(client)
            for part in parts:
                await run.forward_backward(part, "cross_entropy")
            await run.optim_step(ADAM)
            paths.append((await run.save_weights_for_sampler("x")).path)
        return paths

    whole, again, in_parts = (adapter_of(tmp_path, p) for p in using(service, tmp_path, body))
    assert same_bits(whole, again)
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, in_parts[name], rtol=1e-3, atol=1e-5)


def test_resuming_with_the_optimizer_is_exact_also_from_another_service(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    """Two steps, save, two more; against a fresh process that loads the save and takes two."""

    async def uninterrupted(client: tinker.ServiceClient) -> tuple[str, str]:
        run = await new_run(client)
        await train(run, 2)
        middle = (await run.save_state("middle")).path
        await train(run, 2)
        return middle, (await run.save_state("end")).path

    middle, end = using(service, tmp_path, uninterrupted)

    async def resumed(client: tinker.ServiceClient) -> tuple[str, str]:
        exact = await client.create_training_client_from_state_with_optimizer(middle)
        await train(exact, 2)
        fresh = await client.create_training_client_from_state(middle)
        await train(fresh, 2)
        return (await exact.save_state("end")).path, (await fresh.save_state("end")).path

    with local_tinker.start([("llama", str(llama_dir))]) as other:
        exact, without_optimizer = using(other, tmp_path, resumed)
    assert same_bits(adapter_of(tmp_path, end), adapter_of(tmp_path, exact))
    assert not same_bits(adapter_of(tmp_path, end), adapter_of(tmp_path, without_optimizer))


def test_two_runs_side_by_side_do_not_touch_each_other(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> list[str]:
        alone = await new_run(client)
        await train(alone, 3)
        one, two = await new_run(client), await new_run(client)
        pending = []
        for _ in range(3):
            for run in (one, two):
                pending += [run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)]
        for future in pending:
            await future
        return [(await run.save_state("x")).path for run in (alone, one, two)]

    alone, one, two = (adapter_of(tmp_path, p) for p in using(service, tmp_path, body))
    assert same_bits(alone, one)
    assert same_bits(one, two)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {},
            {
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
                "lm_head",
            },
        ),
        ({"train_mlp": False, "train_unembed": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"train_attn": False, "train_unembed": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"train_attn": False, "train_mlp": False}, {"lm_head"}),
    ],
)
def test_layers_are_trained_as_asked_and_embeddings_never_saved(
    service: local_tinker.Service, tmp_path: Path, flags: dict[str, Any], expected: set[str]
) -> None:
    async def body(client: tinker.ServiceClient) -> str:
        run = await client.create_lora_training_client("qwen3", rank=4, seed=1, **flags)
        await train(run, 1)
        return (await run.save_weights_for_sampler("x")).path

    path = using(service, tmp_path, body)
    names = adapter_of(tmp_path, path)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == expected
    assert not any("embed_tokens" in name for name in names)
    config = json.loads((checkpoint_dir(tmp_path, path) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], set(config["target_modules"])) == (4, 32, expected)


def test_adapters_load_in_a_plain_peft_model_with_the_same_logprobs(
    service: local_tinker.Service, tmp_path: Path, qwen_dir: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> tuple[str, Any]:
        run = await new_run(client, "qwen3")
        await train(run, 3)
        path = (await run.save_weights_for_sampler("x")).path
        return path, await run.forward(DATA, "cross_entropy")

    path, output = using(service, tmp_path, body)
    base = AutoModelForCausalLM.from_pretrained(qwen_dir)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.config.tie_word_embeddings = False
    model = PeftModel.from_pretrained(base, str(checkpoint_dir(tmp_path, path)))
    for one, made in zip(DATA, output.loss_fn_outputs, strict=True):
        tokens = torch.tensor([one.model_input.to_ints()])
        targets = torch.tensor(one.loss_fn_inputs["target_tokens"].to_numpy())
        with torch.no_grad():
            logprobs = model(tokens).logits[0].log_softmax(-1)
        expected = logprobs.gather(-1, targets[:, None]).squeeze(-1).numpy()
        np.testing.assert_allclose(made["logprobs"].to_numpy(), expected, rtol=1e-4, atol=1e-5)


# --- sampling --------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_company(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """Tokens and log-probabilities bit for bit: alone, among 7, and among 40 in every place."""
    prompts = [[5 + i % 9, 6 + i % 7, 7] * (1 + i % 5) for i in range(40)]
    greedy = {"max_tokens": 12, "temperature": 0.0, "stop": []}
    drawn = {"max_tokens": 12, "temperature": 1.0, "seed": 4, "stop": []}

    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        await train(run, 2)
        path = (await run.save_weights_for_sampler("x")).path
        sampler = await client.create_sampling_client(path)
        for params in (greedy, drawn):
            alone = [(await sample(sampler, prompt, **params))[0] for prompt in prompts[:7]]
            among_7 = await asyncio.gather(*(sample(sampler, p, **params) for p in prompts[:7]))
            among_40 = await asyncio.gather(
                *(sample(sampler, p, **params) for p in reversed(prompts))
            )
            for i, one in enumerate(alone):
                for other in (among_7[i][0], among_40[len(prompts) - 1 - i][0]):
                    assert list(one.tokens) == list(other.tokens)
                    assert list(one.logprobs) == list(other.logprobs)

    using(service, tmp_path, body)


def test_sampling_parameters_mean_what_they_say(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        free = {"max_tokens": 8, "stop": []}
        (greedy,) = await sample(sampler, PROMPT, temperature=0.0, **free)
        (top_1,) = await sample(sampler, PROMPT, temperature=1.0, top_k=1, **free)
        (narrow,) = await sample(sampler, PROMPT, temperature=1.0, top_p=1e-6, **free)
        assert list(greedy.tokens) == list(top_1.tokens) == list(narrow.tokens)
        assert (len(greedy.tokens), greedy.stop_reason) == (8, "length")

        many = await sample(sampler, PROMPT, temperature=1.0, seed=3, num_samples=5, **free)
        again = await sample(sampler, PROMPT, temperature=1.0, seed=3, num_samples=5, **free)
        assert [list(s.tokens) for s in many] == [list(s.tokens) for s in again]
        assert len({tuple(s.tokens) for s in many}) == 5

        # log-probabilities are those of a forward pass over prompt and answer
        model = AutoModelForCausalLM.from_pretrained(llama_dir)
        whole = torch.tensor([PROMPT + list(greedy.tokens)])
        with torch.no_grad():
            logprobs = model(whole).logits[0].log_softmax(-1)
        expected = logprobs[:-1].gather(-1, whole[0, 1:, None]).squeeze(-1).numpy()
        np.testing.assert_allclose(greedy.logprobs, expected[len(PROMPT) - 1 :], atol=1e-5)
        scored = await sampler.compute_logprobs(types.ModelInput.from_ints(whole[0].tolist()))
        assert scored[0] is None
        np.testing.assert_allclose(np.array(scored[1:], float), expected, atol=1e-5)

    using(service, tmp_path, body)


def test_stops_by_token_and_by_text_are_included_once_at_the_end(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    from rows.chat_formats import load_tokenizer

    tokenizer = load_tokenizer(str(llama_dir))

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        free = {"max_tokens": 30, "temperature": 1.0, "seed": 1}
        (whole,) = await sample(sampler, PROMPT, stop=[], **free)
        tokens = list(whole.tokens)
        at = next(i for i in range(3, 30) if tokens[i] not in tokens[:i])
        (by_id,) = await sample(sampler, PROMPT, stop=[tokens[at]], **free)
        assert (list(by_id.tokens), by_id.stop_reason) == (tokens[: at + 1], "stop")

        text = tokenizer.decode(tokens)
        stop = next(text[i : i + 4] for i in range(4, 40) if text.index(text[i : i + 4]) == i)
        (by_text,) = await sample(sampler, PROMPT, stop=stop, **free)
        ended = tokenizer.decode(list(by_text.tokens))
        assert by_text.stop_reason == "stop"
        assert stop in ended
        assert stop not in tokenizer.decode(list(by_text.tokens)[:-1])

    using(service, tmp_path, body)


# --- protocol --------------------------------------------------------------------------------


def test_user_errors_come_back_as_errors_and_the_run_goes_on(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        for data, loss_fn, part in (
            (DATA, "nonsense", "unknown loss function 'nonsense'"),
            ([datum([5, 6, 10**6])], "cross_entropy", "token ids must lie in 0..299"),
            (
                [datum(list(range(5, 200)) * 4)],
                "cross_entropy",
                "exceed the model's context of 512",
            ),
        ):
            with pytest.raises(tinker.RequestFailedError, match=re.escape(part)):
                await run.forward_backward(data, cast("types.LossFnType", loss_fn))
        with pytest.raises(tinker.RequestFailedError, match="no gradients"):
            await run.optim_step(ADAM)
        await train(run, 1)
        with pytest.raises(tinker.NotFoundError, match="'gpt-9' is not served here"):
            await client.create_lora_training_client("gpt-9")
        with pytest.raises(tinker.BadRequestError, match="is not a checkpoint path"):
            await client.create_training_client_from_state("tinker://x/weights/../../etc")
        with pytest.raises(tinker.BadRequestError, match="must be 1 to 200 letters"):
            await run.save_state("..")

    using(service, tmp_path, body)


def test_gradients_that_are_not_finite_leave_the_weights_as_they_were(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> tuple[str, str]:
        run = await new_run(client)
        await train(run, 1)
        before = await run.save_weights_for_sampler("before")
        await run.forward_backward([datum([5, 6, 7], [1e30, 1e30])], "cross_entropy")
        with pytest.raises(tinker.RequestFailedError, match="gradients are not finite"):
            await run.optim_step(ADAM)
        after = await run.save_weights_for_sampler("after")
        await train(run, 1)  # and the bad gradient is gone
        return before.path, after.path

    before, after = using(service, tmp_path, body)
    assert same_bits(adapter_of(tmp_path, before), adapter_of(tmp_path, after))


def test_saving_twice_needs_overwrite_and_deleted_weights_are_gone(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        path = (await run.save_state("x")).path
        with pytest.raises(tinker.RequestFailedError, match="exists already"):
            await run.save_state("x")
        await run.save_state("x", overwrite=True)
        rest = rest_client(service.base_url, service.open_folder(tmp_path / "other"))
        await rest.delete_checkpoint_from_tinker_path(path)
        assert not checkpoint_dir(tmp_path, path).exists()
        with pytest.raises(tinker.BadRequestError, match="is not stored here"):
            await client.create_training_client_from_state(path)

    using(service, tmp_path, body)


def test_requests_run_in_order_and_repeats_run_once(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """By hand over HTTP: number 3 before 2, and 2 twice; the weights are those of 2 then 3."""

    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        run_id = run.get_info().model_id
        key = {"X-API-Key": service.open_folder(tmp_path)}
        async with httpx.AsyncClient(base_url=f"{service.base_url}/api/v1", headers=key) as http:
            await run.forward_backward(DATA, "cross_entropy")  # number 1
            step = {"model_id": run_id, "adam_params": {"learning_rate": 0.01}}
            save = {"model_id": run_id, "path": "late", "seq_id": 3}
            late = (await http.post("/save_weights", json=save)).json()["request_id"]
            early = (await http.post("/optim_step", json={**step, "seq_id": 2})).json()
            repeat = (await http.post("/optim_step", json={**step, "seq_id": 2})).json()
            assert early == repeat
            saved = await http.post("/retrieve_future", json={"request_id": late}, timeout=30)
            assert saved.json()["path"].endswith("/weights/late")
            done = await http.post("/retrieve_future", json=early)
            again = await http.post("/retrieve_future", json=early)
            assert done.json() == again.json()
            assert done.json()["metrics"]["grad_norm"] > 0
        info = json.loads(
            (checkpoint_dir(tmp_path, saved.json()["path"]) / "checkpoint.json").read_text()
        )
        assert info["num_optimizer_steps"] == 1

    using(service, tmp_path, body)


def test_a_refused_number_is_passed_over_and_a_missing_one_waited_for() -> None:
    async def main() -> list[int]:
        queue, ran = RunQueue(), []
        queue.pass_over(1)
        queue.add(2, lambda: ran.append(2))
        assert ran == [2]
        queue.add(4, lambda: ran.append(4))
        assert ran == [2]
        queue.add(3, lambda: ran.append(3))
        return ran

    assert asyncio.run(main()) == [2, 3, 4]


@pytest.mark.parametrize(
    ("path", "body", "key", "status"),
    [
        ("client/config", {}, "wrong", 401),
        ("client/config", {}, None, 401),
        ("retrieve_future", {"request_id": "no"}, "right", 404),
        ("asample", {"sampling_session_id": "no"}, "right", 422),
        (
            "create_model",
            {"session_id": "no", "model_seq_id": 0, "base_model": "llama"},
            "right",
            404,
        ),
        ("forward_backward", "not protobuf", "right", 400),
    ],
)
def test_refusals_are_never_codes_that_the_sdk_retries(
    service: local_tinker.Service,
    tmp_path: Path,
    path: str,
    body: Any,
    key: str | None,
    status: int,
) -> None:
    right = service.open_folder(tmp_path)
    headers = {} if key is None else {"X-API-Key": right if key == "right" else "tml-wrong"}
    url = f"{service.base_url}/api/v1/{path}"
    if isinstance(body, str):
        answer = httpx.post(url, content=body.encode() + b"\xff", headers=headers)
    else:
        answer = httpx.post(url, json=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert right not in answer.text


def test_a_base_model_that_cannot_be_loaded_is_explained(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    from local_tinker.wire import UserError

    with pytest.raises(UserError, match=r"cannot be loaded on this machine.*hf download"):
        service.serve_model("nobody/nothing-1b")
    with pytest.raises(UserError, match=r"give the model at .* another name"):
        service.serve_model("llama", str(tmp_path))

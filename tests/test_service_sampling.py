"""Sampling: independence of company, what prompts score, and turns between samples and training."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from transformers import AutoModelForCausalLM

import local_tinker
from local_tinker import wire
from local_tinker.engine import Engine
from local_tinker.lora import LoraShape
from local_tinker.sample_requests import check_request
from local_tinker.sample_rows import Row
from local_tinker.sampling import Wave
from local_tinker.state import MAX_UNNAMED
from rows.chat_formats import load_tokenizer
from sdk_client import ADAM, DATA, PROMPT, new_run, not_with_older_sdk, sample, train, using
from services.sdk import rest_client

pytestmark = pytest.mark.core

LENGTHS = (1, 3, 8, 13, 21, 31)  # prompts of one padded length


@pytest.fixture(scope="module")
def engine_and_weights(
    llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Engine, Path]:
    """An engine of its own with saved sampler weights that have been moved away from zero."""
    engine = Engine.load("llama", str(llama_dir), "cpu")
    run = engine.create_run("s:train:0", LoraShape(4, True, True, True), 1, {})
    with torch.no_grad():
        for index, (_, parameter) in enumerate(run.named_parameters):
            parameter.add_(0.02 * math.sin(index + 1))
    root = tmp_path_factory.mktemp("weights")
    engine.save(run, root, root / "w", with_optimizer=False)
    engine.unload_run(run)
    return engine, root / "w"


def row_of(engine: Engine, weights: Path, which: int, temperature: float) -> Row:
    length = LENGTHS[which % len(LENGTHS)]
    request = wire.Sample(
        sampling_session_id="s",
        seq_id=which,
        prompt=wire.Prompt(
            chunks=[
                wire.PromptChunk(
                    type="encoded_text", tokens=[5 + (which * 7 + i) % 250 for i in range(length)]
                )
            ]
        ),
        sampling_params=wire.SamplingParams(
            max_tokens=6 + which % 5, temperature=temperature, seed=which, stop=[]
        ),
        prompt_logprobs=True,
    )
    return Row(check_request(engine, request, weights), 0)


def run_together(engine: Engine, rows: list[Row]) -> list[tuple[Any, ...]]:
    """Sample rows in one wave, in this order, and return every bit of what came of them."""
    wave = Wave(engine, rows)
    while not wave.is_done:
        wave.advance()
    wave.close()
    made = []
    for row in rows:
        assert row.scores is not None
        assert row.scores.logprobs_T is not None
        made.append((row.tokens, row.logprobs, row.scores.logprobs_T.tobytes()))
    return made


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_small", [True, False])
def test_no_bit_of_a_sample_depends_on_its_company_or_position(
    engine_and_weights: tuple[Engine, Path],
    num_threads: int,
    temperature: float,
    is_small: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone, and in every position among 2, 7 and all slots, with other prompts and lengths.

    Small models sample in 32 slots on one thread, large ones in 8 slots on all threads.
    """
    engine, weights = engine_and_weights
    monkeypatch.setitem(engine.__dict__, "is_small", is_small)
    num_slots = engine.num_slots(64, with_prompt_logits=True)
    assert num_slots == (32 if is_small else 8)
    rows = [lambda i=i: row_of(engine, weights, i, temperature) for i in range(num_slots)]
    alone = [run_together(engine, [make()])[0] for make in rows]
    assert len({tuple(tokens) for tokens, _, _ in alone}) > 0.8 * num_slots  # they differ
    for size in (2, 7, num_slots):
        # Rows visit every position; two threads on a busy machine are slow, so there fewer do.
        for shift in range(size) if num_threads == 1 else (0, size // 2):
            order = [(i + shift) % size for i in range(size)]
            together = run_together(engine, [rows[i]() for i in order])
            for place, which in enumerate(order):
                assert together[place] == alone[which], (size, place, which)


def test_samples_follow_the_distribution_that_the_parameters_leave(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    """First tokens of 1,000 samples against the model's own probabilities, by chi-square."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(llama_dir)(torch.tensor([PROMPT])).logits
    probs = (logits[0, -1] / 0.25).softmax(-1).numpy().astype(float)
    likeliest = np.argsort(-probs)[:5]

    async def body(client: tinker.ServiceClient) -> list[list[int]]:
        sampler = await client.create_sampling_client(base_model="llama")
        common = {"max_tokens": 1, "stop": [], "num_samples": 1000, "seed": 5}
        free = await sample(sampler, PROMPT, temperature=0.25, **common)
        top_5 = await sample(sampler, PROMPT, temperature=0.25, top_k=5, **common)
        nucleus = await sample(
            sampler, PROMPT, temperature=0.25, top_p=float(probs[likeliest[:3]].sum() - 1e-6),
            **common,
        )  # fmt: skip
        return [[s.tokens[0] for s in samples] for samples in (free, top_5, nucleus)]

    free, top_5, nucleus = using(service, tmp_path, body)
    assert set(nucleus) == set(likeliest[:3].tolist())
    assert set(top_5) == set(likeliest.tolist())
    counts = Counter(free)
    chi_square = sum(
        (counts[token] - 1000 * probs[token]) ** 2 / (1000 * probs[token]) for token in likeliest
    )
    assert chi_square < 25  # 5 cells: a right sampler exceeds this once in some 7,000 seeds
    assert len(set(free) - set(likeliest.tolist())) > 10


@not_with_older_sdk("cannot ask for all of this")
def test_what_a_request_asks_about_its_prompt(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    """Last N, top k, chosen targets (dense and sparse) and draws, against a plain forward."""
    prompt = [5, 9, 30, 7, 8, 100]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(llama_dir)(torch.tensor([prompt])).logits
    expected = logits[0, :-1].log_softmax(-1).numpy()  # of tokens 1..5
    own = expected[np.arange(5), prompt[1:]]
    targets = torch.full((5, 12), -1)
    targets[0, 0], targets[1, 3], targets[1, 4], targets[3, 11], targets[4, 2] = 3, 4, 5, 6, 8

    async def ask(sampler: tinker.SamplingClient, **questions: Any) -> types.SampleResponse:
        params = types.SamplingParams(max_tokens=1, temperature=1.0, seed=2)
        return await sampler.sample(types.ModelInput.from_ints(prompt), 1, params, **questions)

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        last = await ask(
            sampler, include_prompt_logprobs=True, prompt_logprobs_last_n=2, topk_prompt_logprobs=3
        )
        assert last.prompt_logprobs is not None
        assert last.prompt_logprobs[:4] == [None] * 4
        np.testing.assert_allclose(np.array(last.prompt_logprobs[4:], float), own[3:], atol=1e-5)
        topk = last.topk_prompt_logprobs
        assert topk is not None
        assert topk[:4] == [None] * 4
        for row, logprobs in zip(topk[4:], expected[3:], strict=True):
            assert row is not None
            assert [token for token, _ in row] == np.argsort(-logprobs)[:3].tolist()
            np.testing.assert_allclose([v for _, v in row], np.sort(logprobs)[:-4:-1], atol=1e-5)

        dense = await ask(sampler, target_prompt_logprobs=types.TensorData.from_torch(targets))
        sparse = await ask(
            sampler,
            target_prompt_logprobs=types.TensorData.from_torch_sparse(targets, pad_value=-1),
        )
        wanted = np.where(
            targets < 0, 0.0, np.take_along_axis(expected, np.maximum(targets.numpy(), 0), -1)
        )
        assert dense.target_prompt_logprobs is not None
        assert sparse.target_prompt_logprobs is not None
        np.testing.assert_allclose(
            np.array(dense.target_prompt_logprobs.data).reshape(5, 12), wanted, atol=1e-5
        )
        np.testing.assert_allclose(
            np.array(sparse.target_prompt_logprobs.data), wanted[targets.numpy() >= 0], atol=1e-5
        )
        assert dense.prompt_logprobs is None

        drawn = (await ask(sampler, prompt_alt_tokens_k=400)).prompt_alt_tokens
        assert drawn is not None
        tokens = np.array(drawn.tokens.data).reshape(5, 400)
        found = np.array(drawn.logprobs.data).reshape(5, 400)
        np.testing.assert_allclose(found, np.take_along_axis(expected, tokens, -1), atol=1e-5)
        assert all(len(set(row)) > 50 for row in tokens.tolist())  # draws, not the argmax

        params = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
        ranked = await sampler.sample(
            types.ModelInput.from_ints(prompt), 1, params, topk_sample_logprobs=2
        )
        best = ranked.sequences[0].topk_logprobs
        assert best is not None
        assert [row[0][0] for row in best if row] == list(ranked.sequences[0].tokens)

        for questions, message in (
            ({"prompt_logprobs_last_n": 6, "include_prompt_logprobs": True}, "must lie in 1..5"),
            (
                {"target_prompt_logprobs": types.TensorData.from_torch(targets[:3])},
                r"must have shape \(5, K\)",
            ),
            ({"topk_prompt_logprobs": 301}, "too large"),
        ):
            with pytest.raises(tinker.BadRequestError, match=message):
                await ask(sampler, **questions)

    using(service, tmp_path, body)


def test_a_stop_string_is_found_across_token_borders(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    """The string begins inside one token and ends inside another one, in the middle of a sample."""
    tokenizer = load_tokenizer(str(llama_dir))

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        free = {"max_tokens": 60, "temperature": 1.0, "seed": 11}
        (whole,) = await sample(sampler, PROMPT, stop=[], **free)
        texts = [tokenizer.decode([token]) for token in whole.tokens]
        text = tokenizer.decode(list(whole.tokens))
        at = next(
            i
            for i in range(8, 58)
            if texts[i].isascii()
            and texts[i + 1].isascii()
            and len(texts[i]) > 0
            and len(texts[i + 1]) > 0
            and text.count(texts[i][-1] + texts[i + 1][0]) == 1
        )
        stop = texts[at][-1] + texts[at + 1][0]
        (ended,) = await sample(sampler, PROMPT, stop=["never this", stop], **free)
        assert list(ended.tokens) == list(whole.tokens)[: at + 2]
        assert ended.stop_reason == "stop"

    using(service, tmp_path, body)


def test_one_long_answer_holds_up_neither_short_ones_nor_training(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """Everything that comes after an answer of 440 tokens has begun is done before it ends."""

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        run = await new_run(client)
        long = asyncio.ensure_future(
            sample(sampler, PROMPT, max_tokens=440, temperature=0.0, stop=[], num_samples=20)
        )
        await sample(sampler, PROMPT * 20, max_tokens=1, temperature=0.0)  # another padded length
        await train(run, 2)
        assert not long.done()
        assert len((await long)[0].tokens) == 440

    using(service, tmp_path, body)


def test_weights_that_are_overwritten_are_used_from_the_next_sample_on(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        await train(run, 1)
        path = (await run.save_state("x")).path
        sampler = await client.create_sampling_client(path)
        old = await sample(sampler, PROMPT, max_tokens=5, temperature=0.0, stop=[])
        await train(run, 3)
        now = await (await run.save_weights_and_get_sampling_client()).sample(
            types.ModelInput.from_ints(PROMPT),
            1,
            types.SamplingParams(max_tokens=5, temperature=0.0, stop=[]),
        )
        await run.save_state("x", overwrite=True)
        new = await sample(sampler, PROMPT, max_tokens=5, temperature=0.0, stop=[])
        assert new[0].logprobs == now.sequences[0].logprobs
        assert new[0].logprobs != old[0].logprobs

    using(service, tmp_path, body)


@not_with_older_sdk("has no word for the end of a session")
def test_weights_saved_without_a_name_live_as_long_as_their_session(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        samplers = []
        for _ in range(3):
            await run.forward_backward(DATA, "cross_entropy")
            await run.optim_step(ADAM)
            samplers.append(await run.save_weights_and_get_sampling_client())
        made = [
            (await sample(s, PROMPT, max_tokens=4, temperature=0.0, stop=[]))[0] for s in samplers
        ]
        assert len({tuple(one.logprobs or ()) for one in made}) == 3
        assert len(list(tmp_path.glob(".scratch-*/*"))) == 3
        rest = rest_client(service.base_url, service.open_folder(tmp_path))
        assert (await rest.list_user_checkpoints()).checkpoints == []

    using(service, tmp_path, body)
    for _ in range(100):  # the removal is queued behind the run's work
        if not list(tmp_path.glob(".scratch-*/*")):
            break
        time.sleep(0.05)
    assert not list(tmp_path.glob(".scratch-*/*"))


def test_of_weights_without_a_name_those_used_longest_ago_go_once_there_are_many(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        run = await new_run(client)
        kept, forgotten = [await run.save_weights_and_get_sampling_client() for _ in range(2)]

        async def said(sampler: tinker.SamplingClient) -> list[int]:
            (one,) = await sample(sampler, PROMPT, max_tokens=2, temperature=0.0, stop=[])
            return list(one.tokens)

        before = latest = await said(kept)
        for _ in range(MAX_UNNAMED + 4):
            latest = await said(await run.save_weights_and_get_sampling_client())
            assert await said(kept) == before  # as of a reference, in each step
        assert latest == before
        with pytest.raises(tinker.TinkerError, match="save what you go on sampling from"):
            await said(forgotten)
        for _ in range(100):  # the removal is queued behind the run's work
            if len(list(tmp_path.glob(".scratch-*/*"))) == MAX_UNNAMED:
                break
            await asyncio.sleep(0.05)
        assert len(list(tmp_path.glob(".scratch-*/*"))) == MAX_UNNAMED

    using(service, tmp_path, body)

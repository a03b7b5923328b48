"""Over a network that fails, a run ends with the same bits as over one that does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
import torch
from safetensors.torch import load_file

import local_tinker
from conftest import IS_THOROUGH, thorough_only
from fake_evalops import fake_evalops
from fault_proxy import FAULTS, Fault, FaultPlan, fault_proxy, read_body, read_head
from local_tinker import futures as futures_module
from local_tinker.futures import Repeats
from local_tinker.wire import UserError
from sdk_client import PROMPT, checkpoint_dir, new_run, same_bits, sample, train, using
from test_loop import TOPICS, Workspace

# Enough requests for every kind of fault, at the lower rate where that is met as well.
NUM_QUESTIONS = 20 if IS_THOROUGH else 6


def weights_and_optimizer(folder: Path, tinker_path: str) -> dict[str, torch.Tensor]:
    directory = checkpoint_dir(folder, tinker_path)
    return {
        f"{file}:{key}": tensor
        for file in ("adapter_model", "optimizer")
        for key, tensor in load_file(directory / f"{file}.safetensors").items()
    }


# --- the proxy itself --------------------------------------------------------------------------


def test_without_faults_bytes_pass_unchanged_in_both_framings() -> None:
    body = bytes(range(256)) * 300  # binary, and longer than one read of a socket
    with (
        fake_evalops() as upstream,
        fault_proxy(upstream.url) as proxy,
        httpx.Client(base_url=proxy.url) as client,
    ):
        for content in (body, iter([body[:1000], body[1000:]])):  # with a length, and chunked
            answer = client.post("/a/path?x=1", content=content, headers={"X-API-Key": "k"})
            assert answer.json()["jobId"] == "job-9"
        received = upstream.requests
    assert [request.body for request in received] == [body, body]
    assert [request.headers["x-api-key"] for request in received] == ["k", "k"]
    assert {(request.method, request.path) for request in received} == {("POST", "/a/path")}
    assert (proxy.num_requests, proxy.counts) == (2, {})


def test_a_chunked_message_is_read_to_its_end_and_no_further() -> None:
    async def read() -> tuple[bytes, bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        reader.feed_data(b"3;ext=1\r\na\r\n\r\n2\r\nbc\r\n0\r\nTrailer: t\r\n\r\nnext")
        reader.feed_eof()
        message = await read_body(reader, await read_head(reader))
        assert b"chunked" not in message.head()
        return message.body, await reader.read()

    assert asyncio.run(read()) == (b"a\r\nbc", b"next")


def test_a_plan_keeps_its_rate_deals_every_kind_and_follows_its_seed() -> None:
    def faults(seed: int) -> list[Fault | None]:
        plan = FaultPlan(0.2, seed)
        return [plan.next() for _ in range(5 * len(FAULTS))]

    assert sorted(fault for fault in faults(1) if fault) == sorted(FAULTS)
    assert faults(1) == faults(1)
    assert faults(1) != faults(2)


# --- the command -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What has to be the same whatever the network did."""

    steps: list[tuple[Any, ...]]
    answers: list[list[str | None]]
    selections: list[Any]
    decisions: list[Any]
    weights: list[dict[str, torch.Tensor]]


def outcome_of(workspace: Workspace, run_dir: str) -> Outcome:
    store = workspace.store(run_dir)
    paths = [event["state_path"] for event in store.events("checkpoint")]
    results = [store.result(round_no) for round_no in range(3)]
    return Outcome(
        [(e["step"], e["lr"], e["loss"], e["nll"], e["example_ids"]) for e in store.events("step")],
        [[sample.answer for sample in result.samples] for result in results if result is not None],
        [store.selection(round_no) for round_no in (1, 2)],
        [store.decision(round_no) for round_no in range(3)],
        [weights_and_optimizer(workspace.folder / f"{run_dir}-weights", path) for path in paths],
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"), llama_dir)
    questions = [
        {"question": f"Which word stands at place {i}?", "answer": "x", "topic": TOPICS[i % 2]}
        for i in range(NUM_QUESTIONS)
    ]
    workspace.write_rows("questions.jsonl", questions)
    return workspace


def run_at(workspace: Workspace, service: local_tinker.Service, url: str, run_dir: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        folder = workspace.folder / f"{run_dir}-weights"
        patch.setenv("TINKER_API_KEY", service.open_folder(folder))
        assert workspace.run(run_dir, base_url=url) == 0
    return outcome_of(workspace, run_dir)


@pytest.fixture(scope="module")
def clean(workspace: Workspace, service: local_tinker.Service) -> Outcome:
    return run_at(workspace, service, service.base_url, "clean")


def test_the_clean_run_has_what_the_others_are_compared_by(clean: Outcome) -> None:
    assert [step[0] for step in clean.steps] == [0, 1, 2, 3, 4, 5]
    assert [len(answers) for answers in clean.answers] == [NUM_QUESTIONS] * 3
    assert clean.answers[0] != clean.answers[2]  # training changes the answers
    assert None not in clean.selections
    assert [decision.action for decision in clean.decisions] == [
        "continue",
        "continue",
        "stop_rounds",
    ]
    first, second = clean.weights
    assert any(key.startswith("optimizer:") for key in first)
    assert not same_bits(first, second)


@pytest.mark.parametrize(("rate", "seed"), [pytest.param(0.05, 1, marks=thorough_only), (0.2, 2)])
def test_a_run_over_a_faulty_network_ends_with_the_same_bits(
    workspace: Workspace, service: local_tinker.Service, clean: Outcome, rate: float, seed: int
) -> None:
    with fault_proxy(service.base_url, FaultPlan(rate, seed)) as proxy:
        spoiled = run_at(workspace, service, proxy.url, f"faults-{rate}")
    assert {fault for fault in FAULTS if proxy.counts[fault]} == set(FAULTS)
    assert spoiled.steps == clean.steps
    assert spoiled.answers == clean.answers
    assert spoiled.selections == clean.selections
    assert spoiled.decisions == clean.decisions
    assert len(spoiled.weights) == 2
    assert all(map(same_bits, spoiled.weights, clean.weights))


# --- one kind of fault at a time -----------------------------------------------------------------


@dataclass(frozen=True)
class SdkOutcome:
    samples: list[tuple[list[int], list[float] | None]]
    weights: list[dict[str, torch.Tensor]]


def work(url: str, api_key: str, folder: Path) -> SdkOutcome:
    """Train, save, sample, go on from what was saved: every call that the loop makes."""

    async def body(client: tinker.ServiceClient) -> SdkOutcome:
        run = await new_run(client)
        await train(run, 3)
        futures = run.save_state("end"), run.save_weights_for_sampler("end")
        state, weights = [(await future).path for future in futures]
        sampler = await client.create_sampling_client(weights)
        sequences = await asyncio.gather(
            *(sample(sampler, [*PROMPT, 9 + i], max_tokens=4, seed=i) for i in range(4))
        )
        resumed = await client.create_training_client_from_state_with_optimizer(state)
        await train(resumed, 1)
        last = (await resumed.save_state("after")).path
        return SdkOutcome(
            [(one.tokens, one.logprobs) for (one,) in sequences],
            [weights_and_optimizer(folder, path) for path in (state, last)],
        )

    async def main() -> SdkOutcome:
        client = tinker.ServiceClient(base_url=url, api_key=api_key)
        try:
            return await body(client)
        finally:
            await client.close("success")

    return asyncio.run(main())


@pytest.fixture(scope="module")
def sdk_outcomes(
    service: local_tinker.Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[SdkOutcome]]]:
    """All kinds at the same time, since their time goes by in waiting to try again."""
    parent = tmp_path_factory.mktemp("kinds")

    def meet(fault: Fault | None) -> SdkOutcome:
        folder = parent / str(fault)
        plan = None if fault is None else FaultPlan(1 / 4, seed=3, kinds=[fault])
        with fault_proxy(service.base_url, plan) as proxy:
            outcome = work(proxy.url, service.open_folder(folder), folder)
        assert set(proxy.counts) == ({fault} if fault else set())
        return outcome

    with ThreadPoolExecutor(len(FAULTS) + 1) as pool:
        yield {str(fault): pool.submit(meet, fault) for fault in (None, *FAULTS)}


@thorough_only
@pytest.mark.parametrize("fault", FAULTS)
def test_a_quarter_of_all_requests_meets_one_kind_of_fault_and_no_bit_changes(
    sdk_outcomes: dict[str, Future[SdkOutcome]], fault: Fault
) -> None:
    clean, spoiled = sdk_outcomes["None"].result(), sdk_outcomes[fault].result()
    assert spoiled.samples == clean.samples
    assert all(map(same_bits, spoiled.weights, clean.weights))
    assert not same_bits(*clean.weights)


# --- requests that have no number of their own -------------------------------------------------


def test_no_copy_is_made_twice_and_no_deletion_fails_because_its_answer_was_lost(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    key = service.open_folder(tmp_path)

    async def save(client: tinker.ServiceClient) -> list[str]:
        run = await new_run(client)
        return [(await run.save_state(f"state-{i}")).path for i in range(4)]

    async def copy_and_delete(url: str, paths: list[str]) -> list[str]:
        rest = tinker.RestClient(base_url=url, api_key=key)
        copies = [await rest.copy_weights(path, "any-project") for path in paths]
        for path in paths:
            await rest.delete_checkpoint_from_tinker_path(path)
        return copies

    paths = using(service, tmp_path, save)
    kinds: list[Fault] = [
        "answer_lost",
        "reset_before_answer",
        "doubled_at_once",
        "doubled_in_turn",
    ]
    with fault_proxy(service.base_url, FaultPlan(0.5, seed=5, kinds=kinds)) as proxy:
        copies = asyncio.run(copy_and_delete(proxy.url, paths))
    assert set(proxy.counts) == set(kinds)
    assert {file.parent for file in tmp_path.glob("*/*/*/checkpoint.json")} == {
        checkpoint_dir(tmp_path, path) for path in copies
    }
    assert len(set(copies)) == 4


def test_a_repeat_is_known_by_its_key_and_by_who_sends_it(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    keys = [service.open_folder(tmp_path / name) for name in "ab"]

    def open_session(key: str, repeat_key: str | None) -> str:
        headers = {"X-API-Key": key, **({"X-Idempotency-Key": repeat_key} if repeat_key else {})}
        url = f"{service.base_url}/api/v1/create_session"
        return httpx.post(url, json={}, headers=headers).json()["session_id"]

    first = open_session(keys[0], "one")
    assert open_session(keys[0], "one") == first
    others = [(keys[0], "two"), (keys[1], "one"), (keys[0], None), (keys[0], None)]
    assert len({first, *(open_session(*other) for other in others)}) == 5


def test_only_the_latest_answers_are_kept_for_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures_module, "MAX_REPEATS", 2)
    numbers, repeats = iter(range(10)), Repeats()

    def refuse() -> int:
        raise UserError("not now")

    with pytest.raises(UserError):
        repeats.once("a", refuse)  # an error is no answer, so "a" can still be tried
    answers = [repeats.once(key, lambda: next(numbers)) for key in "aabacbaa"]
    assert answers == [0, 0, 1, 0, 2, 1, 3, 3]


def test_a_client_that_leaves_within_its_request_is_no_defect_of_the_service(
    service: local_tinker.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"X-API-Key": service.open_folder(tmp_path)}
    plan = FaultPlan(1, seed=1, kinds=["reset_in_request"])
    with fault_proxy(service.base_url, plan) as proxy, caplog.at_level(logging.ERROR):
        for path in ("forward_backward", "optim_step", "save_weights", "asample"):
            with pytest.raises(httpx.TransportError):
                httpx.post(f"{proxy.url}/api/v1/{path}", content=b"{" * 1000, headers=headers)
    assert proxy.counts == {"reset_in_request": 4}
    assert httpx.get(f"{service.base_url}/api/v1/healthz").json() == {"status": "ok"}
    assert caplog.records == []

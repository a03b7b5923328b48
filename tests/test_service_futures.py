"""How results are waited for and fetched: one poll for all of a client's samples, or one for each;
and what is said to who asks with the wrong key or too old an SDK."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import tinker
from tinker import types

import local_tinker
from local_tinker import waiting
from local_tinker.futures import Target
from local_tinker.session_routes import CLIENT_CONFIG
from local_tinker.wire import UserError
from sdk_client import PROMPT, not_with_older_sdk, sample, using

pytestmark = pytest.mark.core

NUM_SAMPLES = 24


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that start now poll for all of their samples at once."""
    monkeypatch.setitem(CLIENT_CONFIG, "sample_use_retrieve_futures", True)


async def ask(client: tinker.SamplingClient) -> list[list[int]]:
    answers = [
        sample(client, [*PROMPT, i], seed=i, max_tokens=3 + i % 5) for i in range(NUM_SAMPLES)
    ]
    return [list(sequences[0].tokens) for sequences in await asyncio.gather(*answers)]


def log_of(service: local_tinker.Service, client: tinker.SamplingClient) -> Any:
    """What the service keeps for a client that polls, or None for one that does not."""
    target = Target(client._sampling_session_id, client._cloned_sampler_id or 0)
    return service._state.futures._logs.get(target)


@not_with_older_sdk("polls for each sample alone")
def test_polled_samples_are_those_of_one_request_each(
    service: local_tinker.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(client: tinker.ServiceClient) -> list[list[int]]:
        sampler = await client.create_sampling_client(base_model="llama")
        told = await ask(sampler)
        log = log_of(service, sampler)
        is_polling = CLIENT_CONFIG["sample_use_retrieve_futures"]
        assert (log is not None) == is_polling
        assert not is_polling or log.num_completed == NUM_SAMPLES
        return told

    monkeypatch.setitem(CLIENT_CONFIG, "sample_use_retrieve_futures", False)
    one_by_one = using(service, tmp_path, body)
    monkeypatch.setitem(CLIENT_CONFIG, "sample_use_retrieve_futures", True)
    assert using(service, tmp_path, body) == one_by_one


@not_with_older_sdk("polls for each sample alone")
@pytest.mark.usefixtures("polled")
def test_polled_results_that_were_fetched_are_dropped(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        futures = service._state.futures
        num_before = len(futures)
        await ask(sampler)
        log = log_of(service, sampler)
        async with asyncio.timeout(30):
            while log.unseen or len(futures) > num_before:  # the client's last poll says so
                await asyncio.sleep(0.01)

    using(service, tmp_path, body)


@not_with_older_sdk("polls for each sample alone")
@pytest.mark.usefixtures("polled")
def test_a_polled_sample_that_fails_is_told(service: local_tinker.Service, tmp_path: Path) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        engine = service._state.engines["llama"]
        is_held, goes_on = threading.Event(), threading.Event()

        def hold() -> dict[str, Any]:
            is_held.set()
            goes_on.wait()
            return {}

        held = service._state.worker.submit("held", engine, hold)
        try:
            await asyncio.to_thread(is_held.wait)
            failing = sampler.sample(types.ModelInput.from_ints(PROMPT), 1, types.SamplingParams())
            target = Target(sampler._sampling_session_id, 0)
            while not (waiting_ids := service._state.futures.open_of(target)):
                await asyncio.sleep(0.01)
            future, _ = service._state.futures.claim(waiting_ids[0])
            service._state.worker.cancel(future, UserError("the weights are gone"))
        finally:
            goes_on.set()
        await asyncio.wrap_future(held)
        with pytest.raises(tinker.RequestFailedError, match="the weights are gone"):
            await failing
        assert len((await sample(sampler, PROMPT, max_tokens=2))[0].tokens) == 2

    using(service, tmp_path, body)


@not_with_older_sdk("polls for each sample alone")
@pytest.mark.usefixtures("polled")
def test_a_clone_polls_for_its_own_samples(service: local_tinker.Service, tmp_path: Path) -> None:
    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        clones = [pickle.loads(pickle.dumps(sampler)) for _ in range(2)]
        told = await asyncio.gather(*(ask(one) for one in (sampler, *clones)))
        assert told[0] == told[1] == told[2]
        assert {one._cloned_sampler_id for one in (sampler, *clones)} == {0, 1, 2}
        for one in (sampler, *clones):
            assert log_of(service, one).num_completed == NUM_SAMPLES

    using(service, tmp_path, body)


# --- by hand --------------------------------------------------------------------------------------


class ByHand(NamedTuple):
    http: httpx.Client
    sampler_id: str
    session_id: str

    def ask(self, seq_id: int) -> str:
        body = {
            "sampling_session_id": self.sampler_id,
            "seq_id": seq_id,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
            "sampling_params": {"max_tokens": 2, "seed": 1, "stop": []},
        }
        return self.http.post("/asample", json=body).json()["request_id"]

    def poll(self, cursor: int, **words: Any) -> dict[str, Any]:
        target = {"type": "sampling_session", "sampling_session_id": self.sampler_id}
        body = {"target": target, "prev_cursor": cursor, **words}
        answer = self.http.post("/retrieve_futures", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def poll_for(self, num_completed: int) -> dict[str, Any]:
        while (found := self.poll(0))["cursor"] < num_completed:
            pass
        return found


@pytest.fixture
def by_hand(service: local_tinker.Service, tmp_path: Path) -> Iterator[ByHand]:
    headers = {"X-API-Key": service.open_folder(tmp_path)}
    url = f"{service.base_url}/api/v1"
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        session_id = http.post("/create_session", json={}).json()["session_id"]
        body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "llama"}
        made = http.post("/create_sampling_session", json=body).json()
        yield ByHand(http, made["sampling_session_id"], session_id)
        http.post(f"/sessions/{session_id}/finish", json={})


def test_a_lost_poll_is_answered_again_and_what_was_fetched_is_gone(by_hand: ByHand) -> None:
    ids = [by_hand.ask(seq_id) for seq_id in range(3)]
    first = by_hand.poll_for(3)
    assert sorted(c["request_id"] for c in first["completions"]) == sorted(ids)
    assert {c["state"] for c in first["completions"]} == {"finished"}
    assert by_hand.poll(0) == first  # the answer got lost, so the same cursor comes again
    fetched = by_hand.http.post("/retrieve_future", json={"request_id": ids[0]})
    sizes = {c["request_id"]: c["response_payload_uncompressed_size"] for c in first["completions"]}
    assert len(fetched.content) == sizes[ids[0]]
    seen = first["completions"][0]
    rest = by_hand.poll(1, retrieved_request_ids=[ids[0], "nobody's"])
    assert rest == {"completions": first["completions"][1:], "cursor": 3}
    assert seen not in by_hand.poll(0)["completions"]  # it has been seen
    assert by_hand.poll(3, timeout=0) == {"completions": [], "cursor": 3}
    gone = by_hand.http.post("/retrieve_future", json={"request_id": ids[0]})
    kept = by_hand.http.post("/retrieve_future", json={"request_id": ids[1]})
    assert (gone.status_code, kept.status_code) == (404, 200)


def test_only_its_own_client_says_that_a_result_is_not_needed(by_hand: ByHand) -> None:
    request_id = by_hand.ask(0)
    by_hand.poll_for(1)
    of_a_clone = {"type": "sampling_session", "sampling_session_id": by_hand.sampler_id}
    body = {
        "target": {**of_a_clone, "cloned_sampler_id": 7},
        "timeout": 0,
        "retrieved_request_ids": [request_id],
    }
    assert by_hand.http.post("/retrieve_futures", json=body).json()["completions"] == []
    kept = by_hand.http.post("/retrieve_future", json={"request_id": request_id})
    assert kept.status_code == 200


def test_a_poll_that_is_held_ends_with_its_session(
    service: local_tinker.Service, by_hand: ByHand
) -> None:
    found: list[dict[str, Any]] = []
    poll = threading.Thread(target=lambda: found.append(by_hand.poll(0)))
    poll.start()
    logs = service._state.futures._logs
    while not any(log.held for log in list(logs.values())):
        pass
    httpx.post(
        f"{service.base_url}/api/v1/sessions/{by_hand.session_id}/finish",
        headers=by_hand.http.headers,
        json={},
    )
    poll.join(waiting.HOLD_S / 2)
    assert found == [{"completions": [], "cursor": 0}]


def test_futures_that_are_done_together_wake_the_loop_once() -> None:
    async def main() -> tuple[int, int]:
        loop, num_calls, num_woken = asyncio.get_running_loop(), 0, 0
        call_soon = loop.call_soon_threadsafe

        def counted(*arguments: Any, **words: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            return call_soon(*arguments, **words)

        def wake() -> None:
            nonlocal num_woken
            num_woken += 1

        loop.call_soon_threadsafe = counted  # pyright: ignore[reportAttributeAccessIssue]
        wakes, futures = waiting.Wakes(), [Future[int]() for _ in range(50)]
        for future in futures:
            wakes.when_done(future, wake)
        for future in futures:
            future.set_result(1)
        await asyncio.sleep(0)
        return num_calls, num_woken

    assert asyncio.run(main()) == (1, 50)


# --- who asks -------------------------------------------------------------------------------------


def test_a_bearer_key_is_told_which_header_is_meant(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    key = service.open_folder(tmp_path)
    url = f"{service.base_url}/api/v1/create_session"
    answer = httpx.post(url, json={}, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 401
    assert "X-API-Key: KEY" in answer.json()["error"]
    assert key not in answer.text


@pytest.mark.parametrize("given", ["right", "wrong", None])
def test_openais_clients_send_a_bearer_key_and_read_openais_errors(
    service: local_tinker.Service, tmp_path: Path, given: str | None
) -> None:
    key = service.open_folder(tmp_path)
    bearer = {"right": f"Bearer {key}", "wrong": "Bearer tml-wrong"}
    headers = {} if given is None else {"Authorization": bearer[given]}
    answer = httpx.get(f"{service.base_url}/oai/api/v1/nothing", headers=headers)
    error = answer.json()["error"]
    if given == "right":
        assert answer.status_code == 404
        assert error["type"] == "invalid_request_error"
    else:
        assert answer.status_code == 401
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert "Authorization: Bearer KEY" in error["message"]
    assert key not in answer.text


@pytest.mark.parametrize(
    ("agent", "status"),
    [
        ("AsyncTinker/Python 0.24.0", 400),
        ("AsyncTinker/Python 0.2.0", 400),
        ("AsyncTinker/Python 0.25.0", 200),
        ("AsyncTinker/Python 1.0", 200),
        ("python-httpx/0.28.1", 200),
    ],
)
@pytest.mark.parametrize("path", ["client/config", "create_session"])
def test_an_sdk_that_is_too_old_is_told_what_to_install(
    service: local_tinker.Service, tmp_path: Path, path: str, agent: str, status: int
) -> None:
    headers = {"X-API-Key": service.open_folder(tmp_path), "User-Agent": agent}
    answer = httpx.post(f"{service.base_url}/api/v1/{path}", json={}, headers=headers)
    assert answer.status_code == status
    if status == 400:
        assert f"this is tinker {agent.split()[-1]}, " in answer.json()["error"]
        assert "pip install 'tinker>=0.25'" in answer.json()["error"]

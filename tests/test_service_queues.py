"""Samples in the queue: what nobody waits for is dropped, and clients take turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker

import local_tinker
from local_tinker import wire
from local_tinker.engine import Engine
from local_tinker.sample_queue import Client, PendingSample, SampleQueue
from local_tinker.sample_requests import SampleRequest, check_request
from local_tinker.state import RunQueue
from sdk_client import PROMPT, new_run, using
from standstill import LONG, SHORT, Standstill, ask, until


@pytest.fixture(scope="module")
def service(llama_dir: Path) -> Iterator[local_tinker.Service]:
    """Not the shared one, where runs that other files killed stay until they count as gone."""
    with local_tinker.start([("llama", str(llama_dir))]) as running:
        yield running


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standstill]:
    made = Standstill(monkeypatch)
    yield made
    made.end()


def request_of(
    engine: Engine, num_tokens: int = len(PROMPT), num_samples: int = 1
) -> SampleRequest:
    body = {
        "sampling_session_id": "s",
        "seq_id": 1,
        "num_samples": num_samples,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5] * num_tokens}]},
        "sampling_params": {"max_tokens": 440, "stop": []},
    }
    return check_request(engine, wire.Sample.model_validate(body), None)


# --- sessions that end ----------------------------------------------------------------------------


def test_a_session_that_is_closed_takes_its_samples_along(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    worker, engine = service._state.worker, service._state.engines["llama"]

    async def body() -> None:
        key = service.open_folder(tmp_path)
        client = tinker.ServiceClient(base_url=service.base_url, api_key=key)
        run = await new_run(client)
        sampler = await run.save_weights_and_get_sampling_client()
        asked = ask(sampler, 100, **LONG)
        await until(lambda: worker.num_queued[1] == 100 and standstill.num_advanced == 3)
        (futures,) = [list(of_client) for of_client in worker._unanswered.values()]
        await client.close("interrupted")
        assert worker.num_queued[1] == 0
        messages = {str(future.exception()) for future in futures}
        assert messages == {"the session of this sample has ended"}
        standstill.end()
        await until(lambda: not worker._waves)  # those in flight end at the next token
        await until(lambda: not engine._sampler_adapters)
        await until(lambda: not list(tmp_path.glob(".scratch-*/*")))
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(body())


def test_a_request_that_waits_for_a_missing_number_is_answered_when_its_session_ends(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    headers = {"X-API-Key": service.open_folder(tmp_path)}
    with httpx.Client(base_url=f"{service.base_url}/api/v1", headers=headers, timeout=60) as http:
        session = http.post("/create_session", json={}).json()["session_id"]
        body = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
        http.post("/retrieve_future", json=http.post("/create_model", json=body).json())
        late = {"model_id": f"{session}:train:0", "seq_id": 5, "path": "late"}
        queued = http.post("/save_weights", json=late).json()
        http.post(f"/sessions/{session}/finish", json={"reason": {"type": "success"}})
        answer = http.post("/retrieve_future", json=queued).json()
        assert "the session of this run has ended" in answer["error"]


def test_all_that_waits_in_a_run_is_released_in_its_order() -> None:
    released: list[int] = []

    async def body() -> None:
        queue = RunQueue()
        for seq_id in (9, 2, 5):
            queue.add(seq_id, lambda seq_id=seq_id: released.append(seq_id))
        queue.release_all()
        assert queue.gap_timer is None

    asyncio.run(body())
    assert released == [2, 5, 9]


# --- samples that are cancelled -------------------------------------------------------------------


def test_a_sample_that_its_program_cancels_is_dropped(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    worker = service._state.worker

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        asked = ask(sampler, 100, **SHORT)
        await until(lambda: service._state.attendance._num_held.total() == 100)
        kept, dropped = asked[:2], asked[2:]
        for task in dropped:
            task.cancel()
        await until(lambda: worker.num_queued[1] == 2)
        standstill.end()
        assert all(len(one.tokens) == 20 for (one,) in await asyncio.gather(*kept))
        await asyncio.gather(*dropped, return_exceptions=True)

    using(service, tmp_path, body)


def test_cancelling_says_what_it_cannot_cancel(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """An answer stays as it is, and so does a step: only samples can be cancelled."""
    headers = {"X-API-Key": service.open_folder(tmp_path)}
    with httpx.Client(base_url=f"{service.base_url}/api/v1", headers=headers, timeout=60) as http:
        assert http.post("/cancel_future", json={"request_id": "none"}).status_code == 404
        session = http.post("/create_session", json={}).json()["session_id"]
        body = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
        made = http.post("/create_model", json=body).json()
        refusal = http.post("/cancel_future", json=made)
        assert refusal.status_code == 400
        assert "only samples can be cancelled" in refusal.json()["error"]
        assert http.post("/retrieve_future", json=made).json()["model_id"]


# --- turns ----------------------------------------------------------------------------------------


def test_clients_take_turns(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    """Ten samples of a client that comes later are done before most of the 200 of another one."""
    worker = service._state.worker
    order: list[str] = []  # whose answers came one after another

    async def body(first: tinker.ServiceClient) -> None:
        key = service.open_folder(tmp_path)
        second = tinker.ServiceClient(base_url=service.base_url, api_key=key)
        others = await second.create_sampling_client(base_model="llama")
        asked = ask(await first.create_sampling_client(base_model="llama"), 200, **SHORT)
        await until(lambda: worker.num_queued[1] == 200 and standstill.num_advanced == 3)
        (earlier,) = worker._unanswered
        asked += ask(others, 10, **SHORT)
        await until(lambda: worker.num_queued[1] == 210)
        for pending in worker._all_unanswered():
            name = "earlier" if pending.client == earlier else "later"
            pending.future.add_done_callback(lambda _, name=name: order.append(name))
        standstill.end()
        await asyncio.gather(*asked)
        await second.close("success")

    using(service, tmp_path, body)
    assert len(order) == 210
    assert "later" not in order[128:]


def test_a_wave_takes_a_row_of_each_client_in_turn(service: local_tinker.Service) -> None:
    engine = service._state.engines["llama"]
    queue = SampleQueue()
    names = ["a"] * 100 + ["b"] * 3 + ["c"] * 2
    for at, name in enumerate(names):
        queue.add(PendingSample(Client(name), engine, request_of(engine), at))
    kind = PendingSample(Client("a"), engine, request_of(engine), 0).kind
    taken = list(queue.take(kind))
    assert "".join(pending.client.session_id for pending in taken[:9]) == "abcabcaba"
    assert [p.arrived_at for p in taken if p.client.session_id == "b"] == [100, 101, 102]
    assert len(taken) == 32
    assert [len(rows) for rows in queue.take(kind).values()] == [1] * 32


def test_a_request_of_many_rows_waits_with_what_no_wave_has_taken(
    service: local_tinker.Service,
) -> None:
    engine = service._state.engines["llama"]
    queue = SampleQueue()
    pending = PendingSample(Client("a"), engine, request_of(engine, num_samples=40), 0.0)
    queue.add(pending)
    assert queue.fills_a_wave
    assert [row.index for row in queue.take(pending.kind)[pending]] == list(range(32))
    assert queue
    assert not queue.fills_a_wave
    old = pending.rows[3]
    queue.remove(pending)
    pending.end_rows()  # its client is away
    assert old.stop_reason == "dropped"
    assert not queue
    queue.add(pending)  # it is back
    assert len(queue.take(pending.kind)[pending]) == 32
    assert len(queue.take(pending.kind)[pending]) == 8
    assert not queue


@pytest.mark.parametrize(
    ("waiting", "live", "in_flight", "num_places", "chosen"),
    [
        # (client, padded length, arrived at) of each sample; kinds that have waves; samples in them
        ([("a", 4, 9.0), ("b", 40, 8.0)], [], {}, 4, 40),  # who waits longest
        ([("a", 4, 9.0), ("b", 40, 9.5)], [], {"a": 1}, 4, 40),  # who has less in flight
        ([("a", 4, 9.5)], [4], {"a": 1}, 3, None),  # waits for its kind's wave
        ([("a", 4, 8.5)], [4], {"a": 1}, 3, 4),  # ... for a second
        ([("a", 4, 9.5)] * 31 + [("b", 4, 9.9)], [4], {"a": 1}, 3, 4),  # a newcomer, a full wave
        ([("a", 4, 9.5)] * 30 + [("b", 4, 9.9)], [4], {"a": 1}, 3, None),  # not a full one
        ([("a", 4, 1.0)], [], {"a": 1}, 1, None),  # the last place is kept
        ([("a", 4, 1.0), ("b", 40, 9.9)], [], {"a": 1}, 1, 40),  # ... for a newcomer
    ],
)
def test_which_kind_gets_the_next_wave(
    service: local_tinker.Service,
    waiting: list[tuple[str, int, float]],
    live: list[int],
    in_flight: dict[str, int],
    num_places: int,
    chosen: int | None,
) -> None:
    engine = service._state.engines["llama"]
    queue = SampleQueue()
    kinds = {
        num_tokens: PendingSample(Client("x"), engine, request_of(engine, num_tokens), 0).kind
        for num_tokens in (4, 40)
    }
    for name, num_tokens, arrived_at in waiting:
        request = request_of(engine, num_tokens)
        queue.add(PendingSample(Client(name), engine, request, arrived_at))
    found = queue.next_kind(
        {kinds[num_tokens] for num_tokens in live},
        Counter({Client(name): num for name, num in in_flight.items()}),
        num_places,
        now=10.0,
    )
    assert found == (None if chosen is None else kinds[chosen])

"""Samples in the queue: what nobody waits for is dropped or set aside, and clients take turns."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

import forked
import local_tinker
from local_tinker import attendance, wire
from local_tinker.engine import Engine
from local_tinker.sample_queue import Client, PendingSample, SampleQueue
from local_tinker.sample_requests import SampleRequest, check_request
from local_tinker.sampling import Wave
from local_tinker.state import RunQueue
from local_tinker.worker import Worker
from sdk_client import PROMPT, new_run, sample, using

SHORT = {"max_tokens": 20, "temperature": 1.0, "stop": []}
LONG = {**SHORT, "max_tokens": 440}
GIVE_UP_S = 120.0


async def until(is_met: Callable[[], bool]) -> None:
    """Wait, but not for ever, for what does come."""
    give_up_at = time.monotonic() + GIVE_UP_S
    while not is_met():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


def ask(sampler: tinker.SamplingClient, num: int, **params: Any) -> list[asyncio.Task[Any]]:
    """Begin `num` samples, each with a seed of its own."""
    return [
        asyncio.ensure_future(sample(sampler, PROMPT, seed=seed, **params)) for seed in range(num)
    ]


class Standstill:
    """Makes the compute thread wait, from the third token that it computes, until `end` is called.

    So nothing ends before a test has seen all of it begin, however fast the machine is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._may_go_on = threading.Event()
        self.num_advanced = 0
        advance = Wave.advance

        def held_up(wave: Wave) -> None:
            if self.num_advanced == 3:
                self._may_go_on.wait(GIVE_UP_S)
            self.num_advanced += 1
            advance(wave)

        monkeypatch.setattr(Wave, "advance", held_up)

    def end(self) -> None:
        self._may_go_on.set()


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standstill]:
    made = Standstill(monkeypatch)
    yield made
    made.end()


def bits(answers: list[Any]) -> list[tuple[list[int], list[float]]]:
    return [(list(one.tokens), list(one.logprobs)) for (one,) in answers]


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


# --- clients that go away -------------------------------------------------------------------------

ASKING = """
import asyncio, pickle, sys
import tinker
from tinker import types

async def main():
    if sys.argv[1] == "clone":
        sampler = pickle.load(open(sys.argv[2], "rb"))
    else:
        client = tinker.ServiceClient(base_url=sys.argv[2], api_key=sys.argv[3])
        sampler = await client.create_sampling_client(base_model="llama")
    params = types.SamplingParams(max_tokens=440, temperature=1.0, stop=[])
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    await asyncio.gather(*(sampler.sample(prompt, 1, params) for _ in range(100)))

asyncio.run(main())
"""


def test_a_killed_client_holds_nobody_up(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    key = service.open_folder(tmp_path)
    worker, held = service._state.worker, service._state.attendance._num_held

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        process = forked.Process("-c", ASKING, "client", service.base_url, key)
        await until(lambda: held.total() == 100 and standstill.num_advanced == 3)
        process.send_signal(signal.SIGKILL)
        await until(lambda: worker.num_set_aside > 0)
        standstill.end()
        (answer,) = await sample(sampler, PROMPT, max_tokens=20, temperature=0.0, stop=[])
        assert len(answer.tokens) == 20
        await until(lambda: not worker._waves)  # those in flight ended at the next token
        assert worker.num_queued == (0, 0)
        assert worker.num_set_aside == 100
        assert not any(row.tokens for p in worker._all_unanswered() for row in p.rows)
        page = httpx.get(f"{service.base_url}/").text
        assert "100 sample requests of clients that went away" in page
        (session_id,) = {pending.client.session_id for pending in worker._all_unanswered()}
        service._state.sessions[session_id].last_seen_at -= 1e6
        service._state.housekeeping()
        assert worker.num_set_aside == 0

    using(service, tmp_path, body)


def test_a_killed_process_does_not_stop_the_others_of_its_session(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    worker, held = service._state.worker, service._state.attendance._num_held

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model="llama")
        (tmp_path / "sampler").write_bytes(pickle.dumps(sampler))
        process = forked.Process("-c", ASKING, "clone", tmp_path / "sampler")
        await until(lambda: held.total() == 100)
        asked = ask(sampler, 40, **SHORT)
        await until(lambda: held.total() == 140)
        process.send_signal(signal.SIGKILL)
        await until(lambda: worker.num_set_aside > 0)
        standstill.end()
        assert all(len(one.tokens) == 20 for (one,) in await asyncio.gather(*asked))
        assert worker.num_queued == (0, 0)
        assert worker.num_set_aside == 100

    using(service, tmp_path, body)


@contextlib.contextmanager
def relay(base_url: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """An address that leads to the service, and a function that breaks all its connections.

    In a thread of its own: the SDK waits for its first answers in the caller's event loop.
    """
    url = httpx.URL(base_url)
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await reader.read(65536):
                writer.write(content)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader_on, writer_on = await asyncio.open_connection(url.host, url.port)
        writers.extend((writer, writer_on))
        await asyncio.gather(pipe(reader, writer_on), pipe(reader_on, writer))

    def cut() -> None:
        while writers:
            writers.pop().transport.abort()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", lambda: loop.call_soon_threadsafe(cut) and None
    finally:
        loop.call_soon_threadsafe(cut)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0.01))  # for what the cut connections still do
        server.close()
        loop.close()


def test_a_client_that_comes_back_gets_every_answer_with_the_same_bits(
    service: local_tinker.Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    standstill: Standstill,
) -> None:
    """The SDK asks again a second after its connections broke; it is away by then."""
    monkeypatch.setattr(attendance, "AWAY_S", 0.02)
    nums_set_aside: list[int] = []
    set_aside = Worker.set_aside

    def noted(worker: Worker, client: Client) -> int:
        nums_set_aside.append(set_aside(worker, client))
        return nums_set_aside[-1]

    monkeypatch.setattr(Worker, "set_aside", noted)
    held = service._state.attendance._num_held

    async def body(address: str, cut: Callable[[], None]) -> None:
        client = tinker.ServiceClient(base_url=address, api_key=service.open_folder(tmp_path))
        sampler = await client.create_sampling_client(base_model="llama")
        asked = ask(sampler, 50, **SHORT)
        await until(lambda: held.total() == 50 and standstill.num_advanced == 3)
        cut()
        await until(lambda: bool(nums_set_aside))
        standstill.end()
        answers = await asyncio.gather(*asked)
        assert nums_set_aside[0] == 50
        assert bits(await asyncio.gather(*ask(sampler, 50, **SHORT))) == bits(answers)
        await client.close("success")

    with relay(service.base_url) as (address, cut):
        asyncio.run(asyncio.wait_for(body(address, cut), GIVE_UP_S))


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

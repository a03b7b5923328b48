"""Clients that die, stand still, or lose their connections: whose samples go on, and whose wait."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

import forked
import local_tinker
from local_tinker import attendance
from local_tinker.sample_queue import Client
from local_tinker.worker import Worker
from sdk_client import PROMPT, sample, using
from standstill import GIVE_UP_S, SHORT, Standstill, ask, until


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


def bits(answers: list[Any]) -> list[tuple[list[int], list[float]]]:
    return [(list(one.tokens), list(one.logprobs)) for (one,) in answers]


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
    service: local_tinker.Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    standstill: Standstill,
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
        service._state.housekeeping()
        assert worker.num_set_aside == 100
        monkeypatch.setattr(attendance, "GONE_S", 0.0)
        service._state.housekeeping()  # the session goes on, and what nobody will ask for goes
        assert worker.num_set_aside == 0
        (answer,) = await sample(sampler, PROMPT, max_tokens=20, temperature=0.0, stop=[])
        assert len(answer.tokens) == 20

    using(service, tmp_path, body)


class Posting:
    """A client without the SDK: it asks for samples, and for their results when it is told to."""

    def __init__(self, service: local_tinker.Service, folder: Path) -> None:
        self._http = httpx.Client(
            base_url=f"{service.base_url}/api/v1",
            headers={"X-API-Key": service.open_folder(folder)},
            timeout=60,
        )
        self.session_id = self.post("/create_session", {})["session_id"]
        opened = {
            "session_id": self.session_id,
            "sampling_session_seq_id": 0,
            "base_model": "llama",
        }
        self._sampler = self.post("/create_sampling_session", opened)

    def __enter__(self) -> Posting:
        return self

    def __exit__(self, *_: object) -> None:
        self.post(f"/sessions/{self.session_id}/finish", {})
        self._http.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._http.post(path, json=body).raise_for_status().json()

    def ask(self, seq_id: int, max_tokens: int = 20) -> str:
        body = {
            **self._sampler,
            "seq_id": seq_id,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
            "sampling_params": {"max_tokens": max_tokens, "seed": 1, "stop": []},
        }
        return self.post("/asample", body)["request_id"]

    def result(self, request_id: str) -> bytes:
        answer = self._http.post("/retrieve_future", json={"request_id": request_id})
        return answer.raise_for_status().content

    def give_up(self, request_id: str) -> None:
        """Ask for a result and close the connection before it comes."""
        with pytest.raises(httpx.ReadTimeout):
            self._http.post("/retrieve_future", json={"request_id": request_id}, timeout=0.05)


def test_a_client_that_ends_between_its_requests_is_away_as_well(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    """It asked for samples and neither waits for them nor asks on; one that was slow comes back."""
    worker = service._state.worker
    with Posting(service, tmp_path) as client:
        asked = [client.ask(seq_id) for seq_id in range(40)]
        asyncio.run(until(lambda: worker.num_set_aside == 40))
        assert worker.num_queued == (0, 0)
        standstill.end()
        asyncio.run(until(lambda: not worker._waves))
        assert not any(row.tokens for p in worker._all_unanswered() for row in p.rows)
        answers = {client.result(request_id) for request_id in asked}
        assert answers == {client.result(client.ask(40))}


def test_a_client_that_comes_back_is_given_more_time(
    service: local_tinker.Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    standstill: Standstill,
) -> None:
    """So one that is slower than the rule is not set aside for ever, each time amid its answer."""
    monkeypatch.setattr(attendance, "AWAY_S", 0.01)
    monkeypatch.setattr(attendance, "MAX_PATIENCE_S", 0.05)
    with Posting(service, tmp_path) as client:
        found = []
        for seq_id in range(4):
            client.ask(seq_id)
            asyncio.run(until(lambda num=seq_id + 1: service._state.worker.num_set_aside == num))
            seen = service._state.attendance._patience_s
            found.append(seen.get(Client(client.session_id)))
        assert found == [None, 0.02, 0.04, 0.05]
        standstill.end()


def test_a_result_that_is_asked_for_often_wakes_only_who_waits(
    service: local_tinker.Service, tmp_path: Path, standstill: Standstill
) -> None:
    """A client behind a bad network asks once a second for as long as its sample takes."""
    entries, held = service._state.futures._entries, service._state.attendance._num_held
    with Posting(service, tmp_path) as client:
        request_id = client.ask(0)
        for _ in range(5):
            client.give_up(request_id)
        asyncio.run(until(lambda: not held))
        assert entries[request_id].held == []
        future = entries[request_id].future
        assert len(future._done_callbacks) == 1  # pyright: ignore[reportAttributeAccessIssue]
        standstill.end()
        assert client.result(request_id)


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
    monkeypatch.setattr(attendance, "MAX_PATIENCE_S", 0.02)
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
        nums_set_aside.clear()  # it may have been away between its first requests
        cut()
        await until(lambda: bool(nums_set_aside))
        standstill.end()
        answers = await asyncio.gather(*asked)
        assert nums_set_aside[0] == 50
        assert bits(await asyncio.gather(*ask(sampler, 50, **SHORT))) == bits(answers)
        await client.close("success")

    with relay(service.base_url) as (address, cut):
        asyncio.run(asyncio.wait_for(body(address, cut), GIVE_UP_S))

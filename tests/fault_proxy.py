"""A loopback reverse proxy that spoils or delays the requests between the SDK and a service.

It speaks HTTP/1.1 with bodies of any kind and any number of connections. A seeded plan says which
request meets which fault; `counts` says what was really done, so that a test can assert it.

    with fault_proxy(service.base_url, FaultPlan(rate=0.2, seed=1)) as proxy:
        ...                                  # use proxy.url instead of service.base_url
        assert proxy.counts["answer_lost"] > 0

With a `Delay` it stands for a service that is far away. It counts the steps in flight: those that
the service has accepted, and whose results the client does not have yet. The same of samples, and
which sessions were opened and how they were finished.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

Fault = Literal[
    "refused",  # 500, and the service never hears of the request
    "answer_lost",  # 500, after the service has executed it
    "rate_limited",  # 429 with one of RETRY_AFTER
    "timed_out",  # 408 without a body that the SDK knows
    "reset_in_request",  # both connections are reset when half of the request's body has passed
    "reset_before_answer",  # ... after the service has executed the request
    "reset_in_answer",  # ... when half of the answer's body was sent
    "stalled",  # the answer is held back for STALL_S
    "doubled_at_once",  # the service gets the request twice, at the same time
    "doubled_in_turn",  # ... once more when the first has been answered
    "overtaken",  # the request is held back until a later one has passed it
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

RETRY_AFTER = ((b"retry-after", b"0"), (b"retry-after", b"1"), (b"retry-after-ms", b"40"))
STALL_S = 2.0
OVERTAKE_S = 1.0  # a request that no other has passed by then goes on
FLUSH_S = 0.02  # the client reads what was sent; a reset may discard what it has not read yet
# Heartbeats come by the clock and may fail unnoticed. Counted, they would take the good turns of a
# request that is tried again at ever longer intervals, and it would wait for minutes.
HEARTBEAT = b"POST /api/v1/session_heartbeat "
STEP = b"POST /api/v1/forward_backward "
RESULT = b"POST /api/v1/retrieve_future "
SAMPLE = b"POST /api/v1/asample "
SESSION = b"POST /api/v1/create_session "
FINISH = re.compile(rb"POST /api/v1/sessions/(\S+)/finish ")
OF_STEPS = (b"ForwardBackward", b"OptimStep")  # what the SDK says that a result is of
HOP_BY_HOP = (b"connection", b"keep-alive", b"content-length", b"transfer-encoding")
LIMIT_BYTES = 2**20  # of a head


class FaultPlan:
    """Spoils one request of every `1 / rate`; the kinds come as from a shuffled deck of cards.

    So both the share and the kinds are as they should be in short runs, too.
    """

    def __init__(self, rate: float, seed: int, kinds: Sequence[Fault] = FAULTS) -> None:
        self.random = random.Random(seed)
        self._block = round(1 / rate)
        self._kinds = kinds
        self._deck: list[Fault] = []
        self._position = 0
        self._chosen = 0

    def next(self) -> Fault | None:
        """Return what happens to the next request."""
        if self._position == 0:
            self._chosen = self.random.randrange(self._block)
        is_chosen = self._position == self._chosen
        self._position = (self._position + 1) % self._block
        if not is_chosen:
            return None
        if not self._deck:
            self._deck = self.random.sample(self._kinds, len(self._kinds))
        return self._deck.pop()

    def put_back(self, fault: Fault) -> None:
        """Deal a kind again that could not happen."""
        self._deck.append(fault)


@dataclass(frozen=True)
class Delay:
    """Seconds that pass on the way: for each request and again for each answer, as over a long
    line; or for the results of steps alone, as from a service that has a queue behind its door."""

    each_way_s: float = 0.0
    of_results_s: float = 0.0


@dataclass
class First:
    """The first `number` requests of a path, after `after` others of it, are not passed on: a
    service that refuses for a while (`status`), or has a queue, whose state is told with 408."""

    path: bytes
    number: int
    status: bytes = b"408 Request Timeout"
    queue_state: str | None = None
    reason: str | None = None
    after: int = 0
    of_type: bytes | None = None  # what the SDK says that a result is of
    held_s: float = 0.0  # that the answer takes, as where a result is waited for

    def instead(self, request: Message) -> Message | None:
        """What the client gets, `held_s` later, instead of the service's answer."""
        is_of_it = request.start_line.split(b" ")[1] == self.path
        if not is_of_it or self.of_type not in (None, request.header(b"x-tinker-request-type")):
            return None
        if self.after > 0:
            self.after -= 1
            return None
        if self.number == 0:
            return None
        self.number -= 1
        body = {"error": "not now", "type": "try_again", "queue_state": self.queue_state}
        body["queue_state_reason"] = self.reason
        kind = (b"content-type", b"application/json")
        return Message(b"HTTP/1.1 " + self.status, (kind,), json.dumps(body).encode())


@dataclass(frozen=True)
class Message:
    """A request or an answer; the body is without its framing."""

    start_line: bytes
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case
    body: bytes = b""

    def header(self, name: bytes) -> bytes:
        return dict(self.headers).get(name, b"")

    def head(self, *more: tuple[bytes, bytes]) -> bytes:
        """Return the head of this message for the next hop, which gets a plain length."""
        passed_on = [pair for pair in self.headers if pair[0] not in HOP_BY_HOP]
        length = (b"content-length", str(len(self.body)).encode())
        lines = [name + b": " + value for name, value in (*passed_on, length, *more)]
        return b"\r\n".join([self.start_line, *lines, b"", b""])


def _error(status: bytes, *headers: tuple[bytes, bytes]) -> Message:
    kind = (b"content-type", b"application/json")
    return Message(b"HTTP/1.1 " + status, (kind, *headers), b'{"error": "the proxy did this"}')


async def read_head(reader: asyncio.StreamReader) -> Message:
    start_line, *lines = (await reader.readuntil(b"\r\n\r\n")).rstrip(b"\r\n").split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return Message(start_line, headers)


async def read_body(reader: asyncio.StreamReader, head: Message) -> Message:
    if head.header(b"transfer-encoding").lower() == b"chunked":
        body = b"".join([chunk async for chunk in _chunks(reader)])
    else:
        body = await reader.readexactly(int(head.header(b"content-length") or 0))
    return Message(head.start_line, head.headers, body)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while num_bytes := int((await reader.readline()).partition(b";")[0], 16):
        yield await reader.readexactly(num_bytes)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass  # trailers


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a router or a process that dies does, not with an orderly FIN."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


class FaultProxy:
    """The running proxy: its address, and what it has done to how many requests.

    `num_steps` is of the steps that the service has accepted, `most_in_flight` the most of them at
    one time whose results the client did not have; `num_samples` and `most_samples` are the same of
    samples. `sessions` has the status that each was finished with, None where it was not.
    """

    def __init__(
        self, upstream: str, plan: FaultPlan | None, delay: Delay, first: Sequence[First]
    ) -> None:
        self.url = ""
        self._first = first
        self.num_requests = self.num_steps = self.most_in_flight = 0
        self._delay = delay
        self._in_flight: set[str] = set()
        self.num_samples = self.most_samples = 0
        self.sessions: dict[str, str | None] = {}
        self._sampling: set[str] = set()
        self.counts: Counter[Fault] = Counter()
        self._upstream = urlsplit(upstream)
        self._plan = plan
        self._held: list[asyncio.Event] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, is_ready: threading.Event, is_over: asyncio.Event) -> None:
        server = await asyncio.start_server(
            self._on_connection, "127.0.0.1", 0, limit=LIMIT_BYTES, backlog=1024
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        is_ready.set()
        await is_over.wait()
        server.close()  # what is still connected is cancelled when the loop ends

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve_connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Either side may leave at any time, and that ends this connection only.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._serve_request(reader, writer):
                pass
        writer.close()

    async def _serve_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request, or spoil it; False when the connection is over."""
        head = await read_head(reader)
        self.num_requests += 1
        is_heartbeat = head.start_line.startswith(HEARTBEAT)
        fault = None if self._plan is None or is_heartbeat else self._plan.next()
        if fault == "reset_in_request":
            await self._forward_half(reader, head)
            self.counts[fault] += 1
            _reset(writer)
            return False
        request = await read_body(reader, head)
        each_way_s = 0.0 if is_heartbeat else self._delay.each_way_s
        await asyncio.sleep(each_way_s)
        answer = await self._instead(request) or await self._answer(request, fault)
        self._count_sent(request, answer)
        is_of_step = head.header(b"x-tinker-request-type") in OF_STEPS
        await asyncio.sleep(each_way_s + (self._delay.of_results_s if is_of_step else 0.0))
        self._count_come(request, answer)
        if fault in ("reset_before_answer", "reset_in_answer"):
            if fault == "reset_in_answer":
                writer.write(answer.head() + answer.body[: len(answer.body) // 2])
                await asyncio.sleep(FLUSH_S)
            self.counts[fault] += 1
            _reset(writer)
            return False
        writer.write(answer.head() + answer.body)
        await writer.drain()
        return head.header(b"connection").lower() != b"close"

    def _count_sent(self, request: Message, answer: Message) -> None:
        if request.start_line.startswith(STEP) and b" 200 " in answer.start_line:
            self._in_flight.add(json.loads(answer.body)["request_id"])
            self.num_steps += 1
            self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
        elif request.start_line.startswith(SAMPLE) and b" 200 " in answer.start_line:
            self._sampling.add(json.loads(answer.body)["request_id"])
            self.num_samples += 1
            self.most_samples = max(self.most_samples, len(self._sampling))
        elif request.start_line.startswith(SESSION):
            self.sessions[json.loads(answer.body)["session_id"]] = None
        elif found := FINISH.match(request.start_line):
            self.sessions[found[1].decode()] = json.loads(request.body)["reason"]["type"]

    def _count_come(self, request: Message, answer: Message) -> None:
        if request.start_line.startswith(RESULT) and b" 200 " in answer.start_line:
            self._in_flight.discard(json.loads(request.body)["request_id"])
            self._sampling.discard(json.loads(request.body)["request_id"])

    async def _instead(self, request: Message) -> Message | None:
        for one in self._first:
            if (answer := one.instead(request)) is not None:
                await asyncio.sleep(one.held_s)
                return answer
        return None

    async def _answer(self, request: Message, fault: Fault | None) -> Message:
        if fault is not None and fault not in (
            "overtaken",
            "reset_before_answer",
            "reset_in_answer",
        ):
            self.counts[fault] += 1
        match fault:
            case "refused":
                return _error(b"500 Internal Server Error")
            case "rate_limited":
                assert self._plan is not None
                return _error(b"429 Too Many Requests", self._plan.random.choice(RETRY_AFTER))
            case "timed_out":
                return _error(b"408 Request Timeout")
            case "answer_lost":
                await self._forward(request)
                return _error(b"500 Internal Server Error")
            case "stalled":
                answer = await self._forward(request)
                await asyncio.sleep(STALL_S)
                return answer
            case "doubled_at_once":
                return (await asyncio.gather(self._forward(request), self._forward(request)))[0]
            case "doubled_in_turn":
                await self._forward(request)
            case "overtaken":
                await self._wait_to_be_overtaken()
        return await self._forward(request)

    async def _wait_to_be_overtaken(self) -> None:
        passed = asyncio.Event()
        self._held.append(passed)
        try:
            await asyncio.wait_for(passed.wait(), OVERTAKE_S)
            self.counts["overtaken"] += 1
        except TimeoutError:  # nothing else was under way
            assert self._plan is not None
            self._plan.put_back("overtaken")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self._upstream.hostname is not None
        return await asyncio.open_connection(
            self._upstream.hostname, self._upstream.port, limit=LIMIT_BYTES
        )

    async def _forward_half(self, reader: asyncio.StreamReader, head: Message) -> None:
        """Let half of a body reach the service, which then sees a reset as the client does."""
        num_bytes = int(head.header(b"content-length") or 0)  # the SDK sends it with every body
        half = await reader.readexactly(num_bytes // 2)
        whole = Message(head.start_line, head.headers, bytes(num_bytes))
        _, writer = await self._connect()
        writer.write(whole.head() + half)
        await asyncio.sleep(FLUSH_S)
        _reset(writer)

    async def _forward(self, request: Message) -> Message:
        """Send a request to the service, on a connection of its own, and return its answer."""
        reader, writer = await self._connect()
        try:
            writer.write(request.head((b"connection", b"close")) + request.body)
            await writer.drain()
            while self._held:
                self._held.pop().set()
            return await read_body(reader, await read_head(reader))
        finally:
            writer.close()


@contextmanager
def fault_proxy(
    upstream: str,
    plan: FaultPlan | None = None,
    delay: Delay | None = None,
    first: Sequence[First] = (),
) -> Iterator[FaultProxy]:
    """Run a proxy to `upstream` in a thread until the block ends; without a plan nothing fails,
    without a delay nothing takes longer, and without a `first` all is passed on."""
    proxy = FaultProxy(upstream, plan, delay or Delay(), first)
    is_ready, loop, is_over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(proxy.serve(is_ready, is_over))

    thread = threading.Thread(target=run, name="fault-proxy", daemon=True)
    thread.start()
    assert is_ready.wait(10), "the proxy did not start"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join(timeout=10)
        assert not thread.is_alive(), "the proxy did not stop"

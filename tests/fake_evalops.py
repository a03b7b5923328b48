"""A loopback stand-in for EvalOps: answers as it is told and records every request.

No public sandbox of EvalOps exists, so this is the test double; what it plays is what two public
clients expect of the server, not what a server was seen to do. It takes any path and method and
judges nothing: a test reads `requests` and asserts.

    with fake_evalops() as evalops:
        evalops.play(RATE_LIMITED, OK_P)  # one reply per request; the last one repeats
        ...                               # post to evalops.url
        assert len(evalops.requests) == 2

With `honours_keys` it keeps one test run per Idempotency-Key, as other services of EvalOps do: what
is posted again is answered with the first run and starts nothing. A reply with a 2xx status accepts
the post, also when the answer is never sent, torn or garbage; `accepted` counts starts per key.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse


@dataclass(frozen=True)
class Recorded:
    """One request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    raw_path: str = ""  # with its percent-escapes


@dataclass(frozen=True)
class Reply:
    """One answer; with `pace` "never" nothing is sent, with "drip" a byte now and then for ever.

    With "torn" the connection ends in the middle of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pace: Literal["at_once", "never", "drip", "torn"] = "at_once"


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    """Return a JSON reply; header names are written with `_` for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {"content-type": "application/json", **named})


def redirect(location: str, status: int = 307) -> Reply:
    return Reply(status, headers={"location": location})


RUN = {"id": "run-7", "testSuiteId": "suite-1", "status": "pending"}
OK_P = as_json({"data": RUN, "jobId": "job-9"})
OK_C = as_json(RUN, status=201)
SLASH_REDIRECT = redirect("/api/v1/test-runs/")
RATE_LIMITED = as_json({"error": "rate_limit_exceeded"}, status=429, retry_after="1")
GARBAGE = Reply(200, b"<html>\x1b[31mnot an API\xff</html>", {"content-type": "text/html"})
HANG = Reply(pace="never")
DRIP = Reply(pace="drip")


TORN = Reply(200, b'{"data": {"id": "ru', {"content-length": "1000"}, pace="torn")
UNAVAILABLE = as_json({"error": {"code": "unavailable", "message": "try later"}}, status=503)
CONFLICT = as_json({"error": {"code": "idempotency_conflict", "message": "other body"}}, 409)
IN_PROGRESS = as_json({"error": {"code": "idempotency_in_progress", "message": "wait"}}, 409)


REPLAYED = {"x-idempotent-replay": "true"}


def run_replies(*statuses: str, **fields: object) -> list[Reply]:
    """The answers to questions about one test run, one status after the other."""
    return [as_json({"data": {**RUN, "status": status, **fields}}) for status in statuses]


def error_shapes(words: str) -> dict[str, bytes]:
    """Return the error bodies that EvalOps services and clients are known to use."""
    return {
        "message": json.dumps({"message": words}).encode(),
        "error text": json.dumps({"error": words}).encode(),
        "error object": json.dumps({"error": {"code": "internal", "message": words}}).encode(),
        "plain text": words.encode(),
    }


class FakeEvalOps:
    """The running fake: its address, what it received, and what it will answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Recorded] = []
        self.accepted: Counter[str] = Counter()
        self.honours_keys = False
        self.on_request: Callable[[Recorded], None] = lambda request: None  # in the fake's thread
        self._bodies: dict[str, bytes] = {}
        self._replies: Iterator[Reply] = itertools.repeat(OK_P)

    def play(self, *replies: Reply) -> None:
        """Forget the past and answer with these from now on, the last one again and again."""
        self.requests.clear()
        self.accepted.clear()
        self._bodies.clear()
        self.honours_keys = False
        self.on_request = lambda request: None
        self.go_on(*replies)

    def go_on(self, *replies: Reply) -> None:
        """Answer with these from now on, the last one again and again, and forget nothing."""
        assert replies, "at least one reply is needed"
        self._replies = itertools.chain(replies, itertools.repeat(replies[-1]))

    def flap(self, *replies: Reply) -> None:
        """Answer with these in turn, over and over, and forget nothing."""
        self._replies = itertools.cycle(replies)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        headers, raw_path = dict(request.headers), request.scope["raw_path"].decode()
        recorded = Recorded(request.method, request.url.path, headers, body, raw_path)
        self.requests.append(recorded)
        self.on_request(recorded)
        reply = self._accept(recorded, next(self._replies))
        if reply.pace == "drip":
            return StreamingResponse(_drip(), reply.status, reply.headers)
        if reply.pace == "torn":
            return StreamingResponse(_once(reply.body), reply.status, reply.headers)
        while reply.pace == "never" and not await request.is_disconnected():
            await asyncio.sleep(0.02)
        return Response(reply.body, reply.status, reply.headers)

    def _accept(self, request: Recorded, reply: Reply) -> Reply:
        """Count what a reply accepts, and put the run of this key into `OK_P`."""
        key = request.headers.get("idempotency-key")
        if key is None or not 200 <= reply.status < 300:
            return reply
        if not self.honours_keys:
            self.accepted[key] += 1
            return reply
        if self._bodies.setdefault(key, request.body) != request.body:
            return CONFLICT
        is_replay = self.accepted[key] > 0
        self.accepted[key] = 1
        if reply is not OK_P:
            return reply
        run = {**RUN, "id": f"run-{list(self._bodies).index(key) + 1}"}
        answer = as_json({"data": run, "jobId": "job-9"})
        return replace(answer, headers={**answer.headers, **REPLAYED}) if is_replay else answer


async def _once(part: bytes) -> AsyncIterator[bytes]:
    yield part


async def _drip() -> AsyncIterator[bytes]:
    while True:
        yield b" "
        await asyncio.sleep(0.05)


@contextmanager
def fake_evalops() -> Iterator[FakeEvalOps]:
    """Run the fake on a free loopback port, in a thread, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    fake = FakeEvalOps(f"http://127.0.0.1:{listener.getsockname()[1]}")
    app = FastAPI(openapi_url=None)
    app.add_route("/{path:path}", fake.answer, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the fake EvalOps did not start"
        time.sleep(0.005)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()

"""A loopback stand-in for EvalOps: answers as it is told and records every request.

No public sandbox of EvalOps exists, so this is the test double; what it plays is what two public
clients expect of the server, not what a server was seen to do. It takes any path and method and
judges nothing: a test reads `requests` and asserts.

    with fake_evalops() as evalops:
        evalops.play(RATE_LIMITED, OK_P)  # one reply per request; the last one repeats
        ...                               # post to evalops.url
        assert len(evalops.requests) == 2
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Reply:
    """One answer; with `pace` "never" nothing is sent, with "drip" a byte now and then for ever."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pace: Literal["at_once", "never", "drip"] = "at_once"


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
        self._replies = [OK_P]

    def play(self, *replies: Reply) -> None:
        """Forget the past and answer with these from now on, the last one again and again."""
        assert replies, "at least one reply is needed"
        self.requests.clear()
        self._replies = list(replies)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        headers = dict(request.headers)
        self.requests.append(Recorded(request.method, request.url.path, headers, body))
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if reply.pace == "drip":
            return StreamingResponse(_drip(), reply.status, reply.headers)
        while reply.pace == "never" and not await request.is_disconnected():
            await asyncio.sleep(0.02)
        return Response(reply.body, reply.status, reply.headers)


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

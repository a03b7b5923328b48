"""A service that is far away and sleeps for as long as a step takes, for the loops of others too.

It computes nothing: every token has the same log-probability, and every sample is one of two
tokens, by a checksum of its prompt and of the weights that are asked. Steps are worked on one at a
time, each for as long as it is told. When they begin and end is reckoned and not waited for, so a
busy machine makes no service idle. It counts sessions, connections, and requests that it has
acknowledged and whose results were not fetched yet.

Behind the door: requests are acknowledged at once, reach what works on them after a delay, and
results take as long to come back, as behind a queue. On the line: every request and every answer is
delayed, acknowledgements too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

import numpy as np  # noqa: E402

from fault_proxy import (  # noqa: E402  # pyright: ignore[reportMissingImports] (of tests/)
    LIMIT_BYTES,
    Message,
    read_body,
    read_head,
)
from local_tinker.session_routes import CLIENT_CONFIG  # noqa: E402
from local_tinker.wire import (  # noqa: E402
    PromptScores,
    SampledTokens,
    forward_backward_output,
    parse_forward_backward,
    read_forward_backward,
    sample_response,
)

BEHIND, ON_LINE = "behind_the_door", "on_the_line"
HOLD_S = 20.0  # for a result; the SDK asks again then
MAX_TOKENS = 100_000  # of a row
JSON_TYPE, PROTOBUF_TYPE = "application/json", "application/x-protobuf"
SESSION = "far"
TOKENS = (26, 78)  # one of which every sample is: of the demo model "3" and "g"


class Result(NamedTuple):
    """What a future gives, and when it is there for the client, by the monotonic clock."""

    ready_s: float
    content: bytes
    media_type: str = JSON_TYPE


class Answer(NamedTuple):
    content: bytes
    media_type: str = JSON_TYPE
    status: str = "200 OK"


class Far:
    """The service: its results, and when it was at work."""

    def __init__(self, model: str, step_s: float, delay_s: float, where: str) -> None:
        self._model = model
        self._step_s = step_s
        self._behind_s = delay_s if where == BEHIND else 0.0
        self._line_s = delay_s if where == ON_LINE else 0.0
        self._results: dict[str, Result] = {}
        self._free_s = 0.0  # when all is done that was sent
        self._steps: list[tuple[float, float]] = []  # when each began and ended
        self._in_flight: set[str] = set()  # steps
        self._most_in_flight = 0
        self._asked: set[str] = set()  # whatever has a future
        self._most_asked = 0
        self._num_sessions = self._num_open = self._most_open = 0
        self._requests: Counter[str] = Counter()

    async def serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._num_open += 1
        self._most_open = max(self._most_open, self._num_open)
        try:
            await self._serve(reader, writer)
        finally:
            self._num_open -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await read_body(reader, await read_head(reader))
                await asyncio.sleep(self._line_s)
                answer = await self._answer(request)
                await asyncio.sleep(self._line_s)
                head = (
                    f"HTTP/1.1 {answer.status}\r\ncontent-type: {answer.media_type}\r\n"
                    f"content-length: {len(answer.content)}\r\n\r\n"
                )
                writer.write(head.encode() + answer.content)
                await writer.drain()

    async def _answer(self, request: Message) -> Answer:
        target = request.start_line.split(b" ")[1].decode().partition("?")[0]
        path = target.removeprefix("/api/v1/")
        self._requests[path.partition("/")[0]] += 1
        if path == "forward_backward":
            return self._forward_backward(request.body)
        asked = json.loads(request.body or b"{}") if request.body[:1] in (b"{", b"") else {}
        if path == "retrieve_future":
            return await self._result(asked["request_id"])
        if path == "timeline":
            made = {"steps": self._steps, "most_in_flight": self._most_in_flight}
            return Answer(json.dumps(made).encode())
        if path == "counted":
            return _json(self._counted())
        if path == "asample":
            return self._sample(asked)
        result = self._made(path, asked)
        if result is None:
            return _json(self._at_once(path, asked))
        made = Result(self._now_s(), json.dumps(result).encode())
        return _json({"request_id": self._later(made)})

    def _counted(self) -> dict[str, Any]:
        return {
            "sessions": self._num_sessions,
            "most_connections": self._most_open,
            "most_asked": self._most_asked,
            "requests": dict(self._requests),
        }

    def _sample(self, asked: dict[str, Any]) -> Answer:
        """Samples, ready at once behind the door, with log-probabilities where they are wanted."""
        number = asked.get("num_samples", 1)
        read = [token for chunk in asked["prompt"]["chunks"] for token in chunk["tokens"]]
        told = f"{asked.get('sampling_session_id')} {read}"
        token = TOKENS[zlib.crc32(told.encode()) % len(TOKENS)]
        stops = (asked.get("sampling_params") or {}).get("stop") or []
        tokens = [token, *(stop for stop in stops[:1] if isinstance(stop, int))]
        scores = None
        if asked.get("prompt_logprobs"):
            scores = PromptScores(np.full(len(read), -1.0, np.float32))
        sample = SampledTokens(tokens, [-1.0] * len(tokens), "stop")
        content = sample_response([sample] * number, scores)
        ready_s = time.monotonic() + 2 * self._behind_s
        made = self._later(Result(ready_s, content, PROTOBUF_TYPE))
        names = [f"{made}:{index}" for index in range(number)]
        return _json({"request_id": made, "sample_sequence_ids": names})

    def _now_s(self) -> float:
        """When a request that takes no time is done, behind all that was sent before."""
        return max(time.monotonic() + self._behind_s, self._free_s) + self._behind_s

    def _made(self, path: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What a future of this path gives; None where there is none."""
        run = asked.get("model_id", "")
        if path == "optim_step":
            return {"metrics": {}}
        if path in ("create_model", "load_weights"):
            session = asked.get("session_id", SESSION)
            return {"model_id": f"{session}:train:{asked['model_seq_id']}"}
        kinds = {"save_weights": "weights", "save_weights_for_sampler": "sampler_weights"}
        return {"path": f"tinker://{run}/{kinds[path]}/{asked['path']}"} if path in kinds else None

    def _at_once(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        if path == "client/config":
            return CLIENT_CONFIG
        if path == "create_session":
            self._num_sessions += 1
            return {"session_id": f"{SESSION}{self._num_sessions}"}
        if path == "get_info":
            data = {"model_name": self._model, "tokenizer_id": self._model}
            return {"model_id": asked["model_id"], "model_data": data, "is_lora": True}
        if path == "create_sampling_session":
            session = asked.get("session_id", SESSION)
            return {"sampling_session_id": f"{session}:sample:{asked['sampling_session_seq_id']}"}
        if path.startswith("samplers/"):
            return {"sampler_id": path.removeprefix("samplers/"), "base_model": self._model}
        if path == "weights_info":
            return {"base_model": self._model, "is_lora": True}
        if path == "get_server_capabilities":
            return {"supported_models": [{"model_name": self._model}]}
        return {"status": "accepted"}

    def _forward_backward(self, body: bytes) -> Answer:
        rows = read_forward_backward(parse_forward_backward(body), MAX_TOKENS).data
        logprobs = [np.full(row.target_tokens.shape, -1.0, np.float32) for row in rows]
        content = forward_backward_output(float(len(rows)), logprobs)
        begin_s = max(time.monotonic() + self._behind_s, self._free_s)
        self._free_s = begin_s + self._step_s
        self._steps.append((begin_s, self._free_s))
        made = self._later(Result(self._free_s + self._behind_s, content, PROTOBUF_TYPE))
        self._in_flight.add(made)
        self._most_in_flight = max(self._most_in_flight, len(self._in_flight))
        return _json({"request_id": made})

    def _later(self, result: Result) -> str:
        name = f"r{len(self._results)}"
        self._results[name] = result
        self._asked.add(name)
        self._most_asked = max(self._most_asked, len(self._asked))
        return name

    async def _result(self, name: str) -> Answer:
        result = self._results[name]
        left_s = result.ready_s - time.monotonic()
        await asyncio.sleep(max(0.0, min(left_s, HOLD_S)))
        if left_s > HOLD_S:
            again = {"type": "try_again", "request_id": name, "queue_state": "active"}
            return Answer(json.dumps(again).encode(), status="408 Request Timeout")
        self._in_flight.discard(name)
        self._asked.discard(name)
        return Answer(result.content, result.media_type)


def _json(value: dict[str, Any]) -> Answer:
    return Answer(json.dumps(value).encode())


async def listening(far: Far) -> asyncio.Server:
    return await asyncio.start_server(
        far.serve_connection, "127.0.0.1", 0, limit=LIMIT_BYTES, backlog=1024
    )


def address_of(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.contextmanager
def running(model: str, step_s: float, delay_s: float, where: str) -> Iterator[str]:
    """A service in a process of its own, as long as the block lasts; yields its address. To be
    called where there are no threads yet, for the process is forked."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    made = (model, step_s, delay_s, where, there)
    process = context.Process(target=_serve, args=made, daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(model: str, step_s: float, delay_s: float, where: str, address: Connection) -> None:
    """Serve in this process until it is ended; the address goes to the one that asked."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what the one that asked does then

    async def main() -> None:
        server = await listening(Far(model, step_s, delay_s, where))
        address.send(address_of(server))
        await server.serve_forever()

    asyncio.run(main())

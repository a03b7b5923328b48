"""A server that gives sampling clients of the SDK one and the same answer at once.

    .venv/bin/python benchmarks/stub_service.py ANSWER CONFIG

ANSWER is a file with a SampleResponse in protobuf, CONFIG one with the JSON of `client/config`. It
prints its address and serves until it is killed. It computes nothing, checks nothing and parses as
little as will do, so what a client needs with it is what the SDK itself costs: the limit for any
service on this machine. Both ways to wait for samples are there, one request per future and one for
all futures of a sampling client; CONFIG says which one the SDK takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tinker.proto import tinker_public_pb2 as pb

JSON_TYPE, PROTOBUF_TYPE = b"application/json", b"application/x-protobuf"
SAMPLER_ID = "session:sample:0"


class Stub:
    """What all connections share: the answer, and which samples have been asked for."""

    def __init__(self, answer: bytes, config: bytes) -> None:
        self.answer = _response(answer, PROTOBUF_TYPE)
        self.num_sequences = len(pb.SampleResponse.FromString(answer).sequences)
        self.config = _response(config, JSON_TYPE)
        self.request_ids: list[str] = []
        self.held: list[tuple[Connection, int]] = []  # polls that wait, and their cursors

    def sample(self) -> bytes:
        request_id = f"r{len(self.request_ids)}"
        self.request_ids.append(request_id)
        held, self.held = self.held, []
        for connection, cursor in held:
            connection.send(self.completions(cursor))
        names = [f"{request_id}:{index}" for index in range(self.num_sequences)]
        return _json({"request_id": request_id, "sample_sequence_ids": names})

    def completions(self, cursor: int) -> bytes:
        made = [{"state": "finished", "request_id": name} for name in self.request_ids[cursor:]]
        return _json({"completions": made, "cursor": len(self.request_ids)})


class Connection(asyncio.Protocol):
    """One client's connection: requests with a Content-Length, one after the other."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            lengths = [
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ]
            body_end = end + 4 + sum(lengths)
            if len(self._received) < body_end:
                return
            body = bytes(self._received[end + 4 : body_end])
            del self._received[:body_end]
            self._answer(head.split(b" ", 2)[1].removeprefix(b"/api/v1/"), body)

    def send(self, response: bytes) -> None:
        self._transport.write(response)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"asample":
            self.send(self._stub.sample())
        elif path == b"retrieve_future":
            self.send(self._stub.answer)
        elif path == b"retrieve_futures":
            asked = json.loads(body)
            cursor = int(asked.get("prev_cursor", 0))
            if cursor == len(self._stub.request_ids) and asked.get("timeout") != 0:
                self._stub.held.append((self, cursor))
            else:
                self.send(self._stub.completions(cursor))
        elif path == b"client/config":
            self.send(self._stub.config)
        else:
            self.send(_json(_rest(path)))


def _rest(path: bytes) -> dict[str, Any]:
    """What the SDK wants to know before and after it samples."""
    if path == b"create_session":
        return {"session_id": "session"}
    if path == b"create_sampling_session":
        return {"sampling_session_id": SAMPLER_ID}
    if path.startswith(b"samplers/"):
        return {"sampler_id": SAMPLER_ID, "base_model": "stub"}
    if path == b"telemetry":
        return {"status": "accepted"}
    return {}


def _json(value: dict[str, Any]) -> bytes:
    return _response(json.dumps(value).encode(), JSON_TYPE)


def _response(body: bytes, media_type: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (media_type, len(body)) + body


async def serve(stub: Stub) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    answer_file, config_file = map(Path, sys.argv[1:])
    asyncio.run(serve(Stub(answer_file.read_bytes(), config_file.read_bytes())))

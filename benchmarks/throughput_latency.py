"""How long small things take while much is waited for, and how long a large result is on its way.

Held futures: other processes hold the results of samples that are not there yet, a plain client
with a request for each and the SDK in its own way, while this process sends heartbeats one by one.
A large result: it is asked for and computed beforehand, so that what is timed is nothing but its
way to a client. The SDK's call names the same sampler and number as the plain one before it, and so
gets the result that is there already; it is timed from its call on, against the service and against
a stub that has the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import tinker
from service_soak import Running
from throughput_client import over_service, prepare_environment, stub_service

NUM_HELD = 2048
HELD_TOKENS = 400  # of each sample: they take longer than all heartbeats together
HOLDING_LIMIT_S = 120.0  # for the requests to arrive
PROBE_EVERY_S = 0.02
NUM_FETCHES = 20
PROMPT_TOKENS, NUM_SAMPLES, SAMPLE_TOKENS, TOPK = 4096, 4, 512, 20
NUM_ALTERNATIVES = 28  # drawn tokens per position of the prompt: they make the result 2.4 MB


class Plain:
    """One connection to the service, without the SDK."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=90)
        self._headers = {"X-API-Key": api_key, "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, self._headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send to a route that answers with JSON. Raises `SystemExit` where it refuses."""
        status, content = self.ask("POST", f"/api/v1/{path}", body)
        if status != 200:
            raise SystemExit(f"{path} was answered with {status}: {content[:500]!r}")
        return json.loads(content)

    def result(self, request_id: str) -> bytes:
        """Wait for a result. Raises `SystemExit` where the answer is an error."""
        status = 408
        content = b""
        while status == 408:
            body = {"request_id": request_id, "allow_metadata_only": False}
            status, content = self.ask("POST", "/api/v1/retrieve_future", body)
        if status != 200 or content.startswith(b'{"error"'):
            raise SystemExit(f"the result was answered with {status}: {content[:500]!r}")
        return content

    def close(self) -> None:
        self._connection.close()


# --- held futures ---------------------------------------------------------------------------------


class Heartbeats(NamedTuple):
    """How long heartbeats took, in milliseconds."""

    p50_ms: float
    p99_ms: float


def held_request(number: int) -> dict[str, Any]:
    return {
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7, 8 + number % 100]}]},
        "sampling_params": {
            "max_tokens": HELD_TOKENS,
            "temperature": 1.0,
            "seed": number,
            "stop": [],
        },
    }


def hold_plainly(base_url: str, api_key: str, base_model: str) -> None:
    """Hold one request, on a connection of its own, for each future until this process is ended."""
    plain = Plain(base_url, api_key)
    session_id = plain.post("create_session", {})["session_id"]
    opened = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": base_model}
    sampler_id = plain.post("create_sampling_session", opened)["sampling_session_id"]

    async def hold(number: int) -> None:
        host, _, port = base_url.removeprefix("http://").partition(":")
        connection = await asyncio.open_connection(host, int(port))
        sampler = {"sampling_session_id": sampler_id, "seq_id": number}
        asked = {**held_request(number), **sampler}
        _, content = await post_on(*connection, api_key, "asample", asked)
        status = 408
        while status == 408:
            body = {"request_id": json.loads(content)["request_id"]}
            status, _ = await post_on(*connection, api_key, "retrieve_future", body)

    async def main() -> None:
        await asyncio.gather(*(hold(number) for number in range(NUM_HELD)))

    asyncio.run(main())


async def post_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    api_key: str,
    path: str,
    body: dict[str, Any],
) -> tuple[int, bytes]:
    """Send JSON on a connection that is open: HTTP clients look through all of their connections
    for every request, which takes minutes for 2,048 of them."""
    content = json.dumps(body)
    writer.write(
        f"POST /api/v1/{path} HTTP/1.1\r\nHost: service\r\nX-API-Key: {api_key}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    return int(head.split()[1]), await reader.readexactly(length)


def hold_by_sdk(base_url: str, api_key: str, base_model: str) -> None:
    """Hold the futures as the SDK does until this process is ended."""
    prepare_environment()

    async def body(client: tinker.ServiceClient) -> None:
        sampler = await client.create_sampling_client(base_model=base_model)
        futures = [
            sampler.sample(
                tinker.ModelInput.from_ints(held_request(number)["prompt"]["chunks"][0]["tokens"]),
                1,
                tinker.SamplingParams(**held_request(number)["sampling_params"]),
            )
            for number in range(NUM_HELD)
        ]
        for future in futures:
            await future

    over_service(base_url, api_key, body)


@contextlib.contextmanager
def held(hold: Any, served: Running, base_model: str) -> Iterator[None]:
    """Wait until all futures are held by another process; it is killed at the end."""
    context = multiprocessing.get_context("spawn")
    arguments = (served.base_url, served.api_key, base_model)
    process: BaseProcess = context.Process(target=hold, args=arguments, daemon=True)
    process.start()
    try:
        wait_until_held(served, process)
        yield
    finally:
        process.kill()
        process.join()
        plain = Plain(served.base_url, served.api_key)
        sessions = json.loads(plain.ask("GET", "/api/v1/sessions?limit=100")[1])["sessions"]
        for session_id in sessions:
            plain.post(f"sessions/{session_id}/finish", {"reason": {"type": "interrupted"}})
        plain.close()


def wait_until_held(served: Running, process: BaseProcess) -> None:
    """Wait for the last of the requests; a few of the first may have been answered meanwhile.

    The SDK has at most 2,000 samples under way at a time.
    """
    plain = Plain(served.base_url, served.api_key)
    give_up_at = time.monotonic() + HOLDING_LIMIT_S
    num_queued = 0
    while num_queued < 0.95 * NUM_HELD:
        if time.monotonic() > give_up_at or not process.is_alive():
            raise SystemExit(f"only {num_queued} of {NUM_HELD} futures came to be held")
        time.sleep(0.5)
        page = plain.ask("GET", "/")[1].decode()
        found = re.search(r"(\d+) sample requests", page)
        num_queued = 0 if found is None else int(found[1])
    plain.close()


def time_heartbeats(served: Running, seconds: float) -> Heartbeats:
    plain = Plain(served.base_url, served.api_key)
    session_id = plain.post("create_session", {})["session_id"]
    taken_ms: list[float] = []
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        started = time.perf_counter()
        plain.post("session_heartbeat", {"session_id": session_id})
        taken_ms.append(1000 * (time.perf_counter() - started))
        time.sleep(PROBE_EVERY_S)
    plain.post(f"sessions/{session_id}/finish", {"reason": {"type": "success"}})
    plain.close()
    return Heartbeats(*np.percentile(taken_ms, (50, 99)).tolist())


# --- a large result -------------------------------------------------------------------------------


class Delivery(NamedTuple):
    """Milliseconds that a finished result takes to a plain client, to the SDK, and from a stub to
    the SDK; medians of several fetches."""

    num_bytes: int
    plain_ms: float
    sdk_ms: float
    stub_ms: float


def large_request(seed: int) -> dict[str, Any]:
    tokens = np.random.default_rng(seed).integers(10, 1500, size=PROMPT_TOKENS).tolist()
    return {
        "num_samples": NUM_SAMPLES,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        "sampling_params": {
            "max_tokens": SAMPLE_TOKENS,
            "temperature": 1.0,
            "seed": seed,
            "stop": [],
        },
        "prompt_logprobs": True,
        "topk_prompt_logprobs": TOPK,
        "topk_sample_logprobs": TOPK,
        "prompt_alt_tokens_k": NUM_ALTERNATIVES,
    }


async def sample_large(sampler: tinker.SamplingClient, request: dict[str, Any]) -> float:
    """Milliseconds of the SDK's call, from its beginning to the last token."""
    started = time.perf_counter()
    response = await sampler.sample(
        tinker.ModelInput.from_ints(request["prompt"]["chunks"][0]["tokens"]),
        request["num_samples"],
        tinker.SamplingParams(**request["sampling_params"]),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=TOPK,
        topk_sample_logprobs=TOPK,
        prompt_alt_tokens_k=NUM_ALTERNATIVES,
    )
    num_tokens = sum(len(sequence.tokens) for sequence in response.sequences)
    taken_ms = 1000 * (time.perf_counter() - started)
    assert num_tokens == NUM_SAMPLES * SAMPLE_TOKENS
    assert response.topk_prompt_logprobs_np is not None
    return taken_ms


async def warm_up(sampler: tinker.SamplingClient) -> None:
    params = tinker.SamplingParams(max_tokens=2, stop=[])
    await sampler.sample(tinker.ModelInput.from_ints([5, 6, 7]), 1, params)


def deliver(served: Running, base_model: str, repeats: int) -> Delivery:
    """Compute a large result and fetch it, `repeats` times."""
    plain = Plain(served.base_url, served.api_key)
    config = json.dumps(plain.post("client/config", {"sdk_version": tinker.__version__})).encode()
    plain_ms, sdk_ms, content = [], [], b""

    async def body(client: tinker.ServiceClient) -> None:
        nonlocal content
        await warm_up(await client.create_sampling_client(base_model=base_model))
        (session_id,) = json.loads(plain.ask("GET", "/api/v1/sessions")[1])["sessions"]
        for number in range(1, repeats + 1):
            sampler = await client.create_sampling_client(base_model=base_model)
            request = large_request(number)
            named = {"sampling_session_id": f"{session_id}:sample:{number}", "seq_id": 0}
            asked = await asyncio.to_thread(plain.post, "asample", {**request, **named})
            content = await asyncio.to_thread(plain.result, asked["request_id"])
            for _ in range(NUM_FETCHES):
                started = time.perf_counter()
                plain.result(asked["request_id"])
                plain_ms.append(1000 * (time.perf_counter() - started))
            sdk_ms.append(await sample_large(sampler, request))

    over_service(served.base_url, served.api_key, body)
    with stub_service(content, config) as base_url:
        stub_ms = over_service(base_url, served.api_key, lambda c: from_stub(c, repeats))
    return Delivery(len(content), median(plain_ms), median(sdk_ms), stub_ms)


async def from_stub(client: tinker.ServiceClient, repeats: int) -> float:
    sampler = await client.create_sampling_client(base_model="stub")
    taken_ms = [await sample_large(sampler, large_request(0)) for _ in range(repeats + 1)]
    return median(taken_ms[1:])


def write_long_model(directory: Path) -> None:
    """A tiny model with room for the prompt and its samples."""
    from random_llamas import LLAMA_TINY, make_model

    make_model(directory, LLAMA_TINY, context_tokens=2 * PROMPT_TOKENS)

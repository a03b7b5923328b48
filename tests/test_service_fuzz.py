"""A thousand hostile requests in process, or ten: the service refuses them, and serves the others.

The requests are drawn from one seed and sent one after the other; a few bursts go out together.
They cover every route, with every part of a request wrong in turn: key, method, path, body, numbers
and their order, tensors, sampling parameters. Between them a real training run and real samples
take place, and must come out bit for bit as they did in the quiet before.

Results are kept for half a second and gaps in a run's numbers waited for even less, so the order of
threads and the clock decide some details; what is sent does not depend on them, but for ids.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from tinker.proto import tinker_public_pb2 as pb

from conftest import IS_THOROUGH
from local_tinker import app as app_module
from local_tinker import future_routes
from local_tinker import futures as futures_module
from local_tinker import state as state_module
from local_tinker.app import make_app
from local_tinker.engine import Engine
from local_tinker.memory import RunMemory
from local_tinker.state import State
from local_tinker.worker import Worker

SEED = 20_240_607
NUM_REQUESTS = 10_000 if IS_THOROUGH else 500
PREFIX, OPENAI_PREFIX = "/api/v1", "/oai/api/v1"
DOWNLOADS = "http://service/api/v1/downloads/"  # where an archive may lead
NUM_STEPS = 12  # of the real training run
RETRIEVE_EVERY = 200  # requests; their futures are then waited for together
RESULT_LIMIT_S = 60.0
KEY, OTHER_KEY = "tml-right-0123456789abcdef", "tml-other-0123456789abcdef"
MAX_JSON_BYTES, MAX_BODY_BYTES = 60_000, 120_000  # instead of MiB, so that too much is cheap
NEVER = frozenset({402, 408, 409, 429})  # the SDK would repeat the request, or sleep an hour
HARMLESS = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]{0,220}")
PROMPT = [5, 6, 7, 8, 9]
TRAINING = [[5, 6, 7, 8, 9], [10, 11, 12, 13]]
ADAM = {"learning_rate": 1e-2, "eps": 1e-8}


class Files(NamedTuple):
    """What a checkpoint consists of, byte for byte."""

    adapter: bytes
    optimizer: bytes


@dataclass
class NoiseRun:
    """A run that only noise is sent to, and the number that its next request in order has."""

    run_id: str
    next_seq_id: int = 1


@dataclass
class World:
    """The client's side: what it knows of the service, and what it found wrong with it."""

    transport: httpx.ASGITransport  # a client would follow, or choke on, redirects
    state: State
    rng: random.Random
    sessions: list[str] = field(default_factory=list)
    runs: list[NoiseRun] = field(default_factory=list)
    samplers: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # of checkpoints that were there once
    kept_path: str = ""  # of a checkpoint that no other request is about
    open_futures: dict[str, str] = field(default_factory=dict)  # request id -> the request
    old_futures: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    num_results: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    num_requests: int = 0
    sample_seq_id: int = 0

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: dict[str, str | bytes] | None = None,
        expect: tuple[int, ...] = (),
        prefix: str = PREFIX,
    ) -> httpx.Response:
        """Send one request and check what holds for every answer."""
        sent: dict[str, str | bytes] = {"x-api-key": KEY, **(headers or {})}
        if body is not None:
            content = to_json(body)
            sent.setdefault("content-type", "application/json")
        shown = content[:300] if isinstance(content, bytes) else "" if content is None else "chunks"
        label = f"{method} {path[:200]} {shown!r}"
        raw = [(as_bytes(name), as_bytes(value)) for name, value in sent.items() if value != b"-"]
        url = f"http://service{prefix}{path}"
        request = httpx.Request(method, url, headers=raw, content=content)
        response = await self.transport.handle_async_request(request)
        await response.aread()
        self.num_requests += 1
        self.statuses[response.status_code] += 1
        self._check(response, label, is_retrieval=path == "/retrieve_future")
        if expect and response.status_code not in expect:
            self.problems.append(f"{response.status_code} is not {expect}: {label}")
        if response.status_code == 200 and response.headers["content-type"] == "application/json":
            answer = response.json()
            if "request_id" in answer:
                self.open_futures[answer["request_id"]] = label
        return response

    def _check(self, response: httpx.Response, label: str, *, is_retrieval: bool) -> None:
        status, text = response.status_code, response.text
        told = f"{text} {response.headers}"
        if KEY in told or OTHER_KEY in told:
            self.problems.append(f"an answer holds a key: {label}")
        if is_retrieval and status == 408:
            return
        location = response.headers.get("location", "")
        if status == 302 and "/archive " in label and location.startswith(DOWNLOADS):
            return
        if status >= 500 or 300 <= status < 400 or status in NEVER:
            self.problems.append(f"status {status}: {label} -> {text[:200]}")
        elif status >= 400 and not error_of(response) and not label.startswith("HEAD "):
            self.problems.append(f"status {status} without an error: {label} -> {text[:200]}")
        if is_retrieval and status == 200 and error_of(response):
            category = response.json().get("category")
            if category != "user":
                self.problems.append(f"category {category}: {label} -> {text[:300]}")

    async def result(self, request_id: str) -> httpx.Response:
        """The result behind a future. Raises `TimeoutError` for one that is lost."""
        async with asyncio.timeout(RESULT_LIMIT_S):
            while True:
                response = await self.send(
                    "POST", "/retrieve_future", body={"request_id": request_id}
                )
                if response.status_code != 408:
                    return response

    async def fetch_results(self) -> None:
        """Wait for every future that was handed out."""
        pending, self.open_futures = self.open_futures, {}
        for request_id, response in zip(
            pending, await asyncio.gather(*map(self.result, pending)), strict=True
        ):
            kind = response.headers.get("content-type", "")
            self.num_results["error" if error_of(response) else kind] += 1
            if response.status_code == 200 and error_of(response) and "user" not in response.text:
                self.problems.append(f"  the request behind it: {pending[request_id]}")
        self.old_futures = [*self.old_futures, *pending][-200:]


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")


def error_of(response: httpx.Response) -> str:
    """The message of an answer that is an error, else ''."""
    if response.headers.get("content-type") != "application/json" or not response.content:
        return ""
    answer = response.json()
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and error.keys() == {"message", "type", "param", "code"}:
        error = error["message"]  # as OpenAI has it
    return error if isinstance(error, str) else ""


# --- what is wrong with things ------------------------------------------------------------------

DEEP = "@@deep{}@@"  # stands for lists in lists, deeper than json.dumps can write


def to_json(body: Any) -> bytes:
    def nest(match: re.Match[str]) -> str:
        depth = int(match[1])
        return "[" * depth + "]" * depth

    return re.sub('"' + DEEP.format("([0-9]+)") + '"', nest, json.dumps(body)).encode()


def bad_value(rng: random.Random) -> Any:
    values = (None, True, -1, 0, 1, 1.5, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308, -1e308)
    texts = ("", "x", "7", "x" * 5000, "\ud800", "\x00", "naïve 🙂", "NaN", "null", bad_id(rng))
    others = (float("nan"), float("inf"), -float("inf"), [], {}, [[]], {"a": None}, [1, "a", None])
    deep = DEEP.format(rng.choice([60, 500, rng.randrange(900, 1000), 5000]))
    return rng.choice([rng.choice(values), rng.choice(texts), rng.choice(others), deep])


def bad_id(rng: random.Random) -> str:
    """Ids, names and path parts that try to mean another place, or nothing."""
    return rng.choice(
        [
            "", ".", "..", "../..", "../../../../etc/passwd", "/etc/passwd", "//", "a/../b", "~",
            "~root", "..\\..\\x", "C:\\x", "a\x00b", "\x00", "%2e%2e", "%2e%2e%2f", "%00", "a\nb",
            "x" * 256, "x" * 9000, "ünïcödé", "\u202e", ".hidden", "-rf", "a b", "a:b",
            "no:train:0", "no:train:-1", "no:train:99999999999", "..:train:0", "no:train:0/..",
            "no:sample:0", "a" * 101 + ":train:0", "weights", "tinker://", "$HOME", "*",
            ".scratch-1", "checkpoint.json", ".old-a", "con", "٣:train:٣",
        ]
    )  # fmt: skip


def bad_path(world: World) -> str:
    """A tinker:// path, or nearly: of a checkpoint that is there or was, or leading elsewhere."""
    rng = world.rng
    if world.paths and rng.random() < 0.4:
        path = rng.choice(world.paths)
        return rng.choice([path, path, path + "/", path + "/..", path.upper(), path[9:], path[:-1]])
    parts = [rng.choice([bad_id(rng), "weights", "sampler_weights"]) for _ in range(3)]
    run_id = rng.choice([parts[0], a_run(world).run_id, "a:train:0"])
    prefix = rng.choice(["tinker://", "tinker://", "tinker://", "file://", "/", ""])
    return f"{prefix}{run_id}/{parts[1]}/{parts[2]}"


def spoilt(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """The body with something missing, something else, or something more, also further down."""
    made = json.loads(json.dumps(body))
    place = made
    while True:
        deeper = [value for value in place.values() if isinstance(value, dict) and value]
        if not deeper or rng.random() < 0.5:
            break
        place = rng.choice(deeper)
    if place and rng.random() < 0.2:
        del place[rng.choice(list(place))]
    elif place and rng.random() < 0.9:
        place[rng.choice(list(place))] = bad_value(rng)
    else:
        place[rng.choice(["extra", "", "\ud800", "model_id", "__class__"])] = bad_value(rng)
    return made


def not_json(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"", b"{", b"}", b"null", b"true", b"NaN", b"[]", b'""', b"[1,2", b"{'a':1}",
            b"\xff\xfe", b"\x00" * 100, b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16"),
            b'{"a":1}{"a":1}',
            b'{"model_id":"a","model_id":"b"}', b"9" * 5000, b'{"seq_id":' + b"9" * 5000 + b"}",
            b"[" * 50_000, b'{"a":' * 2000, b'{"session_id":"\\ud800"}', b'{"session_id":"\xff"}',
            rng.randbytes(rng.randrange(1, 400)),
        ]
    )  # fmt: skip


def a_session(world: World) -> str:
    return world.rng.choice([*world.sessions, *world.sessions, "no", bad_id(world.rng)])


def a_run(world: World) -> NoiseRun:
    rng = world.rng
    if world.runs and rng.random() < 0.9:
        return rng.choice(world.runs)
    return NoiseRun(rng.choice([bad_id(rng), "no:train:0"]))


def a_sampler(world: World) -> str:
    return world.rng.choice([*world.samplers, *world.samplers, "no:sample:0", bad_id(world.rng)])


def a_seq_id(world: World, run: NoiseRun) -> int:
    """Mostly the number that is due; else a repeat, a gap, or none that a run could have."""
    rng = world.rng
    if rng.random() < 0.7:
        run.next_seq_id += 1
        return run.next_seq_id - 1
    due = run.next_seq_id
    return rng.choice([due - 1, due + 1, due + 3, 0, -1, -(2**31), 1, 2**40, due - 1])


# --- requests of every kind; each sends one request or a few -------------------------------------


def valid_bodies(world: World) -> dict[str, dict[str, Any]]:
    """A body for each route that takes JSON, of which one part at a time is then spoilt."""
    rng, run, session = world.rng, a_run(world), a_session(world)
    lora = {"rank": rng.choice([1, 4]), "seed": 1, "train_mlp": rng.random() < 0.5}
    of_model = {"session_id": session, "model_seq_id": rng.randrange(3)}
    numbered = {"model_id": run.run_id, "seq_id": a_seq_id(world, run)}
    metadata = {"user_metadata": {"a": "b", "c": 1}}
    name = rng.choice(["a", "b", "c", bad_id(rng)])
    source = rng.choice([bad_path(world), *world.paths[-20:]])
    return {
        "create_session": {"tags": [], "sdk_version": "0.38.0", "type": "create_session"},
        "session_heartbeat": {"session_id": session, "type": "session_heartbeat"},
        "create_model": {**of_model, "base_model": "llama", "lora_config": lora, **metadata},
        "get_info": {"model_id": run.run_id},
        "optim_step": {**numbered, "adam_params": {**ADAM, "beta1": 0.9, "grad_clip_norm": 1.0}},
        "save_weights": {**numbered, "path": name, "overwrite": True, "ttl_seconds": 60},
        "save_weights_for_sampler": rng.choice(
            [
                {**numbered, "path": name, **metadata},
                {**numbered, "sampling_session_seq_id": rng.randrange(6)},
            ]
        ),
        "save_weights_external": {
            **numbered,
            "path": name,
            "ttl_seconds": 60,
            "age_encryption_recipients": [],
        },
        "load_weights": rng.choice(
            [
                {**of_model, "path": source, "optimizer": rng.random() < 0.5},
                {**numbered, "path": source, "optimizer": rng.random() < 0.5},
            ]
        ),
        "create_custom_loss": {"session_id": session, "name": "x"},
        "create_sampling_session": {
            "session_id": session,
            "sampling_session_seq_id": rng.randrange(6),
            **rng.choice([{"base_model": "llama"}, {"model_path": source}]),
        },
        "asample": sample_body(world),
        "retrieve_future": {"request_id": rng.choice([*world.old_futures[-5:], bad_id(rng)])},
        "retrieve_futures": {
            "target": {"type": "sampling_session", "sampling_session_id": a_sampler(world)},
            "prev_cursor": rng.randrange(3),
            "timeout": 0,
            "retrieved_request_ids": world.old_futures[-3:],
        },
        "join_sampling_session": {"sampling_session_id": a_sampler(world)},
        "weights_info": {"tinker_path": source},
        "copy_weights": {"source_path": source, "ttl_seconds": 60},
        "client/config": {"sdk_version": "0.38.0"},
        "client/dynamic_config": {"sdk_version": "0.38.0"},
        "telemetry": {"events": [], "platform": "x"},
    }


def sample_body(world: World) -> dict[str, Any]:
    world.sample_seq_id += 1
    prompt = {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]}
    return {
        "sampling_session_id": a_sampler(world),
        "seq_id": world.sample_seq_id,
        "num_samples": 1,
        "prompt": prompt,
        "sampling_params": {"max_tokens": 2, "temperature": 1.0, "stop": [], "seed": 3},
        "prompt_logprobs": False,
    }


JSON_ROUTES = (
    "create_session", "session_heartbeat", "create_model", "get_info", "optim_step", "save_weights",
    "save_weights_for_sampler", "save_weights_external", "load_weights", "create_custom_loss",
    "create_sampling_session", "asample", "retrieve_future", "weights_info", "copy_weights",
    "client/config", "client/dynamic_config", "telemetry", "retrieve_futures",
    "join_sampling_session",
)  # fmt: skip
# Saves and copies wait for the disk, new runs and loads for the model: drawn less often.
ROUTE_WEIGHTS = [
    {"save_weights": 2, "save_weights_for_sampler": 3, "copy_weights": 2, "load_weights": 4}.get(
        route, 6
    )
    for route in JSON_ROUTES
]


async def spoilt_json(world: World) -> None:
    (route,) = world.rng.choices(JSON_ROUTES, ROUTE_WEIGHTS)
    body = valid_bodies(world)[route]
    if world.rng.random() < 0.85:
        body = spoilt(world.rng, body)
    key = OTHER_KEY if world.rng.random() < 0.1 else KEY  # also about what the first one made
    response = await world.send("POST", f"/{route}", body=body, headers={"x-api-key": key})
    remember(world, route, body, response)


def remember(world: World, route: str, body: dict[str, Any], response: httpx.Response) -> None:
    """Aim later requests at what this one made."""
    if response.status_code != 200 or response.headers["content-type"] != "application/json":
        return
    answer = response.json()
    if route == "create_session":
        world.sessions = [*world.sessions, answer["session_id"]][-6:]
    elif route == "create_sampling_session":
        world.samplers = [*world.samplers, answer["sampling_session_id"]][-10:]
    elif route in ("create_model", "load_weights") and "session_id" in body:
        run_id = f"{body['session_id']}:train:{body.get('model_seq_id')}"
        if run_id not in {run.run_id for run in world.runs}:
            world.runs = [*world.runs, NoiseRun(run_id)][-10:]
    elif route in ("save_weights", "save_weights_for_sampler") and body.get("path"):
        kind = "weights" if route == "save_weights" else "sampler_weights"
        world.paths = [*world.paths, f"tinker://{body['model_id']}/{kind}/{body['path']}"][-40:]
    elif route == "copy_weights":
        world.paths = [*world.paths, answer["tinker_path"]][-40:]


async def no_json(world: World) -> None:
    route = world.rng.choice([*JSON_ROUTES, "forward_backward"])
    kinds = ("application/json", "application/x-protobuf", "text/plain; charset=x", "", "a/b/c;;=")
    headers: dict[str, str | bytes] = {"content-type": world.rng.choice(kinds)}
    if world.rng.random() < 0.2:
        headers["content-encoding"] = world.rng.choice(["gzip", "zstd", "x"])
    await world.send("POST", f"/{route}", content=not_json(world.rng), headers=headers)


async def wrong_key(world: World) -> None:
    keys = (
        b"-", b"", b"tml-wrong", KEY[:-1].encode(), f"{KEY} x".encode(), KEY.upper().encode(),
        "tml-schlüssel".encode(), b"\xff\xfe", b"tml-" + b"x" * 50_000, b"\x00", b"Bearer x",
    )  # fmt: skip
    path = world.rng.choice(["/create_session", "/asample", "/forward_backward", "/nothing", "/.."])
    headers: dict[str, str | bytes] = {"x-api-key": world.rng.choice(keys)}
    method = world.rng.choice(["GET", "POST", "DELETE"])
    await world.send(method, path, content=not_json(world.rng), headers=headers, expect=(401,))


async def unknown_route(world: World) -> None:
    rng = world.rng
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW", "get"])
    known = rng.choice([*JSON_ROUTES, "training_runs", "checkpoints", "sessions", "healthz"])
    path = rng.choice(["/", f"/{known}/", f"//{known}", f"/{known}/x", f"/{known}", "/forward"])
    hosts = ("x", "[::1", "a b", "a:b:c", "127.0.0.1:99999", "é".encode())
    headers: dict[str, str | bytes] = {"host": rng.choice(hosts)}
    known_methods = ("GET", "POST", "PUT", "DELETE")
    if method in known_methods and path == f"/{known}":
        method = "PATCH"  # the right methods have their own kinds
    await world.send(method, path, content=b"", headers=headers)


def in_url(rng: random.Random, text: str) -> str:
    """Percent-encoded, sometimes with slashes left as they are, sometimes twice."""
    encoded = quote(text, safe=rng.choice(["", "/", ":"]), errors="replace")
    return quote(encoded) if rng.random() < 0.1 else encoded


async def tricky_path(world: World) -> None:
    rng = world.rng
    run_id = rng.choice([bad_id(rng), a_run(world).run_id])
    kind = rng.choice(["weights", "sampler_weights", "external_weights", bad_id(rng)])
    name = rng.choice(["a", "b", bad_id(rng), bad_id(rng)])
    if world.paths and rng.random() < 0.3:
        run_id, kind, name = rng.choice(world.paths).removeprefix("tinker://").split("/", 2)
    checkpoint = f"/training_runs/{in_url(rng, run_id)}/checkpoints/{in_url(rng, kind)}/"
    checkpoint += in_url(rng, name)
    method, path = rng.choice(
        [
            ("GET", f"/training_runs/{in_url(rng, run_id)}"),
            ("GET", f"/training_runs/{in_url(rng, run_id)}/checkpoints"),
            ("DELETE", checkpoint),
            ("POST", f"{checkpoint}/publish"),
            ("DELETE", f"{checkpoint}/publish"),
            ("GET", f"{checkpoint}/archive"),
            ("GET", f"{checkpoint}/external_weights_urls"),
            (
                "GET",
                f"/downloads/{in_url(rng, run_id)}/{in_url(rng, kind)}/{in_url(rng, name)}/x"
                f"?expires={rng.choice([0, 2**40, 'x'])}&signature={in_url(rng, bad_id(rng))}",
            ),
            ("GET", f"/sessions/{in_url(rng, bad_id(rng))}"),
            ("GET", f"/samplers/{in_url(rng, a_sampler(world))}"),
            ("POST", f"/sessions/{in_url(rng, bad_id(rng))}/finish"),
        ]
    )
    await world.send(method, path)
    if rng.random() < 0.2:
        ttl = rng.choice([60, None, bad_value(rng)])
        await world.send("PUT", f"{checkpoint}/ttl", body={"ttl_seconds": ttl})


async def tricky_path_in_body(world: World) -> None:
    rng, path = world.rng, bad_path(world)
    route, body = rng.choice(
        [
            ("weights_info", {"tinker_path": path}),
            ("weights_info", {"tinker_path": path}),
            ("copy_weights", {"source_path": f"{path}/x"}),
            ("load_weights", {"session_id": a_session(world), "model_seq_id": 7, "path": path}),
            (
                "create_sampling_session",
                {"session_id": "no", "sampling_session_seq_id": 0, "model_path": path},
            ),
            ("save_weights", {"model_id": bad_id(rng), "seq_id": 1, "path": bad_id(rng)}),
        ]
    )
    await world.send("POST", f"/{route}", body=body)


async def bad_page(world: World) -> None:
    numbers = ("-1", "0", "1", "10000", "10001", "9" * 30, "9" * 5000, "nan", "1e3", "", "٣", "%00")
    query = f"limit={world.rng.choice(numbers)}&offset={world.rng.choice(numbers)}"
    route = world.rng.choice(["sessions", "sessions", "sessions", "training_runs", "checkpoints"])
    await world.send("GET", f"/{route}?{query}")


async def too_large(world: World) -> None:
    """Bodies beyond the limit, declared or not, of one piece or of many."""
    rng = world.rng
    route = rng.choice(["forward_backward", "asample", "create_model", "weights_info"])
    limit = MAX_BODY_BYTES if route == "forward_backward" else MAX_JSON_BYTES
    num_bytes = limit + rng.choice([1, 1000, 2 * limit])

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, num_bytes, 16_384):
            yield b" " * min(16_384, num_bytes - start)

    headers: dict[str, str | bytes] = {"content-type": "application/json"}
    if rng.random() < 0.3:
        headers["content-length"] = rng.choice(["0", "5", str(10**15), "-1", "x"])
    content = pieces() if rng.random() < 0.5 else b" " * num_bytes
    await world.send("POST", f"/{route}", content=content, headers=headers, expect=(413,))


def protobuf(
    run_id: str, seq_id: int, sequences: list[list[int]], loss_fn: str = "cross_entropy"
) -> pb.ForwardBackwardRequest:
    """A valid request: next-token prediction over each sequence."""
    message = pb.ForwardBackwardRequest(model_id=run_id, seq_id=seq_id, loss_fn=loss_fn)
    for tokens in sequences:
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.array(tokens[:-1], "<i4").tobytes()
        set_dense(datum, "target_tokens", np.array(tokens[1:], "<i8"))
    return message


def set_dense(datum: pb.Datum, name: str, array: np.ndarray, dtype: int | None = None) -> None:
    tensor = datum.loss_fn_inputs[name]
    tensor.dense = array.tobytes()
    tensor.dtype = dtype or (pb.DTYPE_INT64 if array.dtype.kind == "i" else pb.DTYPE_FLOAT32)  # pyright: ignore[reportAttributeAccessIssue]
    del tensor.shape[:]
    tensor.shape.extend(array.shape)


def set_sparse(
    datum: pb.Datum, name: str, shape: list[int], crow: list[int], columns: list[int]
) -> None:
    tensor = datum.loss_fn_inputs[name]
    tensor.dtype = pb.DTYPE_INT64
    del tensor.shape[:]
    tensor.shape.extend(shape)
    tensor.sparse_csr.values = np.full(len(columns), 7, "<i8").tobytes()
    tensor.sparse_csr.crow_indices = np.array(crow, "<i8").tobytes()
    tensor.sparse_csr.col_indices = np.array(columns, "<i8").tobytes()


def spoil_message(rng: random.Random, message: pb.ForwardBackwardRequest) -> bytes:
    """Make the request wrong in one way; the bytes may be no message at all."""
    datum = message.data[0]
    num_tokens = len(TRAINING[0]) - 1
    numbers = np.array([0.5, np.nan, np.inf, -np.inf, 1e38, -1.0, 0.0], "<f4")
    way = rng.randrange(16)
    if way == 0:
        whole = message.SerializeToString()
        return whole[: rng.randrange(len(whole))]
    if way == 1:
        whole = bytearray(message.SerializeToString())
        for _ in range(rng.randrange(1, 6)):
            whole[rng.randrange(len(whole))] = rng.randrange(256)
        return bytes(whole)
    if way == 2:
        message.loss_fn = rng.choice(["", "nonsense", "custom", "stable_reinforce", "x" * 5000])
    elif way == 3:
        tokens = [rng.choice([-1, 300, 2**31 - 1, -(2**31), 5])] * num_tokens
        datum.model_input[0].encoded_text.tokens = np.array(tokens, "<i4").tobytes()
    elif way == 4:
        targets = [rng.choice([-1, 300, 2**62, -(2**63), 5])] * num_tokens
        set_dense(datum, "target_tokens", np.array(targets, "<i8"))
    elif way == 5:
        set_dense(datum, "target_tokens", np.arange(rng.choice([0, 1, 3, 500]), dtype="<i8"))
    elif way == 6:
        shape = rng.choice([[2, 2], [-1], [-1, -4], [4, 0], [0, 4], [2**62, 4], [4, 1, 1], [4, -1]])
        del datum.loss_fn_inputs["target_tokens"].shape[:]
        datum.loss_fn_inputs["target_tokens"].shape.extend(shape)
    elif way == 7:
        weights = rng.choices(list(numbers), k=num_tokens)
        set_dense(datum, "weights", np.array(weights, "<f4"))
    elif way == 8:
        dtype = rng.choice([0, 1, 2, 3, 4, 99])
        set_dense(datum, "target_tokens", np.full(num_tokens, 7, "<i8"), dtype)
    elif way == 9:
        big = rng.choice([2**62, 2**31, 10**6, 4096, 4097, 0, -1, 8])
        rows = rng.choice([num_tokens, 2**62, -1, 0])
        crow = rng.choice([[0, 1, 2, 3, 4], [0, 4, 1, 2, 4], [4] * 5, [-1, 0, 0, 0, 0], [], [0]])
        columns = [rng.choice([0, 1, -1, 2**40, -(2**63), 5]) for _ in range(rng.choice([4, 0]))]
        set_sparse(datum, "target_tokens", [rows, big], crow, columns)
    elif way == 10:
        message.loss_fn = rng.choice(["ppo", "dro", "gspo", "cispo", "importance_sampling"])
        for name in rng.sample(["logprobs", "advantages", "sequence_ratio_mask"], rng.randrange(4)):
            values = rng.choices(list(numbers), k=rng.choice([num_tokens, num_tokens, 1]))
            set_dense(datum, name, np.array(values, "<f4"))
        for name in ("beta", "clip_low_threshold", "nonsense"):
            if rng.random() < 0.4:
                message.loss_fn_config[name] = rng.choice([0.1, 5.0, np.nan, -np.inf, 1e308])
        if rng.random() < 0.2:
            message.loss_fn_config_v2["beta"].text = "x"
    elif way == 11:
        chunk = datum.model_input.add()
        if rng.random() < 0.5:
            chunk.image.data = b"x"
        else:
            chunk.encoded_text.tokens = rng.choice([b"abc", b"", b"\x05\x00\x00\x00" * 600])
    elif way == 12:
        del message.data[:]
    elif way == 13:
        datum.ClearField(rng.choice(["model_input", "loss_fn_inputs"]))
    elif way == 14:
        for name in ("target_tokens", "weights"):
            datum.loss_fn_inputs[name].dense = rng.randbytes(rng.choice([3, 7, 16, 32]))
    else:
        message.forward_only = True
    return message.SerializeToString()


async def spoilt_protobuf(world: World) -> None:
    rng, run = world.rng, a_run(world)
    seq_id = max(-(2**31), min(2**31 - 1, a_seq_id(world, run)))
    message = protobuf(run.run_id, seq_id, TRAINING)
    content = message.SerializeToString() if rng.random() < 0.1 else spoil_message(rng, message)
    await world.send("POST", "/forward_backward", content=content)


async def spoilt_sample(world: World) -> None:
    """Sampling parameters and prompt questions out of any range; cheap ones, mostly."""
    rng, body = world.rng, sample_body(world)
    params = body["sampling_params"]
    huge = [0, -1, 1, 2, 300, 301, 10**6, 2**31, 2**63, 10**30, 1.5, None, "x"]
    indices = [[0], [0, 1, 2, 3, 4], [0] * 5, [4, 0, 0, 0, 4], [2**63] * 5, None, [-1, 0, 0, 0, 4]]
    for _ in range(rng.randrange(1, 4)):
        way = rng.randrange(9)
        if way == 0:
            values = [0, 1e-9, 1e-5, 1e308, -1, float("nan"), float("inf"), 5]
            params["temperature"] = rng.choice(values)
        elif way == 1:
            params["top_k"] = rng.choice(huge)
        elif way == 2:
            params["top_p"] = rng.choice([0, 1, 1.1, -1, 5e-324, 0.5, float("nan"), "x"])
        elif way == 3:
            params["seed"] = rng.choice([0, -1, 2**64, 10**300, -(10**4000), 1.5, "x", None])
        elif way == 4:
            stops = ["", "x" * 9000, [], [""], [-1], [2**70], ["a", 1], [5] * 65, [None], "\ud800"]
            params["stop"] = rng.choice(stops)
        elif way == 5:
            for name in rng.sample(
                ["topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"], 2
            ):
                body[name] = rng.choice([0, 1, 3, *huge])
        elif way == 6:
            body["prompt_logprobs"] = rng.choice([True, False, None])
            body["prompt_logprobs_last_n"] = rng.choice([1, 4, 5, *huge])
        elif way == 7:
            rows = rng.choice([4, 0, 1, 2**63])
            shape = rng.choice([[rows, 1], [rows, 2**63], [rows, 10**30], [], [4], [4, 1, 1], [-4]])
            tokens = rng.choice([[5, 6, 7, 8], [], [-1] * 4, [300] * 4, [2**64] * 4, [5]])
            targets = {"data": tokens, "shape": shape, "sparse_crow_indices": rng.choice(indices)}
            body["target_prompt_logprobs"] = {**targets, "sparse_col_indices": [0] * len(tokens)}
        else:
            tokens = [
                [],
                [5],
                [-1],
                [300],
                [2**70],
                [5] * 511,
                [5] * 512,
                [5] * 5000,
                [1.5],
                [None],
            ]
            body["prompt"]["chunks"][0]["tokens"] = rng.choice(tokens)
    if rng.random() < 0.1:
        body["prompt"]["chunks"].append({"type": rng.choice(["image", "encoded_text", "x"])})
    if rng.random() < 0.05:  # giant numbers of samples and tokens, one of the two small
        body["num_samples"] = rng.choice([0, 1025, 2**63])
    elif rng.random() < 0.02:
        body["num_samples"], params["max_tokens"] = 200, 1
    elif rng.random() < 0.05:
        params["max_tokens"] = rng.choice([0, -1, 2**63, 10**30])
        body["prompt"]["chunks"][0]["tokens"] = [5] * 505
    await world.send("POST", "/asample", body=body)


async def wrong_order(world: World) -> None:
    """Work for sessions and runs that are not there yet, or not any more, and unknown futures."""
    rng = world.rng
    opened = await world.send("POST", "/create_session", body={})
    session = opened.json()["session_id"]
    run = NoiseRun(f"{session}:train:0")
    step = {"model_id": run.run_id, "seq_id": 1, "adam_params": ADAM}
    unnamed = {"model_id": run.run_id, "seq_id": 3, "sampling_session_seq_id": 0}
    create = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
    sample = {**sample_body(world), "sampling_session_id": f"{session}:sample:0"}
    await world.send("POST", "/optim_step", body=step, expect=(404,))
    await world.send("POST", "/asample", body=sample, expect=(404,))
    if rng.random() < 0.3:
        await world.send("POST", "/create_model", body={**create, "lora_config": {"rank": 2}})
        await world.send("POST", "/save_weights_for_sampler", body=unnamed)  # before number 1
        await world.send("POST", "/asample", body=sample)  # before its weights are saved
        if rng.random() < 0.5:
            await world.fetch_results()
            if rng.random() < 0.5:
                world.state.futures.purge()
            await world.send("POST", "/create_model", body={**create, "lora_config": {"rank": 2}})
    await world.send("POST", f"/sessions/{session}/finish", body={"reason": {"type": "success"}})
    await world.send("POST", "/save_weights", body={**step, "path": "x"}, expect=(404,))
    await world.send("POST", "/asample", body=sample, expect=(404,))
    await world.send("POST", "/session_heartbeat", body={"session_id": session}, expect=(410,))
    await world.send("POST", "/create_model", body=create, expect=(404,))
    await world.send("POST", "/retrieve_future", body={"request_id": "no"}, expect=(404,))


async def finish_or_replace(world: World) -> None:
    """Sessions come and go, with futures of theirs still open."""
    rng = world.rng
    if len(world.sessions) > 3:
        session = world.sessions.pop(rng.randrange(len(world.sessions)))
        await world.send("POST", f"/sessions/{session}/finish", body={})
        if rng.random() < 0.7:
            world.runs = [run for run in world.runs if not run.run_id.startswith(session)]
    opened = await world.send("POST", "/create_session", body={})
    session = opened.json()["session_id"]
    world.sessions.append(session)
    create = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
    lora = {"rank": rng.choice([1, 4, 8]), "seed": 1, "train_attn": rng.random() < 0.8}
    await world.send("POST", "/create_model", body={**create, "lora_config": lora})
    world.runs.append(NoiseRun(f"{session}:train:0"))
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "llama"}
    await world.send("POST", "/create_sampling_session", body=sampler)
    world.samplers = [*world.samplers, f"{session}:sample:0"][-10:]


async def burst(world: World) -> None:
    """Requests about the same checkpoints at the same time: listing, deleting, copying, expiry."""
    rng, run = world.rng, a_run(world)
    seq_id = a_seq_id(world, run)
    save = {"model_id": run.run_id, "seq_id": seq_id, "path": "a", "overwrite": True}
    checkpoint = f"/training_runs/{in_url(rng, run.run_id)}/checkpoints/weights/a"
    source = {"source_path": f"tinker://{run.run_id}/weights/a"}
    sent: list[Awaitable[httpx.Response]] = [
        world.send("POST", "/save_weights", body=save),
        world.send("DELETE", checkpoint),
        world.send("DELETE", checkpoint),
        world.send("GET", "/checkpoints"),
        world.send("GET", "/training_runs"),
        world.send("PUT", f"{checkpoint}/ttl", body={"ttl_seconds": 60}),
        world.send("POST", "/copy_weights", body=source),
        world.send("POST", "/load_weights", body={**source, "path": source["source_path"]}),
    ]
    rng.shuffle(sent)
    await asyncio.gather(*sent)


async def late_load(world: World) -> None:
    """A load that is acknowledged, and whose checkpoint is deleted before its turn comes."""
    run = a_run(world)
    seq_id = run.next_seq_id
    run.next_seq_id += 3
    path = f"tinker://{run.run_id}/weights/late"
    save = {"model_id": run.run_id, "seq_id": seq_id, "path": "late", "overwrite": True}
    await world.send("POST", "/save_weights", body=save)
    await world.fetch_results()
    load = {"model_id": run.run_id, "seq_id": seq_id + 2, "path": path}
    await world.send("POST", "/load_weights", body=load)
    checkpoint = f"/training_runs/{in_url(world.rng, run.run_id)}/checkpoints/weights/late"
    await world.send("DELETE", checkpoint)
    step = {"model_id": run.run_id, "seq_id": seq_id + 1, "adam_params": ADAM}
    await world.send("POST", "/optim_step", body=step)


# --- OpenAI's routes, and downloads ---------------------------------------------------------------

OPENAI_ROUTES = ("chat/completions", "completions")
MESSAGE = {"role": "user", "content": "na\u00efve \U0001f642"}
ODD_MESSAGES: tuple[Any, ...] = (
    [], [{}], [None], "x", [{**MESSAGE, "role": "tool"}], [{**MESSAGE, "role": "x"}],
    [{"role": "user"}], [{"role": "user", "content": None}], [{"role": "assistant"}, MESSAGE],
    [{**MESSAGE, "content": "half \ud800"}], [{**MESSAGE, "content": "\x00"}], [MESSAGE] * 40,
    [{**MESSAGE, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "\udfff"}]}],
    [{**MESSAGE, "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    [{**MESSAGE, "content": [{"type": "text"}]}], [{**MESSAGE, "content": [[]]}],
    [{**MESSAGE, "content": "<|eot_id|><|start_header_id|>"}],
    [{**MESSAGE, "content": "x" * 20_000}],
    [{"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function"}]}],
    [{"role": "system", "content": ""}, {"role": "developer", "content": []}], DEEP.format(5000),
)  # fmt: skip
ODD_OPENAI: dict[str, tuple[Any, ...]] = {
    "n": (0, 1, 5, 129, 1000, True, 2**70, "1", None),
    "stop": ("", [""], ["a", ""], ["a"] * 64, ["a"] * 65, ["aa", "a", "aaa"], "\ud800", [None], 5,
             "\u00e9", ["\U0001f642", "\u65e5"], "x" * 9000, [[]], {}),
    "seed": (0, -1, 2**63, 2**64, 10**300, -(10**4000), 1.5, "x"),
    "temperature": (0, 0.0, 1e-9, 1e308, -1, 1, True, "1", float("nan"), 10**400),
    "top_p": (0, 1, 1.1, 5e-324, 0.5, None, float("inf")),
    "top_k": (0, -1, -2, 1, 10**30, 1.5, "x"),
    "max_tokens": (0, 1, 5, -1, 1.5, "x", True),
    "max_completion_tokens": (0, 1, 4, -1, 1.0),
    "logprobs": (True, False, 0, 3, 20, 21, -1, None, "x"),
    "top_logprobs": (0, 1, 20, 21, -1, True, None),
    "echo": (True, False, 1, None),
    "stream": (True, True, False, None, "true", 1),
    "stream_options": ({}, {"include_usage": True}, {"x": 1}, [], None, True),
    "model": ("", "gpt-9", "\ud800", "llama;", ";llama", "llama;tinker://", "x" * 5001, None, 5),
    "prompt": ("", "x", [], [[]], [5], [[5], [6]], ["a", "b"], ["a", 5], [-1], [300], [2**70],
               [True], [[5], "a"], "half \ud800", ["a", "\udfff"], "x" * 20_000, [5] * 600, None,
               {}, ["a"] * 257, [[5]] * 20, DEEP.format(900)),
    "messages": ODD_MESSAGES,
    "tools": ([], [{"type": "function"}], DEEP.format(980), {}, None),
    "response_format": ({"type": "text"}, {"type": "json_object"}, "text"),
    "logit_bias": ({}, {"5": 1}, [], None),
    "frequency_penalty": (0, 0.0, 1, "0", float("nan")),
    "metadata": ({"a": "b"}, DEEP.format(900), 5),
    "unknown": (1, None),
}  # fmt: skip


def openai_body(world: World, route: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "llama", "max_tokens": 3, "temperature": 0}
    if world.paths and world.rng.random() < 0.3:
        body["model"] = world.rng.choice(["", "llama;", "x;"]) + bad_path(world)
    asked = {"messages": [MESSAGE]} if route == "chat/completions" else {"prompt": "na\u00efve"}
    return {**body, **asked}


async def spoilt_openai(world: World) -> None:
    """Parameters of all kinds, one to three at a time, so that those of streams and scores meet."""
    rng = world.rng
    route = rng.choice(OPENAI_ROUTES)
    body = openai_body(world, route)
    if rng.random() < 0.4:
        body |= {"stream": True, "logprobs": True if route == "chat/completions" else 2}
    for name in rng.sample(list(ODD_OPENAI), rng.choice([0, 1, 1, 2, 3])):
        body[name] = rng.choice(ODD_OPENAI[name])
    if rng.random() < 0.2:
        body = spoilt(rng, body)
    key = rng.choice([KEY, KEY, OTHER_KEY])
    headers: dict[str, str | bytes] = {"x-api-key": b"-", "authorization": f"Bearer {key}"}
    response = await world.send(
        "POST", f"/{route}", body=body, headers=headers, prefix=OPENAI_PREFIX
    )
    if response.status_code == 200:
        check_completion(world, body, response)


def check_completion(world: World, body: dict[str, Any], response: httpx.Response) -> None:
    """An answer is whole: its parts add up, and a stream ends as streams do."""
    label = f"{to_json(body)[:300]!r}"
    if response.headers["content-type"] == "application/json":
        answer = response.json()
        used = answer["usage"]
        reasons = {choice["finish_reason"] for choice in answer["choices"]}
        adds_up = used["prompt_tokens"] + used["completion_tokens"] == used["total_tokens"]
        if not adds_up or not reasons or not reasons <= {"stop", "length"}:
            world.problems.append(f"an answer that is not whole: {label} -> {response.text[:300]}")
        return
    events = response.text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    open_choices = {c["index"] for chunk in chunks for c in chunk.get("choices", [])} - {
        c["index"] for chunk in chunks for c in chunk.get("choices", []) if c["finish_reason"]
    }
    if events[-2:] != ["data: [DONE]", ""] or open_choices or not chunks:
        world.problems.append(f"a stream that does not end: {label} -> {response.text[-300:]}")


async def odd_openai_request(world: World) -> None:
    """Bodies that are none, too large ones, keys in the wrong place, models of any name."""
    rng = world.rng
    route, bearer = rng.choice(OPENAI_ROUTES), f"Bearer {KEY}".encode()
    way = rng.randrange(4)
    if way == 0:
        headers: dict[str, str | bytes] = {
            "content-type": rng.choice(["application/json", "x", ""])
        }
        content = not_json(rng)
        await world.send(
            "POST", f"/{route}", content=content, headers=headers, prefix=OPENAI_PREFIX
        )
    elif way == 1:
        content = b" " * (MAX_JSON_BYTES + 1)
        await world.send("POST", f"/{route}", content=content, expect=(413,), prefix=OPENAI_PREFIX)
    elif way == 2:
        values = (
            b"-", b"", b"Bearer", b"Bearer ", b"Basic " + KEY.encode(), KEY.encode(), bearer[:-1],
            b"Bearer \xff\xfe", b"Bearer " + bearer, b"Bearer " + b"x" * 50_000,
        )  # fmt: skip
        headers = {"x-api-key": b"-", "authorization": rng.choice(values)}
        await world.send("GET", "/models", headers=headers, expect=(401,), prefix=OPENAI_PREFIX)
        headers = {"x-api-key": b"-", "authorization": bearer}  # where it is not read
        await world.send("GET", "/sessions", headers=headers, expect=(401,))
    else:
        name = rng.choice(["llama", bad_id(rng), bad_path(world)])
        await world.send("GET", f"/models/{in_url(rng, name)}", prefix=OPENAI_PREFIX)
        await world.send(rng.choice(["GET", "PUT", "HEAD"]), f"/{route}", prefix=OPENAI_PREFIX)


async def download(world: World) -> None:
    """An archive's address as it was given, and with a part of it changed, which opens nothing."""
    rng = world.rng
    run_id, kind, name = rng.choice([world.kept_path, *world.paths[-1:]])[9:].split("/", 2)
    checkpoint = f"/training_runs/{in_url(rng, run_id)}/checkpoints/{in_url(rng, kind)}/"
    given = await world.send("GET", f"{checkpoint}{in_url(rng, name)}/archive")
    if given.status_code != 302:
        return
    where, _, query = (
        given.headers["location"].removeprefix(f"http://service{PREFIX}").partition("?")
    )
    no_key: dict[str, str | bytes] = {"x-api-key": b"-", "range": "bytes=5-9"}
    whole = await world.send("GET", f"{where}?{query}", headers=no_key, expect=(200,))
    if len(whole.content) != int(whole.headers["content-length"]) or len(whole.content) % 512:
        world.problems.append(f"a tar that is not whole: {where}")
    file = where.rpartition("/")[0]
    changed = rng.choice(
        [
            f"{where}?{query.replace('expires=', 'expires=1')}",
            f"{where}?{query[:-1]}",
            f"{where}?{query}0",
            f"{where}?expires=99999999999&signature={'0' * 64}",
            f"{file}/adapter_config.json?{query}",
            f"{file}/..%2fadapter_config.json?{query}",
            f"{file}/%2e%2e/{name}/archive.tar?{query}",
            f"{where}%00?{query}",
            f"{where}/?{query}",
            where,
        ]
    )
    await world.send("GET", changed, headers=no_key, expect=(400, 404, 422))


KINDS: dict[Callable[[World], Awaitable[None]], float] = {
    spoilt_json: 28,
    no_json: 15,
    wrong_key: 10,
    unknown_route: 10,
    tricky_path: 11,
    tricky_path_in_body: 8,
    bad_page: 4,
    too_large: 3,
    spoilt_protobuf: 11,
    spoilt_sample: 10,
    wrong_order: 0.5,
    finish_or_replace: 0.4,
    burst: 0.4,
    late_load: 0.2,
    spoilt_openai: 14,
    odd_openai_request: 4,
    download: 2,
}


# --- the real work between them -------------------------------------------------------------------


@dataclass
class RealRun:
    """A training run by hand; `results` holds what its requests returned, in order."""

    world: World
    run_id: str
    seq_id: int = 0
    results: list[bytes] = field(default_factory=list)

    async def _ask(self, route: str, **sent: Any) -> bytes:
        accepted = await self.world.send("POST", f"/{route}", **sent)
        assert accepted.status_code == 200, accepted.text
        request_id = accepted.json()["request_id"]
        self.world.open_futures.pop(request_id)
        return (await self.world.result(request_id)).content

    async def step(self) -> None:
        self.seq_id += 2
        forward = protobuf(self.run_id, self.seq_id - 1, TRAINING).SerializeToString()
        self.results.append(await self._ask("forward_backward", content=forward))
        optim = {"model_id": self.run_id, "seq_id": self.seq_id, "adam_params": ADAM}
        self.results.append(await self._ask("optim_step", body=optim))

    async def save(self, root: Path) -> Files:
        self.seq_id += 1
        body = {"model_id": self.run_id, "seq_id": self.seq_id, "path": "end"}
        saved = json.loads(await self._ask("save_weights", body=body))
        assert saved["path"] == f"tinker://{self.run_id}/weights/end"
        folder = root / self.run_id.replace(":", "_") / "weights" / "end"
        assert json.loads((folder / "checkpoint.json").read_text())["num_optimizer_steps"] == (
            NUM_STEPS
        )
        return Files(
            (folder / "adapter_model.safetensors").read_bytes(),
            (folder / "optimizer.safetensors").read_bytes(),
        )

    async def sample(self, sampler_id: str, seq_id: int) -> bytes:
        """Three samples with their prompt's log-probabilities; the same bytes every time."""
        prompt = {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]}
        body = {
            "sampling_session_id": sampler_id,
            "seq_id": seq_id,
            "num_samples": 3,
            "prompt": prompt,
            "sampling_params": {"max_tokens": 9, "seed": 5, "stop": [], "top_p": 0.9},
            "prompt_logprobs": True,
        }
        return await self._ask("asample", body=body)

    async def be_disturbed(self) -> None:
        """Numbers that are taken or impossible: none of these may change what the run does."""
        rng = self.world.rng
        used = rng.choice([self.seq_id, max(1, self.seq_id - 1), 1, 0])
        taken = {"model_id": self.run_id, "seq_id": used}
        impossible = {"model_id": self.run_id, "seq_id": rng.choice([-5, 2**31, 10**40])}
        route, body = rng.choice(
            [
                ("optim_step", {**taken, "adam_params": {"learning_rate": 1e3}}),
                ("optim_step", {**taken, "adam_params": None}),
                ("optim_step", {**taken, "adam_params": {"beta1": 5}}),
                ("load_weights", {**taken, "path": bad_path(self.world)}),
                ("save_weights", {**taken, "path": ".."}),
                ("optim_step", {**impossible, "adam_params": ADAM}),
                ("save_weights", {**impossible, "path": "x"}),
            ]
        )
        if self.seq_id:
            await self.world.send("POST", f"/{route}", body=body)


async def begin_run(world: World) -> tuple[RealRun, str]:
    """Open a session with a run and a sampler of the base model."""
    session = (await world.send("POST", "/create_session", body={})).json()["session_id"]
    create = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
    lora = {"rank": 4, "seed": 1}
    await world.send("POST", "/create_model", body={**create, "lora_config": lora}, expect=(200,))
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "llama"}
    made = await world.send("POST", "/create_sampling_session", body=sampler, expect=(200,))
    await world.fetch_results()
    return RealRun(world, f"{session}:train:0"), made.json()["sampling_session_id"]


async def quiet_run(world: World, root: Path) -> tuple[RealRun, Files, bytes]:
    """The whole training run and a sample, with nobody else about."""
    run, sampler_id = await begin_run(world)
    for _ in range(NUM_STEPS):
        await run.step()
    return run, await run.save(root), await run.sample(sampler_id, 0)


async def fuzz(world: World, root: Path, num_requests: int) -> None:
    quiet, quiet_files, quiet_sample = await quiet_run(world, root)
    world.kept_path = f"tinker://{quiet.run_id}/weights/end"
    for _ in range(4):
        await finish_or_replace(world)
    real, sampler_id = await begin_run(world)
    next_fetch = world.num_requests
    for index in range(NUM_STEPS):
        while world.num_requests < num_requests * (index + 1) // (NUM_STEPS + 1):
            (kind,) = world.rng.choices(list(KINDS), list(KINDS.values()))
            await kind(world)
            if world.rng.random() < 0.02:
                await real.be_disturbed()
            if world.num_requests >= next_fetch:
                next_fetch = world.num_requests + RETRIEVE_EVERY
                sample = await real.sample(sampler_id, next_fetch)  # in a wave with the noise
                if sample != quiet_sample:
                    world.problems.append(f"a sample differs at request {world.num_requests}")
                await world.fetch_results()
        await real.step()
        world.state.housekeeping()
    while world.num_requests < num_requests:
        await wrong_key(world)
    await world.fetch_results()
    real_files = await real.save(root)
    if real.results != quiet.results or real_files != quiet_files:
        world.problems.append("the training run differs from the one in the quiet")
    _, files, sample = await quiet_run(world, root)
    if files != quiet_files or sample != quiet_sample:
        world.problems.append("a training run afterwards differs from the one before")


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "checkpoints", tmp_path / "others"
    for folder in made:
        folder.mkdir()
    return made


@pytest.fixture
def state(
    llama_dir: Path, roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[State]:
    """A service without its server, with little memory for runs, short waits and small limits."""
    monkeypatch.setattr(app_module, "MAX_JSON_BYTES", MAX_JSON_BYTES)
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", MAX_BODY_BYTES)
    monkeypatch.setattr(state_module, "GAP_S", 0.05)
    monkeypatch.setattr(future_routes, "HOLD_S", 0.05)  # of a poll that lost its timeout
    monkeypatch.setattr(futures_module, "KEEP_RESULT_S", 0.5)
    engine = Engine.load("llama", str(llama_dir), "cpu")
    room_bytes = 600_000  # for a few runs of these; the others are parked on disk
    memory = RunMemory(engine.num_base_bytes + room_bytes)
    memory.reserve(engine)
    made = State(Worker(), memory)
    made.engines["llama"] = engine
    made.checkpoint_dirs |= {KEY: roots[0], OTHER_KEY: roots[1]}
    yield made
    made.worker.close()


def files_below(directory: Path, skipped: tuple[Path, ...]) -> set[Path]:
    return {
        file
        for file in directory.rglob("*")
        if not any(file.is_relative_to(folder) for folder in skipped)
    }


@pytest.mark.filterwarnings("ignore")  # of libraries, about numbers that are nonsense
def test_hostile_requests(state: State, roots: tuple[Path, Path], tmp_path: Path) -> None:
    """Proven: no status that makes the SDK repeat a refused request, errors always explained in
    JSON, no key in any answer, no failure that is called the server's, nothing written outside the
    checkpoint folder or under a strange name, every future answered, the compute thread alive,
    and real training and sampling between and after all that exact to the last bit."""
    before = files_below(tmp_path.parent, roots)
    transport = httpx.ASGITransport(app=make_app(state), raise_app_exceptions=False)
    world = World(transport, state, random.Random(SEED))
    try:
        asyncio.run(fuzz(world, roots[0], NUM_REQUESTS))
    finally:  # pytest shows it when the real work between the noise has failed
        print(f"{world.num_requests} requests: {dict(world.statuses)}; results {world.num_results}")
        print(f"{len(world.problems)} problems", *world.problems, sep="\n")
    assert not world.problems
    assert world.num_requests >= NUM_REQUESTS
    assert state.worker.is_alive
    assert files_below(tmp_path.parent, roots) == before
    for root in roots:
        for file in root.rglob("*"):
            assert all(HARMLESS.fullmatch(part) for part in file.relative_to(root).parts), file

"""A compatible service that gives weights out as Tinker does: the embedded one behind a proxy.

`save_weights_external` saves sampler weights and calls them external; their files are handed out in
Tinker's own layout, encrypted for whoever asked, each from an address of its own that needs no key.
The SDK and the cookbook are the unmodified ones.
"""

from __future__ import annotations

import datetime
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyrage
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from safetensors.torch import load_file, save

from sdk_client import checkpoint_dir

_pyrage: Any = pyrage  # the extension has no types
SAVE = "/api/v1/save_weights_external"
EXTERNAL, SAMPLER = "/external_weights/", "/sampler_weights/"
HOP_BY_HOP = {"host", "connection", "content-length", "transfer-encoding", "content-encoding"}


class GivingService:
    """What was asked of it, and where it is."""

    def __init__(self, upstream: str, folder: Path) -> None:
        self.upstream, self.folder = upstream, folder
        self.base_url = ""
        self.saved: dict[str, list[str]] = {}  # request id -> whom its files are encrypted for
        self.deleted: list[str] = []
        self.given: dict[str, bytes] = {}  # by name below /given/
        self.keys: set[str] = set()  # that downloads were signed with

    async def answer(self, request: Request) -> Response:
        """Pass a request on, or answer it where it is about external weights."""
        path = request.url.path
        if path.startswith("/given/"):
            self.keys.update(request.headers.getlist("x-api-key"))
            return Response(self.given[path.removeprefix("/given/")])
        if EXTERNAL not in path:
            return await self._passed_on(request)
        if request.method == "DELETE":
            self.deleted.append(path)
        if request.method == "GET":
            return self._urls(path)
        return await self._passed_on(request)

    async def _passed_on(self, request: Request) -> Response:
        body: Any = None
        if request.url.path in (SAVE, "/api/v1/retrieve_future"):
            body = await request.json()
        path = request.url.path.replace(EXTERNAL, SAMPLER)
        recipients: list[str] = []
        content = await request.body()
        headers = {k: v for k, v in request.headers.items() if k not in HOP_BY_HOP}
        if path == SAVE:
            recipients = body["age_encryption_recipients"]
            path = "/api/v1/save_weights_for_sampler"
            passed = {key: body[key] for key in ("model_id", "seq_id", "path", "ttl_seconds")}
            content = json.dumps(passed).encode()
        async with httpx.AsyncClient(base_url=self.upstream, timeout=60) as client:
            query = f"?{request.url.query}" if request.url.query else ""
            found = await client.request(
                request.method, path + query, headers=headers, content=content
            )
        answer = found.content
        if recipients:
            self.saved[found.json()["request_id"]] = recipients
        elif body is not None and body.get("request_id") in self.saved:
            answer = answer.replace(SAMPLER.encode(), EXTERNAL.encode())
        kept = {k: v for k, v in found.headers.items() if k not in HOP_BY_HOP}
        return Response(answer, found.status_code, kept)

    def _urls(self, path: str) -> Response:
        """The addresses of the files of an external checkpoint, which are encrypted for it now."""
        run_id, _, rest = path.split("/training_runs/")[1].partition("/checkpoints/")
        name = rest.removesuffix("/external_weights_urls").partition("/")[2]
        files = in_raw_layout(checkpoint_dir(self.folder, f"tinker://{run_id}{SAMPLER}{name}"))
        (recipients,) = self.saved.values()
        whom = [_pyrage.x25519.Recipient.from_str(one) for one in recipients]
        self.given = {f"{n}.age": _pyrage.encrypt(content, whom) for n, content in files.items()}
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        urls = {name: f"{self.base_url}/given/{name}" for name in self.given}
        return JSONResponse({"urls": urls, "expires": expires.isoformat()})


def in_raw_layout(folder: Path) -> dict[str, bytes]:
    """An adapter's files as Tinker has them: the unembedding by its own name, no list of layers."""
    tensors = {
        name.replace(".lm_head.", ".model.unembed_tokens."): tensor
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    config = json.loads((folder / "adapter_config.json").read_bytes())
    raw = json.dumps({**config, "target_modules": "all-linear"}).encode()
    return {"adapter_config.json": raw, "adapter_model.safetensors": save(tensors)}


@contextmanager
def giving_service(upstream: str, folder: Path) -> Iterator[GivingService]:
    """Serve, before a service that keeps its checkpoints in `folder`."""
    listener = socket.create_server(("127.0.0.1", 0))
    giving, app = GivingService(upstream, folder), FastAPI(openapi_url=None)
    giving.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app.add_route("/{path:path}", giving.answer, methods=["GET", "POST", "PUT", "DELETE"])
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield giving
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()

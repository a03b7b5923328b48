"""`report.py --serve`: a folder of runs in a browser of this machine, and of nobody else.

It listens on the loopback address alone, answers GET and HEAD, and refuses a request whose Host or
Origin is another place: a page from elsewhere that a browser has open could otherwise reach it
under a name of its own. Nothing in the folder is written.
"""

from __future__ import annotations

import contextlib
import errno
import html
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from commands.boundary import describe_failure
from commands.served_runs import ServedRuns, Unknown, refuse_no_folder
from errors import ConfigError, InputError
from loop.reports.console import tell, write_out
from loop.run_page.following import state_of

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "[::1]")
LEAVE_S = 1  # how long answers may take to leave after Ctrl-C
CHUNK_BYTES = 1 << 18
# The policy that a page carries itself, which its answer repeats.
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
# Of a page that somebody else may have written: nothing in it acts, it has its style and no more.
FOREIGN_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
NO_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
ALWAYS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Listening(NamedTuple):
    """Where requests arrive: from now on they wait until they are answered."""

    address: str
    port: int
    socket: socket.socket


def listen(folder: Path, port: int) -> Listening:
    """Take a port of the loopback address. Raises `ConfigError` where it cannot be had."""
    refuse_no_folder(folder)
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: ports are numbers from 0 to 65535; 0 takes a free one.")
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        in_use = error.errno == errno.EADDRINUSE
        why = "another process listens there" if in_use else f"{error.strerror}"
        raise ConfigError(
            f"--port {port}: it cannot be used: {why}. Give another one, or --port 0 for any that "
            "is free."
        ) from None
    port = taken.getsockname()[1]
    return Listening(f"http://{HOST}:{port}/", port, taken)


def serve_runs(folder: Path, listening: Listening) -> None:
    """Answer until Ctrl-C, which is raised as `KeyboardInterrupt`."""
    config = uvicorn.Config(
        make_app(ServedRuns(folder), listening.port),
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        http="h11",  # which leaves a method that it does not know to us
        ws="none",
        timeout_graceful_shutdown=LEAVE_S,
    )
    try:
        uvicorn.Server(config).run([listening.socket])
    except KeyboardInterrupt:
        # A page that is being made would keep the process for as long as that takes.
        threads = [one for one in threading.enumerate() if one is not threading.current_thread()]
        if any(one.is_alive() and not one.daemon for one in threads):
            with contextlib.suppress(OSError):
                write_out()
            sys.stderr.flush()
            os._exit(130)
        raise


def make_app(runs: ServedRuns, port: int) -> Guard:
    """What answers, behind what refuses."""

    def index(request: Request) -> Response:
        return _page(runs.index())

    def changes(request: Request) -> Response:
        return JSONResponse({"version": runs.version()})

    def of_run(request: Request) -> Response:
        found, rest = runs.split(request.path_params["path"])
        if rest == "":
            return RedirectResponse(f"/run/{found.run_id}/", 308)
        if rest == "/":
            return _page(runs.page(found))
        if rest == "/state.json":
            return JSONResponse(state_of(runs.state(found)))
        return _download(runs.file(found, rest[1:]), rest.rpartition("/")[2])

    def report(request: Request) -> Response:
        opened = runs.study_report(request.path_params["study_id"])
        headers = {"content-security-policy": FOREIGN_POLICY}
        return StreamingResponse(_chunks(opened), 200, headers, "text/html; charset=utf-8")

    def compare(request: Request) -> Response:
        return _page(runs.comparison(request.query_params.getlist("run")))

    routes = [
        Route("/", index),
        Route("/changes.json", changes),
        Route("/compare", compare),
        Route("/study/{study_id:path}/report.html", report),
        Route("/run/{path:path}", of_run),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            Unknown: _not_found,
            InputError: _unreadable,
            404: _no_page,
            Exception: _broken,
        },
    )
    return Guard(app, port)


# --- answers --------------------------------------------------------------------------------------


def _page(text: str) -> Response:
    """A page of ours, with the policy that it carries."""
    found = _POLICY.search(text)
    assert found is not None, "every page carries its policy"
    policy = html.unescape(found[1])
    return HTMLResponse(text, headers={"content-security-policy": policy})


def _download(opened: IO[bytes], name: str) -> Response:
    """A file of a run's, to be saved and not shown: what is in it may be anybody's."""
    headers = {
        "content-disposition": f'attachment; filename="{name}"',
        "content-length": str(os.fstat(opened.fileno()).st_size),
    }
    return StreamingResponse(_chunks(opened), 200, headers, "application/octet-stream")


def _chunks(opened: IO[bytes]) -> Iterator[bytes]:
    with opened:
        left = os.fstat(opened.fileno()).st_size  # a ledger may grow meanwhile
        while left > 0 and (content := opened.read(min(CHUNK_BYTES, left))):
            left -= len(content)
            yield content


def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 404)


def _no_page(request: Request, error: Exception) -> Response:
    return PlainTextResponse("There is no such page. The list of runs is at /\n", 404)


def _unreadable(request: Request, error: Exception) -> Response:
    """A run or a choice of runs that cannot be shown; why, in the command's words."""
    return PlainTextResponse(f"{error}\n", 422)


def _broken(request: Request, error: Exception) -> Response:
    """What nobody thought of: said here and to who started the server; others are answered on."""
    message = describe_failure(error)
    tell(f"error: {request.url.path}: {message}", file=sys.stderr)
    return PlainTextResponse(f"{message}\n", 500)


# --- what is refused ------------------------------------------------------------------------------


class Guard:
    """Refuses what does not come from a browser of this machine that shows our pages, and gives
    every answer its headers."""

    def __init__(self, app: Starlette, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        self._address = f"http://{HOST}:{port}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers[name] = value
                policy = headers.get("content-security-policy", NO_POLICY)
                headers["content-security-policy"] = f"{policy}; frame-ancestors 'none'"
            await send(message)

        refusal = self._refusal(scope)
        answer = self._app if refusal is None else refusal
        await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["type"] != "http":
            return PlainTextResponse("Only pages are served here.\n", 400)
        headers = Headers(scope=scope)
        if [host.lower() for host in headers.getlist("host")] not in ([h] for h in self._hosts):
            return PlainTextResponse(
                f"This server answers as {self._address} alone. Through ssh -L give the same port "
                "at both ends.\n",
                403,
            )
        origins = {f"http://{host}" for host in self._hosts}
        if not origins.issuperset(headers.getlist("origin")):
            return PlainTextResponse("Pages from elsewhere may not ask here.\n", 403)
        # Of a link elsewhere it may be followed; nothing here is a part of another page.
        is_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if is_elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("Pages from elsewhere may not ask here.\n", 403)
        if scope["method"] not in ("GET", "HEAD"):
            allow = {"allow": "GET, HEAD"}
            return PlainTextResponse("Nothing can be changed here.\n", 405, allow)
        return None

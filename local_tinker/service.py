"""Start and stop the service: one server thread and one compute thread of the calling process."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import uvicorn

from local_tinker import checkpoints
from local_tinker.adopting import adopt
from local_tinker.app import make_app
from local_tinker.background import Background
from local_tinker.checkpoints import CheckpointInfo, Kind
from local_tinker.engine import Engine
from local_tinker.memory import RunMemory, default_limit_bytes
from local_tinker.peft_folders import PeftFolder
from local_tinker.state import State
from local_tinker.wire import UserError
from local_tinker.worker import Closed, Result, Worker

HOST = "127.0.0.1"
LINGER_S = 0.5  # how long a closing service answers that it is closing
LEAVE_S = 3.0  # how long answers may take to leave when the service closes


class Service:
    """A running service. `base_url` is its address; `open_folder` gives a key to reach it with."""

    def __init__(
        self,
        port: int = 0,
        host: str = HOST,
        max_memory_bytes: int | None = None,
        device: str | None = None,
    ) -> None:
        """Take the address; clients that connect wait until `serve`. Models go to `device`.

        Raises `OSError` when it cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio turns Nagle's algorithm off only where the protocol is named; with it, the body
        # of an answer waits some 40 ms for the client to acknowledge the head.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(2048)
        except OSError:
            self._socket.close()
            raise
        shown = f"[{host}]" if ":" in host else host
        self.base_url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._device = device
        self._memory = RunMemory(
            default_limit_bytes(device) if max_memory_bytes is None else max_memory_bytes
        )
        self._worker = Worker()
        self._state = State(self._worker, self._memory)
        config = uvicorn.Config(
            make_app(self._state),
            http="httptools",
            ws="none",
            proxy_headers=False,
            server_header=False,
            log_level="critical",
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(LEAVE_S),
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._thread = Background("local-tinker-http", lambda: self._server.run([self._socket]))
        self._pid = os.getpid()
        atexit.register(self._close_at_exit)
        # The SDK's transport obeys proxy settings also for loopback, and would hang in retries.
        for variable in ("NO_PROXY", "no_proxy"):
            hosts = os.environ.get(variable, "")
            if HOST not in hosts.split(","):
                os.environ[variable] = f"{hosts},{HOST}".lstrip(",")

    def serve(self) -> None:
        """Begin to answer; what has been loaded and opened before is there for the first client."""
        self._thread.start()

    def serve_model(self, name: str, path: str | None = None) -> None:
        """Load a base model and serve it as `name`; a name that is served already stays as it is.

        `path` is a directory, or a name in the user's Hugging Face cache (default: `name`).
        Raises `UserError` when it cannot be loaded, or when `name` stands for another path already.
        """
        path = path or name
        served = self._state.engines.get(name)
        if served is None:
            engine = Engine.load(name, path, self._device, max_bytes=self._memory.room_bytes)
            self._memory.reserve(engine)
            self._state.engines[name] = engine
        elif served.path != path:
            raise UserError(
                f"{name!r} is served from {served.path} already; give the model at {path} another "
                "name"
            )

    def also_serve_as(self, name: str, alias: str | None) -> None:
        """Serve a model that is served as `name` under another name as well, without loading it
        again: what the service that saved a checkpoint called it. None, or a name that is served
        already, changes nothing."""
        if alias is not None:
            engine = self._state.engines.setdefault(alias, self._state.engines[name])
            engine.aliases.add(alias)

    def adopt(
        self,
        base_model: str,
        folder: PeftFolder,
        checkpoint_dir: Path | None = None,
        kind: Kind = "sampler_weights",
    ) -> CheckpointInfo:
        """Hold an adapter that another program wrote against a base model that is served, and keep
        it in `checkpoint_dir` (None: nowhere) under `folder.path(kind)`.

        Raises `FolderError` where it does not fit the model, and `StorageError`.
        """
        engine = self._state.engine_named(base_model)
        made: list[CheckpointInfo] = []

        def job() -> Result:
            made.append(adopt(engine, folder, checkpoint_dir, kind))
            return {}

        self._worker.submit("adopted", engine, job).result()
        return made[0]

    def open_folder(self, checkpoint_dir: Path, api_key: str | None = None) -> str:
        """Return an API key whose sessions keep their checkpoints in `checkpoint_dir`.

        Checkpoints that an earlier process left there are found again by their tinker:// paths;
        those that have expired are removed.
        """
        checkpoints.clean(checkpoint_dir)
        key = api_key or f"tml-{secrets.token_urlsafe(32)}"
        self._state.checkpoint_dirs[key] = checkpoint_dir
        return key

    @property
    def is_running(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def close(self, drain_s: float = 0.0, limit_s: float | None = None) -> bool:
        """Finish the work in hand and what is queued within `drain_s`, refuse the rest, and end.

        Clients that wait for a result are answered before their connections close. A job in hand
        that goes on after `limit_s` is refused like the rest, and False returned: the compute
        thread is amid torch then, and the process cannot end but by `os._exit`.
        A close that was broken off, by Ctrl-C or another exception, goes on when called again.
        """
        self._state.futures.is_closed = True
        has_ended = self._worker.close(drain_s, limit_s)
        self._state.futures.fail_all(Closed())
        if self._state.sessions:  # let clients that go on sending meet a refusal, not silence
            time.sleep(LINGER_S)
        for session_id in list(self._state.sessions):
            self._state.finish_session(session_id)
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        if has_ended:
            atexit.unregister(self._close_at_exit)
        return has_ended

    def _close_at_exit(self) -> None:
        """Close what nobody closed, or not to the end: Python's own end amid torch aborts."""
        if os.getpid() != self._pid:
            return  # a fork, which has none of the threads
        try:
            self.close()
        except KeyboardInterrupt:
            os._exit(130)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    base_models: Iterable[tuple[str, str]] = (),
    *,
    port: int = 0,
    device: str | None = None,
    max_memory_bytes: int | None = None,
) -> Service:
    """Start a service on 127.0.0.1 and load base models given as (name, path) pairs."""
    with contextlib.ExitStack() as undo:
        service = undo.enter_context(
            Service(port, max_memory_bytes=max_memory_bytes, device=device)
        )
        for name, path in base_models:
            service.serve_model(name, path)
        service.serve()
        undo.pop_all()
    return service

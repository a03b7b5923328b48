"""Start and stop the service: one server thread and one compute thread of the calling process."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

import uvicorn

from local_tinker.app import State, make_app
from local_tinker.engine import Engine
from local_tinker.wire import UserError
from local_tinker.worker import Worker

HOST = "127.0.0.1"


class Service:
    """A running service. `base_url` is its address; `open_folder` gives a key to reach it with."""

    def __init__(self, port: int = 0) -> None:
        self._worker = Worker()
        self._state = State({}, self._worker)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, port))
        self.base_url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            make_app(self._state),
            log_level="critical",
            access_log=False,
            timeout_keep_alive=75,
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [self._socket]},
            name="local-tinker-http",
            daemon=True,
        )
        # The SDK's transport obeys proxy settings also for loopback, and would hang in retries.
        for variable in ("NO_PROXY", "no_proxy"):
            hosts = os.environ.get(variable, "")
            if HOST not in hosts.split(","):
                os.environ[variable] = f"{hosts},{HOST}".lstrip(",")
        self._thread.start()

    def serve_model(self, name: str, path: str | None = None, device: str | None = None) -> None:
        """Load a base model and serve it as `name`; a name that is served already stays as it is.

        `path` is a directory, or a name in the user's Hugging Face cache (default: `name`).
        Raises `UserError` when it cannot be loaded, or when `name` stands for another path already.
        """
        path = path or name
        served = self._state.engines.get(name)
        if served is None:
            self._state.engines[name] = Engine.load(name, path, device)
        elif served.path != path:
            raise UserError(
                f"{name!r} is served from {served.path} already; give the model at {path} another "
                "name"
            )

    def open_folder(self, checkpoint_dir: Path, api_key: str | None = None) -> str:
        """Return an API key whose sessions keep their checkpoints in `checkpoint_dir`.

        Checkpoints that an earlier process left there are found again by their tinker:// paths.
        """
        key = api_key or f"tml-{secrets.token_urlsafe(32)}"
        self._state.checkpoint_dirs[key] = checkpoint_dir
        return key

    def wait(self) -> None:
        """Serve until the server thread ends."""
        self._thread.join()

    def close(self) -> None:
        """Stop accepting, finish the work in hand, refuse the rest, and end both threads."""
        self._server.should_exit = True
        self._server.force_exit = True  # open long polls would hold the exit up
        self._thread.join()
        self._worker.close()
        self._socket.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    base_models: Iterable[tuple[str, str]] = (), *, port: int = 0, device: str | None = None
) -> Service:
    """Start a service on 127.0.0.1 and load base models given as (name, path) pairs."""
    service = Service(port)
    for name, path in base_models:
        service.serve_model(name, path, device)
    return service

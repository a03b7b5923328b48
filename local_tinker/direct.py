"""Routes that are asked at every step and every answer, straight from bytes to bytes.

The server's thread shares Python's lock with the compute thread, so what a request costs is taken
from training and sampling. FastAPI's share of it is several times that of reading the body and
doing the work, so what is asked often goes by it; all else, and the errors that nobody expects,
stay with FastAPI and Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from local_tinker.answers import EXPECTED, Answer, refused


class Call(NamedTuple):
    """A request: its whole body, and where a handler that waits learns that nobody else does."""

    body: bytes
    receive: Receive


Handler = Callable[[Call], Awaitable[Answer]]


class DirectRoutes:
    """An ASGI application of POST routes without parameters in their paths."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    @property
    def paths(self) -> list[str]:
        return list(self._handlers)

    def post(self, path: str) -> Callable[[Handler], Handler]:
        """Register the handler of a path, as a decorator."""

        def register(handler: Handler) -> Handler:
            self._handlers[path] = handler
            return handler

        return register

    def has(self, scope: Scope) -> bool:
        return scope["path"] in self._handlers and scope["method"] == "POST"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = Call(await _whole_body(receive), receive)
            answer = await self._handlers[scope["path"]](call)
        except EXPECTED as error:
            answer = refused(error, scope["path"])
        headers = [
            (b"content-type", answer.media_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


async def _whole_body(receive: Receive) -> bytes:
    """Raises `ClientDisconnect` when the connection ends before the body does."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)

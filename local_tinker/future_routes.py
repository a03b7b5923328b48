"""Routes that results are fetched by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive

from local_tinker import wire
from local_tinker.answers import MAX_ERROR_CHARS
from local_tinker.checkpoints import StorageError
from local_tinker.state import State
from local_tinker.wire import PROTOBUF, NotFound, UserError
from local_tinker.worker import Closed, Result

logger = logging.getLogger(__name__)

HOLD_S = 20.0  # how long retrieve_future waits for a result; the SDK gives up at 45


def add_future_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/retrieve_future")
    async def retrieve_future(body: wire.RetrieveFuture, request: Request) -> Response:
        future, client = state.futures.claim(body.request_id)
        if client.session_id in state.sessions:
            state.session(client.session_id)
        with state.attendance.holding(client) as hold:
            hold.is_lost = not await _held(future, request.receive)
        if hold.is_lost:
            return Response()  # nobody reads it
        if not future.done() and state.worker.is_alive:
            pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return JSONResponse(pending, status_code=408)
        state.futures.fetched(body.request_id)
        return _answer(body.request_id, future)

    @app.post("/api/v1/cancel_future")
    async def cancel_future(body: wire.RetrieveFuture) -> dict[str, Any]:
        state.cancel_sample(body.request_id)
        return {}


async def _held(future: Future[Result], receive: Receive) -> bool:
    """Wait for a result, at most `HOLD_S`; False when the client closes its connection meanwhile.

    The one thing that is waited for is the connection; a result ends that wait.
    """
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HOLD_S) as limit:

            def end_now() -> None:
                with contextlib.suppress(RuntimeError):  # the wait has ended
                    limit.reschedule(loop.time())

            future.add_done_callback(lambda _: loop.call_soon_threadsafe(end_now))
            while (await receive())["type"] != "http.disconnect":
                pass
            return False
    return True


def _answer(request_id: str, future: Future[Result]) -> Response:
    if not future.done():
        message = "the compute thread has ended; restart the service"
        return JSONResponse({"error": message, "category": "server"})
    error = future.exception()
    if error is not None:
        is_users = isinstance(error, UserError | NotFound)
        is_known = is_users or isinstance(error, StorageError | Closed)
        message = str(error) if is_known else f"{type(error).__name__}: {error}"
        if not is_users and not isinstance(error, Closed):  # closing is no failure
            logger.error("request %s: %s", request_id, message)
        category = "user" if is_users else "server"
        return JSONResponse({"error": message[:MAX_ERROR_CHARS], "category": category})
    result = future.result()
    if isinstance(result, bytes):
        return Response(result, media_type=PROTOBUF)
    return JSONResponse(result)

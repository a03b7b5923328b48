"""Routes that results are fetched by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import Future

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

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
    async def retrieve_future(body: wire.RetrieveFuture) -> Response:
        future, session_id = state.futures.claim(body.request_id)
        if session_id in state.sessions:
            state.session(session_id)
        if not future.done():
            loop, is_done = asyncio.get_running_loop(), asyncio.Event()
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(is_done.set))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_done.wait(), HOLD_S)
        if not future.done() and state.worker.is_alive:
            pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return JSONResponse(pending, status_code=408)
        state.futures.fetched(body.request_id)
        return _answer(body.request_id, future)


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

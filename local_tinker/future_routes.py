"""Routes that results are fetched by."""

from __future__ import annotations

import logging
from concurrent.futures import Future

from local_tinker import wire
from local_tinker.answers import MAX_ERROR_CHARS, Answer, json_answer
from local_tinker.checkpoints import StorageError
from local_tinker.direct import Call, DirectRoutes
from local_tinker.state import State
from local_tinker.waiting import Held, Wakes
from local_tinker.wire import PROTOBUF, NotFound, UserError
from local_tinker.worker import Closed, Result

logger = logging.getLogger(__name__)


def add_future_routes(direct: DirectRoutes, state: State) -> None:
    wakes = Wakes()

    @direct.post("/api/v1/retrieve_future")
    async def retrieve_future(call: Call) -> Answer:
        body = wire.RetrieveFuture.model_validate_json(call.body)
        future, session_id = state.futures.claim(body.request_id)
        if session_id in state.sessions:
            state.session(session_id)
        if not future.done():
            held = Held()
            wakes.when_done(future, held.wake)
            await held.wait(call.receive)
        if not future.done() and state.worker.is_alive:
            pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return json_answer(pending, 408)
        state.futures.fetched(body.request_id)
        return _answer(body.request_id, future)


def _answer(request_id: str, future: Future[Result]) -> Answer:
    if not future.done():
        message = "the compute thread has ended; restart the service"
        return json_answer({"error": message, "category": "server"})
    error = future.exception()
    if error is not None:
        is_users = isinstance(error, UserError | NotFound)
        is_known = is_users or isinstance(error, StorageError | Closed)
        message = str(error) if is_known else f"{type(error).__name__}: {error}"
        if not is_users and not isinstance(error, Closed):  # closing is no failure
            logger.error("request %s: %s", request_id, message)
        category = "user" if is_users else "server"
        return json_answer({"error": message[:MAX_ERROR_CHARS], "category": category})
    result = future.result()
    return Answer(result, media_type=PROTOBUF) if isinstance(result, bytes) else json_answer(result)

"""Routes that results are fetched by."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive

from local_tinker import wire
from local_tinker.answers import MAX_ERROR_CHARS, Answer, json_answer
from local_tinker.checkpoints import StorageError
from local_tinker.direct import Call, DirectRoutes
from local_tinker.futures import CompletionLog, Target
from local_tinker.sample_queue import Client
from local_tinker.state import State
from local_tinker.waiting import HOLD_S, Held
from local_tinker.wire import PROTOBUF, NotFound, UserError
from local_tinker.worker import Closed, Result

logger = logging.getLogger(__name__)


def add_future_routes(app: FastAPI, direct: DirectRoutes, state: State) -> None:
    @direct.post("/api/v1/retrieve_future")
    async def retrieve_future(call: Call) -> Answer:
        body = wire.RetrieveFuture.model_validate_json(call.body)
        future, client = state.futures.claim(body.request_id)
        if client.session_id in state.sessions:
            state.session(client.session_id)
        with state.attendance.holding(client):
            is_there = await _held(body.request_id, future, call.receive)
        if not is_there:
            return json_answer({})  # nobody reads it
        if not future.done() and state.worker.is_alive:
            pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return json_answer(pending, 408)
        state.futures.fetched(body.request_id)
        return _answer(body.request_id, future)

    @app.post("/api/v1/cancel_future")
    async def cancel_future(body: wire.RetrieveFuture) -> dict[str, Any]:
        state.cancel_sample(body.request_id)
        return {}

    async def _held(request_id: str, future: Future[Result], receive: Receive) -> bool:
        """Wait for a result; False when the client closes its connection meanwhile."""
        if future.done():
            return True
        held = Held()
        with state.futures.waking(request_id, held):
            return await held.wait(receive)

    @direct.post("/api/v1/retrieve_futures")
    async def retrieve_futures(call: Call) -> Answer:
        body = wire.RetrieveFutures.model_validate_json(call.body)
        target = Target(body.target.sampling_session_id, body.target.cloned_sampler_id)
        client = Client(state.sampler(target.sampler_id).session_id, target.clone_id)
        state.futures.forget(target, body.retrieved_request_ids)
        log = state.futures.log(target, client)
        log.seen(body.prev_cursor)
        limit_s = HOLD_S if body.timeout is None else min(body.timeout, HOLD_S)
        with state.attendance.holding(client):
            await _held_for(log, call.receive, limit_s)
        completions = [_completion(c.request_id, c.has_failed, c.num_bytes) for c in log.unseen]
        if not state.worker.is_alive:  # each of these is answered with what happened
            completions += [_completion(i, True, None) for i in state.futures.open_of(target)]
        return json_answer({"completions": completions, "cursor": log.num_completed})


async def _held_for(log: CompletionLog, receive: Receive, limit_s: float) -> None:
    """Wait for a completion, or for the client to close its connection."""
    if log.unseen or limit_s == 0:
        return
    held = Held()
    log.held.add(held)
    try:
        await held.wait(receive, limit_s)
    finally:
        log.held.discard(held)


def _completion(request_id: str, has_failed: bool, num_bytes: int | None) -> dict[str, Any]:
    if has_failed:
        return {"state": "failed", "request_id": request_id}
    size = {} if num_bytes is None else {"response_payload_uncompressed_size": num_bytes}
    return {"state": "finished", "request_id": request_id, **size}


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

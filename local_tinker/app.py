"""The HTTP face of the service: key and size checks, errors, housekeeping; routes stand beside it.

Every handler acknowledges at once; the work is done behind a future that the client asks for with
`retrieve_future`. Permanent errors are answered through the future, as `category: user`, or with
a status that the SDK does not retry; `answers.py` has these.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_tinker import checkpoints
from local_tinker.answers import (
    EXPECTED,
    OPENAI_PREFIX,
    BodyTooLarge,
    Refusal,
    malformed,
    refused,
)
from local_tinker.callers import key_refusal, known_key, sdk_refusal
from local_tinker.checkpoints import StorageError
from local_tinker.direct import DirectRoutes
from local_tinker.downloads import SIGNED, add_download_routes
from local_tinker.future_routes import add_future_routes
from local_tinker.openai_routes import add_openai_routes
from local_tinker.rest import add_rest_routes
from local_tinker.sampling_routes import add_sampling_routes
from local_tinker.session_routes import add_session_routes
from local_tinker.state import State
from local_tinker.training_routes import add_training_routes

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 60.0
MAX_BODY_BYTES = 512 * 1024 * 1024  # of training data
MAX_JSON_BYTES = 64 * 1024 * 1024
PUBLIC_PATHS = ("/", "/api/v1/healthz")  # say that the service is there and how busy it is


def make_app(state: State) -> Gate:
    """Build the application over a state that other code may extend with keys and models."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(HOUSEKEEPING_S, _keep_house, state)
        yield

    app = FastAPI(openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    direct = DirectRoutes()
    _add_errors(app, state)
    add_session_routes(app, direct, state)
    add_future_routes(app, direct, state)
    add_training_routes(app, direct, state)
    add_sampling_routes(app, direct, state)
    add_rest_routes(app, state)
    add_download_routes(app, state)
    add_openai_routes(app, state)
    return Gate(app, direct, state)


def _keep_house(state: State) -> None:
    """Clean up now and again; the next time is set first, so that a failure does not end it."""
    loop = asyncio.get_running_loop()
    loop.call_later(HOUSEKEEPING_S, _keep_house, state)
    state.housekeeping()
    for root in state.roots:
        loop.run_in_executor(None, checkpoints.clean, root)


class Gate:
    """Checks the key and bounds the body of every request before anything else reads it."""

    def __init__(self, app: FastAPI, direct: DirectRoutes, state: State) -> None:
        self._app = app
        self._direct = direct
        self._guarded_direct = ServerErrorMiddleware(direct, handler=_answer_defect)
        self._state = state

    @property
    def routes(self) -> list[str]:
        """Every route, as `GET /path`."""
        others = [
            f"{','.join(sorted(route.methods or ()))} {route.path}"
            for route in self._app.routes
            if isinstance(route, APIRoute)
        ]
        return [f"POST {path}" for path in self._direct.paths] + others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_direct = self._direct.has(scope)
        refusal = self._check(scope, is_direct)
        if refusal is not None:
            await refusal.answer(scope["path"]).as_response()(scope, receive, send)
            return
        is_protobuf = scope["path"] == "/api/v1/forward_backward"
        limit, num_bytes = MAX_BODY_BYTES if is_protobuf else MAX_JSON_BYTES, 0

        async def bounded_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise BodyTooLarge(limit)
            return message

        app: ASGIApp = self._guarded_direct if is_direct else self._app
        await app(scope, bounded_receive, send)

    def _check(self, scope: Scope, is_direct: bool) -> Refusal | None:
        """Say what is wrong with who asks; puts the key into the scope."""
        if scope["path"] not in PUBLIC_PATHS and not scope["path"].startswith(SIGNED):
            key = known_key(scope, self._state.checkpoint_dirs)
            if key is None:
                return key_refusal(scope)
            scope["api_key"] = key
        # What any SDK asks first is none of the direct routes, so these are spared the look.
        return None if is_direct else sdk_refusal(scope)


async def _answer_defect(request: Request, error: Exception) -> Response:
    path = request.url.path
    logger.error("%s failed", path, exc_info=error)
    status = 500 if path.startswith(OPENAI_PREFIX) else 400
    found = Refusal(status, f"a defect of the service: {type(error).__name__}: {error}")
    return found.answer(path).as_response()


def _add_errors(app: FastAPI, state: State) -> None:
    async def on_expected(request: Request, error: Exception) -> Response:
        if isinstance(error, StorageError):
            logger.error("%s", error)
        return refused(error, request.url.path).as_response()

    for kind in EXPECTED:
        app.add_exception_handler(kind, on_expected)
    app.add_exception_handler(Exception, _answer_defect)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if isinstance(error.__cause__, BodyTooLarge):  # as FastAPI wraps what breaks a body off
            return await on_expected(request, error.__cause__)
        where = f"{request.method} {path}"
        if error.status_code in (404, 405):
            message = f"this service has no {where}; local_tinker/README.md lists what it has"
            return Refusal(404, message).answer(path).as_response()
        return Refusal(error.status_code, f"{where}: {error.detail}").answer(path).as_response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        body = error.body if isinstance(error.body, dict) else {}
        state.pass_over(body.get("model_id"), body.get("seq_id"))
        return malformed(error.errors()).answer(request.url.path).as_response()

"""The HTTP face of the service: key and size checks, errors, housekeeping; routes stand beside it.

Every handler acknowledges at once; the work is done behind a future that the client asks for with
`retrieve_future`. Permanent errors are answered through the future, as `category: user`, or with
400 / 404: the SDK retries 408, 409, 429 and 5xx, so none of these is ever used for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_tinker import checkpoints
from local_tinker.answers import error_response
from local_tinker.checkpoints import StorageError
from local_tinker.future_routes import add_future_routes
from local_tinker.openai_routes import OPENAI_PREFIX, make_openai_app, refusal
from local_tinker.openai_wire import OpenAIError
from local_tinker.rest import add_rest_routes
from local_tinker.sampling_routes import add_sampling_routes
from local_tinker.session_routes import add_session_routes
from local_tinker.state import State
from local_tinker.training_routes import add_training_routes
from local_tinker.wire import NotFound, UserError
from local_tinker.worker import Closed

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 60.0
MAX_BODY_BYTES = 512 * 1024 * 1024  # of training data
MAX_JSON_BYTES = 64 * 1024 * 1024
PUBLIC_PATHS = ("/", "/api/v1/healthz")  # say that the service is there and how busy it is


def make_app(state: State) -> FastAPI:
    """Build the application over a state that other code may extend with keys and models."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(HOUSEKEEPING_S, _keep_house, state)
        yield

    app = FastAPI(openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(Gate, state=state)
    _add_errors(app, state)
    add_session_routes(app, state)
    add_future_routes(app, state)
    add_training_routes(app, state)
    add_sampling_routes(app, state)
    add_rest_routes(app, state)
    app.mount(OPENAI_PREFIX, make_openai_app(state))
    return app


def _keep_house(state: State) -> None:
    """Clean up now and again; the next time is set first, so that a failure does not end it."""
    loop = asyncio.get_running_loop()
    loop.call_later(HOUSEKEEPING_S, _keep_house, state)
    state.housekeeping()
    for root in state.roots:
        loop.run_in_executor(None, checkpoints.clean, root)


class _BodyTooLarge(Exception):
    pass


class Gate:
    """Checks the key and bounds the body of every request before anything else reads it."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] not in PUBLIC_PATHS:
            is_openai = scope["path"].startswith(f"{OPENAI_PREFIX}/")
            given = _given_key(dict(scope["headers"]), is_openai)
            # Compare with every key, so that the time taken tells nothing about any of them.
            matches = [
                key
                for key in self._state.checkpoint_dirs
                if hmac.compare_digest(key.encode(), given)
            ]
            if not matches:
                header = "Authorization: Bearer KEY" if is_openai else "X-API-Key"
                message = (
                    f"{header} is missing or wrong; use the key that the service printed at its "
                    "start"
                )
                wrong_key = (
                    refusal(OpenAIError(message, status=401, code="invalid_api_key"))
                    if is_openai
                    else error_response(401, message)
                )
                await wrong_key(scope, receive, send)
                return
            scope["api_key"] = matches[0]
        is_protobuf = scope["path"] == "/api/v1/forward_backward"
        limit = MAX_BODY_BYTES if is_protobuf else MAX_JSON_BYTES
        num_bytes, has_answered = 0, False

        async def bounded_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise _BodyTooLarge
            return message

        async def noting_send(message: Message) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            await self._app(scope, bounded_receive, noting_send)
        except _BodyTooLarge:
            if not has_answered:
                message = f"the request body is larger than {limit} bytes; send less at a time"
                await error_response(413, message)(scope, receive, send)


def _given_key(headers: dict[bytes, bytes], is_openai: bool) -> bytes:
    """The key of a request: OpenAI's clients send theirs as a bearer token."""
    if not is_openai:
        return headers.get(b"x-api-key", b"")
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _add_errors(app: FastAPI, state: State) -> None:
    @app.exception_handler(UserError)
    async def on_user_error(_: Request, error: UserError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(Closed)
    async def on_closed(_: Request, error: Closed) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(StorageError)
    async def on_storage_error(_: Request, error: StorageError) -> JSONResponse:
        logger.error("%s", error)
        return error_response(400, str(error))  # a 5xx would be retried for minutes

    @app.exception_handler(Exception)
    async def on_defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        return error_response(400, f"a defect of the service: {type(error).__name__}: {error}")

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> JSONResponse:
        return error_response(400, "the connection ended within the request")  # nobody reads it

    @app.exception_handler(NotFound)
    async def on_not_found(_: Request, error: NotFound) -> JSONResponse:
        return error_response(404, str(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, _BodyTooLarge):
            raise error.__cause__
        where = f"{request.method} {request.url.path}"
        if error.status_code in (404, 405):
            return error_response(
                404, f"this service has no {where}; local_tinker/README.md lists what it has"
            )
        return error_response(error.status_code, f"{where}: {error.detail}")

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        body = error.body if isinstance(error.body, dict) else {}
        state.pass_over(body.get("model_id"), body.get("seq_id"))
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]
        )
        return error_response(422, f"the request does not fit the protocol: {problems}")

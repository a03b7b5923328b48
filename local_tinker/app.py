"""The HTTP face of the service: key and size checks, errors, sessions, futures, training, samples.

Every handler acknowledges at once; the work is done behind a future that the client asks for with
`retrieve_future`. Permanent errors are answered through the future, as `category: user`, or with
400 / 404: the SDK retries 408, 409, 429 and 5xx, so none of these is ever used for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import html
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_tinker import checkpoints, wire
from local_tinker.checkpoints import StorageError
from local_tinker.engine import TrainingRun
from local_tinker.lora import LoraShape
from local_tinker.rest import add_rest_routes, repeat_key
from local_tinker.sampling import check_request
from local_tinker.state import Repeats, Sampler, State
from local_tinker.wire import PROTOBUF, NotFound, UserError
from local_tinker.worker import Closed, Result

logger = logging.getLogger(__name__)

HOLD_S = 20.0  # how long retrieve_future waits for a result; the SDK gives up at 45
HOUSEKEEPING_S = 60.0
MAX_BODY_BYTES = 512 * 1024 * 1024  # of training data
MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_ERROR_CHARS = 2000  # messages quote what they found, which may be long
PUBLIC_PATHS = ("/", "/api/v1/healthz")  # say that the service is there and how busy it is

CLIENT_CONFIG = {
    # One request per forward_backward call. Chunks, also in parallel, are served as well, for
    # clients that send them, but a batch that travels whole is answered with less delay.
    "parallel_fwdbwd_chunks": False,
    "fwdbwd_max_chunk_len": 100_000,
    "fwdbwd_max_chunk_bytes_count": 200_000_000,  # below MAX_TARGET_CELLS in any mixture
    "proto_compress_fwdbwd": False,
    "sample_max_concurrent_requests": 2000,
    "create_model_via_load_weights": True,
}


def make_app(state: State) -> FastAPI:
    """Build the application over a state that other code may extend with keys and models."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(HOUSEKEEPING_S, _keep_house, state)
        yield

    app = FastAPI(openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(Gate, state=state)
    _add_errors(app, state)
    _add_session_routes(app, state)
    _add_future_routes(app, state)
    _add_training_routes(app, state)
    _add_sampling_routes(app, state)
    add_rest_routes(app, state)
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
            headers = dict(scope["headers"])
            given = headers.get(b"x-api-key", b"")
            # Compare with every key, so that the time taken tells nothing about any of them.
            matches = [
                key
                for key in self._state.checkpoint_dirs
                if hmac.compare_digest(key.encode(), given)
            ]
            if not matches:
                refusal = _error(
                    401,
                    "X-API-Key is missing or wrong; use the key that the service printed at its "
                    "start",
                )
                await refusal(scope, receive, send)
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
                await _error(413, message)(scope, receive, send)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message[:MAX_ERROR_CHARS]}, status_code=status)


def _add_errors(app: FastAPI, state: State) -> None:
    @app.exception_handler(UserError)
    async def on_user_error(_: Request, error: UserError) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(Closed)
    async def on_closed(_: Request, error: Closed) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(StorageError)
    async def on_storage_error(_: Request, error: StorageError) -> JSONResponse:
        logger.error("%s", error)
        return _error(400, str(error))  # a 5xx would be retried for minutes

    @app.exception_handler(Exception)
    async def on_defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        return _error(400, f"a defect of the service: {type(error).__name__}: {error}")

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> JSONResponse:
        return _error(400, "the connection ended within the request")  # nobody reads it

    @app.exception_handler(NotFound)
    async def on_not_found(_: Request, error: NotFound) -> JSONResponse:
        return _error(404, str(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, _BodyTooLarge):
            raise error.__cause__
        where = f"{request.method} {request.url.path}"
        if error.status_code in (404, 405):
            return _error(
                404, f"this service has no {where}; local_tinker/README.md lists what it has"
            )
        return _error(error.status_code, f"{where}: {error.detail}")

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        body = error.body if isinstance(error.body, dict) else {}
        state.pass_over(body.get("model_id"), body.get("seq_id"))
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]
        )
        return _error(422, f"the request does not fit the protocol: {problems}")


def _add_session_routes(app: FastAPI, state: State) -> None:
    repeats = Repeats()

    @app.get("/", response_class=HTMLResponse)
    async def health_page() -> str:
        return _health_page(state)

    @app.get("/api/v1/healthz")
    async def healthz() -> Response:
        if not state.worker.is_alive:
            return _error(500, "the compute thread has ended; restart the service")
        return JSONResponse({"status": "ok"})

    @app.post("/api/v1/client/config")
    async def client_config() -> dict[str, Any]:
        return CLIENT_CONFIG

    @app.post("/api/v1/client/dynamic_config")
    async def dynamic_config() -> dict[str, Any]:
        return {}

    @app.post("/api/v1/create_session")
    async def create_session(request: Request) -> dict[str, Any]:
        def open_session() -> dict[str, Any]:
            root = state.checkpoint_dirs[request.scope["api_key"]]
            session = state.add_session(root)
            logger.info("session %s: opened", session.session_id)
            return {"session_id": session.session_id}

        return repeats.once(repeat_key(request), open_session)

    @app.post("/api/v1/session_heartbeat")
    async def heartbeat(body: wire.SessionRequest) -> Response:
        if body.session_id not in state.sessions:
            return _error(410, "this session has ended")
        state.session(body.session_id)
        return JSONResponse({})

    @app.post("/api/v1/sessions/{session_id}/finish")
    async def finish(session_id: str) -> dict[str, Any]:
        if session_id in state.sessions:
            state.finish_session(session_id)
            logger.info("session %s: finished", session_id)
        return {}

    @app.post("/api/v1/telemetry")
    async def telemetry() -> dict[str, str]:
        return {"status": "accepted"}  # never stored

    @app.get("/api/v1/get_server_capabilities")
    async def capabilities() -> dict[str, Any]:
        models = [
            {
                "model_name": name,
                "max_context_length": engine.max_context_length,
                "trainable": True,
                "sampleable": True,
            }
            for name, engine in list(state.engines.items())
        ]
        return {"supported_models": models}


def _health_page(state: State) -> str:
    """A page for a person: what is served, and how busy it is. No ids, no keys."""
    num_jobs, num_samples = state.worker.num_queued
    mib = 2**20
    facts = {
        "compute thread": "running" if state.worker.is_alive else "ENDED: restart the service",
        "up for": f"{(time.time() - state.started_at) / 60:.0f} min",
        "base models": ", ".join(sorted(state.engines)) or "none yet",
        "sessions": len(state.sessions),
        "training runs": len(state.runs),
        "samplers": len(state.samplers),
        "queued": f"{num_jobs} training requests, {num_samples} sample requests",
        "memory of runs": f"{state.memory.num_run_bytes / mib:.1f} MiB of "
        f"{state.memory.room_bytes / mib:.0f} MiB that the base models leave",
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="refresh" content="5"><title>local_tinker</title>'
        "<style>body{font:16px system-ui;margin:2em}th{text-align:left;padding:.2em 1em .2em 0}"
        f"</style></head><body><h1>local_tinker</h1><table>{rows}</table></body></html>"
    )


def _add_future_routes(app: FastAPI, state: State) -> None:
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


def _add_training_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/create_model")
    async def create_model(body: wire.CreateModel) -> dict[str, str]:
        if body.optimizer_config.type != "adamw":
            raise UserError(
                f"optimizer {body.optimizer_config.type!r} is not supported; this service has adamw"
            )
        engine, lora = state.engine_named(body.base_model), body.lora_config
        shape = LoraShape(lora.rank, lora.train_attn, lora.train_mlp, lora.train_unembed)
        request_id = state.add_run(
            body.session_id,
            body.model_seq_id,
            engine,
            shape,
            body.user_metadata,
            lambda run_id: engine.create_run(run_id, shape, lora.seed, body.user_metadata),
        )
        return {"request_id": request_id}

    @app.post("/api/v1/get_info")
    async def get_info(body: wire.ModelRequest) -> dict[str, Any]:
        run = state.run(body.model_id)
        return {
            "model_id": body.model_id,
            "model_data": {"model_name": run.engine.name, "tokenizer_id": run.engine.path},
            "model_name": run.engine.name,
            "is_lora": True,
            "lora_rank": run.shape.rank,
        }

    @app.post("/api/v1/forward_backward")
    async def forward_backward(request: Request) -> dict[str, str]:
        message = wire.parse_forward_backward(await request.body())
        engine = state.run(message.model_id).engine

        def job(run: TrainingRun) -> Result:
            result = engine.forward_backward(
                run, wire.read_forward_backward(message, engine.max_context_length)
            )
            return wire.forward_backward_output(result.loss_sum, result.logprobs)

        return {"request_id": state.submit_in_order(message.model_id, message.seq_id, job)}

    @app.post("/api/v1/optim_step")
    async def optim_step(body: wire.OptimStep) -> dict[str, str]:
        engine = state.run(body.model_id).engine

        def job(run: TrainingRun) -> Result:
            if body.adam_params is None:
                raise UserError("optim_step without adam_params: this service has adamw only")
            return {"metrics": engine.optim_step(run, body.adam_params)}

        return {"request_id": state.submit_in_order(body.model_id, body.seq_id, job)}

    @app.post("/api/v1/load_weights")
    async def load_weights(body: wire.LoadWeights) -> dict[str, str]:
        with state.passing_over_refused(body.model_id, body.seq_id):
            directory = state.find_checkpoint(body.path)
            info = checkpoints.read_info(directory)
        if body.session_id is not None and body.model_seq_id is not None:
            engine, metadata = state.engine_named(info.base_model), body.user_metadata
            request_id = state.add_run(
                body.session_id,
                body.model_seq_id,
                engine,
                info.shape,
                {**info.user_metadata, **metadata},
                lambda run_id: engine.load_run(
                    run_id, directory, with_optimizer=body.optimizer, user_metadata=metadata
                ),
            )
            return {"request_id": request_id}
        if body.model_id is None or body.seq_id is None:
            raise UserError(
                "load_weights needs session_id and model_seq_id, or model_id and seq_id"
            )
        engine = state.run(body.model_id).engine

        def job(run: TrainingRun) -> Result:
            engine.load_into(run, directory, with_optimizer=body.optimizer)
            return {"path": body.path}

        return {"request_id": state.submit_in_order(body.model_id, body.seq_id, job)}

    @app.post("/api/v1/save_weights")
    async def save_weights(body: wire.SaveWeights) -> dict[str, str]:
        return save(body, "weights")

    @app.post("/api/v1/save_weights_for_sampler")
    async def save_weights_for_sampler(body: wire.SaveWeights) -> dict[str, str]:
        return save(body, "sampler_weights") if body.path is not None else save_unnamed(body)

    def save(body: wire.SaveWeights, kind: checkpoints.Kind) -> dict[str, str]:
        with state.passing_over_refused(body.model_id, body.seq_id):
            path = checkpoints.checked_path(body.model_id, kind, body.path or "")
        record = state.run(body.model_id)
        root = state.session(record.session_id).checkpoint_dir

        def job(run: TrainingRun) -> Result:
            record.engine.save(
                run,
                root,
                checkpoints.folder(root, path),
                with_optimizer=kind == "weights",
                ttl_seconds=body.ttl_seconds,
                overwrite=body.overwrite,
                user_metadata=body.user_metadata,
            )
            logger.info("run %s: saved %s", body.model_id, path)
            return {"path": str(path)}

        return {"request_id": state.submit_in_order(body.model_id, body.seq_id, job)}

    def save_unnamed(body: wire.SaveWeights) -> dict[str, str]:
        """Save for a sampler that gets no path: the weights live as long as the session."""
        record = state.run(body.model_id)
        session = state.session(record.session_id)
        sampler_id = f"{session.session_id}:sample:{body.sampling_session_seq_id}"
        run_folder = body.model_id.replace(":", "_")
        directory = checkpoints.scratch_path(session.checkpoint_dir) / f"{run_folder}-{body.seq_id}"
        taken_by = state.samplers.get(sampler_id)
        with state.passing_over_refused(body.model_id, body.seq_id):
            if body.sampling_session_seq_id is None:
                raise UserError("a save without a path needs sampling_session_seq_id")
            if taken_by is not None and taken_by.weights != directory:
                raise UserError(f"sampling session {sampler_id!r} exists; take another number")

        def job(run: TrainingRun) -> Result:
            record.engine.save(run, session.checkpoint_dir, directory, with_optimizer=False)
            return {"sampling_session_id": sampler_id}

        request_id = state.submit_in_order(body.model_id, body.seq_id, job)
        if taken_by is None:
            session.unnamed_saves.append(directory)
            sampler = Sampler(sampler_id, session.session_id, record.engine, None, directory)
            state.add_sampler(sampler)
        return {"request_id": request_id}

    @app.post("/api/v1/save_weights_external")
    async def save_weights_external(body: wire.SaveWeights) -> dict[str, str]:
        with state.passing_over_refused(body.model_id, body.seq_id):
            record = state.run(body.model_id)
            folder = state.session(record.session_id).checkpoint_dir
            raise UserError(
                "exports are not needed here: every checkpoint is a PEFT adapter on this machine, "
                f"below {folder}; use its folder directly"
            )

    @app.post("/api/v1/create_custom_loss")
    async def create_custom_loss() -> None:
        raise UserError(
            "custom losses on the server are not supported; forward_backward_custom computes yours "
            "in the client"
        )


def _add_sampling_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(body: wire.CreateSamplingSession) -> dict[str, str]:
        state.session(body.session_id)
        sampler_id = f"{body.session_id}:sample:{body.sampling_session_seq_id}"
        if sampler_id not in state.samplers:
            if body.model_path is not None:
                weights = state.find_checkpoint(body.model_path)
                engine = state.engine_named(checkpoints.read_info(weights).base_model)
            elif body.base_model is not None:
                weights, engine = None, state.engine_named(body.base_model)
            else:
                raise UserError("create_sampling_session needs model_path or base_model")
            state.add_sampler(
                Sampler(sampler_id, body.session_id, engine, body.model_path, weights)
            )
        return {"sampling_session_id": sampler_id}

    @app.post("/api/v1/asample")
    async def asample(body: wire.Sample) -> dict[str, Any]:
        sampler = state.sampler(body.sampling_session_id)

        def start() -> Future[Result]:
            request = check_request(sampler.engine, body, sampler.weights)
            return state.worker.sample(sampler.engine, request)

        key = ("sample", sampler.sampler_id, body.seq_id)
        request_id = state.futures.once(sampler.session_id, key, start)
        prefix = f"{sampler.sampler_id}:{body.seq_id}"
        return {
            "request_id": request_id,
            "sample_sequence_ids": [f"{prefix}:{index}" for index in range(body.num_samples)],
        }

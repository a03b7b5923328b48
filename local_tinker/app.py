"""The HTTP face of the service: routes, sessions, futures, and the order of a run's requests.

Every handler acknowledges at once; the work is done behind a future that the client asks for with
`retrieve_future`. Permanent errors are answered through the future, as `category: user`, or with
400 / 404: the SDK retries 408, 409, 429 and 5xx, so none of these is ever used for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from local_tinker import checkpoints, wire
from local_tinker.engine import Engine, LoraShape, TrainingRun
from local_tinker.sampling import check_request
from local_tinker.wire import PROTOBUF, UserError
from local_tinker.worker import Job, Result, Worker

logger = logging.getLogger(__name__)

HOLD_S = 20.0  # how long retrieve_future waits for a result; the SDK gives up at 45
GAP_S = 5.0  # how long a request waits for a missing lower sequence number
KEEP_RESULT_S = 300.0  # a result can be fetched again this long after it was fetched first
MAX_BODY_BYTES = 512 * 1024 * 1024

CLIENT_CONFIG = {
    # One request per forward_backward call, so that a run's requests arrive strictly in order.
    "parallel_fwdbwd_chunks": False,
    "fwdbwd_max_chunk_len": 100_000,
    "fwdbwd_max_chunk_bytes_count": 500_000_000,
    "proto_compress_fwdbwd": False,
    "sample_max_concurrent_requests": 2000,
    "create_model_via_load_weights": True,
}


class NotFound(Exception):
    """The request names a session, run, sampler, checkpoint or future that does not exist here."""


@dataclass
class Session:
    session_id: str
    checkpoint_dir: Path
    run_ids: list[str] = field(default_factory=list)
    sampler_ids: list[str] = field(default_factory=list)


@dataclass
class Sampler:
    sampler_id: str
    engine: Engine
    model_path: str | None
    weights: Path | None
    request_ids: dict[int, str] = field(default_factory=dict)  # seq_id -> request_id


@dataclass
class RunQueue:
    """Releases a run's requests in ascending `seq_id`, passing over the numbers of refused ones."""

    next_seq_id: int = 1
    request_ids: dict[int, str] = field(default_factory=dict)
    waiting: dict[int, Callable[[], None]] = field(default_factory=dict)
    gap_timer: asyncio.TimerHandle | None = None

    def add(self, seq_id: int, release: Callable[[], None]) -> None:
        self.waiting[seq_id] = release
        self._advance()

    def refuse(self, seq_id: int) -> None:
        self.add(seq_id, lambda: None)

    def _advance(self, skip_gap: bool = False) -> None:
        if skip_gap and self.waiting:
            self.next_seq_id = min(self.waiting)
        for late in [s for s in self.waiting if s < self.next_seq_id]:
            self.waiting.pop(late)()  # a gap was given up before its request came; run it now
        while self.next_seq_id in self.waiting:
            self.waiting.pop(self.next_seq_id)()
            self.next_seq_id += 1
        if self.gap_timer is not None:
            self.gap_timer.cancel()
            self.gap_timer = None
        if self.waiting:
            self.gap_timer = asyncio.get_running_loop().call_later(GAP_S, self._advance, True)


class State:
    """What the service remembers between requests. Used on the server's event loop only."""

    def __init__(self, engines: dict[str, Engine], worker: Worker) -> None:
        self.engines = engines
        self.worker = worker
        self.checkpoint_dirs: dict[str, Path] = {}  # API key -> folder of the sessions made with it
        self.sessions: dict[str, Session] = {}
        self.samplers: dict[str, Sampler] = {}
        self.run_engines: dict[str, Engine] = {}
        self.queues: dict[str, RunQueue] = {}
        self.futures: dict[str, Future[Result]] = {}
        self.request_ids: dict[
            tuple[str, str, int], str
        ] = {}  # (session, kind, number) -> request_id

    # --- look-ups ---------------------------------------------------------------------------

    def session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            raise NotFound(
                f"session {session_id!r} is not known here; it was finished or the service was "
                "restarted"
            )
        return self.sessions[session_id]

    def engine_named(self, base_model: str) -> Engine:
        for name, engine in self.engines.items():
            if base_model in (name, engine.path):
                return engine
        raise NotFound(
            f"base model {base_model!r} is not served here; this service has "
            f"{', '.join(sorted(self.engines))}"
        )

    def engine_of_run(self, run_id: str) -> Engine:
        if run_id not in self.run_engines:
            raise NotFound(
                f"training run {run_id!r} is not in memory; load its checkpoint into a new run"
            )
        return self.run_engines[run_id]

    def checkpoint_dir_of(self, run_id: str) -> Path:
        return self.session(run_id.partition(":train:")[0]).checkpoint_dir

    def find_checkpoint(self, path: str) -> Path:
        return checkpoints.find(
            dict.fromkeys(self.checkpoint_dirs.values()), checkpoints.parse_path(path)
        )

    # --- futures ----------------------------------------------------------------------------

    def new_future(self) -> tuple[str, Future[Result]]:
        request_id, future = uuid.uuid4().hex, Future()
        self.futures[request_id] = future
        return request_id, future

    def submit(self, engine: Engine, job: Job) -> str:
        """Queue a job that belongs to no run yet (creating one)."""
        request_id = uuid.uuid4().hex
        self.futures[request_id] = self.worker.submit(engine, job)
        return request_id

    def submit_in_order(self, run_id: str, seq_id: int, job: Job) -> str:
        """Queue a job at its place in its run's order; a repeat gets the first one's id."""
        engine = self.engine_of_run(run_id)
        queue = self.queues.setdefault(run_id, RunQueue())
        if seq_id in queue.request_ids:
            return queue.request_ids[seq_id]
        request_id, future = self.new_future()
        queue.request_ids[seq_id] = request_id
        queue.add(seq_id, lambda: _chain(self.worker.submit(engine, job), future))
        return request_id

    @contextlib.contextmanager
    def passing_over_refused(self, run_id: str, seq_id: int) -> Iterator[None]:
        """Let a run go on after a refused request, which the client will not send again."""
        try:
            yield
        except (UserError, NotFound):
            if run_id in self.run_engines:
                self.queues.setdefault(run_id, RunQueue()).refuse(seq_id)
            raise

    def finish_session(self, session_id: str) -> None:
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        for sampler_id in session.sampler_ids:
            self.samplers.pop(sampler_id, None)
        for run_id in session.run_ids:
            self.queues.pop(run_id, None)
            engine = self.run_engines.pop(run_id, None)
            if engine is not None:
                self.worker.submit(engine, _unload(engine, run_id))
        self.request_ids = {
            key: value for key, value in self.request_ids.items() if key[0] != session_id
        }


def _unload(engine: Engine, run_id: str) -> Job:
    def job() -> Result:
        engine.unload_run(run_id)
        return {}

    return job


def _chain(source: Future[Result], target: Future[Result]) -> None:
    def copy(done: Future[Result]) -> None:
        error = done.exception()
        if error is not None:
            target.set_exception(error)
        else:
            target.set_result(done.result())

    source.add_done_callback(copy)


def _metadata(user_metadata: dict[str, Any] | None) -> dict[str, str]:
    """Requests may hold anything, responses must map strings to strings."""
    return {
        key: value if isinstance(value, str) else str(value)
        for key, value in (user_metadata or {}).items()
    }


def _run_of(engine: Engine, run_id: str) -> TrainingRun:
    if run_id not in engine.runs:
        raise UserError(
            f"training run {run_id!r} could not be created; see the error of its creation"
        )
    return engine.runs[run_id]


def make_app(state: State) -> FastAPI:
    """Build the application over a state that other code may extend with keys and models."""
    app = FastAPI(openapi_url=None)
    _add_errors_and_auth(app, state)
    _add_session_routes(app, state)
    _add_future_routes(app, state)
    _add_training_routes(app, state)
    _add_sampling_routes(app, state)
    _add_checkpoint_routes(app, state)
    return app


def _add_errors_and_auth(app: FastAPI, state: State) -> None:
    @app.middleware("http")
    async def check_key_and_size(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if request.url.path != "/api/v1/healthz":
            given = request.headers.get("x-api-key", "").encode()
            # Compare with every key, so that the time taken tells nothing about any of them.
            matches = [
                key for key in state.checkpoint_dirs if hmac.compare_digest(key.encode(), given)
            ]
            if not matches:
                return _error(
                    401,
                    "X-API-Key is missing or wrong; use the key that the service printed at its "
                    "start",
                )
            request.state.api_key = matches[0]
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return _error(413, f"the request body is larger than {MAX_BODY_BYTES} bytes")
        return await call_next(request)

    @app.exception_handler(UserError)
    async def on_user_error(_: Request, error: UserError) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(NotFound)
    async def on_not_found(_: Request, error: NotFound) -> JSONResponse:
        return _error(404, str(error))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]
        )
        return _error(422, f"the request does not fit the protocol: {problems}")

    @app.get("/api/v1/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


def _add_session_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/client/config")
    async def client_config() -> dict[str, Any]:
        return CLIENT_CONFIG

    @app.post("/api/v1/client/dynamic_config")
    async def dynamic_config() -> dict[str, Any]:
        return {}

    @app.post("/api/v1/create_session")
    async def create_session(body: wire.CreateSession, request: Request) -> dict[str, Any]:
        session_id = uuid.uuid4().hex
        state.sessions[session_id] = Session(
            session_id, state.checkpoint_dirs[request.state.api_key]
        )
        return {"session_id": session_id}

    @app.post("/api/v1/session_heartbeat")
    async def heartbeat() -> dict[str, Any]:
        return {}

    @app.post("/api/v1/sessions/{session_id}/finish")
    async def finish(session_id: str) -> dict[str, Any]:
        state.finish_session(session_id)
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
            for name, engine in state.engines.items()
        ]
        return {"supported_models": models}


def _add_future_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/retrieve_future")
    async def retrieve_future(body: wire.RetrieveFuture) -> Response:
        future = state.futures.get(body.request_id)
        if future is None:
            raise NotFound(f"request {body.request_id!r} is not known here")
        try:
            result = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), HOLD_S)
        except TimeoutError:
            pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return JSONResponse(pending, status_code=408)
        except (UserError, NotFound) as error:
            return JSONResponse({"error": str(error), "category": "user"})
        except Exception as error:  # the boundary between one request's failure and the service
            logger.exception("request %s failed", body.request_id)
            return JSONResponse({"error": f"{type(error).__name__}: {error}", "category": "server"})
        asyncio.get_running_loop().call_later(
            KEEP_RESULT_S, state.futures.pop, body.request_id, None
        )
        if isinstance(result, bytes):
            return Response(result, media_type=PROTOBUF)
        return JSONResponse(result)


def _add_training_routes(app: FastAPI, state: State) -> None:
    def new_run(
        session_id: str, model_seq_id: int, engine: Engine, make: Callable[[str], TrainingRun]
    ) -> dict[str, str]:
        """Register a run now and create it behind a future; a repeat gets the first one's id."""
        session = state.session(session_id)
        key = (session_id, "model", model_seq_id)
        if key not in state.request_ids:
            run_id = f"{session_id}:train:{model_seq_id}"
            session.run_ids.append(run_id)
            state.run_engines[run_id] = engine

            def job() -> Result:
                make(run_id)
                return {"model_id": run_id}

            state.request_ids[key] = state.submit(engine, job)
        return {"request_id": state.request_ids[key]}

    @app.post("/api/v1/create_model")
    async def create_model(body: wire.CreateModel) -> dict[str, str]:
        if body.optimizer_config.type != "adamw":
            raise UserError(
                f"optimizer {body.optimizer_config.type!r} is not supported; this service has adamw"
            )
        engine, lora = state.engine_named(body.base_model), body.lora_config
        shape = LoraShape(lora.rank, lora.train_attn, lora.train_mlp, lora.train_unembed)
        metadata = _metadata(body.user_metadata)
        return new_run(
            body.session_id,
            body.model_seq_id,
            engine,
            lambda run_id: engine.create_run(run_id, shape, lora.seed, metadata),
        )

    @app.post("/api/v1/get_info")
    async def get_info(body: wire.ModelRequest) -> dict[str, Any]:
        engine = state.engine_of_run(body.model_id)
        run = engine.runs.get(body.model_id)
        return {
            "model_id": body.model_id,
            "model_data": {"model_name": engine.name, "tokenizer_id": engine.path},
            "model_name": engine.name,
            "is_lora": True,
            "lora_rank": run.shape.rank if run else None,
        }

    @app.post("/api/v1/forward_backward")
    async def forward_backward(request: Request) -> dict[str, str]:
        message = wire.parse_forward_backward(await request.body())
        engine = state.engine_of_run(message.model_id)

        def job() -> Result:
            body = wire.read_forward_backward(message)
            result = engine.forward_backward(_run_of(engine, message.model_id), body)
            return wire.forward_backward_output(result.loss_sum, result.logprobs)

        return {"request_id": state.submit_in_order(message.model_id, message.seq_id, job)}

    @app.post("/api/v1/optim_step")
    async def optim_step(body: wire.OptimStep) -> dict[str, str]:
        engine = state.engine_of_run(body.model_id)

        def job() -> Result:
            if body.adam_params is None:
                raise UserError("optim_step without adam_params: this service has adamw only")
            return {"metrics": engine.optim_step(_run_of(engine, body.model_id), body.adam_params)}

        return {"request_id": state.submit_in_order(body.model_id, body.seq_id, job)}

    @app.post("/api/v1/load_weights")
    async def load_weights(body: wire.LoadWeights) -> dict[str, str]:
        with state.passing_over_refused(body.model_id or "", body.seq_id or 0):
            directory = state.find_checkpoint(body.path)
        info = checkpoints.read_info(directory)
        if body.session_id is not None and body.model_seq_id is not None:
            engine, metadata = state.engine_named(info.base_model), _metadata(body.user_metadata)
            return new_run(
                body.session_id,
                body.model_seq_id,
                engine,
                lambda run_id: engine.load_run(
                    run_id, directory, with_optimizer=body.optimizer, user_metadata=metadata
                ),
            )
        if body.model_id is None or body.seq_id is None:
            raise UserError(
                "load_weights needs session_id and model_seq_id, or model_id and seq_id"
            )
        model_id, engine = body.model_id, state.engine_of_run(body.model_id)

        def job() -> Result:
            engine.load_into(_run_of(engine, model_id), directory, with_optimizer=body.optimizer)
            return {"path": body.path}

        return {"request_id": state.submit_in_order(model_id, body.seq_id, job)}

    @app.post("/api/v1/save_weights")
    async def save_weights(body: wire.SaveWeights) -> dict[str, str]:
        return save(body, "weights", body.path or "")

    @app.post("/api/v1/save_weights_for_sampler")
    async def save_weights_for_sampler(body: wire.SaveWeights) -> dict[str, str]:
        if body.path is not None:
            return save(body, "sampler_weights", body.path)
        return save(
            body, "sampler_weights", f"snapshot-{body.sampling_session_seq_id}-{body.seq_id}"
        )

    def save(body: wire.SaveWeights, kind: checkpoints.Kind, name: str) -> dict[str, str]:
        """Queue a save; without a name of the client's it also becomes a sampling session."""
        with state.passing_over_refused(body.model_id, body.seq_id):
            path = checkpoints.checked_path(body.model_id, kind, name)
        engine, root = state.engine_of_run(body.model_id), state.checkpoint_dir_of(body.model_id)
        session = state.session(body.model_id.partition(":train:")[0])

        def job() -> Result:
            engine.save(
                _run_of(engine, body.model_id),
                root,
                path,
                ttl_seconds=body.ttl_seconds,
                overwrite=body.overwrite,
                user_metadata=_metadata(body.user_metadata),
            )
            if body.path is not None:
                return {"path": str(path)}
            sampler_id = f"{session.session_id}:sample:{body.sampling_session_seq_id}"
            state.samplers[sampler_id] = Sampler(
                sampler_id, engine, str(path), checkpoints.folder(root, path)
            )
            session.sampler_ids.append(sampler_id)
            return {"sampling_session_id": sampler_id}

        return {"request_id": state.submit_in_order(body.model_id, body.seq_id, job)}


def _add_sampling_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(body: wire.CreateSamplingSession) -> dict[str, str]:
        session = state.session(body.session_id)
        sampler_id = f"{body.session_id}:sample:{body.sampling_session_seq_id}"
        if sampler_id not in state.samplers:
            if body.model_path is not None:
                weights = state.find_checkpoint(body.model_path)
                engine = state.engine_named(checkpoints.read_info(weights).base_model)
            elif body.base_model is not None:
                weights, engine = None, state.engine_named(body.base_model)
            else:
                raise UserError("create_sampling_session needs model_path or base_model")
            state.samplers[sampler_id] = Sampler(sampler_id, engine, body.model_path, weights)
            session.sampler_ids.append(sampler_id)
        return {"sampling_session_id": sampler_id}

    def sampler_with(sampler_id: str) -> Sampler:
        if sampler_id not in state.samplers:
            raise NotFound(f"sampling session {sampler_id!r} is not known here")
        return state.samplers[sampler_id]

    @app.get("/api/v1/samplers/{sampler_id}")
    async def get_sampler(sampler_id: str) -> dict[str, Any]:
        sampler = sampler_with(sampler_id)
        return {
            "sampler_id": sampler_id,
            "base_model": sampler.engine.name,
            "model_path": sampler.model_path,
        }

    @app.post("/api/v1/asample")
    async def asample(body: wire.Sample) -> dict[str, Any]:
        sampler = sampler_with(body.sampling_session_id)
        if body.seq_id not in sampler.request_ids:
            request = check_request(sampler.engine, body, sampler.weights)
            request_id = uuid.uuid4().hex
            state.futures[request_id] = state.worker.sample(sampler.engine, request)
            sampler.request_ids[body.seq_id] = request_id
        prefix = f"{sampler.sampler_id}:{body.seq_id}"
        return {
            "request_id": sampler.request_ids[body.seq_id],
            "sample_sequence_ids": [f"{prefix}:{index}" for index in range(body.num_samples)],
        }


def _add_checkpoint_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/weights_info")
    async def weights_info(body: dict[str, Any]) -> dict[str, Any]:
        info = checkpoints.read_info(state.find_checkpoint(str(body.get("tinker_path"))))
        return {
            "base_model": info.base_model,
            "is_lora": True,
            "lora_rank": info.lora_rank,
            "train_unembed": info.train_unembed,
            "train_mlp": info.train_mlp,
            "train_attn": info.train_attn,
        }

    @app.get("/api/v1/training_runs/{run_id}")
    async def training_run(run_id: str) -> dict[str, Any]:
        engine = state.engine_of_run(run_id)
        run = _run_of(engine, run_id)
        return {
            "training_run_id": run_id,
            "base_model": engine.name,
            "model_owner": "local",
            "is_lora": True,
            "lora_rank": run.shape.rank,
            "last_request_time": datetime.fromtimestamp(time.time(), UTC).isoformat(),
            "user_metadata": run.user_metadata,
        }

    @app.delete("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}")
    async def delete_checkpoint(run_id: str, kind: str, name: str) -> dict[str, Any]:
        path = checkpoints.parse_path(f"tinker://{run_id}/{kind}/{name}")
        checkpoints.delete(dict.fromkeys(state.checkpoint_dirs.values()), path)
        return {}

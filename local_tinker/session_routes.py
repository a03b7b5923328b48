"""Routes of sessions: the client's configuration, heartbeats, the page for people."""

from __future__ import annotations

import html
import logging
import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from local_tinker import wire
from local_tinker.answers import Answer, Refusal, json_answer
from local_tinker.direct import Call, DirectRoutes
from local_tinker.futures import Repeats
from local_tinker.rest import repeat_key
from local_tinker.state import State

logger = logging.getLogger(__name__)

CLIENT_CONFIG = {
    # One request per forward_backward call. Chunks, also in parallel, are served as well, for
    # clients that send them, but a batch that travels whole is answered with less delay.
    "parallel_fwdbwd_chunks": False,
    "fwdbwd_max_chunk_len": 100_000,
    "fwdbwd_max_chunk_bytes_count": 200_000_000,  # below MAX_TARGET_CELLS in any mixture
    "proto_compress_fwdbwd": False,
    "sample_max_concurrent_requests": 2000,
    # One poll for all of a client's samples is served too, for clients that do it. It costs both
    # sides as much as a request held for each sample does, since results are fetched alike.
    "sample_use_retrieve_futures": False,
    "sample_join_sampling_session": True,  # clones get ids that cannot collide
    "create_model_via_load_weights": True,
}


def add_session_routes(app: FastAPI, direct: DirectRoutes, state: State) -> None:
    repeats = Repeats()

    @app.get("/", response_class=HTMLResponse)
    async def health_page() -> str:
        return _health_page(state)

    @app.get("/api/v1/healthz")
    async def healthz(request: Request) -> Response:
        if not state.worker.is_alive:
            ended = Refusal(500, "the compute thread has ended; restart the service")
            return ended.answer(request.url.path).as_response()
        return json_answer({"status": "ok"}).as_response()

    @app.post("/api/v1/client/config")
    async def client_config() -> dict[str, Any]:
        return CLIENT_CONFIG

    @app.post("/api/v1/client/dynamic_config")
    async def dynamic_config() -> dict[str, Any]:
        return {"sample_cancel_enabled": True}

    @app.post("/api/v1/create_session")
    async def create_session(request: Request) -> dict[str, Any]:
        def open_session() -> dict[str, Any]:
            root = state.checkpoint_dirs[request.scope["api_key"]]
            session = state.add_session(root)
            logger.info("session %s: opened", session.session_id)
            return {"session_id": session.session_id}

        return repeats.once(repeat_key(request), open_session)

    @direct.post("/api/v1/session_heartbeat")
    async def heartbeat(call: Call) -> Answer:
        session_id = wire.SessionRequest.model_validate_json(call.body).session_id
        if session_id not in state.sessions:
            return json_answer({"error": "this session has ended"}, 410)
        state.session(session_id)
        return json_answer({})

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
            for name, engine in state.named_engines().items()
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
        "set aside": f"{state.worker.num_set_aside} sample requests of clients that went away",
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

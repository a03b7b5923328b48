"""Bookkeeping routes: what runs, checkpoints, sessions and samplers there are, and their expiry.

Checkpoints are read from disk at each request, so those of earlier processes are listed as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import FastAPI, Query, Request

from local_tinker import checkpoints, wire
from local_tinker.checkpoints import CheckpointInfo, TinkerPath
from local_tinker.futures import Repeats
from local_tinker.state import State
from local_tinker.wire import NotFound, UserError

Limit = Annotated[int, Query(ge=0, le=10_000)]
Offset = Annotated[int, Query(ge=0)]
OWNER = "local"
TYPES = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}


def add_rest_routes(app: FastAPI, state: State) -> None:
    _add_run_routes(app, state)
    _add_checkpoint_routes(app, state)
    _add_session_routes(app, state)


def repeat_key(request: Request) -> Hashable | None:
    """What a client sends again with a request whose answer it did not get."""
    key = request.headers.get("x-idempotency-key")
    return None if key is None else (request.scope["api_key"], key)


class Stored(NamedTuple):
    """A checkpoint that is there, and the folder of checkpoints that it lies in."""

    path: TinkerPath
    root: Path
    directory: Path


def stored(state: State, run_id: str, kind: str, name: str) -> Stored:
    """Find what a route names. Raises `NotFound` when it is not there, `UserError` expired."""
    path = checkpoints.parse_path(f"tinker://{run_id}/{kind}/{name}", checkpoints.KINDS)
    place = checkpoints.place_of(state.roots, path)
    if place is None:
        raise NotFound(f"{path} is not stored here")
    return Stored(path, *place)


def _time(seconds_since_epoch: float) -> str:
    return datetime.fromtimestamp(seconds_since_epoch, UTC).isoformat()


def _page(items: list[Any], limit: int, offset: int) -> tuple[list[Any], dict[str, int]]:
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return items[offset : offset + limit], cursor


def _describe_checkpoint(path: TinkerPath, directory: Path, info: CheckpointInfo) -> dict[str, Any]:
    return {
        "checkpoint_id": f"{path.kind}/{path.name}",
        "checkpoint_type": TYPES[path.kind],
        "time": _time(info.created_at),
        "tinker_path": str(path),
        "size_bytes": checkpoints.num_bytes(directory),
        "public": False,
        "user_metadata": info.user_metadata,
        "expires_at": None if info.expires_at is None else _time(info.expires_at),
    }


def _describe_runs(
    state: State, root: Path, only_run_id: str | None = None
) -> list[dict[str, Any]]:
    """Runs in memory and runs that left checkpoints in this folder, the latest first."""
    latest: dict[str, dict[str, tuple[TinkerPath, Path, CheckpointInfo]]] = {}
    for found in checkpoints.list_all([root], only_run_id):
        latest.setdefault(found[0].run_id, {})[found[0].kind] = found
    runs: dict[str, dict[str, Any]] = {}
    for run_id, kinds in latest.items():
        info = max((info for _, _, info in kinds.values()), key=lambda info: info.created_at)
        runs[run_id] = {
            "base_model": info.base_model,
            "lora_rank": info.lora_rank,
            "last_request_time": _time(info.created_at),
            "user_metadata": info.user_metadata,
        }
    for run_id, run in list(state.runs.items()):  # the event loop may add one meanwhile
        session = state.sessions.get(run.session_id)
        is_asked_for = only_run_id in (None, run_id)
        if is_asked_for and session is not None and session.checkpoint_dir == root:
            runs[run_id] = {
                "base_model": run.engine.name,
                "lora_rank": run.shape.rank,
                "last_request_time": _time(run.last_request_at),
                "user_metadata": run.user_metadata,
            }
    for run_id, described in runs.items():
        kinds = latest.get(run_id, {})
        last = {
            kind: _describe_checkpoint(*kinds[kind]) if kind in kinds else None
            for kind in checkpoints.LOADABLE
        }
        described |= {
            "training_run_id": run_id,
            "model_owner": OWNER,
            "is_lora": True,
            "corrupted": False,
            "last_checkpoint": last["weights"],
            "last_sampler_checkpoint": last["sampler_weights"],
        }
    return sorted(runs.values(), key=lambda run: run["last_request_time"], reverse=True)


def _add_run_routes(app: FastAPI, state: State) -> None:
    @app.get("/api/v1/training_runs")
    def list_runs(request: Request, limit: Limit = 20, offset: Offset = 0) -> dict[str, Any]:
        root = state.checkpoint_dirs[request.scope["api_key"]]
        runs, cursor = _page(_describe_runs(state, root), limit, offset)
        return {"training_runs": runs, "cursor": cursor}

    @app.get("/api/v1/training_runs/{run_id}")
    def training_run(run_id: str) -> dict[str, Any]:
        for root in state.roots:
            described = _describe_runs(state, root, run_id)
            if described:
                return described[0]
        raise NotFound(f"training run {run_id!r} is not in memory and left no checkpoints here")


def _add_checkpoint_routes(app: FastAPI, state: State) -> None:
    repeats = Repeats()

    @app.get("/api/v1/training_runs/{run_id}/checkpoints")
    def run_checkpoints(run_id: str) -> dict[str, Any]:
        return {
            "checkpoints": [
                _describe_checkpoint(*found) for found in checkpoints.list_all(state.roots, run_id)
            ]
        }

    @app.get("/api/v1/checkpoints")
    def all_checkpoints(request: Request, limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        root = state.checkpoint_dirs[request.scope["api_key"]]
        newest_first = checkpoints.list_all([root])[::-1]
        page, cursor = _page(newest_first, limit, offset)
        return {
            "checkpoints": [_describe_checkpoint(*found) for found in page],
            "cursor": cursor,
        }

    @app.delete("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}")
    def delete_checkpoint(run_id: str, kind: str, name: str, request: Request) -> dict[str, Any]:
        def delete() -> dict[str, Any]:
            _, root, directory = stored(state, run_id, kind, name)
            checkpoints.delete(root, directory)
            return {}

        return repeats.once(repeat_key(request), delete)

    @app.put("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl")
    def set_ttl(run_id: str, kind: str, name: str, body: wire.SetTtl) -> dict[str, Any]:
        _, root, directory = stored(state, run_id, kind, name)
        checkpoints.set_ttl(root, directory, body.ttl_seconds)
        return {}

    @app.post("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish")
    @app.delete("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish")
    def publish(run_id: str, kind: str, name: str) -> None:
        path, _, directory = stored(state, run_id, kind, name)
        raise UserError(
            f"checkpoints stay on this machine; {path} is the folder {directory}, and there is "
            "nobody to publish it to"
        )

    @app.post("/api/v1/copy_weights")
    def copy_weights(body: wire.CopyWeights, request: Request) -> dict[str, str]:
        """Copy into a run of its own, which as on Tinker cannot be trained on."""

        def copy() -> dict[str, str]:
            source = checkpoints.parse_path(body.source_path, checkpoints.KINDS)
            directory = checkpoints.find(state.roots, source)
            root = state.checkpoint_dirs[request.scope["api_key"]]
            target = TinkerPath(f"{uuid.uuid4().hex}:train:0", source.kind, source.name)
            checkpoints.copy(root, directory, checkpoints.folder(root, target), body.ttl_seconds)
            return {"tinker_path": str(target)}

        return repeats.once(repeat_key(request), copy)

    @app.post("/api/v1/weights_info")
    def weights_info(body: wire.TinkerPathRequest) -> dict[str, Any]:
        path = checkpoints.parse_path(body.tinker_path, checkpoints.KINDS)
        directory = checkpoints.find(state.roots, path)
        info = checkpoints.read_whole_info(directory)
        return {
            "base_model": info.base_model,
            "is_lora": True,
            "lora_rank": info.lora_rank,
            "train_unembed": info.train_unembed,
            "train_mlp": info.train_mlp,
            "train_attn": info.train_attn,
        }


def _add_session_routes(app: FastAPI, state: State) -> None:
    @app.get("/api/v1/sessions")
    async def list_sessions(limit: Limit = 20, offset: Offset = 0) -> dict[str, Any]:
        page, _ = _page(list(state.sessions), limit, offset)
        return {"sessions": page}

    @app.get("/api/v1/sessions/{session_id}")
    async def get_session(session_id: str) -> dict[str, Any]:
        session = state.session(session_id)
        return {"training_run_ids": session.run_ids, "sampler_ids": session.sampler_ids}

    @app.get("/api/v1/samplers/{sampler_id}")
    async def get_sampler(sampler_id: str) -> dict[str, Any]:
        sampler = state.sampler(sampler_id)
        return {
            "sampler_id": sampler_id,
            "base_model": sampler.engine.name,
            "model_path": sampler.model_path,
        }

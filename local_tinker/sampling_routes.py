"""Routes of sampling sessions and their samples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from local_tinker import checkpoints, wire
from local_tinker.answers import Answer, json_answer
from local_tinker.direct import Call, DirectRoutes
from local_tinker.sample_requests import check_request
from local_tinker.state import Sampler, State
from local_tinker.wire import UserError


def add_sampling_routes(app: FastAPI, direct: DirectRoutes, state: State) -> None:
    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(body: wire.CreateSamplingSession) -> dict[str, str]:
        state.session(body.session_id)
        sampler_id = f"{body.session_id}:sample:{body.sampling_session_seq_id}"
        if sampler_id not in state.samplers:
            if body.model_path is not None:
                weights = state.find_checkpoint(body.model_path)
                engine = state.engine_named(checkpoints.read_whole_info(weights).base_model)
            elif body.base_model is not None:
                weights, engine = None, state.engine_named(body.base_model)
            else:
                raise UserError("create_sampling_session needs model_path or base_model")
            state.add_sampler(
                Sampler(sampler_id, body.session_id, engine, body.model_path, weights)
            )
        return {"sampling_session_id": sampler_id}

    @app.post("/api/v1/join_sampling_session")
    async def join_sampling_session(body: wire.JoinSamplingSession) -> dict[str, Any]:
        sampler = state.sampler(body.sampling_session_id)
        sampler.num_clones += 1
        return {"type": "join_sampling_session", "client_counter": sampler.num_clones}

    @direct.post("/api/v1/asample")
    async def asample(call: Call) -> Answer:
        body = wire.Sample.model_validate_json(call.body)
        sampler = state.sampler(body.sampling_session_id)
        request_id = state.submit_sample(
            sampler, body.seq_id, lambda: check_request(sampler.engine, body, sampler.weights)
        )
        prefix = f"{sampler.sampler_id}:{body.seq_id}"
        sequence_ids = [f"{prefix}:{index}" for index in range(body.num_samples)]
        return json_answer({"request_id": request_id, "sample_sequence_ids": sequence_ids})

"""Routes of training runs: made, trained, saved and loaded."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI

from local_tinker import checkpoints, external, wire
from local_tinker.answers import Answer, json_answer
from local_tinker.direct import Call, DirectRoutes
from local_tinker.lora import LoraShape
from local_tinker.state import Sampler, State
from local_tinker.training import TrainingRun
from local_tinker.wire import UserError
from local_tinker.worker import Result

logger = logging.getLogger(__name__)


def refuse_late_load(seq_id: int | None) -> None:
    """Raise `UserError` for weights that are to be loaded after a run's first request."""
    if seq_id not in (None, 1):
        raise UserError(
            f"LoadWeights is not permitted with seq_id {seq_id}: as on Tinker a run may load "
            "weights in its first request alone; make a new run from the checkpoint, with "
            "create_training_client_from_state or create_training_client_from_state_with_optimizer"
        )


def add_training_routes(app: FastAPI, direct: DirectRoutes, state: State) -> None:
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

    @direct.post("/api/v1/forward_backward")
    async def forward_backward(call: Call) -> Answer:
        message = wire.parse_forward_backward(call.body)
        engine = state.run(message.model_id).engine

        def job(run: TrainingRun) -> Result:
            result = engine.forward_backward(
                run, wire.read_forward_backward(message, engine.max_context_length)
            )
            return wire.forward_backward_output(result.loss_sum, result.logprobs)

        request_id = state.submit_in_order(message.model_id, message.seq_id, job)
        return json_answer({"request_id": request_id})

    @direct.post("/api/v1/optim_step")
    async def optim_step(call: Call) -> Answer:
        with state.passing_over_malformed(call.body):
            body = wire.OptimStep.model_validate_json(call.body)
        engine = state.run(body.model_id).engine

        def job(run: TrainingRun) -> Result:
            if body.adam_params is None:
                raise UserError("optim_step without adam_params: this service has adamw only")
            return {"metrics": engine.optim_step(run, body.adam_params)}

        return json_answer({"request_id": state.submit_in_order(body.model_id, body.seq_id, job)})

    @app.post("/api/v1/load_weights")
    async def load_weights(body: wire.LoadWeights) -> dict[str, str]:
        with state.passing_over_refused(body.model_id, body.seq_id):
            refuse_late_load(body.seq_id)
            directory = state.find_checkpoint(body.path)
            info = checkpoints.read_whole_info(directory)
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
        """Save for a sampler that gets no path: the weights live as long as the session, and as
        they are used."""
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
            sampler = Sampler(sampler_id, session.session_id, record.engine, None, directory)
            state.add_unnamed_sampler(sampler, record, directory)
        return {"request_id": request_id}

    @app.post("/api/v1/save_weights_external")
    async def save_weights_external(body: wire.SaveWeights) -> dict[str, str]:
        with state.passing_over_refused(body.model_id, body.seq_id):
            path = checkpoints.checked_path(body.model_id, "external_weights", body.path or "")
            recipients = external.parse_recipients(body.age_encryption_recipients)
        record = state.run(body.model_id)
        root = state.session(record.session_id).checkpoint_dir

        def job(run: TrainingRun) -> Result:
            plain = checkpoints.new_in_scratch(root, "export")
            try:
                record.engine.save(run, root, plain, with_optimizer=False)
                external.write(
                    root, plain, checkpoints.folder(root, path), body.ttl_seconds, recipients
                )
            finally:
                checkpoints.discard(plain)
            logger.info("run %s: exported %s", body.model_id, path)
            return {"path": str(path)}

        return {"request_id": state.submit_in_order(body.model_id, body.seq_id, job)}

    @app.post("/api/v1/create_custom_loss")
    async def create_custom_loss() -> None:
        raise UserError(
            "custom losses on the server are not supported; forward_backward_custom computes yours "
            "in the client"
        )

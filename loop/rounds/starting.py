"""The weights that a run starts from, made its own before its first round; and its teacher, which
has to be there.

They are loaded from their run, with its optimizer or a new one, and saved again as round 0. From
then on nothing depends on the other run: round 0 measures them, a rollback may go back to them, and
a resumption takes them from here.
"""

from __future__ import annotations

from dataclasses import replace

import tinker

from errors import ConfigError, ServiceError
from ledger.records import Checkpoint
from loop.planning.teacher import refuse_other_tokenizer
from loop.rounds.run import Run
from loop.rounds.session import sampling_client
from loop.rounds.training import finish_save, submit_save
from services.counted_client import counted
from services.faults import SDK_ERRORS, is_gone, said_by


async def starting_weights(run: Run) -> Checkpoint | None:
    """The weights of round 0; None for the untouched base model."""
    await refuse_unfit_teacher(run)
    origin = run.plan.origin
    if origin is None:
        return None
    if (own := run.store.checkpoint(0)) is not None:
        return own
    run.progress.live("loading the weights that the run starts from")
    service, path = run.clients.service, origin.parent.state_path
    load = (
        service.create_training_client_from_state_with_optimizer
        if origin.with_optimizer
        else service.create_training_client_from_state
    )
    try:
        client = await load(path, user_metadata={"renderer_name": run.plan.renderer_name})
    except SDK_ERRORS as error:
        if not is_gone(error):
            raise
        gone = ServiceError(
            f"The weights that the run starts from, {origin.parent}, cannot be loaded: {error}. "
            "Start a new run from weights that are there (--list RUN_DIR shows them)."
        )
        gone.fault = "checkpoint_gone"
        raise gone from error
    run.training_client, run.parent = counted(client, run.store.note_sent), path
    await finish_save(run, 0, submit_save(run, run.training_client, 0, 0, is_round_end=True))
    checkpoint = run.store.checkpoint(0)
    assert checkpoint is not None, "it was recorded just now"
    return checkpoint


async def refuse_unfit_teacher(run: Run) -> None:
    """Raise where the teacher of a distillation cannot be asked, before anything is paid for:
    `ConfigError` for a model that the service does not have, or that has another tokenizer,
    `ServiceError` for weights that are gone."""
    teacher, key = run.plan.inputs.teacher, "distill.teacher"
    if teacher is None:
        return
    run.progress.live("opening the teacher")
    try:
        if teacher.path is not None and teacher.model_path is None:  # of no known run
            info = await run.clients.rest.get_weights_info_by_tinker_path(teacher.path)
            of_service = replace(teacher, model_path=info.base_model)
            tokenizer = run.plan.renderer.tokenizer
            refuse_other_tokenizer(of_service, tokenizer, run.plan.config.base_model)
        await sampling_client(run, teacher.path, lambda: None, teacher.model_name)
    except SDK_ERRORS as error:
        if teacher.path is None and not isinstance(error, tinker.APIStatusError):
            raise
        if teacher.path is None:
            raise ConfigError(
                f"{key} {teacher.name}: the service does not have this base model: "
                f"{said_by(error)}. Name one that it has, or saved weights."
            ) from None
        if not is_gone(error):
            raise
        gone = ServiceError(
            f"The teacher's weights, {teacher}, cannot be loaded: {said_by(error)}. A run is "
            "distilled from one teacher: start a new run with one that is there."
        )
        gone.fault = "checkpoint_gone"
        raise gone from error

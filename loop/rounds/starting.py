"""The weights that a run starts from, made its own before its first round.

They are loaded from their run, with its optimizer or a new one, and saved again as round 0. From
then on nothing depends on the other run: round 0 measures them, a rollback may go back to them, and
a resumption takes them from here.
"""

from __future__ import annotations

from errors import ServiceError
from ledger.records import Checkpoint
from loop.rounds.run import Run
from loop.rounds.training import finish_save, submit_save
from services.faults import SDK_ERRORS, is_gone


async def starting_weights(run: Run) -> Checkpoint | None:
    """The weights of round 0; None for the untouched base model."""
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
    run.training_client, run.parent = client, path
    await finish_save(run, 0, submit_save(run, client, 0, 0, is_round_end=True))
    checkpoint = run.store.checkpoint(0)
    assert checkpoint is not None, "it was recorded just now"
    return checkpoint

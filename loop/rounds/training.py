"""One round of training on a service: steps and saves in flight, and the care of what was saved.

Forward-backward and optimizer step are both submitted before either is awaited, and as many steps
are kept in flight as the delay asks for; saves queue behind the steps before them, so the pipeline
need not drain. Each is recorded when its result has come, in the order of submission.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import tinker

from config_schema import TrainingConfig
from data_selector import Selection
from errors import Interrupted, TrainingError
from evaluation.held_out import (
    HeldOutFile,
    held_out_datums,
    held_out_of_output,
    num_held_out_tokens,
)
from hyperparam_utils import LORA_ALPHA
from ledger.records import Batch, Checkpoint
from loop.methods.choosing import method_of
from loop.methods.method import StepInFlight, Workplace
from loop.rounds.depth import Pipelined
from loop.rounds.keeping import (
    CARE_LIMIT_S,
    delete_checkpoint,
    expiry,
    is_reference,
    ttl_seconds,
)
from loop.rounds.refusing import refuse_other_loss
from loop.rounds.run import Run
from loop.rounds.session import naming_what_is_gone, sampling_client
from loop.tracking.playground import write_for_playground
from scores.decision import Decision
from scores.diagnosis import divergence
from services.counted_client import counted
from services.faults import said_by
from services.watched_client import watched

SAVE_EVERY_S = 600.0  # inside long rounds, where the settings name no number of steps


# --- the round ------------------------------------------------------------------------------------


async def train(run: Run, selection: Selection, decision: Decision) -> Checkpoint:
    """Train one round, several steps in flight, and save both kinds of weights at its end."""
    store, config = run.store, run.plan.config
    round_no = selection.round
    start = store.last_checkpoint()
    if decision.action == "rollback" and (start is None or start.round != round_no):
        start, run.training_client = store.checkpoint(decision.goes_on_from), None
    if (client := run.training_client) is None:
        client = run.training_client = await open_training_client(run, start)
        await refuse_other_loss(run, client)
    examples = [pick.example_id for pick in selection.picks]
    batches = [
        examples[i : i + config.batch_size] for i in range(0, len(examples), config.batch_size)
    ]
    first_step = 0 if (before := store.checkpoint(round_no - 1)) is None else before.step
    end_step = first_step + len(batches)
    next_step = start.step if start is not None and start.round == round_no else first_step
    saved_step, saved_at = next_step, time.monotonic()
    method = run.method = run.method or method_of(workplace_of(run))
    await method.begin_round(selection)
    run.nlls = store.losses(round_no)
    run.steps = run.progress.steps(round_no, next_step - first_step, len(batches))

    in_flight: deque[InFlight] = deque()
    run.begin_training()
    try:
        for step in range(next_step, end_step):
            if run.stop_requested:
                if step != saved_step:
                    in_flight.append(submit_save(run, client, round_no, step, is_round_end=False))
                await finish_all(run, round_no, in_flight, num_left=0)
                raise Interrupted(f"before step {step}, with the weights saved")
            lr = run.plan.schedule.lr(step, decision.num_missed_gates)
            in_flight.append(await method.submit(client, step, batches[step - first_step], lr))
            run.steps.sent()
            run.depth.sent(time.monotonic())
            is_round_end = step + 1 == end_step
            if not is_round_end and is_held_out_due(config, step + 1):
                in_flight += submit_held_out(run, client, step + 1)
            if is_round_end or is_save_due(config, step + 1, time.monotonic() - saved_at):
                in_flight.append(submit_save(run, client, round_no, step + 1, is_round_end))
                saved_step, saved_at = step + 1, time.monotonic()
            num_left = 0 if is_round_end else run.depth.among(run.sharing.training) - 1
            await finish_all(run, round_no, in_flight, num_left)
        if run.stop_requested:
            raise Interrupted(f"after round {round_no}'s last step, with the weights saved")
    except TrainingError as error:
        tell_unrecorded(run, in_flight, error)
        await discard_saves(run, round_no, in_flight)
        raise
    finally:
        run.end_training()
        run.progress.steps_line(round_no, list(store.events("step", round_no)))
    checkpoint = store.checkpoint(round_no)
    assert checkpoint is not None, "the last save of a round is its checkpoint"
    run.waits.record(round_no)
    return checkpoint


# --- steps and saves in flight --------------------------------------------------------------------


class HeldOutInFlight(NamedTuple):
    """A submitted forward pass over a held-out file, behind the steps before it."""

    step: int
    file: HeldOutFile
    forward: Any


class SaveInFlight(NamedTuple):
    """Submitted saves. They queue behind the steps before them, so the pipeline need not drain."""

    step: int
    state: Any
    sampler: Any | None


InFlight = StepInFlight | HeldOutInFlight | SaveInFlight


def is_save_due(config: TrainingConfig, num_steps: int, seconds_since_save: float) -> bool:
    """Whether state is saved inside a round, after so many steps of the run."""
    if config.checkpoint_every_steps is None:
        return seconds_since_save >= SAVE_EVERY_S
    return num_steps % config.checkpoint_every_steps == 0


def is_held_out_due(config: TrainingConfig, num_steps: int) -> bool:
    every = config.evaluation.held_out_every_steps
    return every is not None and num_steps % every == 0


def submit_held_out(run: Run, client: tinker.TrainingClient, step: int) -> list[HeldOutInFlight]:
    """Submit a forward pass over each held-out file; it sees the weights after `step` steps."""
    return [
        HeldOutInFlight(
            step,
            task.work,
            client.forward(held_out_datums(task.work, run.plan.rendering), "cross_entropy"),
        )
        for task in run.plan.tasks
        if isinstance(task.work, HeldOutFile)
    ]


def save_name(
    names: Literal["rounds", "steps"], round_no: int, step: int, is_round_end: bool
) -> str:
    """What weights are saved as, after so many steps of the run; thousands of steps as `0005k`."""
    if names == "steps":
        is_thousands = step > 0 and step % 1000 == 0
        return f"checkpoint-{step // 1000:04d}k" if is_thousands else f"checkpoint-{step:06d}"
    return f"round_{round_no:02d}" if is_round_end else f"round_{round_no:02d}_step_{step:06d}"


def submit_save(
    run: Run, client: tinker.TrainingClient, round_no: int, step: int, is_round_end: bool
) -> SaveInFlight:
    """Submit a state to go on from, and at a round's end the weights to sample from."""
    ttl = None if is_reference(run.plan.config, round_no) else ttl_seconds(run.plan.config)
    name = save_name(run.plan.config.checkpoint_names, round_no, step, is_round_end)
    if not is_round_end:
        return SaveInFlight(step, client.save_state(name, ttl_seconds=ttl), None)
    return SaveInFlight(
        step,
        client.save_state(name, ttl_seconds=ttl),
        client.save_weights_for_sampler(name, ttl_seconds=ttl),
    )


async def finish_all(run: Run, round_no: int, in_flight: deque[InFlight], num_left: int) -> None:
    """Await and record the oldest of what is in flight until `num_left` steps are, or nothing."""
    while in_flight and (num_left == 0 or num_steps(in_flight) > num_left):
        await finish(run, round_no, in_flight[0])
        in_flight.popleft()


def num_steps(in_flight: Iterable[InFlight]) -> int:
    return sum(isinstance(pending, StepInFlight) for pending in in_flight)


def tell_unrecorded(run: Run, in_flight: Iterable[InFlight], error: TrainingError) -> None:
    """Put into the error what no event tells of, and the service takes all the same: the tokens of
    the steps in flight, and of the held-out losses between them."""
    recorded = {event["step"] for event in run.store.events("step")}
    for pending in in_flight:
        if isinstance(pending, HeldOutInFlight):
            error.num_prompt_tokens += num_held_out_tokens(pending.file, run.plan.rendering)
        elif isinstance(pending, StepInFlight) and pending.step not in recorded:
            error.num_train_tokens += pending.num_tokens
            error.num_prompt_tokens += pending.num_prompt_tokens
            error.num_sampled_tokens += pending.num_sampled_tokens
            if pending.rollouts:
                error.rollouts.append({"step": pending.step, "file": dict(pending.rollouts)})


async def finish(run: Run, round_no: int, pending: InFlight) -> None:
    """Await and record one submitted step, measurement or save.

    Raises `TrainingError` for a bad step.
    """
    if isinstance(pending, SaveInFlight):
        await finish_save(run, round_no, pending, run.depth.take_measure())
        run.depth.paused()
        return
    if isinstance(pending, HeldOutInFlight):
        await finish_held_out(run, round_no, pending)
        run.depth.paused()
        return
    assert run.method is not None, "it has submitted this step"
    result = await run.method.finish(pending)
    run.depth.came(time.monotonic())
    loss, nll = result.loss, result.nll
    if not (math.isfinite(loss) and math.isfinite(nll)):
        raise TrainingError(
            f"{lower_rate(pending)}, or check the model's weights and the rows of this step: the "
            f"loss is {loss} in round {round_no}, step {pending.step}. The run stops here, and "
            "weights saved after this step are not used."
        )
    try:
        await pending.optim_step
    except tinker.RequestFailedError as error:
        raise TrainingError(
            f"{lower_rate(pending)}, where gradients are not finite: the service refused the "
            f"optimizer step in round {round_no}, step {pending.step} (loss {loss:.4g}). Weights "
            f"saved after this step are not used. The service said: {said_by(error)}."
        ) from error
    batch = Batch(
        step=pending.step,
        example_ids=tuple(pending.example_ids),
        num_tokens=result.num_tokens,
        num_loss_tokens=result.num_loss_tokens,
        lr=pending.lr,
        measures=dict(result.measures),
        num_prompt_tokens=result.num_prompt_tokens,
        num_sampled_tokens=result.num_sampled_tokens,
        rollouts=dict(result.rollouts),
        counted_before=result.counted_before,
    )
    run.store.record_batch(round_no, batch, loss=loss, nll=nll)
    if run.steps is not None:
        run.steps.done(batch, nll)
    if not run.method.learns_answers:
        return
    run.nlls.append(nll)
    if (said := divergence(run.nlls, len(run.plan.renderer.tokenizer))) is not None:
        raise TrainingError(
            f"{lower_rate(pending)}: the loss diverges in round {round_no}, step {pending.step}: "
            f"{said}. The run stops here, and weights saved after this step are not used."
        )


def lower_rate(pending: StepInFlight) -> str:
    return f"Start a new run with a lower learning_rate than {pending.lr:.3g}"


async def finish_held_out(run: Run, round_no: int, pending: HeldOutInFlight) -> None:
    rendering, tokenizer = run.plan.rendering, run.plan.renderer.tokenizer
    loss = held_out_of_output(pending.file, await pending.forward, rendering, tokenizer)
    if not math.isfinite(loss.nll):
        raise TrainingError(
            f"Start a new run with a lower learning_rate: after {pending.step} steps the loss on "
            f"{loss.name} is {loss.nll}, in round {round_no}. The run stops here, and weights "
            "saved from now on are not used."
        )
    run.store.record_held_out(round_no, loss, pending.step)
    run.progress.held_out_line(round_no, pending.step, loss)


async def finish_save(
    run: Run, round_no: int, save: SaveInFlight, measured: Pipelined | None = None
) -> None:
    """Await a save and record it, with what was `measured` of the steps before it."""
    config, origin = run.plan.config, run.plan.origin
    alpha = None if origin is None else origin.parent.lora_alpha
    state = await save.state
    sampler = None if save.sampler is None else await save.sampler
    run.store.record_checkpoint(
        Checkpoint(
            round=round_no,
            step=save.step,
            state_path=state.path,
            sampler_path=None if sampler is None else sampler_path_in_full(sampler.path),
            base_model=config.base_model,
            lora_rank=config.lora_rank,
            lora_alpha=LORA_ALPHA if alpha is None else alpha,
            train_attn=config.train_attn,
            train_mlp=config.train_mlp,
            train_unembed=config.train_unembed,
            renderer=run.plan.renderer_name,
            expires_at=None if is_reference(config, round_no) else expiry(config),
            parent=run.parent,
        ),
        None if measured is None else asdict(measured),
    )
    run.parent = state.path
    if sampler is not None:
        write_for_playground(run.store)


def sampler_path_in_full(path: str) -> str:
    """Where weights are, as the protocol spells it. SkyRL 0.4.0 leaves out of what kind those for
    the sampler are, which its sampler alone understands, and nothing that deletes or downloads."""
    run, _, name = path.removeprefix("tinker://").rpartition("/")
    return path if "/" in run else f"tinker://{run}/sampler_weights/{name}"


async def discard_saves(run: Run, round_no: int, in_flight: deque[InFlight]) -> None:
    """Mark saves that queue behind a bad step as unusable, and delete them."""
    for save in [pending for pending in in_flight if isinstance(pending, SaveInFlight)]:
        for future in filter(None, (save.state, save.sampler)):
            try:
                path = sampler_path_in_full((await future).path)
            except tinker.TinkerError:
                continue  # the service refused to save these weights; there is nothing to discard
            run.store.append("checkpoint_unusable", round=round_no, step=save.step, state_path=path)
            # A service that will not delete them must not hide what was wrong; they expire.
            with contextlib.suppress(tinker.TinkerError, TimeoutError):
                async with asyncio.timeout(CARE_LIMIT_S):
                    await delete_checkpoint(run.clients.rest, path)


def workplace_of(run: Run) -> Workplace:
    """What the run's method works with."""

    async def open_sampler(path: str | None, model: str | None) -> tinker.SamplingClient:
        return await sampling_client(run, path, lambda: None, model)

    def watch(client: tinker.SamplingClient) -> tinker.SamplingClient:
        note, turns = run.store.note_sent, run.sharing.answer_turns
        return watched(client, run.stopwatch.add, run.keys.redacted, note, turns)

    return Workplace(run.plan, run.store, run.progress, open_sampler, watch)


async def open_training_client(run: Run, start: Checkpoint | None) -> tinker.TrainingClient:
    """A client that tells the store what it sends, of a new adapter, or of a saved state with its
    optimizer."""
    service, config = run.clients.service, run.plan.config
    run.progress.live("preparing the adapter")
    run.parent = None if start is None else start.state_path
    if start is not None:
        async with naming_what_is_gone(run, start.state_path):
            path = start.state_path
            client = await service.create_training_client_from_state_with_optimizer(path)
            return counted(client, run.store.note_sent)
    client = await service.create_lora_training_client(
        base_model=config.base_model,
        rank=config.lora_rank,
        seed=config.seed,
        train_attn=config.train_attn,
        train_mlp=config.train_mlp,
        train_unembed=config.train_unembed,
        user_metadata={"renderer_name": run.plan.renderer_name},
    )
    return counted(client, run.store.note_sent)

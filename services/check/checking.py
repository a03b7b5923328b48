"""All probes of a service, one after another, and the lines that come of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tinker

from errors import ServiceError
from services.check.bench import ANSWER_S, LOSS, Bench, Measured, Refused, Row, Spent, within
from services.check.courses import (
    GRADIENTS,
    Course,
    Flags,
    Push,
    at_rank,
    courses,
    decayed_share,
    nothing_course,
    optimizer_courses,
    other_ranks,
)
from services.check.model import name_line, probe_names, weights_line
from services.check.sampling import planned_sampling, probe_sampling, sampling_lines
from services.check.saving import probe_saving, saving_lines
from services.check.training import (
    Ranks,
    Told,
    alpha_line,
    flags_line,
    long_row_line,
    loss_line,
    optimizer_lines,
    seed_line,
    token_noise_of,
    told_by,
    training_line,
)
from services.check.verdicts import Line

PILOT_LR = 1e-4
MOVE_NATS = 0.1  # by a plain step, of each target: far above rounding, small beside the loss
MAX_LR = 1e-3  # above it even a small model's A matrices move
NUM_FALLS = 4  # steps on two rows
NUM_DELAYS = 3
SHORTEST_STEP_S = 0.001  # what a step takes beyond its delay is not less
NUM_PILOTS = 2


@dataclass(frozen=True)
class Subject:
    """What is checked: the model and adapter of the settings, the texts to do it with, and the
    log-probabilities of the first by the model's files, or why there are none."""

    rank: int
    flags: Flags
    second_row: Row
    long_row: Row
    known: Sequence[float] | str
    vocab_size: int
    depth: Callable[[float, float], int]  # steps that the loop keeps in flight, of two times in s


class Report(NamedTuple):
    """All lines in the order of the table, and what they cost."""

    lines: list[Line]
    spent: Spent


def planned(row: Row, subject: Subject) -> Spent:
    """The tokens that a check sends at most."""
    num_targets = row.num_targets
    adapter = (subject.rank, subject.flags)
    betas = max(
        (optimizer_courses(*adapter, way) for way in GRADIENTS),
        key=lambda made: sum(one.num_trained_rows for one in made.values()),
    )
    made = [*courses(*adapter).values(), *betas.values(), nothing_course(*adapter)]
    made += [at_rank(one, subject.flags) for one in other_ranks(subject.rank)[1:]]
    num_forward = 2 * (len(made) + NUM_PILOTS) + 6
    sampling = planned_sampling()
    return Spent(
        train_tokens=num_targets * (sum(one.num_trained_rows for one in made) + NUM_PILOTS + 3)
        + NUM_FALLS * (num_targets + subject.second_row.num_targets),
        prompt_tokens=num_targets * num_forward
        + subject.second_row.num_targets
        + subject.long_row.num_targets
        + sampling.prompt_tokens,
        sampled_tokens=sampling.sampled_tokens,
    )


async def check(bench: Bench, subject: Subject, live: Callable[[str], None]) -> Report:
    """Try everything. Raises what the SDK does where the service cannot be spoken to any more."""
    live("which model is served")
    names = await probe_names(bench, subject.rank, subject.flags)
    lines = [name_line(bench.base_model, names)]
    _go_on_after(names.called)
    live("how large a step is")
    made = courses(subject.rank, subject.flags)
    lr = await _find_lr(bench, made["plain"])
    live("how it trains")
    results = await _run(bench, made, lr)
    told = await _told(bench, subject, results, lr)
    ranks = await _tried_ranks(bench, subject, results, lr)
    plain = results["plain"]
    base = plain if isinstance(plain, Refused) else plain.before
    lines.append(weights_line(base, subject.known, subject.vocab_size))
    fall = await within(_falling(bench, subject, lr))
    lines.append(training_line(fall if isinstance(fall, Refused) else fall.losses))
    lines.append(loss_line(results))
    live("what it saves and samples")
    trainer = await within(_trained(bench, subject, lr))
    if isinstance(trainer, Refused):
        saved = sampling = long_row = trainer
    else:
        saved = await within(probe_saving(bench, trainer, subject.rank, told.way, lr))
        sampling = await probe_sampling(bench, trainer)
        long_row = await within(bench.forward(trainer, subject.long_row))
    alpha = saved.said if isinstance(saved, Refused) else saved.stored_alpha
    lines.append(alpha_line(results, ranks, alpha))
    lines += optimizer_lines(results, decayed_share(lr), told)
    lines += [flags_line(results), seed_line(results)]
    lines.append(long_row_line(long_row, subject.long_row.num_targets))
    lines += saving_lines(saved, results, told)
    lines += sampling_lines(sampling, token_noise_of(results))
    live("how far away it is")
    step_s = None if isinstance(fall, Refused) else fall.step_s
    lines.append(await _delay_line(bench, subject, step_s))
    return Report(lines, bench.spent)


def _go_on_after(found: object) -> None:
    """Raise `ServiceError` after one of the first requests that was not answered in time: each
    probe would be waited for as long, and tell nothing."""
    if isinstance(found, Refused) and found.is_late:
        raise ServiceError(
            f"The service was asked for an adapter and one step of it: {found.said}. It hangs, has "
            "much other work, or fails each time that the SDK asks again. Check it again when it "
            "answers."
        )


async def _run(bench: Bench, made: dict[str, Course], lr: float) -> dict[str, Measured | Refused]:
    """Train by each course, one after the other: on SkyRL 0.4.0 (JAX) adapters that train at once
    were seen to change each other's steps, by which a second one moved the loss 124 % more or less
    than the first, and alone as far."""
    return {name: await bench.run(one, lr) for name, one in made.items()}


async def _told(
    bench: Bench, subject: Subject, results: dict[str, Measured | Refused], lr: float
) -> Told:
    """Find the way to tell the betas, and add the courses that do to the results."""
    told = told_by(results)
    if told.way is None and not isinstance(results["plain"], Refused):
        nothing = {"nothing": nothing_course(subject.rank, subject.flags)}
        results |= await _run(bench, nothing, lr)
        told = told_by(results)
    if told.way is not None:
        results |= await _run(bench, optimizer_courses(subject.rank, subject.flags, told.way), lr)
    return told


async def _tried_ranks(
    bench: Bench, subject: Subject, results: dict[str, Measured | Refused], lr: float
) -> Ranks:
    """The ranks that alpha is told by: where one is refused, another is tried for it."""
    first, *others = other_ranks(subject.rank)
    found = results["other rank"]
    if not isinstance(found, Refused) or found.is_late or not others:
        return Ranks(subject.rank, first)
    refused = f"rank {first}: {found.said}"
    results["other rank"] = await bench.run(at_rank(others[0], subject.flags), lr)
    return Ranks(subject.rank, others[0], refused)


async def _find_lr(bench: Bench, plain: Course) -> float:
    """The learning rate of which a plain step moves the loss by about `MOVE_NATS`."""
    lr = PILOT_LR
    for _ in range(NUM_PILOTS):
        found = await bench.run(plain, lr)
        if isinstance(found, Refused):
            _go_on_after(found)
            return lr
        if found.move > 0:
            return min(MAX_LR, lr * MOVE_NATS / found.move)
        lr *= 10  # nothing that could be seen
    return lr


async def _trained(bench: Bench, subject: Subject, lr: float) -> tinker.TrainingClient:
    """An adapter after a plain step."""
    client = await bench.adapter(subject.rank, subject.flags)
    await bench.push(client, Push(), lr)
    return client


class Fall(NamedTuple):
    """Some steps on two rows, one after the other."""

    losses: list[float]  # in nats a token, at each step and after them
    step_s: float  # the shortest time that one of them took, from here to here


async def _falling(bench: Bench, subject: Subject, lr: float) -> Fall:
    rows = [bench.row, subject.second_row]
    data = [row.datum([1.0] * row.num_targets) for row in rows]
    num_targets = sum(row.num_targets for row in rows)
    losses, times_s = [], []
    client = await bench.adapter(subject.rank, subject.flags)
    for _ in range(NUM_FALLS):
        bench.spent.train_tokens += num_targets
        sent_at = time.monotonic()
        forward_backward = client.forward_backward(data, LOSS)
        step = client.optim_step(tinker.AdamParams(learning_rate=lr))
        output = await forward_backward
        await step
        times_s.append(time.monotonic() - sent_at)
        losses.append(
            -math.fsum(math.fsum(one["logprobs"].to_numpy()) for one in output.loss_fn_outputs)
        )
    after = [await bench.logprobs(client, row) for row in rows]
    losses.append(-math.fsum(map(math.fsum, after)))
    return Fall([loss / num_targets for loss in losses], min(times_s))


async def _delay_line(bench: Bench, subject: Subject, step_s: float | None) -> Line:
    """How long an answer takes that needs no work, and the steps that the loop would begin with.

    What a step takes beyond such an answer is counted as the service's work; a run's steps have
    more rows than the check's, and it measures them itself.
    """
    affects = "how long a run takes; no score"
    delays = await within(_delays(bench), ANSWER_S)
    if isinstance(delays, Refused):
        return Line("delay", "cannot tell", delays.said, affects, False)
    delay_s = min(delays)
    shown = f"{1000 * delay_s:.0f} ms"
    if step_s is not None:
        depth = subject.depth(step_s, max(step_s - delay_s, SHORTEST_STEP_S))
        shown += f"; of steps of {1000 * step_s:.0f} ms the loop keeps {depth} in flight"
    return Line("delay", "works", shown, affects, False)


async def _delays(bench: Bench) -> list[float]:
    delays = []
    for _ in range(NUM_DELAYS):
        asked_at = time.monotonic()
        await bench.rest.get_server_capabilities()
        delays.append(time.monotonic() - asked_at)
    return delays

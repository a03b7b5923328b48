"""Which saved weights stay, and for how long.

The rule: every save expires `checkpoint_ttl_days` after it was made, so what a killed or forgotten
run leaves behind vanishes by itself. The recommended round's weights have no expiry as long as
they are recommended, nor have those that the run started from as long as nothing that it trained is
as good; those that a registry has, and what preferences are trained against, have none at all.
States inside a round are deleted once the round's own is saved. A run does not depend on any of it:
it gets a bounded time, and that it failed is recorded and said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import tinker

from config_schema import TrainingConfig
from errors import RunStoreError
from ledger.records import Checkpoint
from ledger.run_directory import stamp_in
from loop.rounds.run import Run
from scores.decision import Decision, is_start_best
from services.faults import is_unknown_request

CARE_LIMIT_S = 30.0  # for what the run does not depend on; the SDK would try for many minutes


class Care(NamedTuple):
    """What is to be done: paths to keep for good, to let expire, and to delete."""

    keep: list[str]
    release: list[str]
    delete: list[str]


def care_for(
    checkpoints: Sequence[Checkpoint],
    best: Checkpoint,
    kept: Collection[str],
    deleted: Collection[str],
    promoted: Collection[str] = (),
    asked: Collection[str] = (),
) -> Care:
    """What is to be done once a round is decided, `best` being what it recommends.

    `kept` are the paths that have no expiry now, `deleted` those that are gone, `promoted` those
    that a registry has, and `asked` those that the run may ask or go back to.
    """
    recommended = (path for path in (best.state_path, best.sampler_path) if path is not None)
    wanted = list(dict.fromkeys([*recommended, *asked]))
    ended = {one.round for one in checkpoints if one.sampler_path is not None}
    inside = [one for one in checkpoints if one.sampler_path is None and one.round in ended]
    return Care(
        keep=[path for path in wanted if path not in kept],
        release=[path for path in kept if path not in wanted and path not in promoted],
        delete=[one.state_path for one in inside if one.state_path not in deleted],
    )


def is_reference(config: TrainingConfig, round_no: int) -> bool:
    """Whether a round's weights are what the run's steps are held against to its end: those of the
    start, by preferences or a penalty on the KL to them."""
    has_penalty = config.rl is not None and config.rl.kl_coef > 0
    return round_no == 0 and (config.method == "dpo" or has_penalty)


def ttl_seconds(config: TrainingConfig) -> int | None:
    """How long saved weights are kept."""
    days = config.checkpoint_ttl_days
    return None if days is None else round(days * 86_400)


def expiry(config: TrainingConfig) -> str | None:
    """When weights that are saved now expire, in UTC, as far as this machine's clock knows."""
    ttl = ttl_seconds(config)
    return None if ttl is None else stamp_in(ttl)


async def care_for_checkpoints(run: Run, decision: Decision) -> None:
    """Keep the recommended weights without expiry, let others expire, delete what is replaced.

    A service that will not do it is named once a round, and once a run where it knows no expiry;
    the run does not depend on it.
    """
    store, round_no = run.store, decision.round
    best = store.checkpoint(decision.best_round)
    if best is None or decision != store.last_decision():  # nothing trained, or a round gone by
        return
    saved = [one for one in store.checkpoints() if one.round <= round_no]
    try:
        promoted = store.promoted_paths()
    except RunStoreError as error:  # the run does not depend on it
        _say_failed(run, round_no, str(error))
        return
    results = [one for one in store.results() if one.round <= round_no]
    of_start = is_reference(run.plan.config, 0) or is_start_best(results, run.plan.gate)
    start = [one for one in saved if one.round == 0] if of_start else []
    asked = [path for one in start for path in (one.state_path, one.sampler_path) if path]
    care = care_for(saved, best, store.kept_paths(), store.deleted_paths(), promoted, asked)
    if not any(care):
        return
    rest, ttl = run.clients.rest, ttl_seconds(run.plan.config)

    async def delete() -> None:
        for path in care.delete:
            await delete_checkpoint(rest, path)
        if care.delete:
            store.record_deleted(round_no, care.delete)

    async def change_expiry() -> None:
        if ttl is not None and care.keep:
            for path in care.keep:
                await rest.set_checkpoint_ttl_from_tinker_path(path, None)
            store.record_kept(round_no, care.keep)
        if ttl is not None and care.release:
            for path in care.release:
                with contextlib.suppress(tinker.NotFoundError):  # gone, and not needed any more
                    await rest.set_checkpoint_ttl_from_tinker_path(path, ttl)
            store.record_released(round_no, care.release, expiry(run.plan.config))

    refusals, has_no_expiry = [], False
    for work in (delete, change_expiry):  # a service may know how to do the one and not the other
        try:
            async with asyncio.timeout(CARE_LIMIT_S):
                await work()
        except TimeoutError:
            refusals.append(f"it did not do so within {CARE_LIMIT_S:g} s")
        except tinker.TinkerError as error:
            refusals.append(f"{type(error).__name__}: {error}")
            has_no_expiry = work is change_expiry and is_unknown_request(error)
    if has_no_expiry and len(refusals) == 1:
        _say_no_expiry(run, round_no, refusals[0])
    elif refusals:
        _say_failed(run, round_no, "; ".join(refusals))


def _say_no_expiry(run: Run, round_no: int, why: str) -> None:
    """Of a service that changes no expiry, as one that sets none (SkyRL 0.4.0): once a run."""
    store, said = run.store, run.keys.redacted(why)
    is_known = any(one["detail"] == said for one in store.events("care_failed"))
    store.record_care_failed(round_no, said)
    if not is_known:
        run.progress.line(
            f"note: the service has no request that changes how long weights are kept ({said}). "
            "Such a service lets none expire, whatever --list shows, so all that the run saves "
            "stays there until it is deleted: tinker checkpoint delete PATH, with the paths of "
            "--list. checkpoint_ttl_days null says so from the start."
        )


def _say_failed(run: Run, round_no: int, why: str) -> None:
    said = run.keys.redacted(why)
    run.store.record_care_failed(round_no, said)
    run.progress.line(
        f"warning: the service did not change how long weights are kept: {said}. They may "
        "expire as --list shows; export what you need before."
    )


async def delete_checkpoint(rest: tinker.RestClient, path: str) -> None:
    """Delete saved weights, which may be gone already: a run that was killed here comes again."""
    try:
        await rest.delete_checkpoint_from_tinker_path(path)
    except tinker.NotFoundError:
        return

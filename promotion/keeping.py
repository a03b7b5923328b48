"""Promoted weights do not expire: the service is asked to keep them, before anything is promoted.

Where the service is this machine, their description says until when they are kept, and is changed.
That the weights are a registry's is noted in the run's directory, so that a run that goes on does
not let them expire again.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from pathlib import Path

import tinker

from errors import LoopError, ServiceError
from ledger.records import Checkpoint, seconds_of
from ledger.registry_file import Promoted, Registry
from ledger.registry_names import locate
from ledger.registry_weights import CHECKPOINTS, weights_dir
from loop.reports.console import tell
from loop.rounds.keeping import CARE_LIMIT_S
from promotion.evidence import Candidate
from promotion.rules import Objection
from services.faults import is_unknown_request
from services.keys import Keys
from services.listening import refuse_no_service
from services.place import service_of_run
from services.sdk import rest_client
from services.waiting import aside


def paths_of(checkpoint: Checkpoint) -> list[str]:
    """Both sets of weights of a checkpoint: to train on from, and to sample from."""
    return [path for path in (checkpoint.state_path, checkpoint.sampler_path) if path is not None]


def expiring(candidate: Candidate) -> dict[str, str]:
    """Those of a checkpoint's weights that expire, and when, as its run's ledger and what lies here
    have it."""
    wanted = paths_of(candidate.checkpoint)
    saved = {one.path: one.expires_at for one in candidate.store.saved_weights()}
    return {path: until for path in wanted if (until := saved.get(path)) is not None}


def why_gone(candidate: Candidate, now: float | None = None) -> Objection | None:
    """Why the weights cannot be kept any more; None where they can be."""
    deleted = candidate.store.deleted_paths().intersection(paths_of(candidate.checkpoint))
    if deleted:
        return Objection("gone", f"its weights were deleted: {', '.join(sorted(deleted))}")
    at = time.time() if now is None else now
    for path, until in expiring(candidate).items():
        if seconds_of(until) < at:
            return Objection("gone", f"its weights have expired at {until}: {path}")
    return None


def keep(candidate: Candidate, keys: Keys) -> list[str]:
    """Let the weights have no expiry; the paths that had one. Raises `LoopError` where the service
    will not, with the time at which they vanish."""
    until = expiring(candidate)
    if not until:
        return []
    try:
        if candidate.service == "embedded":
            _keep_files(candidate.store.run_dir, list(until))
        else:
            asyncio.run(_keep_on_service(candidate, list(until), keys))
    except (LoopError, tinker.TinkerError, TimeoutError) as error:
        said = keys.redacted(str(error) or type(error).__name__).rstrip(".")
        remedy = "Promote it once the service answers, or export it before then."
        if is_unknown_request(error):
            remedy = (
                "It has no such request, so it may let nothing expire, which is not known here: "
                "export it, or train with checkpoint_ttl_days null there."
            )
        raise ServiceError(
            f"{candidate.label}: nothing was promoted, because its weights expire at "
            f"{min(until.values())}, and the service does not keep them: {said}. {remedy}"
        ) from None
    return list(until)


def _keep_files(run_dir: Path, paths: list[str]) -> None:
    from local_tinker import checkpoints
    from local_tinker.wire import NotFound, UserError

    for path in paths:
        try:
            checkpoints.set_ttl(run_dir / CHECKPOINTS, weights_dir(run_dir, path), None)
        except (UserError, NotFound, checkpoints.StorageError) as error:
            raise ServiceError(str(error)) from None


async def _keep_on_service(candidate: Candidate, paths: list[str], keys: Keys) -> None:
    base_url = service_of_run(candidate.store.settled_config(), keys.environment).base_url
    if base_url is not None:
        refuse_no_service(base_url, functools.partial(tell, file=sys.stderr))
    async with asyncio.timeout(CARE_LIMIT_S):
        rest = await aside(lambda: rest_client(base_url, keys.tinker))
        for path in paths:
            await rest.set_checkpoint_ttl_from_tinker_path(path, None)


def key_of(registry: Registry, entry: Promoted) -> str:
    """An entry's name among all registries of this machine."""
    return f"{entry.reference} of {registry.path.resolve()}"


def let_go(registry: Registry, entry: Promoted) -> str:
    """Note that a registry does not need an entry's weights any more; how to be rid of them. Raises
    `LoopError` where its run is not found."""
    found = locate(registry.path, entry.reference)
    store, paths = found.store, paths_of(found.checkpoint)
    store.record_let_go(paths, key_of(registry, entry))
    held = store.promoted_paths()
    others = sorted({one for path in paths for one in held.get(path, ())})
    if others:
        return f"Its weights are {', '.join(others)} as well, and are kept."
    if entry.weights_sha256 is not None:
        folders = ", ".join(str(weights_dir(store.run_dir, path)) for path in paths)
        return f"Its weights have no expiry. To be rid of them, remove {folders}."
    return (
        "Its weights have no expiry on the service. To be rid of them: tinker checkpoint delete "
        f"{' '.join(paths)}; tinker checkpoint set-ttl lets them expire."
    )

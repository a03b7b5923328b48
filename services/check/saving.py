"""What becomes of weights that are saved: the probes, and what is made of them."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import httpx
import tinker

from services.check.bench import Bench, Measured, Refused, quiet_sdk, within
from services.check.courses import GRADIENTS, Push, Way, predicted_move, push_of
from services.check.training import MANY_NOISES, Results, Told, moves, noise_of
from services.check.verdicts import Found, Line, nearest, worst

DOWNLOAD_TIMEOUT_S = 20
CLOSE_FRAC = 0.05  # of what the training moved: how near restored weights are to the saved ones
CONFIG = "adapter_config.json"


class Twin(NamedTuple):
    """An adapter that was made from a state, with its losses, in nats a target, before and after
    one step of another gradient than that before the save."""

    client: tinker.TrainingClient
    before: float
    after: float


class Saved(NamedTuple):
    """The loss of a trained adapter, in nats a target, and what was made of its saved state.

    `loading` is what a request to load weights amid training gave; None: it loaded them.
    """

    loss: float
    with_optimizer: Twin | Refused
    without: Twin | Refused
    loading: Refused | None
    listed: str | Refused
    stored_alpha: float | str


async def probe_saving(
    bench: Bench, trainer: tinker.TrainingClient, rank: int, way: Way | None, lr: float
) -> Saved | Refused:
    """Save the state of an adapter that has taken a plain step, and make others from it, which take
    one of another gradient in a way (None: there is none)."""
    push = Push() if way is None else push_of(way, GRADIENTS[way].beta1[1])
    loss, path = await _loss(bench, trainer), await bench.save_state(trainer, "state")
    restored = await within(_twin(bench, path, True, push, lr))
    loading: Refused | None = Refused("it could not be tried")
    if not isinstance(restored, Refused):
        answer = await within(_load_amid(restored.client, path))
        loading = answer if isinstance(answer, Refused) else None
    if isinstance(restored, Refused) and restored.is_late:
        return restored  # what comes after it would be waited for as long
    return Saved(
        loss,
        restored,
        await within(_twin(bench, path, False, push, lr)),
        loading,
        await within(_list_and_delete(bench, trainer, path, rank)),
        await stored_alpha(bench, trainer),
    )


async def _twin(bench: Bench, path: str, with_optimizer: bool, push: Push, lr: float) -> Twin:
    """An adapter made from a state, and a step of it."""
    service = bench.service
    make = (
        service.create_training_client_from_state_with_optimizer
        if with_optimizer
        else service.create_training_client_from_state
    )
    client = await make(path)
    before = await _loss(bench, client)
    await bench.push(client, push, lr)
    return Twin(client, before, await _loss(bench, client))


async def _loss(bench: Bench, client: tinker.TrainingClient) -> float:
    logprobs = await bench.logprobs(client)
    return -math.fsum(logprobs) / len(logprobs)


async def _load_amid(client: tinker.TrainingClient, path: str) -> None:
    """Ask an adapter that has been trained to load a state."""
    with warnings.catch_warnings(), quiet_sdk():
        warnings.simplefilter("ignore", FutureWarning)
        await client.load_state(path)


async def _list_and_delete(
    bench: Bench, trainer: tinker.TrainingClient, path: str, rank: int
) -> str:
    """Look a state up as the loop does, delete another; what was found, "" where all is as it
    should be."""
    rest = bench.rest
    info = await rest.get_weights_info_by_tinker_path(path)
    if info.base_model != bench.base_model or info.lora_rank not in (None, rank):
        return f"the state is said to be of {info.base_model}, rank {info.lora_rank}"
    other = await bench.save_state(trainer, "deleted")
    if not {path, other} <= await _listed(rest, trainer.model_id):
        return "what was just saved is not in the list"
    await bench.delete(other)
    if other in await _listed(rest, trainer.model_id):
        return "what was deleted is in the list still"
    return ""


async def _listed(rest: tinker.RestClient, run_id: str) -> set[str]:
    return {one.tinker_path for one in (await rest.list_checkpoints(run_id)).checkpoints}


async def stored_alpha(bench: Bench, trainer: tinker.TrainingClient) -> float | str:
    """The alpha in an adapter's own configuration, or why it is not known."""
    urls = await within(_given_out(bench, trainer))
    if isinstance(urls, Refused):
        return f"it gives no adapter out ({urls.said})"
    if CONFIG not in urls:
        return f"its adapter has no {CONFIG}"
    async with httpx.AsyncClient(timeout=DOWNLOAD_TIMEOUT_S, follow_redirects=True) as client:
        try:
            config: Any = (await client.get(urls[CONFIG])).raise_for_status().json()
            return float(config["lora_alpha"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            return f"its {CONFIG} cannot be read ({type(error).__name__})"


async def _given_out(bench: Bench, trainer: tinker.TrainingClient) -> dict[str, str]:
    path = await bench.save_external(trainer, "external")
    return (await bench.rest.get_external_weights_urls(path)).urls


# --- what is made of it ---------------------------------------------------------------------------


def saving_lines(found: Saved | Refused, results: Results, told: Told) -> list[Line]:
    """The lines on saved weights."""
    if isinstance(found, Refused):
        found = Saved(math.nan, found, found, found, found, found.said)
    return [
        _restored_line(found, results),
        _optimizer_line(found, results, told),
        _loading_line(found),
        _listing_line(found.listed),
    ]


def _restored_line(found: Saved, results: Results) -> Line:
    name, affects = "saved weights come back", "`--resume`, rollback, `start_from`"
    plain = results["plain"]
    twins = {"with optimizer": found.with_optimizer, "without": found.without}
    said = [f"{how}: {one.said}" for how, one in twins.items() if isinstance(one, Refused)]
    if said:
        late = all(one.is_late for one in twins.values() if isinstance(one, Refused))
        verdict = "cannot tell" if late else "differs"
        return Line(name, verdict, "; ".join(said), affects, False)
    if isinstance(plain, Refused):
        return Line(name, "cannot tell", f"a plain step: {plain.said}", affects)
    off = max(
        abs(one.before - found.loss) for one in twins.values() if not isinstance(one, Refused)
    )
    shown = f"their loss is {off:.5f} nats a token off; a step moves it by {plain.move:.3f}"
    if off <= CLOSE_FRAC * abs(plain.move):
        return Line(name, "works", shown, affects)
    noise = noise_of(results)
    if off <= MANY_NOISES * noise:
        return Line(name, "cannot tell", f"{shown}, and the same weights by {noise:.5f}", affects)
    return Line(name, "differs", shown, affects)


def _optimizer_line(found: Saved, results: Results, told: Told) -> Line:
    """Whether AdamW's moments come back: a step of another gradient than the one before tells."""
    name, affects = "optimizer comes back", "`--resume` and rollback go on as if never stopped"
    plain = moves(results)
    if isinstance(plain, str) or told.way is None:
        return Line(
            name, "cannot tell", plain if isinstance(plain, str) else told.why_none, affects
        )
    gradients = GRADIENTS[told.way].beta1
    kept, fresh = predicted_move(gradients), predicted_move(gradients[1:])
    unit = results["plain"]
    assert isinstance(unit, Measured), "it has moves"

    def judge(one: Twin | Refused, promised: float, broken: dict[str, float]) -> Found:
        if isinstance(one, Refused):
            return Found("cannot tell", one.said)
        return nearest((one.before - one.after) / unit.move, promised, broken)

    verdict = worst(
        {
            "with optimizer": judge(
                found.with_optimizer, kept, {"the optimizer begins anew": fresh}
            ),
            "without": judge(
                found.without, fresh, {"the optimizer is restored all the same": kept}
            ),
        }
    )
    return Line(name, verdict.verdict, verdict.why, affects)


def _loading_line(found: Saved) -> Line:
    name = "load_weights first or never"
    affects = "programs of your own: as on Tinker weights load in a run's first request alone"
    if found.loading is None:
        return Line(name, "differs", "weights can be loaded amid training", affects, False)
    if isinstance(found.with_optimizer, Refused):
        return Line(name, "cannot tell", "there is no run that could be asked", affects, False)
    return Line(name, "works", "refused amid training", affects, False)


def _listing_line(found: str | Refused) -> Line:
    affects = "`checkpoint_ttl_days`, the keeping of the best, `tinker://` on the command line"
    if isinstance(found, Refused):
        return Line("listing and deleting", found.verdict, found.said, affects, False)
    verdict = "differs" if found else "works"
    shown = found or "what is saved is listed, and gone once deleted"
    return Line("listing and deleting", verdict, shown, affects, False)

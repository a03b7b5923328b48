"""Which model a service really serves: the probes, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from services.check.bench import ANSWER_S, Bench, Refused, within
from services.check.courses import Flags
from services.check.verdicts import Line

MADE_UP = "check-service/no-such-model"
SAME_NATS = 0.1  # mean distance of one model's log-probabilities, computed in other precisions
OTHER_NATS = 0.5  # and of two models'
CHANCE_FRAC = 0.9  # of what a guess among all tokens loses: a text is hardly likelier than that
AFFECTS = "everything: all scores are the model's"


class Names(NamedTuple):
    """The names of a service: those that it lists (why not, where it does not), what it calls the
    adapter's model, and what it says to a name that no model has (None: it trains it)."""

    listed: tuple[str, ...] | Refused
    called: str | Refused | None
    made_up: Refused | None


async def probe_names(bench: Bench, rank: int, flags: Flags) -> Names:
    """Ask for the list, for an adapter's model, and for a model that there is not."""
    called = await within(_called(bench, rank, flags))
    made_up = await within(bench.adapter(rank, flags, base_model=MADE_UP))
    return Names(
        await within(_listed(bench), ANSWER_S),
        called,
        made_up if isinstance(made_up, Refused) else None,
    )


async def _listed(bench: Bench) -> tuple[str, ...]:
    models = (await bench.rest.get_server_capabilities()).supported_models
    return tuple(one.model_name for one in models if one.model_name)


async def _called(bench: Bench, rank: int, flags: Flags) -> str | None:
    client = await bench.adapter(rank, flags)
    return client.get_info().model_data.model_name


def name_line(base_model: str, names: Names) -> Line:
    """Whether a name means a model: it is listed, and one that no model has is refused."""
    name = "the model's name"
    if isinstance(names.called, Refused):
        return Line(name, "differs", names.called.said, AFFECTS)
    if names.made_up is None:
        why = f"it trains {MADE_UP} as well: what it serves has any name"
        return Line(name, "differs", why, AFFECTS)
    if isinstance(names.listed, Refused):
        return Line(name, "cannot tell", f"it lists no models: {names.listed.said}", AFFECTS)
    if base_model not in names.listed:
        return Line(name, "differs", f"it lists {', '.join(names.listed) or 'none'}", AFFECTS)
    if names.called not in (None, base_model):
        return Line(name, "differs", f"its adapter is of {names.called}", AFFECTS)
    return Line(name, "works", "listed, and a name that no model has is refused", AFFECTS)


def weights_line(
    logprobs: Sequence[float] | Refused, known: Sequence[float] | str, vocab_size: int
) -> Line:
    """Whether the base model's weights are the ones that are meant.

    `logprobs` are the service's, of a text; `known` those by the model's files on this machine, or
    why there are none.
    """
    name = "the model's weights"
    if isinstance(logprobs, Refused):
        return Line(name, "cannot tell", logprobs.said, AFFECTS)
    loss = -math.fsum(logprobs) / len(logprobs)
    chance = math.log(vocab_size)
    if isinstance(known, str):
        shown = f"a plain text loses {loss:.2f} nats a token, where guessing loses {chance:.2f}"
        if loss > CHANCE_FRAC * chance:
            return Line(name, "differs", f"not of this tokenizer: {shown}", AFFECTS)
        return Line(name, "cannot tell", f"{known}; {shown}", AFFECTS)
    apart = math.fsum(abs(a - b) for a, b in zip(logprobs, known, strict=True)) / len(known)
    shown = f"{apart:.4f} nats a token from the files on this machine"
    if apart <= SAME_NATS:
        return Line(name, "works", shown, AFFECTS)
    return Line(name, "differs" if apart >= OTHER_NATS else "cannot tell", shown, AFFECTS)

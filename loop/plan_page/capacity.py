"""Whether the adapter has room for what the rows hold, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from hyperparam_utils import capacity_sentence
from loop.plan_page.token_estimate import RowTokens
from loop.plan_page.view import Part, Planned
from loop.planning.methods import words_for
from loop.planning.models import lora_param_count
from loop.planning.page import parameters_text
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, SFT, MethodWords

Method = Literal["sft", "dpo", "rl", "distillation", "off_policy"]
METHODS: dict[MethodWords, Method] = {
    SFT: "sft",
    DPO: "dpo",
    RL: "rl",
    ON_POLICY: "distillation",
    OFF_POLICY: "off_policy",
}
FAR_BELOW = 0.1  # parameters for a token, below which only other settings help
MAX_RANK = 256  # that the settings take
HELD_TO = "as many parameters as tokens that carry loss"


class Capacity(NamedTuple):
    """Parameters against tokens; `verdict` is room, below, far_below, low_rank_is_enough, no_rule
    or unknown."""

    num_params: int | None
    num_loss_tokens: int
    rank: int
    verdict: str
    counted: str

    @property
    def rank_needed(self) -> int | None:
        """The rank with a parameter for each token; None beyond what can be set, or unknown."""
        if not self.num_params:
            return None
        rank = math.ceil(self.rank * self.num_loss_tokens / self.num_params)
        return rank if rank <= MAX_RANK else None


def capacity(
    num_params: int | None, num_loss_tokens: int, rank: int, counted: str, method: Method = "sft"
) -> Capacity:
    """Judge an adapter. Only supervised rows are counted against parameters: a reward tells far
    less than a row, and so low ranks are enough for RL and on-policy distillation. Of pairs the
    rule says nothing, and a teacher's answers are not there yet to be counted."""
    if method in ("dpo", "off_policy"):
        verdict = "no_rule"
    elif method != "sft":
        verdict = "low_rank_is_enough"
    elif num_params is None:
        verdict = "unknown"
    elif num_params >= num_loss_tokens:
        verdict = "room"
    else:
        verdict = "far_below" if num_params < FAR_BELOW * num_loss_tokens else "below"
    return Capacity(num_params, num_loss_tokens, rank, verdict, counted)


def describe(found: Capacity) -> Iterator[str]:
    """Yield what a verdict means, and what to do where there is too little room."""
    if found.verdict == "unknown":
        known = "how many parameters this model's adapter has is not known here"
        if found.num_params is not None:
            known = "the estimate of the tokens is too wide for the parameters"
        yield (
            "whether that is enough cannot be told: the vendor's rule of thumb asks for "
            f"{HELD_TO}, and {known}"
        )
    elif found.verdict == "no_rule":
        yield (
            "whether that is enough cannot be told: the vendor's rule of thumb counts the tokens "
            "of supervised rows, and of pairs, or of answers that a teacher is yet to give, it "
            "says nothing; compare ranks in a study"
        )
    elif found.verdict == "low_rank_is_enough":
        yield "room: ranks from 1 to 16 are enough for this method, which learns from few bits"
    elif found.verdict == "room":
        yield (
            f"room: the vendor's rule of thumb asks for {HELD_TO}; from there on LoRA learns about "
            "what full fine-tuning would (which is called low-regret)"
        )
    else:
        yield (
            f"{'far ' if found.verdict == 'far_below' else ''}too little room by the vendor's rule "
            f"of thumb ({HELD_TO}): LoRA is likely to learn less than full fine-tuning would"
        )
        yield f"what helps: {'; '.join(remedies(found))}"


def remedies(found: Capacity) -> list[str]:
    """What gives an adapter more room; empty where it has enough, or no rule says so."""
    if found.verdict not in ("below", "far_below"):
        return []
    return [
        _raised(found.rank_needed),
        "a narrower objective, with fewer rows of one kind",
        "or a smaller base model, though its adapter has fewer parameters at the same rank as "
        "well, so that the rank has to rise with it",
    ]


def _raised(rank: int | None) -> str:
    if rank is None:
        return f"a higher lora_rank (even {MAX_RANK}, the highest, is not one for each token)"
    return f"a higher lora_rank (from {rank} on there is one for each token)"


def judged(num_params: int | None, tokens: RowTokens, rank: int, method: Method) -> Capacity:
    """The verdict on rows; where they are estimated it is one that both bounds come to."""
    found = capacity(num_params, tokens.number or 0, rank, tokens.how, method)
    if method != "sft" or tokens.are != "estimated":
        return found
    bounds = {
        capacity(num_params, number or 0, rank, "", method).verdict
        for number in (tokens.at_least, tokens.at_most)
    }
    return found if len(bounds) == 1 else found._replace(verdict="unknown")


def capacity_part(view: Planned, tokens: RowTokens) -> Part:
    """What the adapter has room for."""
    config, title = view.config, "Room in the adapter"
    origin = None if view.plan is None else view.plan.origin
    num_params = lora_param_count(config, view.inputs.model_dir, origin)
    method = METHODS[words_for(config)]
    found = judged(num_params, tokens, config.lora_rank, method)
    counted = f"{tokens.how}; parameters {_count_of_params(view, num_params)}"
    is_counted = method == "sft"
    facts = {
        **found._asdict(),
        "counted": counted,
        "num_loss_tokens": tokens.number,
        "rank_needed": found.rank_needed if is_counted else None,
        "tokens_are": tokens.are,
        "loss_tokens_from": tokens.at_least,
        "loss_tokens_to": tokens.at_most,
        "how": tokens.how,
        "longest_row_tokens": tokens.longest,
        "remedies": remedies(found),
    }
    told, is_enough = list(describe(found)), found.verdict in ("room", "low_rank_is_enough")
    if not is_counted:
        lines = [parameters_text(config.lora_rank, num_params), *told]
        return Part("capacity", title, lines, facts, details=[f"counted: {counted}"])
    lines = [_sentence(found, tokens), *([] if is_enough else told)]
    details = [*(told if is_enough else []), f"counted: {counted}"]
    return Part("capacity", title, lines, facts, details=details)


def _sentence(found: Capacity, tokens: RowTokens) -> str:
    if tokens.are == "counted":
        return capacity_sentence(found.num_params, found.num_loss_tokens, found.rank)
    verdict = {"room": ", which is room for all of them"}.get(found.verdict, "")
    return (
        f"{parameters_text(found.rank, found.num_params)}; about {tokens.number or 0:,} loss "
        f"tokens, between {tokens.at_least or 0:,} and {tokens.at_most or 0:,}, estimated from "
        f"the rows' bytes{verdict}"
    )


def _count_of_params(view: Planned, num_params: int | None) -> str:
    if num_params is None:
        return "are not known: no sizes of a dense model are at hand"
    origin = None if view.plan is None else view.plan.origin
    if origin is not None and origin.num_params is not None:
        return "are those of the adapter that the run goes on from, which another program wrote"
    if view.inputs.model_dir is None:
        return "are the cookbook's count for this name"
    return "are rank x (inputs + outputs) of each adapted matrix, by the sizes in config.json"

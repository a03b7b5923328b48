"""Whether the adapter has room for what the rows hold, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from loop.plan_page.view import Part, Planned
from loop.planning.methods import words_for
from loop.planning.models import lora_param_count
from loop.planning.page import describe_capacity, num_loss_tokens_of, parameters_text
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
        yield (
            "whether that is enough cannot be told: the vendor's rule of thumb asks for "
            f"{HELD_TO}, and how many parameters this model's adapter has is not known here"
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
        rank = found.rank_needed
        yield (
            f"what helps: {_raised(rank)}; a narrower objective, with fewer rows of one kind; or a "
            "smaller base model, though its adapter has fewer parameters at the same rank as well, "
            "so that the rank has to rise with it"
        )


def _raised(rank: int | None) -> str:
    if rank is None:
        return f"a higher lora_rank (even {MAX_RANK}, the highest, is not one for each token)"
    return f"a higher lora_rank (from {rank} on there is one for each token)"


def capacity_part(view: Planned) -> Part:
    """What the adapter has room for; without a tokenizer the tokens are not known."""
    config, title = view.config, "Room in the adapter"
    origin = None if view.plan is None else view.plan.origin
    num_params = lora_param_count(config, view.inputs.model_dir, origin)
    if (method := METHODS[words_for(config)]) != "sft":
        counted = f"parameters {_count_of_params(view, num_params)}"
        found = capacity(num_params, 0, config.lora_rank, counted, method)
        facts = {**found._asdict(), "num_loss_tokens": None, "rank_needed": None}
        lines = [parameters_text(config.lora_rank, num_params), *describe(found)]
        return Part("capacity", title, lines, facts, details=[f"counted: {counted}"])
    if view.plan is None:
        parameters = "not known" if num_params is None else f"{num_params:,}"
        line = f"LoRA rank {config.lora_rank}: {parameters} parameters; the tokens are not counted"
        facts = {"num_params": num_params, "rank": config.lora_rank, "verdict": "unknown"}
        return Part("capacity", title, [line], facts)
    counted = (
        "loss tokens are those of all rows that may be trained on, each once, as they are "
        f"rendered; parameters {_count_of_params(view, num_params)}"
    )
    found = capacity(num_params, num_loss_tokens_of(view.plan), config.lora_rank, counted)
    told, facts = list(describe(found)), {**found._asdict(), "rank_needed": found.rank_needed}
    is_enough = found.verdict in ("room", "low_rank_is_enough")
    lines = [describe_capacity(view.plan), *([] if is_enough else told)]
    details = [*(told if is_enough else []), f"counted: {counted}"]
    return Part("capacity", title, lines, facts, details=details)


def _count_of_params(view: Planned, num_params: int | None) -> str:
    if num_params is None:
        return "are not known: no sizes of a dense model are at hand"
    origin = None if view.plan is None else view.plan.origin
    if origin is not None and origin.num_params is not None:
        return "are those of the adapter that the run goes on from, which another program wrote"
    if view.inputs.model_dir is None:
        return "are the cookbook's count for this name"
    return "are rank x (inputs + outputs) of each adapted matrix, by the sizes in config.json"

"""The models that the service of the settings has, and which of them these rows and settings fit.

Names and contexts are what the service says, or what lies on this machine; sizes, chat and vision
are from tinker-cookbook's tables, parameters from the weights' own headers. What a name does not
say is not known, and no model is better than another here: only measuring tells that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import hyperparam_utils
from config_schema import TrainingConfig
from errors import first_of
from loop.plan_page.capacity import METHODS, judged
from loop.plan_page.token_estimate import RowTokens, uncounted_tokens
from loop.plan_page.view import Offer, OfferedModel, Part, Planned
from loop.planning.methods import words_for
from pages.document import Block, Column, Table
from services.place import ServiceChoice

NUM_NAMED = 8
TOKENS_BY = (
    "rows are counted by base_model's tokenizer; in English, German and code three others gave up "
    "to two fifths more or less, in digits and some scripts several times as many"
)
# What a word of a model's name says that it was made for, the most particular first.
TUNED_FOR = (
    ("code", r"coder?|codestral|starcoder"),
    ("math", r"math"),
    ("reasoning", r"thinking|reasoning|r1|qwq"),
    ("vision", r"vl|vision"),
    ("chat", r"instruct|chat|it"),
    ("base", r"base"),
)
# What the cards of these families say that they are for, by the beginning of the name.
DOMAINS = (
    ("Qwen/Qwen3", "more than a hundred languages and dialects"),
    ("meta-llama/Llama-3", "English and seven other languages"),
    ("openai/gpt-oss", "English; science, code and general knowledge"),
)


class Known(NamedTuple):
    """What is known of a model by its name and its files."""

    size: str | None
    num_params: int | None
    family: str | None
    tuned_for: str | None
    tuned_for_by: str | None
    domain: str | None


def known_of(model: OfferedModel) -> Known:
    """Look a model up in the cookbook's table, its name and its files."""
    attributes = _in_cookbook(model.name)
    tuned_for, by = _tuned_for(model.name), "the name"
    if tuned_for is None:
        is_chat = None if attributes is None else attributes.is_chat
        tuned_for, by = {True: "chat", False: "base", None: None}[is_chat], "tinker-cookbook"
    family = None if model.config is None else model.config.get("model_type")
    return Known(
        size=None if attributes is None else attributes.size_str,
        num_params=None if model.directory is None else num_params_in(model.directory),
        family=attributes.organization if attributes is not None else family,
        tuned_for=tuned_for,
        tuned_for_by=None if tuned_for is None else by,
        domain=next((what for start, what in DOMAINS if model.name.startswith(start)), None),
    )


def _in_cookbook(name: str) -> Any:
    """The cookbook's attributes of a hub model; None of one that its table does not have."""
    from tinker_cookbook.exceptions import ConfigurationError
    from tinker_cookbook.model_info import get_model_attributes

    with contextlib.suppress(ConfigurationError, KeyError, ValueError):
        found = get_model_attributes(name)
        # Of an Inkling that it does not know it gives the name itself in place of sizes.
        return found if found.size_str != found.version_str else None
    return None


def _tuned_for(name: str) -> str | None:
    words = re.split(r"[^a-z0-9]+", name.rpartition("/")[2].partition(":")[0].lower())
    for what, pattern in TUNED_FOR:
        if any(re.fullmatch(pattern, word) for word in words):
            return what
    return None


def num_params_in(directory: Any) -> int | None:
    """Parameters by the headers of a model's safetensors; None where there are none to be read."""
    from safetensors import SafetensorError, safe_open

    number = 0
    try:
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 - no dictionary
                    size = 1
                    for length in file.get_slice(key).get_shape():
                        size *= length
                    number += size
    except (OSError, SafetensorError):
        return None
    return number or None


# --- what fits ------------------------------------------------------------------------------------


def fit_facts(
    model: OfferedModel, config: TrainingConfig, tokens: RowTokens | None
) -> dict[str, Any]:
    """A model with what of these rows and settings fits it. `tokens` None: no row was read."""
    num_params = adapter_params(model, config)
    method = METHODS[words_for(config)]
    is_known = tokens is not None or method != "sft"
    rows = uncounted_tokens() if tokens is None else tokens
    found = judged(num_params, rows, config.lora_rank, method)
    context_fits, remark = _context(model.context, config.max_seq_length, tokens)
    return {
        "name": model.name,
        "found": model.found,
        "context": model.context,
        "trainable": model.trainable,
        "sampleable": model.sampleable,
        **known_of(model)._asdict(),
        "adapter_params": num_params,
        "rank_needed": found.rank_needed if rows.number is not None else None,
        "capacity_verdict": found.verdict if is_known else "unknown",
        "context_fits": context_fits,
        "remarks": [remark],
    }


def adapter_params(model: OfferedModel, config: TrainingConfig) -> int | None:
    """LoRA parameters at the rank and on the layers of the settings."""
    flags = {
        "train_attn": config.train_attn,
        "train_mlp": config.train_mlp,
        "train_unembed": config.train_unembed,
    }
    if model.config is None:
        return hyperparam_utils.known_lora_param_count(model.name, config.lora_rank, **flags)
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):  # sizes that are none
        return hyperparam_utils.lora_param_count(model.config, config.lora_rank, **flags)
    return None


def _context(
    context: int | None, max_seq_length: int, tokens: RowTokens | None
) -> tuple[bool | None, str]:
    """Whether rows fit a context; they are cut at `max_seq_length`."""
    if context is None:
        return None, "its context is not known"
    if max_seq_length <= context:
        return True, f"rows are cut at max_seq_length {max_seq_length:,}, within its {context:,}"
    longest = None if tokens is None else tokens.longest
    if longest is None:
        return None, f"whether the longest row fits into its {context:,} tokens is not known"
    if longest <= context:
        return True, f"the longest row of {longest:,} tokens fits into its {context:,}"
    return False, f"the longest row of {longest:,} tokens does not fit into its {context:,}"


# --- the part -------------------------------------------------------------------------------------


def offer_facts(
    offer: Offer, choice: ServiceChoice | None, config: TrainingConfig, tokens: RowTokens | None
) -> dict[str, Any]:
    """The service and its models as named values."""
    models = None
    if offer.models is not None:
        models = [fit_facts(one, config, tokens) for one in offer.models]
    return {
        "kind": None if choice is None else choice.kind,
        "reason": None if choice is None else choice.reason,
        "was_asked": offer.models is not None,
        "why_not": offer.why_not,
        "base_model_is_served": offer.has(config.base_model),
        "tokens_by": TOKENS_BY,
        "models": models,
    }


def refusal(offer: Offer, choice: ServiceChoice | None, config: TrainingConfig) -> str | None:
    """Why a run could not begin, where the service does not train `base_model`."""
    if choice is None or offer.has(config.base_model) is not False:
        return None
    names = [one.name for one in offer.models or () if one.trainable is not False]
    listed = f"it has {first_of(names, NUM_NAMED)}" if names else "it names none that it trains"
    where = "this machine" if choice.kind == "embedded" else f"the service ({choice.reason})"
    remedy = "Set base_model to one of these"
    if choice.kind == "embedded":
        remedy += ", or put the model there first with `hf download NAME`"
    return f"base_model {config.base_model!r} is not among what {where} trains: {listed}. {remedy}."


def models_part(view: Planned, tokens: RowTokens | None) -> Part:
    """All models on the page; in the terminal a line, where there is a choice."""
    facts = offer_facts(view.offer, view.choice, view.config, tokens)
    title = "Models to choose from"
    if facts["models"] is None:
        return Part("service", title, [], facts, details=[f"not known: {view.offer.why_not}"])
    names = [one["name"] for one in facts["models"]]
    lines = []
    if len(names) > 1:
        where = "on this machine" if view.is_embedded else "of the service"
        lines = [f"models {where}: {first_of(names, NUM_NAMED)}"]
    return Part("service", title, lines, facts, [_table(facts["models"])], [TOKENS_BY])


def _table(models: list[Mapping[str, Any]]) -> Block:
    columns = [
        *(Column("Model"), Column("Context", True), Column("Size"), Column("Made for")),
        *(Column("Parameters of the adapter", True), Column("Room"), Column("Length of rows")),
    ]
    rows = [tuple(_cells(one)) for one in models]
    note = "Sizes and what they are made for by tinker-cookbook's table and the names."
    return Table("Models", columns, rows, note=note)


def _cells(one: Mapping[str, Any]) -> Iterator[str]:
    def shown(number: int | None) -> str:
        return "not known" if number is None else f"{number:,}"

    yield one["name"] if one["trainable"] is not False else f"{one['name']} (not trained there)"
    yield shown(one["context"])
    yield one["size"] or (f"{one['num_params']:,}" if one["num_params"] else "not known")
    yield "; ".join(filter(None, (one["tuned_for"], one["domain"]))) or "not known"
    yield shown(one["adapter_params"])
    yield one["capacity_verdict"].replace("_", " ")
    yield one["remarks"][0]

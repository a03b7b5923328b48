"""Whether the adapter can be served afterwards, by what is known of the servers.

Sources: vLLM issue 32599 and pull requests 33234 and 48850 (LoRA on the unembedding of Qwen), its
documents (of Llama) and its Gemma 3; of PEFT and llama.cpp what `export.py` does and checks, and
this project's findings. What they do not tell is said to be not known. vLLM was never run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from loop.plan_page.view import Part, Planned
from pages.document import Block, Column, Table

YES, NO, UNKNOWN = "yes", "no", "not known"
USUAL_RANK = 16  # that vLLM takes by itself
NO_UNEMBED = "--set train_unembed=false"
QWEN, QWEN_3_5 = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), "qwen3_5"
KNOWN_LAYERS = ("llama", "qwen2", "qwen3")  # whose attention and MLP adapters vLLM loads
IN_GGUF, WITH_EXPERTS = ("llama", "mistral", "qwen2", "qwen3"), "qwen3_moe"  # as exports has them


class Served(NamedTuple):
    """One way to use the adapter: whether it can be, why, and what would change that."""

    how: str
    verdict: str
    why: str
    remedy: str = ""


class Adapter(NamedTuple):
    """What the verdicts hang on; None is what config.json does not tell."""

    model_type: str | None
    is_tied: bool | None
    has_experts: bool
    train_unembed: bool
    rank: int

    @property
    def is_gemma(self) -> bool:
        return (self.model_type or "").startswith("gemma")


def adapter_of(model: Mapping[str, Any] | None, rank: int, *, train_unembed: bool) -> Adapter:
    """The adapter of a model that its config.json describes, if there is one."""
    model = model or {}
    inner = model.get("text_config")
    sizes = {**model, **inner} if isinstance(inner, dict) else model
    named = model.get("model_type")
    model_type = named if isinstance(named, str) else None
    tied = sizes.get("tie_word_embeddings")
    if not isinstance(tied, bool):  # Gemma's own default; of others a missing key tells nothing
        tied = True if (model_type or "").startswith("gemma") else None
    has_experts = any("expert" in key for key in sizes)
    return Adapter(model_type, tied, has_experts, train_unembed, rank)


def ways_of(adapter: Adapter) -> list[Served]:
    """All ways, the surest first."""
    return [_peft(adapter), _merged(adapter), _vllm(adapter), _llama_cpp(adapter)]


def _peft(adapter: Adapter) -> Served:
    why = "it is in PEFT's layout"
    if adapter.train_unembed:
        why += (
            "; load it with PeftModel.from_pretrained, as AutoModelForCausalLM.from_pretrained "
            "leaves the unembedding's part out with no more than a line in a log"
        )
    return Served("PEFT", YES, why)


def _merged(adapter: Adapter) -> Served:
    why = "export.py --format merged writes an ordinary model directory and loads it"
    if adapter.train_unembed and adapter.is_tied is not False:
        why += "; where embedding and unembedding are one matrix, it gives the latter its own first"
    return Served("the merged model", YES, why)


def _vllm(adapter: Adapter) -> Served:
    how, merge = "vLLM (adapter)", "merge it"
    if adapter.has_experts:
        return Served(how, NO, "adapters of experts are in a layout of PEFT's own", merge)
    needed = "" if adapter.rank <= USUAL_RANK else f"; start it with --max-lora-rank {adapter.rank}"
    if not adapter.train_unembed:
        if adapter.model_type in KNOWN_LAYERS:
            return Served(how, YES, f"attention and MLP layers are what it takes{needed}")
        return Served(how, UNKNOWN, f"this family was not looked up{needed}")
    if adapter.model_type in QWEN:
        why = (
            "its releases up to early 2026 refuse an adapter on the unembedding of Qwen 2, 2.5 and "
            "3 (issue 32599, pull request 33234); a later one may take it (pull request 48850 says "
            "so of Qwen 3)"
        )
        return Served(how, NO, why, f"{NO_UNEMBED}, or {merge}")
    if (adapter.model_type or "").startswith(QWEN_3_5):
        why = "releases without pull request 48850 (July 2026) refuse the unembedding's part"
        return Served(how, NO, why, f"{NO_UNEMBED}, or {merge}")
    if adapter.is_gemma:
        why = "its Gemma takes no adapter on the unembedding"
        return Served(how, NO, why, f"{NO_UNEMBED}, or {merge}")
    if adapter.model_type == "llama" and adapter.is_tied is False:
        why = f"its documents name the unembedding among what Llama takes{needed}"
        return Served(how, YES, why)
    why = "whether it takes the unembedding's part of this model was not found out"
    return Served(how, UNKNOWN, why, f"{NO_UNEMBED}, or {merge}")


def _llama_cpp(adapter: Adapter) -> Served:
    how, of_experts = "llama.cpp (GGUF)", adapter.has_experts and adapter.model_type == WITH_EXPERTS
    if of_experts or (adapter.model_type in IN_GGUF and not adapter.has_experts):
        why = (
            "export.py --format gguf writes it, and refuses a tokenizer that llama.cpp reads "
            "otherwise; that is found out when it is exported"
        )
        return Served(how, UNKNOWN, why)
    if adapter.model_type is None:
        return Served(how, UNKNOWN, "which family the model is of is not known here")
    why = "export.py writes no GGUF file of this family, as none was held against transformers"
    return Served(how, NO, why, "vLLM or transformers")


def serving_part(view: Planned) -> Part:
    """The ways, in one line for each that may fail."""
    config = view.config
    adapter = adapter_of(view.model, config.lora_rank, train_unembed=config.train_unembed)
    ways = ways_of(adapter)
    facts = {**adapter._asdict(), "ways": [one._asdict() for one in ways]}
    title = "Can it be used with (vLLM was never run here)"
    return Part("serving", title, list(_lines(ways)), facts, [_table(ways)])


def _lines(ways: list[Served]) -> Iterator[str]:
    sure, unknown = (
        [one.how for one in ways if one.verdict == verdict] for verdict in (YES, UNKNOWN)
    )
    yield f"yes: {', '.join(sure)}" + (f"; not known: {', '.join(unknown)}" if unknown else "")
    for one in ways:
        if one.verdict == NO:
            remedy = f"; what helps: {one.remedy}" if one.remedy else ""
            yield f"no: {one.how}: {one.why}{remedy}"


def _table(ways: list[Served]) -> Block:
    columns = [Column("Way"), Column("Can it be"), Column("Why"), Column("What helps")]
    rows = [(one.how, one.verdict, one.why, one.remedy or "-") for one in ways]
    return Table("Ways to use the adapter", columns, rows)

"""How an export is used, told from what was written."""

from __future__ import annotations

from errors import ExportError
from exports.answer_settings import asked_by
from exports.merged import own_dtype, unembedding_of
from exports.peft_folder import read_adapter
from exports.served_template import ServedTemplate
from exports.serving import Served, how_to_serve
from exports.source import Source
from exports.wanted import Wanted, Written
from exports.writing import BASE, base_place
from loop.plan_page.serving import NO, YES, Adapter, adapter_of, ways_of
from loop.planning.models import model_config


def base_of(source: Source, wanted: Wanted) -> str:
    """What an adapter is loaded on, as a loader finds it."""
    return str(wanted.out / BASE) if wanted.fold_unembed else base_place(source)


def serving_of(source: Source, wanted: Wanted, written: Written, template: ServedTemplate) -> str:
    """The ways to use an export, as the card shows them."""
    adapter = served_adapter(source, wanted)
    # The card's commands are run in its folder, which may lie elsewhere by then.
    served = Served(
        wanted.format,
        BASE if wanted.fold_unembed else base_place(source),
        adapter,
        template,
        asked_by(source),
        half_dtype=_half_dtype(source),
    )
    if written.gguf_adapter is not None and written.gguf is not None:
        served = served._replace(gguf=written.gguf_adapter.name, base_gguf=written.gguf.name)
    elif written.gguf is not None:
        served = served._replace(gguf=written.gguf.name)
    return how_to_serve(served)


def _half_dtype(source: Source) -> str | None:
    """What transformers loads the base model in, where that is less than float32."""
    try:
        dtype = own_dtype(source.base_dir)
    except ExportError:  # quantized, or no safetensors: nothing is said of its precision
        return None
    return None if dtype == "float32" else dtype


def served_adapter(source: Source, wanted: Wanted) -> Adapter:
    """What the servers' verdicts hang on."""
    adapter = read_adapter(source.adapter_dir)
    has_head = unembedding_of(source.base_dir) in adapter.modules and not wanted.fold_unembed
    model = model_config(source.base_dir, "base_model")
    return adapter_of(model, int(adapter.config.get("r", 0)), train_unembed=has_head)


def advice_on(source: Source, wanted: Wanted) -> str | None:
    """What servers are known to refuse of an adapter with a part on the unembedding, and what
    helps; None where there is nothing to say."""
    if wanted.format != "peft":
        return None
    adapter = served_adapter(source, wanted)
    vllm = next(way for way in ways_of(adapter) if way.how.startswith("vLLM"))
    if not adapter.train_unembed or vllm.verdict == YES:
        return None
    said = "does not take this adapter" if vllm.verdict == NO else "may not take this adapter"
    fold = (
        "--fold-unembed merges that part into a copy of the base model and leaves an adapter "
        "without it; "
    )
    helps = "" if adapter.has_experts else fold
    return f"vLLM {said}: {vllm.why}. {helps}--format merged needs no adapter at all."

"""The models that a run could name: asked of its service, or found on this machine. Free of charge.

A service that does not answer in time, or refuses the key, is said and stops nothing: a dry run
checks what it can. The embedded service takes any causal language model in a directory or in the
Hugging Face cache; what lies beside the config and in the working directory is looked at, and
whether its weights load is found out by a run alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.boundary import in_loop
from commands.opening import OpenedSettings
from errors import ConfigError
from loop.plan_page.model import config_of
from loop.plan_page.view import Offer, OfferedModel
from loop.planning.fitting import CONTEXT_KEYS
from loop.planning.models import model_config
from services.keys import Keys
from services.place import ServiceChoice, refuse_silent_address

if TYPE_CHECKING:
    import tinker

LIMIT_S = 10  # for an answer, with what the SDK tries again
MOST_FOLDERS = 1000  # that are looked at
CACHED = "models--"  # what the hub client's folders begin with
CAUSAL = "ForCausalLM"


def offer_of(choice: ServiceChoice | None, settings: OpenedSettings, keys: Keys) -> Offer:
    """The models of the service that the settings choose."""
    if choice is None:
        return Offer(None, "no service is chosen yet, so none was asked")
    if choice.kind == "embedded":
        return Offer(list(_here(settings)), None)
    try:
        if choice.base_url is not None:
            refuse_silent_address(choice.base_url)
    except ConfigError as error:
        return Offer(None, str(error))
    return in_loop(_asked(choice.base_url, keys))


async def _asked(base_url: str | None, keys: Keys) -> Offer:
    """What the service says that it supports."""
    from services.faults import SDK_ERRORS, said_by
    from services.sdk import rest_client

    where = base_url or "Tinker"
    try:
        rest = rest_client(base_url, keys.tinker)
        found = await asyncio.wait_for(_models_of(rest), LIMIT_S)
    except TimeoutError:
        return Offer(None, f"{where} gave no answer within {LIMIT_S} s when asked for its models")
    except SDK_ERRORS as error:
        said = keys.redacted(said_by(error))
        return Offer(None, f"{where} was asked for its models and refused: {said}")
    models = [
        OfferedModel(
            name=one.model_name,
            found="service",
            context=one.max_context_length,
            trainable=one.trainable,
            sampleable=one.sampleable,
            config=config_of(one.model_name, None),
        )
        for one in found
        if one.model_name
    ]
    return Offer(models, None)


async def _models_of(rest: tinker.RestClient) -> list[tinker.types.SupportedModel]:
    return list((await rest.get_server_capabilities()).supported_models)


# --- this machine ---------------------------------------------------------------------------------


def _here(settings: OpenedSettings) -> Iterator[OfferedModel]:
    """Yield the base model first, then models in folders and in the cache, each once."""
    config, base_dir = settings.loaded.config, settings.model_dir
    seen: set[Path] = set()
    if base_dir is not None:
        seen.add(base_dir)
        found = model_config(base_dir, "base_model")
        yield _local(config.base_model, "base_model", found, base_dir)
    for base in dict.fromkeys((settings.loaded.directory.resolve(), Path.cwd())):
        for folder in sorted(_folders(base)):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                if (sizes := _causal(folder)) is not None:
                    yield _local(folder.name, "folder", sizes, folder)
    yield from _cached()


def _folders(base: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        inside = itertools.islice(base.iterdir(), MOST_FOLDERS)
        yield from (one for one in inside if (one / "config.json").is_file())


def _causal(folder: Path) -> Mapping[str, Any] | None:
    """The config.json of a causal language model with its weights; None of any other folder."""
    try:
        found = model_config(folder, "base_model")
    except ConfigError:
        return None
    named = found.get("architectures")
    is_causal = isinstance(named, list) and any(str(one).endswith(CAUSAL) for one in named)
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return found if is_causal and has_weights else None


def _cached() -> Iterator[OfferedModel]:
    """Yield the causal models in the hub client's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    with contextlib.suppress(OSError):
        for entry in sorted(cache.glob(f"{CACHED}*"))[:MOST_FOLDERS]:
            name = entry.name.removeprefix(CACHED).replace("--", "/", 1)
            file = try_to_load_from_cache(name, "config.json")
            folder = Path(file).parent if isinstance(file, str) else None
            sizes = None if folder is None else _causal(folder)
            if folder is not None and sizes is not None:
                yield _local(name, "cache", sizes, folder)


def _local(name: str, found: str, sizes: Mapping[str, Any], folder: Path) -> OfferedModel:
    inner = sizes.get("text_config")
    both = {**sizes, **inner} if isinstance(inner, dict) else sizes
    numbers = (both.get(key) for key in CONTEXT_KEYS)
    context = next((n for n in numbers if type(n) is int and n > 0), None)
    return OfferedModel(name, found, context, None, None, both, folder)

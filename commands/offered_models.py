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
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.opening import OpenedSettings
from errors import ConfigError, LoopError, one_line
from loop.plan_page.model import config_of
from loop.plan_page.view import Offer, OfferedModel
from loop.planning.fitting import CONTEXT_KEYS
from loop.planning.models import model_config
from services.keys import Keys
from services.listening import Patience, refuse_no_service
from services.place import ServiceChoice

if TYPE_CHECKING:
    from tinker.types import SupportedModel

LIMIT_S = 5  # for an answer, with what the SDK tries again
MOST_SAID = 300  # characters of what a service says
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
            refuse_no_service(choice.base_url, lambda said: None, Patience(LIMIT_S, 0))
    except LoopError as error:
        return Offer(None, str(error))
    return _asked(choice.base_url, keys)


def _asked(base_url: str | None, keys: Keys) -> Offer:
    """What the service says that it supports."""
    from services.faults import SDK_ERRORS, said_by
    from services.sdk import rest_client

    answers: queue.SimpleQueue[list[SupportedModel] | Exception] = queue.SimpleQueue()

    async def listed() -> list[SupportedModel]:
        rest = rest_client(base_url, keys.tinker)
        return list((await rest.get_server_capabilities()).supported_models)

    def ask() -> None:
        try:
            answers.put(asyncio.run(listed()))
        except (*SDK_ERRORS, LoopError) as error:
            answers.put(error)

    # To make a client waits for the service, for minutes where that says nothing, and cannot be
    # interrupted (SDK 0.38): so it is made in a thread that nobody waits for at the end.
    threading.Thread(target=ask, daemon=True, name="asking for models").start()
    where = base_url or "Tinker"
    try:
        found = answers.get(timeout=LIMIT_S)
    except queue.Empty:
        return Offer(None, f"{where} gave no answer within {LIMIT_S} s when asked for its models")
    if isinstance(found, LoopError):
        return Offer(None, keys.redacted(str(found)))
    if isinstance(found, Exception):
        said = one_line(keys.redacted(said_by(found)), MOST_SAID)
        return Offer(None, f"{where} was asked for its models and refused: {said}")
    return Offer([_served(one, one.model_name) for one in found if one.model_name], None)


def _served(one: SupportedModel, name: str) -> OfferedModel:
    numbers = one.max_context_length, one.trainable, one.sampleable
    return OfferedModel(name, "service", *numbers, config_of(name, None))


# --- this machine ---------------------------------------------------------------------------------


def _here(settings: OpenedSettings) -> Iterator[OfferedModel]:
    """Yield the base model first, then models in folders and in the cache, each once."""
    config, base_dir = settings.loaded.config, settings.model_dir
    seen: set[Path] = set()
    if base_dir is not None:
        seen.add(base_dir)
        found = model_config(base_dir, "base_model")
        yield _local(config.base_model, "base_model", found, base_dir)
    elif (cached := _cached_config(config.base_model)) is not None:
        # Whatever its architecture is called: a run loads it as a causal model, and may succeed.
        found = model_config(cached.parent, "base_model")
        yield _local(config.base_model, "cache", found, cached.parent)
    for base in dict.fromkeys((settings.loaded.directory.resolve(), Path.cwd())):
        for folder in sorted(_folders(base)):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                if (sizes := _causal(folder)) is not None:
                    yield _local(folder.name, "folder", sizes, folder)
    yield from (one for one in _cached() if one.name != config.base_model or base_dir is not None)


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
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    with contextlib.suppress(OSError):
        for entry in sorted(cache.glob(f"{CACHED}*"))[:MOST_FOLDERS]:
            name = entry.name.removeprefix(CACHED).replace("--", "/", 1)
            file = _cached_config(name)
            sizes = None if file is None else _causal(file.parent)
            if file is not None and sizes is not None:
                yield _local(name, "cache", sizes, file.parent)


def _cached_config(name: str) -> Path | None:
    """The config.json of a hub model in the cache."""
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(OSError, ValueError):  # a name that no model of the hub can have
        file = try_to_load_from_cache(name, "config.json")
        return Path(file) if isinstance(file, str) else None
    return None


def _local(name: str, found: str, sizes: Mapping[str, Any], folder: Path) -> OfferedModel:
    inner = sizes.get("text_config")
    both = {**sizes, **inner} if isinstance(inner, dict) else sizes
    numbers = (both.get(key) for key in CONTEXT_KEYS)
    context = next((n for n in numbers if type(n) is int and n > 0), None)
    return OfferedModel(name, found, context, None, None, both, folder)

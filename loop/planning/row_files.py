"""The files of rows that a config names, found and read."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from config_schema import LoadedConfig
from data_loader import LoadedData, load_examples
from errors import ConfigError
from rows.examples import ExampleTable
from rows.quality import Filters
from rows.refused_rows import Holds
from rows.sources import HUB_PREFIX, Source, as_text, hub_name, is_saved_dataset
from settings.groups import Sources
from settings.method_groups import MethodName


def sources_of(
    loaded: LoadedConfig, key: str, given: Sources, taken: Collection[str] = ()
) -> list[Source]:
    """Find the sources that a setting names, each under a name of its own, not among `taken`.

    Raises `ConfigError` for one that is not there.
    """
    sources: list[Source] = []
    for one in loaded.config.sources(given):
        name, path, on_hub = one.file, None, None
        if one.file.startswith(HUB_PREFIX):
            try:
                on_hub = hub_name(one.file)
            except ConfigError as error:
                raise ConfigError(f"{loaded.file}: {key}: {error}") from None
        else:
            path = loaded.find(key, one.file, or_directory=True)
            if path.is_dir() and not is_saved_dataset(path):
                raise ConfigError(
                    f"{loaded.file}: {key} names the directory {path}, which holds no dataset that "
                    "`datasets` has saved. Name a file in it."
                )
            name = as_text(path.name)
        part = " ".join(filter(None, (one.subset, one.split if one.split != "train" else None)))
        name = f"{name} {part}" if part else name
        used = {*taken, *(other.name for other in sources)}
        if name in used:
            name = f"{one.file} {part}" if part else one.file
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        name = name if name not in used else next(one for one in numbered if one not in used)
        columns = loaded.config.data.columns if one.columns is None else one.columns
        sources.append(
            Source(name, path, on_hub, one.subset, one.split, one.revision, columns, one.weight)
        )
    return sources


def holds_of(method: MethodName) -> Holds:
    """What the rows of a method hold."""
    if method == "dpo":
        return "pairs"
    return "answers" if method == "sft" else "prompts"


def load_rows(
    loaded: LoadedConfig, key: str, given: Sources, beside: LoadedData | None = None
) -> LoadedData:
    """Read the rows of a setting; those that are nearly one of `beside` are no use."""
    data = loaded.config.data
    taken = () if beside is None else [file.source.name for file in beside.files]
    return load_examples(
        sources_of(loaded, key, given, taken),
        beside=ExampleTable() if beside is None else beside.examples,
        on_bad_row=data.on_bad_row,
        filters=Filters(data.min_words, data.max_words, data.max_repetition),
        near_duplicates_from=data.near_duplicates,
        holds=holds_of(loaded.config.method),
    )

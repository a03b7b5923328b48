"""How an export is used, told from what was written: its settings of answers, and its sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from exports.asking import asked_by
from exports.peft_folder import read_adapter
from exports.served_template import ServedTemplate
from exports.serving import Served, how_to_serve
from exports.source import Source
from exports.wanted import Wanted, Written
from exports.writing import base_place
from loop.plan_page.serving import Adapter, adapter_of
from loop.planning.models import model_config

_FENCED = re.compile(r"^```\w*\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)


class Section(NamedTuple):
    """A way to use an export."""

    title: str
    text: str
    commands: tuple[str, ...]


def sections_of(
    source: Source, wanted: Wanted, written: Written, template: ServedTemplate
) -> list[Section]:
    """The ways to use an export, as the card shows them."""
    base = str(wanted.out / "base") if wanted.fold_unembed else base_place(source)
    served = Served(wanted.format, base, served_adapter(source, wanted), template, asked_by(source))
    if written.gguf_adapter is not None and written.gguf is not None:
        served = served._replace(gguf=written.gguf_adapter.name, base_gguf=written.gguf.name)
    elif written.gguf is not None:
        served = served._replace(gguf=written.gguf.name)
    return list(_sections(how_to_serve(served)))


def served_adapter(source: Source, wanted: Wanted) -> Adapter:
    """What servers make of the adapter hangs on."""
    from exports.merged import unembedding_of

    adapter = read_adapter(source.adapter_dir)
    has_head = unembedding_of(source.base_dir) in adapter.modules and not wanted.fold_unembed
    model = model_config(source.base_dir, "base_model")
    return adapter_of(model, int(adapter.config.get("r", 0)), train_unembed=has_head)


def _sections(text: str) -> Iterator[Section]:
    """Markdown in sections, what is to be typed told from what is to be read."""
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        commands = tuple(found.rstrip("\n") for found in _FENCED.findall(body))
        yield Section(title.strip(), _FENCED.sub("", body).strip(), commands)

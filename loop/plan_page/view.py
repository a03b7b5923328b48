"""What the plan is made from, and the parts that it is put together of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from config_schema import TrainingConfig
from loop.plan_page.earlier import Earlier
from loop.plan_page.pilot import Commands
from loop.planning.inputs import Inputs
from loop.planning.plan import Plan
from pages.document import Block
from services.place import ServiceChoice

WARNING = "warning: "  # what lines begin with that stand before all others


class Part(NamedTuple):
    """One heading of the plan: its lines in the terminal and on the page, and what they say as
    named values. `details` and `blocks` are on the page alone, `shown` in the terminal alone."""

    name: str  # of the values, in --json
    title: str
    lines: Sequence[str]
    facts: Any
    blocks: Sequence[Block] = ()
    details: Sequence[str] = ()
    shown: Sequence[str] = ()


class RowsForm(NamedTuple):
    """What the first rows of `train_file` are, before it is read for a method."""

    form: str
    forms: Mapping[str, int]  # rows by their own form
    num_short: int  # rows whose answer has few words
    unread: str | None = None  # why they could not be looked at

    @property
    def number(self) -> int:
        return sum(self.forms.values())


class OfferedModel(NamedTuple):
    """A model that can be named as `base_model`; None is what nobody said."""

    name: str
    found: str  # where it was found: service, base_model, folder or cache
    context: int | None
    trainable: bool | None
    sampleable: bool | None
    config: Mapping[str, Any] | None = None  # its config.json, where one is here
    directory: Path | None = None  # of its weights, where they are here


class Offer(NamedTuple):
    """The models that the service of the settings has; None: they are not known, and why."""

    models: Sequence[OfferedModel] | None
    why_not: str | None

    def has(self, base_model: str) -> bool | None:
        """Whether it trains a model of this name; None where that is not known."""
        if self.models is None:
            return None
        return any(one.name == base_model and one.trainable is not False for one in self.models)


@dataclass(frozen=True)
class Planned:
    """A run that has not begun, as far as it could be planned."""

    inputs: Inputs
    plan: Plan | None  # None: there is no tokenizer on this machine
    choice: ServiceChoice | None  # None: nowhere to train yet
    place: Sequence[str]  # the lines of where it runs and what it starts from
    commands: Commands
    rows: RowsForm
    offer: Offer
    earlier: Earlier | None = None
    model: Mapping[str, Any] | None = None  # its config.json, where one is here
    folders: Sequence[str] = ()  # of this machine, which a page does not show

    @property
    def config(self) -> TrainingConfig:
        return self.inputs.config

    @property
    def is_embedded(self) -> bool:
        return self.choice is not None and self.choice.kind == "embedded"

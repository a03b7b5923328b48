"""Example -> Datum: which tokens there are, and which of them carry loss.

Masks come from the cookbook's renderers. Every row is rendered once, to know what it costs and
whether anything is left to train on; its datum is made again when it is used, so that a million
rows fit in memory.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from errors import DataError
from rows.chat_formats import resolve_train_on
from rows.examples import DropLog, DroppedRow, Example, ExampleTable

if TYPE_CHECKING:
    import tinker
    import torch
    from tinker_cookbook.renderers import Renderer

NUM_KEPT = 4096  # datums kept in memory, the last used ones


@dataclass(frozen=True)
class DatumInfo:
    """What is known of a rendered example."""

    example_id: str
    num_tokens: int
    num_loss_tokens: int
    truncated: bool


class RenderedExample(NamedTuple):
    """A datum as the service takes it, and what is known of it."""

    datum: tinker.Datum
    info: DatumInfo


class RenderedTable(NamedTuple):
    """The examples that can be trained on, their counts by position, and the dropped ones."""

    examples: ExampleTable
    num_tokens: Sequence[int]
    num_loss_tokens: Sequence[int]
    num_truncated: int
    dropped: DropLog


class Rendering:
    """Renders examples to datums, and finds them by the example's id."""

    def __init__(
        self, renderer: Renderer, max_seq_length: int, train_on: str | None = None
    ) -> None:
        self._renderer = renderer
        self._max_seq_length = max_seq_length
        self.train_on_what = resolve_train_on(renderer, train_on)
        self._tables: list[ExampleTable] = []
        self._kept: OrderedDict[str, RenderedExample] = OrderedDict()

    def __getitem__(self, example_id: str) -> RenderedExample:
        if example_id in self._kept:
            self._kept.move_to_end(example_id)
            return self._kept[example_id]
        for table in self._tables:
            position = table.find(example_id)
            if position is not None:
                return self._keep(table[position])
        raise KeyError(example_id)

    def render_all(self, examples: ExampleTable) -> RenderedTable:
        """Render the examples of a table; those that can be trained on are found by id after.

        Raises `DataError` when none is left.
        """
        kept: list[int] = []
        num_tokens, num_loss_tokens, num_truncated = array("l"), array("l"), 0
        dropped = DropLog()
        for position, example in enumerate(examples):
            try:
                info = self._measure(example)
            except ValueError as error:
                reason = f"the renderer refuses it: {error}"
                dropped.append(DroppedRow(example.source, example.line_no, "rejected", reason))
                continue
            if info.num_loss_tokens == 0:
                reason = f"no answer token within max_seq_length {self._max_seq_length}"
                row = DroppedRow(example.source, example.line_no, "no_loss_tokens", reason)
                dropped.append(row)
                continue
            kept.append(position)
            num_tokens.append(info.num_tokens)
            num_loss_tokens.append(info.num_loss_tokens)
            num_truncated += info.truncated
        if len(examples) and not kept:
            raise DataError(
                f"{examples[0].source}: no row can be trained on; the first fails because "
                f"{dropped[0].reason}. Raise max_seq_length or check the rows."
            )
        table = examples.take(kept) if len(kept) < len(examples) else examples
        self._tables.append(table)
        return RenderedTable(table, num_tokens, num_loss_tokens, num_truncated, dropped)

    def _keep(self, example: Example) -> RenderedExample:
        rendered = self._kept[example.id] = self._render(example)
        if len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return rendered

    def _render(self, example: Example) -> RenderedExample:
        from tinker_cookbook.supervised.common import datum_from_model_input_weights

        model_input, weights = self._build(example)
        # Mean reduction: an example's weights sum to 1, so a long answer counts like a short one.
        datum = datum_from_model_input_weights(
            model_input, weights, max_length=self._max_seq_length, reduction="mean"
        )
        return RenderedExample(datum, self._info_of(example, model_input, weights))

    def _measure(self, example: Example) -> DatumInfo:
        """What is known of a datum, without making it, which takes nearly as long again."""
        return self._info_of(example, *self._build(example))

    def _build(self, example: Example) -> tuple[tinker.ModelInput, torch.Tensor]:
        messages = [{"role": role, "content": content} for role, content in example.messages]
        return self._renderer.build_supervised_example(
            messages,  # pyright: ignore[reportArgumentType]
            train_on_what=self.train_on_what,
        )

    def _info_of(
        self, example: Example, model_input: tinker.ModelInput, weights: torch.Tensor
    ) -> DatumInfo:
        num_kept = min(model_input.length, self._max_seq_length)
        if num_kept < 2:
            raise ValueError("it has no two tokens, and one is learnt from those before it")
        return DatumInfo(
            example_id=example.id,
            num_tokens=num_kept - 1,  # the last token is only a target, the first only an input
            num_loss_tokens=int((weights[1:num_kept] > 0).sum()),
            truncated=model_input.length > self._max_seq_length,
        )

"""Held-out loss: conversations that are never trained on, scored by one checkpoint. Layer 1.

The loss is in nats per token of what the assistant says, over all such tokens of the file, with
those that end a turn. Bits per byte are of the answers' own text alone (`answer_text`), bits and
bytes, so that models with different tokenizers and chat formats can be compared.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_loader import load_examples
from errors import DataError, EvalError, ServiceError
from evaluation.answer_text import answer_tokens
from rows.contamination import EvalText
from rows.examples import Example, ExampleTable
from rows.rendering import Rendering, tokens_of
from rows.sources import Source
from scores.results import HeldOutLoss, HeldOutRow, held_out_loss
from services.at_once import in_order
from services.watched_client import NUM_SAMPLED_TO_SCORE
from simple_eval import Sampler
from storage.journal import Journal

if TYPE_CHECKING:
    import numpy as np
    import tinker


@dataclass(frozen=True)
class HeldOutFile:
    """A held-out file, read and checked."""

    name: str
    path: Path
    sha256: str
    examples: ExampleTable
    is_split: bool = False  # a share of the training file, not a file of its own
    unused: Mapping[str, int] = field(default_factory=dict)  # keys that nothing uses, and how often

    @property
    def eval_texts(self) -> tuple[EvalText, ...]:
        """What must not be trained on besides the conversations: the question of a single turn,
        and long phrases of any turn."""
        return tuple(_eval_text(self.name, one, self.is_split) for one in self.examples)


def load_held_out(name: str, path: Path, columns: Mapping[str, str] | None = None) -> HeldOutFile:
    """Read a held-out file. Raises `DataError` for any row that cannot be used.

    Unlike training rows these are never dropped: a loss over fewer rows than the file holds would
    not be the loss that was asked for. Exact duplicates count once.
    """
    data = load_examples([Source(path.name, path, columns=columns or {})], on_bad_row="stop")
    file = data.files[0]
    return HeldOutFile(name, path, file.sha256, data.examples, unused=file.unused)


def _eval_text(task: str, example: Example, is_split: bool) -> EvalText:
    asked = [message.content for message in example.messages if message.role == "user"]
    said = [message.text for message in example.messages if message.role == "assistant"]
    question = asked[0] if len(asked) == 1 else ""
    return EvalText(task, question, tuple(asked + said), only_same=is_split)


def render_held_out(file: HeldOutFile, rendering: Rendering) -> None:
    """Render the rows. Raises `DataError` for one without an answer token."""
    dropped = rendering.render_all(file.examples).dropped
    if dropped:
        raise DataError(
            f"{file.path} line {dropped[0].line_no}: {dropped[0].reason}. Raise max_seq_length, or "
            "remove the row."
        )


async def measure_losses(
    name: str, examples: ExampleTable, sampler: Sampler, journal: Journal
) -> HeldOutLoss:
    """Score every row with a checkpoint; those in the journal are not asked again.

    `name` is what the rows are called. Raises `EvalError` when a request fails.
    """
    import numpy as np
    import tinker

    rendering, tokenizer = sampler.rendering, sampler.renderer.tokenizer
    slots = asyncio.Semaphore(sampler.settings.concurrency)

    async def score(example: Example) -> HeldOutRow | EvalError:
        key = f"{name}/{example.id}"
        if (kept := journal.get(key, HeldOutRow)) is not None:
            return kept
        datum = rendering[example.id].datum
        tokens = tokens_of(datum)
        async with slots:
            try:
                logprobs = await sampler.client.compute_logprobs(
                    tinker.ModelInput.from_ints(tokens)
                )
            except ServiceError as error:
                return EvalError(
                    f"{name}: the loss of {example.source} line {example.line_no} could not "
                    f"be measured: {error}. Resume the run to ask the same "
                    "checkpoint again."
                )
        row = held_out_row(example, datum, np.array(logprobs[1:], dtype=float), tokenizer)
        if math.isfinite(row.nll_sum):
            journal.add(
                key,
                asdict(row),
                num_prompt_tokens=len(tokens),
                num_sampled_tokens=NUM_SAMPLED_TO_SCORE,
            )
        return row

    done = await in_order(examples, sampler.settings.concurrency, score)
    rows = [row for row in done if isinstance(row, HeldOutRow)]
    error = next((row for row in done if isinstance(row, EvalError)), None)
    if error is None:
        loss = held_out_loss(name, rows, *_asked(rendering, rows))
        if math.isfinite(loss.nll):
            return loss
        error = EvalError(
            f"{name}: the loss of this checkpoint is {loss.nll}, so its weights are of no "
            "use. Start again with a lower learning_rate."
        )
        # The journal has what the others took.
        unkept = [row for row in rows if not math.isfinite(row.nll_sum)]
        error.num_prompt_tokens, error.num_sampled_tokens = _asked(rendering, unkept)
    raise error


def _asked(rendering: Rendering, rows: Sequence[HeldOutRow]) -> tuple[int, int]:
    """Tokens that were read and sampled for rows."""
    num_read = sum(rendering[row.id].info.num_tokens + 1 for row in rows)
    return num_read, NUM_SAMPLED_TO_SCORE * len(rows)


def held_out_datums(file: HeldOutFile, rendering: Rendering) -> list[tinker.Datum]:
    """The rows as a training client takes them, for a loss in the middle of a round."""
    return [rendering[example.id].datum for example in file.examples]


def held_out_of_output(
    file: HeldOutFile, output: tinker.ForwardBackwardOutput, rendering: Rendering, tokenizer: Any
) -> HeldOutLoss:
    """The loss that a training client's forward pass over `held_out_datums` gave."""
    rows = [
        held_out_row(example, rendering[example.id].datum, made["logprobs"].to_numpy(), tokenizer)
        for example, made in zip(file.examples, output.loss_fn_outputs, strict=True)
    ]
    return held_out_loss(file.name, rows, num_held_out_tokens(file, rendering))


def num_held_out_tokens(file: HeldOutFile, rendering: Rendering) -> int:
    """Tokens that a forward pass over `held_out_datums` reads."""
    return sum(rendering[example.id].info.num_tokens for example in file.examples)


def held_out_row(
    example: Example, datum: tinker.Datum, logprobs_T: np.ndarray, tokenizer: Any
) -> HeldOutRow:
    """One conversation's loss; `logprobs_T` are its target tokens', position by position."""
    is_loss = datum.loss_fn_inputs["weights"].to_numpy() > 0
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy().tolist()
    contents = [
        one.content if one.reasoning is None else f"<think>{one.reasoning}</think>{one.content}"
        for one in example.messages
    ]
    text = answer_tokens(contents, targets, is_loss, tokenizer)
    return HeldOutRow(
        id=example.id,
        topic=example.topic,
        nll_sum=-float(logprobs_T[is_loss].sum()),
        num_loss_tokens=int(is_loss.sum()),
        num_loss_bytes=text.num_bytes,
        text_nll_sum=-float(logprobs_T[text.positions].sum()),
    )

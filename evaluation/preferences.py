"""Preferences on held-out pairs: which of two answers is likelier under one checkpoint. Layer 1.

A pair scores 1 where the log-probability of its chosen answer, summed over the tokens of the
answer, is the higher one, else 0; the score of a file is their share. No reference is asked, so
that the untouched model has a score as well. A longer answer has the lower sum, other things being
equal: how much that decides is seen in the baseline, and what training changes in the difference.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_loader import load_examples
from errors import DataError, EvalError, ServiceError
from rows.contamination import EvalText
from rows.examples import Example, ExampleTable
from rows.rendering import RenderedExample, Rendering, tokens_of
from rows.sources import Source, read_rows
from scores.results import SampleResult, mean
from services.at_once import in_order
from services.watched_client import NUM_SAMPLED_TO_SCORE
from simple_eval import Sampler
from storage.journal import Journal
from storage.stored_json import Count, Measure

if TYPE_CHECKING:
    import tinker

MAX_TEXT_CHARS = 2_000  # of an answer, in results


@dataclass(frozen=True)
class PairFile:
    """A file of held-out pairs, read and checked."""

    name: str
    path: Path
    sha256: str
    examples: ExampleTable
    clusters: Mapping[str, str] = field(default_factory=dict)  # example id -> what it is about
    unused: Mapping[str, int] = field(default_factory=dict)  # keys that nothing uses, and how often

    @property
    def eval_texts(self) -> tuple[EvalText, ...]:
        """What must not be trained on besides the pairs: the question of a single turn, and long
        phrases of any turn, of both answers."""
        return tuple(self._eval_text(one) for one in self.examples)

    def _eval_text(self, pair: Example) -> EvalText:
        asked = [text for role, text in pair.turns if role == "user"]
        said = [text for role, text in pair.turns if role == "assistant"]
        question = asked[0] if len(asked) == 1 else ""
        return EvalText(
            self.name, question, tuple(asked + said), cluster=self.clusters.get(pair.id)
        )


@dataclass(frozen=True)
class PairLogprobs:
    """Log-probabilities of a pair's two answers under one checkpoint, each summed over its tokens,
    in nats."""

    id: str
    chosen: Measure
    rejected: Measure
    num_chosen_tokens: Annotated[int, Field(ge=1)]
    num_rejected_tokens: Annotated[int, Field(ge=1)]
    num_prompt_tokens: Count  # read for it,
    num_sampled_tokens: Count = 0  # and sampled with it; versions before counted none


def load_pairs(name: str, path: Path, columns: Mapping[str, str] | None = None) -> PairFile:
    """Read a file of held-out pairs. Raises `DataError` for any row that cannot be used.

    As with held-out rows none is dropped, ties and marked rows without a partner no more than
    others. Exact duplicates count once.
    """
    source = Source(path.name, path, columns=columns or {})
    data = load_examples([source], on_bad_row="stop", holds="pairs")
    left_out = [row for row in data.dropped if row.kind != "duplicate"]
    if left_out:
        first, num = left_out[0], len(left_out)
        raise DataError(
            f"{path} line {first.line_no}: {first.reason}, so this row of {name} says nothing of "
            f"which answer is preferred{f', as do {num - 1} more' if num > 1 else ''}. Take such "
            "rows out: held-out pairs are never dropped."
        )
    file = data.files[0]
    clusters = _clusters(source, data.examples)
    unused = {key: number for key, number in file.unused.items() if key != "cluster"}
    return PairFile(name, path, file.sha256, data.examples, clusters, unused)


def _clusters(source: Source, examples: ExampleTable) -> dict[str, str]:
    """What pairs are about, by their ids, where their rows say so."""
    named = {
        row.line_no: str(row.fields["cluster"])
        for row in read_rows(source)
        if row.fields is not None and row.fields.get("cluster") not in (None, "")
    }
    return {one.id: named[one.line_no] for one in examples if one.line_no in named}


def render_pairs(file: PairFile, rendering: Rendering) -> None:
    """Render both sides. Raises `DataError` for a pair that cannot be compared as it is: a cut
    answer would have the higher log-probability for being cut."""
    table = rendering.render_all(file.examples)
    if table.dropped:
        first = table.dropped[0]
        raise DataError(f"{file.path} line {first.line_no}: {first.reason}. Remove the row.")
    for pair in file.examples:
        sides = rendering[pair.id], rendering.rejected(pair.id)
        if any(side.info.truncated for side in sides):
            which = "chosen" if sides[0].info.truncated else "rejected"
            raise DataError(
                f"{file.path} line {pair.line_no}: the {which} answer is longer than "
                "max_seq_length, and cut it could not be compared. Raise max_seq_length, or remove "
                "the row."
            )


# --- measuring ------------------------------------------------------------------------------------


async def measure_pairs(
    name: str,
    pairs: Sequence[Example],
    sampler: Sampler,
    journal: Journal,
    on_done: Callable[[Example, PairLogprobs], None] = lambda pair, made: None,
) -> list[PairLogprobs]:
    """Both answers' log-probabilities under a checkpoint; pairs in the journal are not asked again.

    `name` is what the pairs are called. Raises `EvalError` where a request fails, or the
    checkpoint gives no finite log-probability.
    """
    rendering = sampler.rendering
    slots = asyncio.Semaphore(sampler.settings.concurrency)

    async def measured(pair: Example) -> PairLogprobs | EvalError:
        key = f"{name}/{pair.id}"
        if (kept := journal.get(key, PairLogprobs)) is not None:
            on_done(pair, kept)
            return kept
        sides = rendering[pair.id], rendering.rejected(pair.id)
        where = f"{name}: {pair.source} line {pair.line_no}"
        try:
            async with slots:
                chosen, rejected = [await summed_logprob(sampler.client, side) for side in sides]
        except ServiceError as error:
            return EvalError(
                f"{where}: the log-probabilities could not be measured: {error}. Resume the run to "
                "ask the same checkpoint again."
            )
        made = PairLogprobs(
            id=pair.id,
            chosen=chosen,
            rejected=rejected,
            num_chosen_tokens=sides[0].info.num_loss_tokens,
            num_rejected_tokens=sides[1].info.num_loss_tokens,
            num_prompt_tokens=sum(side.info.num_tokens + 1 for side in sides),
            num_sampled_tokens=NUM_SAMPLED_TO_SCORE * len(sides),
        )
        if not (math.isfinite(chosen) and math.isfinite(rejected)):
            return _of_no_use(where, made)
        journal.add(
            key,
            asdict(made),
            num_prompt_tokens=made.num_prompt_tokens,
            num_sampled_tokens=made.num_sampled_tokens,
        )
        on_done(pair, made)
        return made

    done = await in_order(pairs, sampler.settings.concurrency, measured)
    errors = [one for one in done if isinstance(one, EvalError)]
    if errors:
        first = errors[0]
        first.num_prompt_tokens = sum(error.num_prompt_tokens for error in errors)
        first.num_sampled_tokens = sum(error.num_sampled_tokens for error in errors)
        raise first
    return [one for one in done if isinstance(one, PairLogprobs)]


def _of_no_use(where: str, made: PairLogprobs) -> EvalError:
    """What is said of weights that give no finite log-probability, with what it cost."""
    error = EvalError(
        f"{where}: the log-probabilities under this checkpoint are {made.chosen} and "
        f"{made.rejected}, so its weights are of no use. Start again with a lower learning_rate."
    )
    error.num_prompt_tokens = made.num_prompt_tokens
    error.num_sampled_tokens = made.num_sampled_tokens
    return error


async def summed_logprob(client: tinker.SamplingClient, side: RenderedExample) -> float:
    """The log-probability of an answer under a checkpoint, in nats, summed over its tokens."""
    import numpy as np
    import tinker

    datum = side.datum
    found = await client.compute_logprobs(tinker.ModelInput.from_ints(tokens_of(datum)))
    logprobs_T = np.array(found[1:], dtype=float)  # the first token has none
    return float(logprobs_T[datum.loss_fn_inputs["weights"].to_numpy() > 0].sum())


async def judge_pairs(
    file: PairFile,
    sampler: Sampler,
    journal: Journal,
    on_graded: Callable[[SampleResult], None] = lambda sample: None,
) -> tuple[SampleResult, ...]:
    """Every pair of a file as a sample. Raises `EvalError`."""
    pairs = list(file.examples)

    def graded(pair: Example, made: PairLogprobs) -> None:
        on_graded(_sample(file, pair, made))

    measured = await measure_pairs(file.name, pairs, sampler, journal, graded)
    return tuple(_sample(file, pair, made) for pair, made in zip(pairs, measured, strict=True))


def _sample(file: PairFile, pair: Example, made: PairLogprobs) -> SampleResult:
    assert pair.rejected is not None, "the file holds pairs"
    answers = [one.text[:MAX_TEXT_CHARS] for one in (pair.messages[-1], pair.rejected)]
    is_right = made.chosen > made.rejected
    return SampleResult(
        id=f"{file.name}/{pair.id}",
        topic=pair.topic,
        question=next(one.content for one in reversed(pair.messages) if one.role == "user"),
        expected=(answers[0],),
        answer=answers[0] if is_right else answers[1],
        score=float(is_right),
        truncated=False,
        malformed=False,
        error=None,
        cluster=file.clusters.get(pair.id),
        num_prompt_tokens=made.num_prompt_tokens,
        num_sampled_tokens=made.num_sampled_tokens,
        other_scores={"chosen_logprob": made.chosen, "rejected_logprob": made.rejected},
    )


def pair_metrics(samples: Sequence[SampleResult]) -> dict[str, float]:
    """By how many nats the chosen answers are likelier, on average over the pairs."""
    scores: list[Any] = [sample.other_scores for sample in samples]
    return {"margin": mean([one["chosen_logprob"] - one["rejected_logprob"] for one in scores])}

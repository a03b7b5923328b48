"""What cannot fit the model, said before anything is paid for.

A model directory's config.json names its context and the rows of its embedding. A row longer than
the context, a question whose prompt and answer together are, and a token id beyond the embedding
are refused by a service only when they reach it, after the baseline at the earliest. Of an Inspect
task the inputs of its samples are looked at, not what its solver makes of them. Of a hub model
neither number is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import ConfigError, DataError
from evaluation.held_out import HeldOutFile
from evaluation.inspect_tasks import InspectTask
from evaluation.preferences import PairFile
from evaluation.tasks import EvalTask
from loop.planning.models import model_config
from rows.chat_formats import ChatFormat
from rows.examples import Example, ExampleTable
from rows.rendering import DatumInfo, RenderedExample, Rendering, tokens_of
from simple_eval import DEFAULT_MAX_TOKENS, QuestionTask, Turn, build_prompt

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer

WITH_PROMPT = ", with evaluation.system_prompt before it"
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class ModelLimits:
    """What a model can take; None where that is not known."""

    file: Path | None = None  # that says so
    context: int | None = None  # tokens
    num_embeddings: int | None = None  # token ids lie below

    def longest_row(self, *, is_measured: bool) -> int | None:
        """The longest row in tokens. One whose loss is measured is sent like a question, and leaves
        room for a token of an answer."""
        return None if self.context is None else self.context - is_measured

    def cut_at(self, max_seq_length: int) -> int:
        """Where rows are cut so that each can be trained on and measured: at the setting, where
        that is within the context."""
        if self.context is None or max_seq_length <= self.context:
            return max_seq_length
        return self.context - 1


def limits_of(model_dir: Path | None) -> ModelLimits:
    """The limits that a model directory's config.json names, also where the text model's is one of
    several configs in it. Raises `ConfigError` where it is no JSON object."""
    if model_dir is None:
        return ModelLimits()
    outer = model_config(model_dir, "base_model")
    inner = outer.get("text_config")
    config = inner if isinstance(inner, dict) else outer

    def number(*keys: str) -> int | None:
        found = (config.get(key, outer.get(key)) for key in keys)
        return next((n for n in found if type(n) is int and n > 0), None)

    return ModelLimits(model_dir / "config.json", number(*CONTEXT_KEYS), number("vocab_size"))


def unchecked_fit(limits: ModelLimits, tasks: Sequence[EvalTask]) -> list[str]:
    """What a dry run cannot know of what fits the model."""
    if limits.context is None:
        return ["whether rows and questions fit the model's context, which is not known here"]
    inspect = [task.name for task in tasks if isinstance(task.work, InspectTask)]
    if not inspect:
        return []
    return [
        f"whether what the solver of {', '.join(inspect)} adds to the inputs of its samples fits "
        f"the model's context of {limits.context} tokens"
    ]


# --- rows -----------------------------------------------------------------------------------------


def refuse_long_rows(
    limits: ModelLimits,
    setting: int,
    key: str,
    rows: ExampleTable,
    num_tokens: Iterable[int],
    *,
    is_measured: bool,
) -> None:
    """Raise `DataError`, with file and line, for rows that the `setting` of max_seq_length leaves
    longer than the model takes. `num_tokens` are those of each row as it is cut, without the last
    one, which is a target only."""
    longest = limits.longest_row(is_measured=is_measured)
    if longest is None or setting <= longest:
        return
    long = [place for place, number in enumerate(num_tokens) if number + 1 > longest]
    if long:
        first = rows[long[0]]
        others = "" if len(long) == 1 else f", as are {len(long) - 1} more"
        less = f", of which {longest} can have their loss measured" if is_measured else ""
        raise DataError(
            f"{first.source} line {first.line_no}: this row of {key} is too long for the model's "
            f"context of {limits.context} tokens{less}{others}, and max_seq_length is {setting}. "
            f"Set max_seq_length to {longest} or less, which cuts longer rows there, or shorten "
            "them."
        )


def refuse_long_prompts(
    longest: tuple[int | None, int],
    key: str,
    rows: Iterable[Example],
    rendering: Rendering,
    max_tokens: int,
    beside: str | None = None,
) -> None:
    """Raise `DataError`, with file and line, for a row whose prompt and sampled answer together are
    `longest` of neither the model's context (None: not known) nor max_seq_length. `beside` is the
    setting whose text the rows have been given."""
    context, setting = longest
    limit, what = setting, f"max_seq_length {setting}"
    if context is not None and context < setting:
        limit, what = context, f"the model's context of {context} tokens"
    for example in rows:
        num_tokens = rendering.prompt_of(example).length
        if num_tokens + max_tokens > limit:
            raise DataError(
                f"{example.source} line {example.line_no}: the prompt of this row of {key} has "
                f"{num_tokens} tokens{f' with {beside}' if beside else ''}, and with an answer of "
                f"up to {max_tokens} it is longer than {what}. Sampled answers are not cut: "
                f"{f'shorten {beside}, ' if beside else ''}lower max_tokens of the method, raise "
                "max_seq_length as far as the model goes, or leave the row out."
            )


def held_out_tables(tasks: Sequence[EvalTask]) -> Iterator[tuple[str, ExampleTable]]:
    """The held-out rows by the name of their task."""
    for task in tasks:
        if isinstance(task.work, HeldOutFile | PairFile):
            yield task.name, task.work.examples


def infos_of(rendering: Rendering, example: Example) -> Iterator[DatumInfo]:
    """What is known of an example's datum, or of both of a pair."""
    return (side.info for side in _sides_of(rendering, example))


def _sides_of(rendering: Rendering, example: Example) -> Iterator[RenderedExample]:
    yield rendering[example.id]
    if example.rejected is not None:
        yield rendering.rejected(example.id)


def refuse_unknown_ids(
    limits: ModelLimits, rendering: Rendering, tokenizer: Any, tables: Mapping[str, ExampleTable]
) -> None:
    """Raise `DataError`, with file and line, for a row with a token that the model has no embedding
    for. The rows are looked at only where the tokenizer has such tokens at all."""
    if not has_unknown_ids(limits, tokenizer):
        return
    for key, table in tables.items():
        for example in table:
            where = f"{example.source} line {example.line_no}: {key}"
            for side in _sides_of(rendering, example):
                _refuse_id(limits, tokenizer, where, tokens_of(side.datum))


def has_unknown_ids(limits: ModelLimits, tokenizer: Any) -> bool:
    """Whether a tokenizer has tokens that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    return limits.num_embeddings is not None and largest >= limits.num_embeddings


def _refuse_id(limits: ModelLimits, tokenizer: Any, where: str, tokens: Sequence[int]) -> None:
    largest = max(tokens, default=0)
    assert limits.num_embeddings is not None, "the caller has looked"
    if largest >= limits.num_embeddings:
        raise DataError(
            f"{where} holds the token {tokenizer.decode([largest])!r} with the id {largest}, and "
            f"the model's embedding has {limits.num_embeddings} rows (vocab_size in {limits.file})."
            " The tokenizer has got tokens that the model does not know: resize the model's "
            "embedding and save it, or take the token out."
        )


# --- questions ------------------------------------------------------------------------------------


def refuse_unheard_prompt(
    chat_format: ChatFormat, system_prompt: str | None, key: str = "evaluation.system_prompt"
) -> None:
    """Raise `ConfigError` for a chat format that has no system message, or says nothing of it."""
    if system_prompt is None:
        return
    renderer = chat_format.renderer
    question = [Turn("user", "?")]
    why = "leaves system messages out"
    try:
        told = build_prompt(renderer, question, system_prompt).to_ints()
        if told != build_prompt(renderer, question).to_ints():
            return
    except (ValueError, AssertionError) as error:
        why = f"cannot take it: {error}"
    raise ConfigError(
        f"{key} is put before every question as a system message, and the chat "
        f"format {chat_format.name} {why}. Choose another renderer_name, or leave the prompt out."
    )


def refuse_long_questions(
    limits: ModelLimits,
    tasks: Sequence[EvalTask],
    renderer: Renderer,
    max_tokens: int | None,
    system_prompt: str | None = None,
) -> None:
    """Raise `DataError`, with file and line or sample, for a question that the chat format cannot
    ask or the model cannot take: of a question file with its answer's `max_tokens` (None: the
    default), of an Inspect task with room for one token of it, or with an id that it has not."""
    has_unknown = has_unknown_ids(limits, renderer.tokenizer)
    for task in tasks:
        if isinstance(task.work, PairFile):
            continue  # its answers are in its rows, which are looked at as such
        room = (max_tokens or DEFAULT_MAX_TOKENS) if isinstance(task.work, QuestionTask) else 1
        for one in task.asked:
            try:
                tokens = build_prompt(renderer, one.turns, system_prompt).to_ints()
            except (ValueError, AssertionError) as error:
                if isinstance(task.work, InspectTask):
                    continue  # a solver may make of it what can be asked
                raise DataError(
                    f"{one.where}: the chat format cannot ask this: {error}. Leave out the turns "
                    "that it does not have, or choose another renderer_name."
                ) from None
            if limits.context is not None and len(tokens) + room > limits.context:
                where = one.where if system_prompt is None else f"{one.where}{WITH_PROMPT}"
                raise DataError(_too_long(limits, where, len(tokens), room))
            if has_unknown:
                _refuse_id(limits, renderer.tokenizer, f"{one.where}: the question", tokens)


def _too_long(limits: ModelLimits, where: str, num_tokens: int, room: int) -> str:
    left = (limits.context or 0) - num_tokens
    of_model = f"the model's context of {limits.context} tokens ({limits.file})"
    if left < 1:
        return (
            f"{where}: its prompt has {num_tokens} tokens, and {of_model} leaves no room for an "
            "answer. Shorten it, or leave it out."
        )
    return (
        f"{where}: its prompt of {num_tokens} tokens and an answer of up to {room} are more than "
        f"{of_model}. Shorten it, or set evaluation.max_tokens to {left} or less."
    )

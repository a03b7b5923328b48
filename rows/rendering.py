"""Example -> Datum: which tokens there are, and which of them carry loss.

Masks come from the cookbook's renderers. Every row is rendered once, to know what it costs and
whether anything is left to train on; its datum is made again when it is used, so that a million
rows fit in memory.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import DataError
from rows.chat_formats import resolve_train_on
from rows.control_tokens import guard
from rows.examples import DropLog, DroppedRow, Example, ExampleTable, find_example
from rows.turns import CLOSE, abilities_of, taking_marks, turns_of

if TYPE_CHECKING:
    import tinker
    import torch
    from tinker_cookbook.renderers import Message, Renderer, TrainOnWhat

SIDES = ("chosen", "rejected")
PAIRS_TRAIN_ON = "last_assistant_message"
NUM_KEPT = 4096  # datums kept in memory, the last used ones


@dataclass(frozen=True)
class DatumInfo:
    """What is known of a rendered example."""

    example_id: str
    num_tokens: int
    num_loss_tokens: int
    truncated: bool
    weight: float = 1.0  # that the row's loss is multiplied by


class RenderedExample(NamedTuple):
    """A datum as the service takes it, and what is known of it."""

    datum: tinker.Datum
    info: DatumInfo


class Piece(NamedTuple):
    """Text of tokens in a row that count alike in the loss."""

    text: str
    weight: float  # 0 to 1, the largest of the example


class RenderedTable(NamedTuple):
    """The examples that can be trained on, their counts by position, and the dropped ones."""

    examples: ExampleTable
    num_tokens: Sequence[int]
    num_loss_tokens: Sequence[int]
    num_truncated: int
    dropped: DropLog
    noted: Counter[str]  # how many examples have what the plan should say of them
    longest: Sequence[int]  # tokens of the longer answer's conversation, where a row is a pair


class _Unusable(ValueError):
    """Says why a row is not trained on; `kind` as dropped rows have it."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class _Measured(NamedTuple):
    """What is known of a row: of both sides together, where it is a pair."""

    num_tokens: int
    num_loss_tokens: int
    longest: int
    cut: tuple[bool, ...]  # of each side, the chosen one first


class Rendering:
    """Renders examples to datums, and finds them by the example's id.

    A pair has a datum for each side. What carries loss in it is its two answers, whatever
    `train_on` says.
    """

    def __init__(
        self, renderer: Renderer, max_seq_length: int, train_on: str | None = None
    ) -> None:
        self._renderer = renderer
        self._abilities = abilities_of(renderer)
        self._tokenizer = guard(renderer)
        self._marking = taking_marks(renderer)
        self._stops = [one for one in renderer.get_stop_sequences() if isinstance(one, str)]
        self._max_seq_length = max_seq_length
        self.train_on_what = resolve_train_on(renderer, train_on)
        self._tables: list[ExampleTable] = []
        self._kept: OrderedDict[tuple[str, bool], RenderedExample] = OrderedDict()

    def __getitem__(self, example_id: str) -> RenderedExample:
        """The datum of an example; of a pair that of its chosen side."""
        return self._side(example_id, is_rejected=False)

    def rejected(self, example_id: str) -> RenderedExample:
        """The datum of a pair's rejected side."""
        return self._side(example_id, is_rejected=True)

    def _side(self, example_id: str, *, is_rejected: bool) -> RenderedExample:
        key = example_id, is_rejected
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        example = find_example(example_id, *self._tables)
        if example is None:
            raise KeyError(example_id)
        rendered = self._kept[key] = self._render(other_side(example) if is_rejected else example)
        if len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return rendered

    def render_all(self, examples: ExampleTable) -> RenderedTable:
        """Render the examples of a table; those that can be trained on are found by id after.

        Raises `DataError` when none is left.
        """
        kept: list[int] = []
        num_tokens, num_loss_tokens, longest = array("l"), array("l"), array("l")
        num_truncated = 0
        dropped, noted = DropLog(), Counter[str]()
        for position, example in enumerate(examples):
            try:
                measured = self._measure(example)
            except _Unusable as error:
                row = DroppedRow(example.source, example.line_no, error.kind, str(error))
                dropped.append(row)
                continue
            except ValueError as error:
                reason = f"it cannot be rendered: {error}"
                dropped.append(DroppedRow(example.source, example.line_no, "rejected", reason))
                continue
            kept.append(position)
            num_tokens.append(measured.num_tokens)
            num_loss_tokens.append(measured.num_loss_tokens)
            longest.append(measured.longest)
            num_truncated += any(measured.cut)
            noted.update(self._notes_on(example, measured.cut))
        if len(examples) and not kept:
            what = (
                "Raise max_seq_length, or correct"
                if "max_seq_length" in dropped[0].reason
                else "Correct"
            )
            raise DataError(
                f"{examples[0].source}: no row can be trained on; the first, line "
                f"{dropped[0].line_no}, fails because {dropped[0].reason}. {what} the rows."
            )
        table = examples.take(kept) if len(kept) < len(examples) else examples
        self._tables.append(table)
        return RenderedTable(
            table, num_tokens, num_loss_tokens, num_truncated, dropped, noted, longest
        )

    def prompt_of(self, example: Example) -> tinker.ModelInput:
        """The tokens that ask for an example's last answer, tools and system prompt included.

        Raises `ValueError` where the chat format cannot express them.
        """
        return self._renderer.build_generation_prompt(self.asked_of(example))

    def asked_of(self, example: Example) -> list[Message]:
        """What asks for an example's last answer, as the renderer takes it. Raises `ValueError`."""
        turns = turns_of(example, self._renderer, self._abilities)
        self._refuse_control_tokens(example)
        asked: Any = [message for message, _ in (turns[:-1] if example.has_answer else turns)]
        return asked

    def pieces_of(self, example_id: str, *, is_rejected: bool = False) -> Iterator[Piece]:
        """The tokens of an example as the model sees them, those that count alike together; of a
        pair those of one side."""
        datum = self._side(example_id, is_rejected=is_rejected).datum
        weights = datum.loss_fn_inputs["weights"].to_numpy().tolist()
        tokens = zip(tokens_of(datum), [0.0, *weights], strict=True)
        largest = max(weights) or 1.0  # what is asked alone has no loss
        for weight, group in itertools.groupby(tokens, key=lambda one: one[1]):
            text = self._renderer.tokenizer.decode([token for token, _ in group])
            yield Piece(str(text), round(weight / largest, 4))

    def _why_no_loss(self, example: Example, which: str = "") -> str:
        if example.weight == 0:
            return "its weight is 0"
        if which:
            return f"no token of its {which} answer within max_seq_length {self._max_seq_length}"
        answers = [one for one in example.messages if one.role == "assistant"]
        if all(one.weight == 0 for one in answers):
            return "each of its answers has weight 0"
        return f"no answer token within max_seq_length {self._max_seq_length}"

    def _notes_on(self, example: Example, cut: tuple[bool, ...]) -> Iterator[str]:
        """What a reader should know of how an example was rendered."""
        if example.rejected is not None:
            yield from (f"{side} cut" for side, it in zip(SIDES, cut, strict=True) if it)
        answers = [one for one in example.messages if one.role == "assistant"]
        if example.weight != 1:
            yield "row weight"
        if any(one.weight is not None for one in example.messages):
            yield "message weight"
        if example.tools is not None or any(one.calls for one in answers):
            yield "tools"
        trained = _selected([message.role for message in example.messages], self.train_on_what)
        if any(m.calls and not one for m, one in zip(example.messages, trained, strict=True)):
            yield "calls without loss"
        last = example.messages[-1] if example.has_answer else None
        has_thought = last is not None and (last.reasoning is not None or CLOSE in last.content)
        if has_thought and self._abilities.takes_reasoning:
            yield "reasoning"
        if any(self._tokenizer.controls_in(text) for text in _contents(example)):
            yield "control tokens"

    def _render(self, example: Example) -> RenderedExample:
        import torch
        from tinker_cookbook.supervised.common import datum_from_model_input_weights

        if not example.has_answer:  # shown, and sampled after
            asked = self.prompt_of(example)
            datum = datum_from_model_input_weights(
                asked, torch.zeros(asked.length), max_length=None, reduction="none"
            )
            return RenderedExample(datum, self._info_of_prompt(example, asked))
        model_input, weights = self._build(example)
        info = self._info_of(example, model_input, weights)
        # Mean reduction: an example's weights sum to 1, so a long answer counts like a short one.
        if example.weight == 1:
            reduction = "mean"
        else:  # the row's own weight comes after the mean, which would take it out again
            reduction, kept = "none", weights[1 : info.num_tokens + 1]
            weights = weights * (example.weight / float(kept.sum()))
        datum = datum_from_model_input_weights(
            model_input, weights, max_length=self._max_seq_length, reduction=reduction
        )
        return RenderedExample(datum, info)

    def _measure(self, example: Example) -> _Measured:
        """What is known of a row's datums, without making them, which takes nearly as long again.

        Raises `ValueError` for a row that cannot be trained on.
        """
        if not example.has_answer:
            return self._measure_prompt(example)
        sides = [example] if example.rejected is None else [example, other_side(example)]
        built = [self._build(one) for one in sides]
        infos = [self._info_of(example, *one) for one in built]
        for which, info in zip(("",) if len(sides) == 1 else SIDES, infos, strict=True):
            if info.num_loss_tokens == 0:
                raise _Unusable("no_loss_tokens", self._why_no_loss(example, which))
        if len(sides) > 1 and self._are_same(*(model_input for model_input, _ in built)):
            raise _Unusable(
                "tie",
                "its chosen and its rejected answer are the same tokens within max_seq_length "
                f"{self._max_seq_length}",
            )
        return _Measured(
            num_tokens=sum(info.num_tokens for info in infos),
            num_loss_tokens=sum(info.num_loss_tokens for info in infos),
            longest=max(info.num_tokens for info in infos),
            cut=tuple(info.truncated for info in infos),
        )

    def _measure_prompt(self, example: Example) -> _Measured:
        """What is known of a row that holds what is asked alone. Raises `ValueError`."""
        length = self.prompt_of(example).length
        if example.weight == 0:
            raise _Unusable("no_loss_tokens", "its weight is 0")
        if length >= self._max_seq_length:
            raise _Unusable(
                "no_loss_tokens",
                f"what it asks has {length} tokens, which leaves an answer no room within "
                f"max_seq_length {self._max_seq_length}",
            )
        return _Measured(length, 0, length, (False,))

    def _info_of_prompt(self, example: Example, asked: tinker.ModelInput) -> DatumInfo:
        return DatumInfo(example.id, asked.length, 0, False, example.weight)

    def _are_same(self, one: tinker.ModelInput, other: tinker.ModelInput) -> bool:
        """Whether two conversations are the same tokens as far as they are trained."""
        end = self._max_seq_length
        return one.to_ints()[:end] == other.to_ints()[:end]

    def _build(self, example: Example) -> tuple[tinker.ModelInput, torch.Tensor]:
        """The tokens of a conversation and the weight of each in its loss.

        Raises `ValueError` where the chat format cannot express the conversation.
        """
        turns = turns_of(example, self._renderer, self._abilities)
        self._refuse_control_tokens(example)
        train_on = self._train_on(example)
        turns = _until_trained(turns, train_on)
        messages = [message for message, _ in turns]
        trained = _weights_of(turns, train_on)
        trains_earlier = train_on == "all_assistant_messages"
        if trained is None and not (self._abilities.has_prefill and trains_earlier):
            return self._renderer.build_supervised_example(
                messages,  # pyright: ignore[reportArgumentType]
                train_on_what=train_on,
            )
        if train_on == "all_tokens":
            raise ValueError("its messages have weights, and data.train_on trains every token")
        roles = [message["role"] for message in messages]
        return self._weighted(messages, trained or _selected(roles, train_on))

    def _train_on(self, example: Example) -> TrainOnWhat:
        from tinker_cookbook.renderers import TrainOnWhat

        return TrainOnWhat(PAIRS_TRAIN_ON) if example.rejected is not None else self.train_on_what

    def _weighted(
        self, messages: list[dict[str, Any]], trained: Sequence[float]
    ) -> tuple[tinker.ModelInput, torch.Tensor]:
        """Each message with a weight of its own; nothing that a prompt supplies has any."""
        import torch
        from tinker_cookbook.renderers import TrainOnWhat

        def masked(number: int | None) -> tuple[tinker.ModelInput, torch.Tensor]:
            marked: list[Any] = [
                {**message, "trainable": position == number}
                for position, message in enumerate(messages)
            ]
            return self._marking.build_supervised_example(marked, TrainOnWhat.CUSTOMIZED)

        model_input, _ = masked(None)
        tokens, weights = model_input.to_ints(), torch.zeros(model_input.length)
        for number, weight in enumerate(trained):
            if weight == 0:
                continue
            mask = masked(number)[1].float()
            if messages[number]["role"] == "assistant":
                before: Any = messages[:number]
                prompt = self._renderer.build_generation_prompt(before).to_ints()
                if tokens[: len(prompt)] == prompt:
                    mask[: len(prompt)] = 0
                elif self._renderer.disables_thinking:
                    raise ValueError("an answer reasons, and renderer_name turns reasoning off")
            weights += weight * mask
        return model_input, weights

    def _refuse_control_tokens(self, example: Example) -> None:
        """Control tokens stay text; where that would be taught as an answer's end, it is none."""
        for message in example.messages:
            if message.role != "assistant":
                continue
            for stop in self._stops:
                if stop in message.content:
                    raise ValueError(f"an answer holds {stop!r}, at which sampling stops")
            found = self._tokenizer.controls_in(message.content)
            if found and message.content.rstrip().endswith(found[-1]):
                raise ValueError(
                    f"an answer ends with {found[-1]!r}, which would be taught letter by letter "
                    "beside the token; take it off"
                )
        calls = [call.arguments for message in example.messages for call in message.calls]
        if any(self._tokenizer.controls_in(text) for text in (*calls, example.tools or "")):
            raise ValueError("a tool or a call of one holds a control token")

    def _info_of(
        self, example: Example, model_input: tinker.ModelInput, weights: torch.Tensor
    ) -> DatumInfo:
        num_kept = min(model_input.length, self._max_seq_length)
        if num_kept < 2:
            raise ValueError("it has no two tokens, and one is learnt from those before it")
        return DatumInfo(
            example_id=example.id,
            num_tokens=num_kept - 1,  # the last token is only a target, the first only an input
            num_loss_tokens=int((weights[1:num_kept] > 0).sum()) if example.weight else 0,
            truncated=model_input.length > self._max_seq_length,
            weight=example.weight,
        )


def other_side(pair: Example) -> Example:
    """A pair with its answers exchanged, which renders its rejected one."""
    assert pair.rejected is not None, "it is a pair"
    messages = *pair.messages[:-1], pair.rejected
    return replace(pair, messages=messages, rejected=pair.messages[-1])


def _contents(example: Example) -> Iterator[str]:
    yield from (message.content for message in example.messages)
    if example.rejected is not None:
        yield example.rejected.content


def tokens_of(datum: tinker.Datum) -> list[int]:
    """All tokens of a datum: its input, and the last of its targets."""
    last = datum.loss_fn_inputs["target_tokens"].to_numpy()[-1]
    return [*datum.model_input.to_ints(), int(last)]


# --- which messages carry loss --------------------------------------------------------------------


def _until_trained(
    turns: list[tuple[dict[str, Any], float | None]], train_on: str
) -> list[tuple[dict[str, Any], float | None]]:
    """The turns up to the last answer that may be trained; what follows it changes nothing."""
    if train_on in ("all_messages", "all_tokens", "all_user_and_system_messages"):
        return turns
    for end in range(len(turns), 0, -1):
        message, weight = turns[end - 1]
        if message["role"] == "assistant" and weight != 0:
            return turns[:end]
    return turns


def _weights_of(
    turns: Sequence[tuple[dict[str, Any], float | None]], train_on: str
) -> list[float] | None:
    """The weight of each message in the loss; None where all that are trained count alike."""
    selected = _selected([message["role"] for message, _ in turns], train_on)
    own = [
        None if is_trained == 0 else weight
        for is_trained, (_, weight) in zip(selected, turns, strict=True)
    ]
    if all(weight is None for weight in own):
        return None
    return [
        is_trained * (1.0 if weight is None else weight)
        for is_trained, weight in zip(selected, own, strict=True)
    ]


def _selected(roles: Sequence[str], train_on: str) -> list[float]:
    """1 for each message that `data.train_on` trains, else 0."""
    last_user = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
    rules = {
        "last_assistant_message": lambda i: i == len(roles) - 1 and roles[i] == "assistant",
        "last_assistant_turn": lambda i: i > last_user and roles[i] == "assistant",
        "all_assistant_messages": lambda i: roles[i] == "assistant",
        "all_messages": lambda i: True,
        "all_tokens": lambda i: True,
        "all_user_and_system_messages": lambda i: roles[i] in ("user", "system"),
    }
    return [float(rules[train_on](i)) for i in range(len(roles))]

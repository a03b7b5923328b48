"""What a ledger's events and a run's files hold, as records."""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from data_selector import CandidateLoss
from rows.examples import DroppedRow
from scores.diagnosis import TopicReport
from storage.stored_json import Count, Measure, Share, record_of

MAX_PATH_CHARS = 500


def seconds_of(stamp: str) -> float:
    """An event's time in seconds since 1970. Raises `ValueError`."""
    return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))


def _stamp(text: str) -> str:
    seconds_of(text)
    return text


def _weights_path(text: str) -> str:
    parts = text.removeprefix("tinker://").split("/")
    is_plain = text.isprintable() and " " not in text and len(text) <= MAX_PATH_CHARS
    if not (text.startswith("tinker://") and is_plain and not {"", ".", ".."}.intersection(parts)):
        raise ValueError("not a tinker:// path")
    return text


Stamp = Annotated[str, AfterValidator(_stamp)]
WeightsPath = Annotated[str, AfterValidator(_weights_path)]
Alpha = Annotated[int | float, Field(ge=0, le=1e9)]  # of LoRA: the scale times the rank


@dataclass(frozen=True)
class Checkpoint:
    """Saved weights: `state_path` to go on from, `sampler_path` to evaluate and serve.

    Inside a round `sampler_path` is None.
    """

    round: Count
    step: Count  # optimizer steps that the run had taken, those it went back on included
    state_path: WeightsPath
    sampler_path: WeightsPath | None
    base_model: str
    lora_rank: int
    lora_alpha: Alpha
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    renderer: str
    expires_at: Stamp | None  # UTC; as it was set when the weights were saved
    parent: WeightsPath | None = None  # the state that these weights were trained on from


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that another program wrote, in PEFT's layout."""

    directory: str  # where its two files lay
    sha256: dict[str, str]  # by file
    described: str
    num_params: Count


@dataclass(frozen=True)
class Ancestor:
    """Saved weights that a run was started from, and the run that saved them.

    Of a path that belongs to no known run the run is None.
    """

    name: str  # as the settings name it
    state_path: WeightsPath
    run_id: str | None = None
    run_dir: str | None = None  # where it lay
    round: Count | None = None
    step: Count | None = None  # optimizer steps of that run in these weights
    base_model: str | None = None  # what that run called it
    renderer: str | None = None
    lora_alpha: Alpha | None = None  # where it is another than that of all runs
    adapter: AdapterFolder | None = None  # that another program wrote

    def __str__(self) -> str:
        if self.adapter is not None:
            return f"{self.name} ({self.adapter.described})"
        if self.run_id is None:
            return f"{self.name} (of no run that is known here)"
        return f"{self.name} (run {self.run_id}, round {self.round}, {self.step} steps)"


@dataclass(frozen=True)
class Origin:
    """What a run started from: its parent, what that one started from, and so on."""

    parent: Ancestor
    with_optimizer: bool
    ancestors: list[Ancestor] = field(default_factory=list)  # of the parent, the nearest first
    unknown: list[str] = field(default_factory=list)  # what of them could not be told
    warnings: list[str] = field(default_factory=list)

    @property
    def num_params(self) -> int | None:
        """Parameters of an adapter that another program wrote, which is trained on as it is."""
        chain = (self.parent, *self.ancestors)
        return next((one.adapter.num_params for one in chain if one.adapter is not None), None)

    @property
    def chain(self) -> str:
        """The weights, and those that their run was started from, and so on."""
        return ", which was started from ".join(map(str, (self.parent, *self.ancestors)))


@dataclass(frozen=True)
class Teacher:
    """What a run is distilled from: saved weights, or a base model where `path` is None.

    `sha256` is of the files that are here, by name: of the weights, and of their base model where
    that is another one than the student's. Of what a service keeps there are none.
    """

    name: str  # as the settings name it
    model_name: str | None  # what the service calls its base model; None of a path alone
    model_path: str | None  # a model directory or a hub name
    path: WeightsPath | None = None  # to sample from
    run_id: str | None = None
    run_dir: str | None = None  # where it lay
    renderer: str | None = None  # that it was trained with
    service: str | None = None  # the kind of service that it is on
    expires_at: Stamp | None = None  # UTC; as it was when the run began
    sha256: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        run = "" if self.run_id is None else f" (run {self.run_id}, {self.path})"
        return f"{self.name}{run}" if self.path is not None else f"{self.name} (a base model)"


@dataclass(frozen=True)
class RunStart:
    """What is looked up in the first event."""

    started_from: Origin | None = None


@dataclass(frozen=True)
class Batch:
    """One optimizer step's data as the ledger records it."""

    step: int
    example_ids: tuple[str, ...]
    num_tokens: int
    num_loss_tokens: int
    lr: float
    measures: dict[str, float] = field(default_factory=dict)  # of the method that trains
    num_prompt_tokens: int = 0  # that were read for it without a gradient,
    num_sampled_tokens: int = 0  # and sampled
    rollouts: dict[str, str] = field(default_factory=dict)  # `RolloutsFile`, where it has one
    counted_before: bool = False  # these two were counted by an event that is superseded


class Usage(NamedTuple):
    """What training and evaluation used."""

    train_tokens: int
    prompt_tokens: int
    sampled_tokens: int
    minutes: float

    @property
    def tokens(self) -> int:
        return self.train_tokens + self.prompt_tokens + self.sampled_tokens

    def plus(self, other: Usage) -> Usage:
        return Usage(
            train_tokens=self.train_tokens + other.train_tokens,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            sampled_tokens=self.sampled_tokens + other.sampled_tokens,
            minutes=self.minutes + other.minutes,
        )

    def less(self, other: Usage) -> Usage:
        return Usage(
            train_tokens=self.train_tokens - other.train_tokens,
            prompt_tokens=self.prompt_tokens - other.prompt_tokens,
            sampled_tokens=self.sampled_tokens - other.sampled_tokens,
            minutes=max(0.0, self.minutes - other.minutes),
        )


@dataclass(frozen=True)
class Topics:
    """What a `topics` event holds."""

    topics: list[TopicReport]


_TrainOn = Literal[
    "last_assistant_message",
    "last_assistant_turn",
    "all_assistant_messages",
    "all_messages",
    "all_tokens",
    "all_user_and_system_messages",
]


@dataclass(frozen=True)
class _Values:
    renderer_name: str
    learning_rate: float
    warmup_steps: Count
    service: Literal["embedded", "compatible", "tinker"]
    # Older runs have not recorded the following.
    train_on: _TrainOn | None = None
    grader_renderer_name: str | None = None
    base_url: str | None = None
    num_lora_params: Count | None = None
    steps_per_round: Annotated[int, Field(ge=1)] | None = None  # it is in their config
    teacher: Teacher | None = None  # of `method` `distill`


@dataclass(frozen=True)
class _Evaluated:
    label: str
    path: WeightsPath | None
    run_dir: str | None
    round: Count | None
    run_id: str | None = None  # older evaluations have not recorded these
    weights: str | None = None
    promoted_sha256: dict[str, str] | None = None  # where a registry's name stood for it


@dataclass(frozen=True)
class Settled:
    """What is looked up in config.resolved.json."""

    config: dict[str, Any]
    config_file: str
    resolved: _Values
    files: dict[str, str]
    evaluate: list[_Evaluated] = field(default_factory=list)
    # Older runs have not recorded these.
    run_id: str | None = None
    run_dir: str | None = None  # where it was begun


class SavedWeights(NamedTuple):
    """One saved set of weights; times are UTC."""

    round: int
    step: int
    kind: str  # state or sampler
    path: str
    saved_at: str
    expires_at: str | None
    is_superseded: bool  # a resumption went on from before it


@dataclass(frozen=True)
class _File:
    path: str
    sha256: str
    num_rows: Count = 0


@dataclass(frozen=True)
class _Examples:
    num_examples: Count
    num_tokens: Count
    num_loss_tokens: Count
    sha256: str | None = None  # of those that were kept, in their order; older runs have none


@dataclass(frozen=True)
class ModelFiles:
    """The base model as a run began with it; a hub's has no files here."""

    path: str
    files: dict[str, str]  # name -> sha256


@dataclass(frozen=True)
class Manifest:
    """What is looked up in data_manifest.json."""

    files: dict[str, _File]
    eval_tasks: dict[str, _File]
    examples: dict[str, _Examples] = field(default_factory=dict)
    num_dropped: dict[str, Count] = field(default_factory=dict)
    dropped: list[DroppedRow] = field(default_factory=list)  # the first of them
    num_similar: Count = 0  # older runs count them among the dropped
    num_other_answers: Count = 0  # rows that others of the same prompt answer differently
    code: dict[str, str] = field(default_factory=dict)  # path -> sha256
    grading: Count = 1  # which graders: of versions that did not record it the first
    base_model: ModelFiles | None = None  # None in runs of versions that did not record it


def manifest_from_json(data: dict[str, Any]) -> Manifest:
    return record_of(Manifest, data)


def losses_from_json(data: dict[str, Any]) -> dict[str, CandidateLoss]:
    return record_of(dict[str, CandidateLoss], data)


# --- rows as the model saw them -------------------------------------------------------------------


@dataclass(frozen=True)
class ShownPiece:
    """Text of tokens that count alike in the loss. `num_left_out` characters before it are cut."""

    text: str
    weight: Share
    num_left_out: Count = 0


@dataclass(frozen=True)
class ShownRow:
    """A row of a round as the model saw it, why it was chosen, and where it is to be looked up."""

    example_id: str
    file: str
    line_no: Count
    topic: str | None
    source: str
    reason: str
    is_mined: bool
    num_tokens: Count
    num_loss_tokens: Count
    is_truncated: bool  # at max_seq_length
    weight: Measure  # that the row's loss is multiplied by
    pieces: list[ShownPiece]
    rejected: list[ShownPiece] = field(default_factory=list)  # of a pair: its other side


@dataclass(frozen=True)
class Shown:
    """Some of the rows that a round trains on."""

    round: Count
    renderer: str
    train_on: str
    num_rows: Count  # different ones in the round
    rows: list[ShownRow]


def shown_from_json(data: dict[str, Any]) -> Shown:
    return record_of(Shown, data)

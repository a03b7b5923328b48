"""The events of a ledger as they are read back: what each kind holds, and which can follow which.

A run directory may be somebody else's, or damaged. What is read here once is what everything else
may take for granted of an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from errors import RunStoreError
from ledger.records import Checkpoint, Origin, Stamp, WeightsPath
from scores.reward_course import RoundRewards
from storage.stored_json import Count, Measure, Share, parse_object, record_of

Event = dict[str, Any]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
OwnFile = Annotated[str, Field(pattern=r"^(evals|selections)/[a-z0-9_]+\.json$")]


# --- what each kind holds -------------------------------------------------------------------------


class _Any(BaseModel):
    """What every event has; of some kinds no more is relied on."""

    model_config = ConfigDict(strict=True)

    seq: Count
    time: Stamp
    type: str
    round: Count | None
    step: Count | None
    num_prompt_tokens: Count = 0
    num_sampled_tokens: Count = 0
    worked: Annotated[float, Field(ge=0, le=1e10)] = 0.0  # seconds since the event before it


class _Rollouts(BaseModel):
    model_config = ConfigDict(strict=True)

    sha256: Sha256
    drawn_with: str


class _RolloutsOfStep(BaseModel):
    model_config = ConfigDict(strict=True)

    step: Count
    file: _Rollouts


class _Failed(_Any):
    num_tokens: Count = 0  # of steps that were in flight, and are not recorded
    rollouts: list[_RolloutsOfStep] = []  # whose answers are in what was read and sampled


class _OfRound(_Any):
    round: Count


def _checked_origin(data: dict[str, Any]) -> dict[str, Any]:
    record_of(Origin, data)
    return data


class _RunStarted(_Any):
    run_id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
    started_from: Annotated[dict[str, Any], AfterValidator(_checked_origin)] | None = None


class _Resumed(_Any):
    durable_seq: Count


class _Selected(_OfRound):
    file: OwnFile


class _LossesMeasured(_Selected):
    checkpoint_round: Count


class _Answered(_OfRound):
    file: Annotated[str, Field(pattern=r"^rollouts/answers_[0-9]{3,9}\.jsonl$")]
    sha256: Sha256
    num_rows: Count
    num_answers: Count
    num_truncated: Count


class _TargetsRead(_OfRound):
    file: Annotated[str, Field(pattern=r"^rollouts/targets_[0-9]{3,9}\.safetensors$")]
    sha256: Sha256
    num_rows: Count


class _Step(_OfRound):
    step: Count
    example_ids: list[str] = []
    num_tokens: Count
    num_loss_tokens: Count = 0
    lr: Measure
    nll: Measure
    measures: dict[str, Measure] = {}  # of a method's own
    rollouts: _Rollouts | None = None  # the file of the answers that it was trained on
    # What was read and sampled was paid for by a step that is superseded, and counts there.
    counted_before: bool = False


class _ReferenceSet(_OfRound):
    path: WeightsPath | None


class _ReferenceMeasured(_OfRound):
    num_pairs: Count


class _HeldOut(_OfRound):
    step: Count
    task: str
    nll: Measure


class _Pipeline(BaseModel):
    """What was measured of the steps in flight since the weights before; nothing hangs on it."""

    model_config = ConfigDict(strict=True)

    most_in_flight: Count
    latency_ms: Measure | None
    gap_ms: Measure | None


# The fields of a saved checkpoint stand in its record alone.
_HINTS = get_type_hints(Checkpoint, include_extras=True)
_FIELDS: dict[str, Any] = {
    one.name: (_HINTS[one.name], ... if one.default is MISSING else one.default)
    for one in fields(Checkpoint)
}
_FIELDS["pipeline"] = (_Pipeline | None, None)
_Checkpoint = create_model("_Checkpoint", __base__=_OfRound, **_FIELDS)


class _Unusable(_OfRound):
    state_path: WeightsPath


class _Paths(_OfRound):
    paths: list[WeightsPath]


class _Kept(_Paths):
    expires_at: Stamp | None


class _Measured(_OfRound):
    tasks: list[str]
    file: OwnFile
    num_samples: Count = 0
    latency_ms: Measure | None = None
    digests: dict[str, str] = {}  # of each task; versions before had none
    # Of the files that were measured; None where none are here, and of versions before.
    weights_sha256: dict[str, str] | None = None


class _Evaluated(_OfRound):
    score: Share
    interval: Annotated[list[Measure], Field(min_length=2, max_length=2)] | None = None
    file: OwnFile


class _Decided(_OfRound):
    action: str
    sentence: str
    lr_multiplier: Measure
    best_round: Count
    num_missed_gates: Count
    to_start: bool = False


def _checked_rewards(data: dict[str, Any]) -> dict[str, Any]:
    record_of(RoundRewards, data)
    return data


class _Diagnosed(_OfRound):
    sentence: str
    rewards: Annotated[dict[str, Any], AfterValidator(_checked_rewards)] | None = None


class _Topics(_OfRound):
    topics: list[dict[str, Any]]


class _Limits(_OfRound):
    fails: bool


class _TestOpened(_OfRound):
    checkpoint: WeightsPath | None


class _HeldUp(_Any):
    """What the service refused for now or let wait since the event of its kind before, as it was
    seen by the process: other runs that were at work in it have it as well."""

    what: str
    num_refused: Count
    num_times: Count
    seconds: Annotated[float, Field(ge=0, le=1e10)]
    reason: str


class _Delivery(_OfRound):
    ok: bool
    key: str = ""


KINDS: dict[str, type[_Any]] = {
    "run_started": _RunStarted,
    "rehearsed": _Any,
    "probed": _Any,
    "resumed": _Resumed,
    "interrupted": _Any,
    "failed": _Failed,
    "eval_failed": _Any,
    "selected": _Selected,
    "losses_measured": _LossesMeasured,
    "reference_set": _ReferenceSet,
    "reference_measured": _ReferenceMeasured,
    "answered": _Answered,
    "targets_read": _TargetsRead,
    "step": _Step,
    "held_out": _HeldOut,
    "checkpoint": _Checkpoint,
    "checkpoint_unusable": _Unusable,
    "checkpoint_kept": _Kept,
    "checkpoint_released": _Kept,
    "checkpoint_deleted": _Paths,
    "care_failed": _OfRound,
    "measured": _Measured,
    "evaluated": _Evaluated,
    "decided": _Decided,
    "diagnosed": _Diagnosed,
    "topics": _Topics,
    "limits_checked": _Limits,
    "test_opened": _TestOpened,
    "test_measured": _Measured,
    "test_evaluated": _Evaluated,
    "evalops": _Delivery,
    "held_up": _HeldUp,
    "compared": _OfRound,
    "run_finished": _Any,
}


def read_events(path: Path, lines: Sequence[bytes], num_before: int = 0) -> list[Event]:
    """The events in the lines of a ledger, or in those after its first `num_before`. Raises
    `RunStoreError` naming a line that is none."""
    events: list[Event] = []
    for line_no, line in enumerate(lines, start=num_before + 1):
        try:
            event = parse_object(line)
            kind = event.get("type")
            shape = KINDS.get(kind, _Any) if isinstance(kind, str) else _Any
            checked = shape.model_validate(event)
            if checked.seq != line_no - 1 or (checked.round or 0) >= line_no:
                raise ValueError("its number or its round is out of order")
        except ValueError as error:
            raise RunStoreError(
                f"{path} line {line_no}: not a ledger event: {_said(error)}. The file was changed "
                "by something else; restore it or start a new run."
            ) from None
        events.append(event)
    return events


def _said(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


# --- which can follow which -----------------------------------------------------------------------


def impossibility(events: Sequence[Event]) -> str | None:
    """What of an effective ledger no run can have written; None where a run can have.

    A round is selected, trained step by step, saved, evaluated and decided, in this order.
    """
    num_steps, stops = 0, False
    done: set[tuple[str, int]] = set()
    saved: set[str] = set()
    has_start = bool(events) and events[0].get("started_from") is not None
    for event in events:
        kind, number = event["type"], event["round"]
        before = _NEEDED.get(kind)
        if (kind == "run_started") != (event["seq"] == 0):
            return f"event {event['seq']}: a ledger begins with run_started, once"
        begins = number == 0 and (kind == "checkpoint" or (kind in _OF_BASELINE and not has_start))
        if before is not None and not begins:
            needed = before, number - (kind == "selected")
            if needed not in done:
                return f"event {event['seq']}: {kind} of round {number} without its {before}"
        if kind == "step":
            if event["step"] != num_steps:
                return f"event {event['seq']}: step {event['step']} where {num_steps} is next"
            num_steps += 1
        elif kind == "checkpoint":
            if event["step"] != num_steps:
                return f"event {event['seq']}: weights of {event['step']} steps after {num_steps}"
            if number == 0 and not has_start:
                return f"event {event['seq']}: weights of round 0 of a run that began with none"
            saved.add(event["state_path"])
            if event["sampler_path"] is None:  # the round goes on
                continue
        elif kind == "checkpoint_unusable" and event["state_path"] in saved:
            return f"event {event['seq']}: weights that were saved well are unusable"
        elif kind == "decided":
            stops = event["action"].startswith("stop")
            if event["best_round"] > number or (stops and event["best_round"] == 0):
                return f"event {event['seq']}: round {event['best_round']} cannot be the best"
        elif kind == "losses_measured" and event["checkpoint_round"] >= number:
            return f"event {event['seq']}: losses under the weights of a later round"
        elif kind == "run_finished" and not stops:
            return f"event {event['seq']}: the run finished without a decision to stop"
        if number is not None:
            done.add((kind, number))
    return None


_OF_BASELINE = ("measured", "evaluated")  # without weights where the run was not started from some
_NEEDED = {
    "selected": "decided",
    "answered": "selected",
    "targets_read": "selected",
    "step": "selected",
    "held_out": "selected",
    "checkpoint": "selected",
    "measured": "checkpoint",
    "evaluated": "checkpoint",
    "decided": "evaluated",
    "diagnosed": "decided",
    "topics": "decided",
    "limits_checked": "evaluated",
    "test_opened": "checkpoint",
    "test_measured": "test_opened",
    "test_evaluated": "test_opened",
}

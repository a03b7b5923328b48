"""The run directory: an append-only ledger, files written atomically, and what a resumed run knows.

    config.resolved.json     what is used, with its sha256
    data_manifest.json       counts, hashes and every dropped row
    ledger.jsonl             one event per line: {"seq", "time", "round", "step", "type", ...}
    evals/round_NN.json      scores per sample; round_00 is the baseline, test.json the sealed test;
                             checkpoint_NN.json in an evaluation of checkpoints outside a run
    inspect_logs/            what `inspect view` opens
    eval_report.md           the recommended checkpoint and the evidence for it
    evals/*.partial.jsonl    graded samples of an evaluation that is not recorded yet
    selections/round_NN.json what the round trained on, and why
    evalops/round_NN-*.json  rounds as EvalOps is told of them
    checkpoints/             the embedded service's weights

The effective ledger is what a replay gives: a `resumed` event names the last durable `seq` and
supersedes what came after it, so steps that were taken again count once in the weights.
This file stores and finds; it does not interpret scores.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

import ledger
from data_selector import CandidateLoss, MeasuredLosses, Selection
from errors import RunStoreError
from ledger import WeightsPath
from rows.examples import DroppedRow
from scores.decision import Decision
from scores.diagnosis import HeldOutPoint, TopicReport
from scores.results import EvalResult, HeldOutLoss, Measured
from storage.files import append_line, read_lines, storage_error, write_whole
from storage.journal import Journal, num_waiting_tokens
from storage.stored_json import Count, parse_object, record_of

LEDGER = "ledger.jsonl"
CONFIG = "config.resolved.json"
TEST_FILE = "evals/test.json"
MANIFEST = "data_manifest.json"
DROPPED = "data_dropped.jsonl"
LOCK = ".lock"
OUTBOX = "evalops"  # judges what lies in it itself
PARTIAL = ".partial.jsonl"
INTERRUPTIONS = ("resumed", "interrupted", "failed", "eval_failed")
EVALUATED = "evaluate"  # key of the resolved config: the checkpoints that are evaluated, no run
Event = ledger.Event
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Saved weights: `state_path` to go on from, `sampler_path` to evaluate and serve.

    Inside a round `sampler_path` is None.
    """

    round: int
    step: int  # optimizer steps in these weights
    state_path: str
    sampler_path: str | None
    base_model: str
    lora_rank: int
    lora_alpha: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    renderer: str
    expires_at: str | None  # UTC; as it was set when the weights were saved
    parent: str | None = None  # the state that these weights were trained on from


@dataclass(frozen=True)
class Batch:
    """One optimizer step's data as the ledger records it."""

    step: int
    example_ids: tuple[str, ...]
    num_tokens: int
    num_loss_tokens: int
    lr: float


class Usage(NamedTuple):
    """What training and evaluation used."""

    train_tokens: int
    prompt_tokens: int
    sampled_tokens: int
    minutes: float

    @property
    def tokens(self) -> int:
        return self.train_tokens + self.prompt_tokens + self.sampled_tokens


@dataclass(frozen=True)
class _Topics:
    """What a `topics` event holds."""

    topics: list[TopicReport]


@dataclass(frozen=True)
class _Values:
    renderer_name: str
    learning_rate: float
    warmup_steps: Count
    service: Literal["embedded", "compatible", "tinker"]


@dataclass(frozen=True)
class _Evaluated:
    label: str
    path: WeightsPath | None
    run_dir: str | None
    round: Count | None


@dataclass(frozen=True)
class _Settled:
    """What is looked up in config.resolved.json."""

    config: dict[str, Any]
    config_file: str
    resolved: _Values
    files: dict[str, str]
    evaluated: list[_Evaluated] = field(default_factory=list)


class SavedWeights(NamedTuple):
    """One saved set of weights; times are UTC."""

    round: int
    step: int
    kind: str  # state or sampler
    path: str
    saved_at: str
    expires_at: str | None
    is_superseded: bool  # a resumption went on from before it


class RunStore:
    """One run directory. What was recorded is found by round, so that nothing is done twice."""

    def __init__(
        self,
        run_dir: Path,
        events: list[Event],
        lock_file: IO[str] | None,
        is_evaluation: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self.is_evaluation = is_evaluation  # of checkpoints outside a run; it has no rounds
        self.num_torn_bytes = 0  # of a last line that was not written whole, and is not read
        self._lock_file = lock_file
        self._all_events = events
        self._events = effective_events(events)

    # --- opening -----------------------------------------------------------------------------

    @classmethod
    def create(cls, run_dir: Path, resolved: dict[str, Any]) -> RunStore:
        """Start a run in a new or empty directory. Raises `RunStoreError` when it is not empty."""
        try:
            if not is_absent_or_empty(run_dir):
                raise RunStoreError(
                    f"{run_dir}: not an empty directory. Choose another --run-dir, or continue the "
                    f"run in it with --resume {run_dir}."
                )
            run_dir.mkdir(parents=True, exist_ok=True)
            run_dir.chmod(0o700)  # questions, answers and rows are the user's own
        except (OSError, ValueError) as error:
            raise RunStoreError(f"{run_dir}: cannot be made: {error}. Choose another.") from None
        store = cls(run_dir, [], _lock(run_dir), EVALUATED in resolved)
        store.write_json(CONFIG, resolved)
        return store

    @classmethod
    def open(cls, run_dir: Path, *, to_resume: bool = False) -> RunStore:
        """Open a run to resume it, dropping a torn last line. Raises `RunStoreError` for no run."""
        is_run = False
        with contextlib.suppress(OSError):  # a name that no directory can have
            is_run = (run_dir / CONFIG).is_file()
        if not is_run:
            raise RunStoreError(
                f"{run_dir}: not a run directory, it has no {CONFIG}. Name the directory of a run."
            )
        _refuse_links(run_dir)
        lock_file = _lock(run_dir) if to_resume else None
        lines = read_lines(run_dir / LEDGER, repair=to_resume)
        events = ledger.read_events(run_dir / LEDGER, lines.complete)
        store = cls(run_dir, events, lock_file)
        store.num_torn_bytes = lines.num_torn_bytes
        store.is_evaluation = EVALUATED in store.resolved_config()
        return store

    @property
    def run_id(self) -> str:
        return next(self.events("run_started"))["run_id"]

    def refuse_other_data(self, manifest: dict[str, Any]) -> None:
        """Raise `RunStoreError` when a file is no longer the one that the run began with."""
        recorded = self._read(MANIFEST, _manifest_from_json)
        known = {"files": recorded.files, "eval_tasks": recorded.eval_tasks}
        for group, files in known.items():
            for name, file in manifest[group].items():
                if name not in files or files[name].sha256 != file["sha256"]:
                    raise RunStoreError(
                        f"{file['path']}: the content of {name} has changed since the run began, "
                        "so the run cannot go on as the same run. Restore the file (a task that "
                        "shuffles its samples has to do so with a seed), or start a new run."
                    )

    def refuse_other_code(self, code: Mapping[str, str]) -> list[str]:
        """Raise `RunStoreError` when code that the run's tasks are made of is not what it was.

        `code` is what it is now, by path its sha256. To be asked before any of it is loaded, and
        so run. Returns a line on each file.
        """
        if not self.has_started:
            if code:
                raise RunStoreError(
                    f"{self.run_dir}: the run has not started, so it is not recorded which code "
                    f"{next(iter(code))} is to have. Start a new run."
                )
            return []
        recorded = self._read(MANIFEST, _manifest_from_json).code
        for path in (*code, *recorded):
            if code.get(path) != recorded.get(path):
                raise RunStoreError(
                    f"{path}: this Python file belongs to a task of the run, and it is not the one "
                    f"that the run began with (sha256 was {recorded.get(path)}, is "
                    f"{code.get(path)}), so it was not run. Restore it, or start a new run."
                )
        return [f"task code: {path} (sha256 {sha256})" for path, sha256 in code.items()]

    def resolved_config(self) -> dict[str, Any]:
        return self._read_json(CONFIG)

    def settled_config(self) -> dict[str, Any]:
        """The resolved config, with all that a run or an evaluation goes on by."""

        def checked(data: dict[str, Any]) -> dict[str, Any]:
            if "base_model" not in record_of(_Settled, data).files:
                raise ValueError("files.base_model is missing")
            return data

        return self._read(CONFIG, checked)

    def refuse_impossible_ledger(self) -> None:
        """Raise `RunStoreError` for a ledger that no run can have written."""
        problem = None if self.is_evaluation else ledger.impossibility(self._events)
        if problem is not None:
            raise RunStoreError(
                f"{self.run_dir / LEDGER}: {problem}, which no run writes. The file was changed "
                "by something else; restore it or start a new run."
            )

    def refuse_other_results(self, asked: Mapping[str, Collection[str]]) -> None:
        """Raise `RunStoreError` for results of other samples than the tasks have."""
        numbers = {event["round"] for event in self.events("measured")}
        files = {self._eval_file(number): self.measured(number) for number in sorted(numbers)}
        for name, measured in {**files, TEST_FILE: self.test_measured()}.items():
            for task, ids in measured.sample_ids.items():
                if task not in asked or ids != asked[task]:
                    raise RunStoreError(
                        f"{self.run_dir / name}: it holds results of {task!r} that are not of the "
                        "samples that the task has. The file was changed by something else; "
                        "restore it or start a new run."
                    )

    def close(self) -> None:
        """Let other processes have the run."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    @property
    def has_started(self) -> bool:
        return any(self.events("run_started"))

    @property
    def is_rehearsed(self) -> bool:
        """Whether the tasks that are measured only at the end have been tried."""
        return any(self.events("rehearsed"))

    def record_start(
        self, manifest: dict[str, Any], dropped: Iterable[DroppedRow], config_hash: str
    ) -> None:
        """Write the data manifest, the dropped rows and the first event."""
        self.write_json(MANIFEST, manifest)
        lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in dropped)
        self.write_text(DROPPED, lines)
        self.append("run_started", run_id=uuid.uuid4().hex[:12], config_hash=config_hash)

    def mark_resumed(self, config: dict[str, Any], back_to: int | None = None) -> None:
        """Record that the run goes on from its last durable event, or from the end of a round.

        `config` replaces the recorded settings: what may change on a resumption stays changed.
        Raises `RunStoreError` for a round to go back to that cannot be taken.
        """
        seq = self._durable_seq() if back_to is None else self._last_seq_of(back_to)
        recorded = self.resolved_config()
        if recorded["config"] != config:
            self.write_json(CONFIG, {**recorded, "config": config})
        self.append("resumed", durable_seq=seq)
        self._events = effective_events(self._all_events)

    def _durable_seq(self) -> int:
        # A step is durable once a checkpoint holds it, and so is whatever came after such a step;
        # one that failed leaves only a save that cannot be used.
        seq, has_loose_steps = -1, False
        for event in self._events:
            if event["type"] in ("step", "checkpoint", "checkpoint_unusable"):
                has_loose_steps = event["type"] != "checkpoint"
            if not has_loose_steps:
                seq = event["seq"]
        return seq

    def _last_seq_of(self, round_no: int) -> int:
        """The last event before the next round began."""
        if self.decision(round_no) is None:
            raise RunStoreError(
                f"{self.run_dir}: round {round_no} has not been decided, so the run cannot go back "
                f"to its end. It has rounds 0 to {self.num_rounds}."
            )
        if self.test_opened() is not None:
            raise RunStoreError(
                f"{self.run_dir}: the sealed test of this run has been opened, so it cannot go "
                "back and train on: no unseen question is left to judge the outcome. Start a new "
                "run with a test_tasks that nobody has looked at."
            )
        earlier = itertools.takewhile(
            lambda event: (event["round"] or 0) <= round_no and event["type"] != "run_finished",
            self._events,
        )
        return list(earlier)[-1]["seq"]

    def is_finished_with(self, config: dict[str, Any]) -> bool:
        """Whether the run came to its end, and the settings give it nothing more to do."""
        types = [event["type"] for event in self._events if event["type"] != "evalops"]
        recorded = self.resolved_config()["config"]
        is_same = all(recorded.get(key) == config[key] for key in ("max_rounds", "budget"))
        return types[-1:] == ["run_finished"] and is_same

    # --- writing -----------------------------------------------------------------------------

    def append(
        self, event_type: str, *, round: int | None = None, step: int | None = None, **fields: Any
    ) -> Event:
        """Append one event and make it durable before returning. Raises `StorageError`."""
        seq = self._all_events[-1]["seq"] + 1 if self._all_events else 0
        event: Event = {
            "seq": seq,
            "time": _now(),
            "round": round,
            "step": step,
            "type": event_type,
            **fields,
        }
        line = json.dumps(event, ensure_ascii=False, allow_nan=False)
        append_line(self.run_dir / LEDGER, line)
        self._all_events.append(event)
        self._events.append(event)
        return event

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write a JSON file, atomically as `write_text`."""
        self.write_text(
            name, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def write_text(self, name: str, text: str | Iterable[str]) -> None:
        """Write a file durably: a reader sees the old one or the new one, never half."""
        write_whole(self.run_dir / name, [text] if isinstance(text, str) else text)

    def record_batch(self, round_no: int, batch: Batch, *, loss: float, nll: float) -> None:
        fields = {k: v for k, v in asdict(batch).items() if k != "step"}
        self.append("step", round=round_no, step=batch.step, **fields, loss=loss, nll=nll)

    def record_checkpoint(self, checkpoint: Checkpoint) -> None:
        fields = {k: v for k, v in asdict(checkpoint).items() if k not in ("round", "step")}
        self.append("checkpoint", round=checkpoint.round, step=checkpoint.step, **fields)

    def record_measured(
        self, round_no: int, new: Measured, step: int, latency_ms: float | None = None
    ) -> None:
        """Add to what has been measured of a round, so that none of it is measured twice.

        `latency_ms` is the mean over the requests of this process, None where it made none. A
        result that is there already stays one: its score is of tasks measured before.
        """
        name, is_result = self._eval_file(round_no), self._last("evaluated", round_no) is not None
        result = self._read_json(name) if is_result else {}
        self.write_json(name, {**result, **(self.measured(round_no) + new).to_json()})
        self._append_measured("measured", round_no, step, name, new, latency_ms)

    def record_result(self, result: EvalResult, step: int) -> None:
        name = self._eval_file(result.round)
        self.write_json(name, result.to_json())
        self._append_result("evaluated", result, step, name)

    def eval_journal(self, number: int, checkpoint: str | None) -> Journal:
        """The graded samples of a round's evaluation, or of a checkpoint's at that place."""
        return self._journal(self._eval_file(number), checkpoint)

    def test_journal(self, checkpoint: str | None) -> Journal:
        return self._journal(TEST_FILE, checkpoint)

    def losses_journal(self, round_no: int, checkpoint: str | None) -> Journal:
        """The losses of rows measured before a round, under weights and the base model."""
        return self._journal(_losses_file(round_no), checkpoint)

    def _journal(self, file: str, checkpoint: str | None) -> Journal:
        path = (self.run_dir / file).with_suffix(PARTIAL)
        return Journal(path, checkpoint or "the base model")

    def record_test_opened(self, round_no: int, checkpoint: str | None, test_hash: str) -> None:
        """Break the seal, before the first sample: from now on this is the checkpoint it judged."""
        self.append("test_opened", round=round_no, checkpoint=checkpoint, test_hash=test_hash)

    def record_test_measured(self, round_no: int, new: Measured, step: int) -> None:
        """Add to what the sealed test has measured."""
        self.write_json(TEST_FILE, (self.test_measured() + new).to_json())
        self._append_measured("test_measured", round_no, step, TEST_FILE, new)

    def record_test(self, result: EvalResult, step: int) -> None:
        self.write_json(TEST_FILE, result.to_json())
        self._append_result("test_evaluated", result, step, TEST_FILE)

    def _append_measured(
        self,
        event_type: str,
        round_no: int,
        step: int,
        file: str,
        measured: Measured,
        latency_ms: float | None = None,
    ) -> None:
        samples = [sample for task in measured.tasks for sample in task.samples]
        self.append(
            event_type,
            round=round_no,
            step=step,
            tasks=sorted(measured.names),
            num_prompt_tokens=sum(sample.num_prompt_tokens for sample in samples)
            + sum(loss.num_prompt_tokens for loss in measured.held_out),
            num_sampled_tokens=sum(sample.num_sampled_tokens for sample in samples),
            num_samples=len(samples) + sum(loss.n for loss in measured.held_out),
            latency_ms=None if latency_ms is None else round(latency_ms, 3),
            file=file,
        )

    def _append_result(self, event_type: str, result: EvalResult, step: int, file: str) -> None:
        self.append(
            event_type,
            round=result.round,
            step=step,
            score=result.score,
            stderr=result.stderr,
            n=result.n,
            num_truncated=result.num_truncated,
            num_malformed=result.num_malformed,
            num_failed=result.num_failed,
            protocol_hash=result.protocol_hash,
            file=file,
        )

    def record_decision(self, decision: Decision, step: int) -> None:
        fields = {k: v for k, v in asdict(decision).items() if k != "round"}
        self.append("decided", round=decision.round, step=step, **fields)

    def record_held_out(self, round_no: int, loss: HeldOutLoss, step: int) -> None:
        """A held-out loss inside a round, after `step` steps."""
        self.append(
            "held_out",
            round=round_no,
            step=step,
            task=loss.name,
            nll=loss.nll,
            stderr=loss.stderr,
            perplexity=loss.perplexity,
            bits_per_byte=loss.bits_per_byte,
            num_prompt_tokens=loss.num_prompt_tokens,
        )

    def record_diagnosis(self, round_no: int, sentence: str) -> None:
        self.append("diagnosed", round=round_no, sentence=sentence)

    def record_topics(self, round_no: int, reports: Sequence[TopicReport]) -> None:
        """How each topic stands after a round, the weakest first."""
        self.append("topics", round=round_no, topics=[report._asdict() for report in reports])

    def record_selection(self, selection: Selection, step: int) -> None:
        name = f"selections/round_{selection.round:02d}.json"
        self.write_json(name, selection.to_json())
        self.append(
            "selected", round=selection.round, step=step, shares=selection.shares, file=name
        )

    def record_losses(self, measured: MeasuredLosses, num_prompt_tokens: int) -> None:
        """What the losses of the rows to draw from were before a round was chosen."""
        name = _losses_file(measured.round)
        self.write_json(name, {one: list(loss) for one, loss in measured.losses.items()})
        self.append(
            "losses_measured",
            round=measured.round,
            checkpoint_round=measured.checkpoint_round,
            num_prompt_tokens=num_prompt_tokens,
            file=name,
        )

    def record_kept(self, round_no: int, paths: Sequence[str]) -> None:
        """These weights have no expiry any more."""
        self.append("checkpoint_kept", round=round_no, paths=list(paths), expires_at=None)

    def record_released(self, round_no: int, paths: Sequence[str], expires_at: str | None) -> None:
        """These weights have an expiry again."""
        self.append("checkpoint_released", round=round_no, paths=list(paths), expires_at=expires_at)

    def record_deleted(self, round_no: int, paths: Sequence[str]) -> None:
        self.append("checkpoint_deleted", round=round_no, paths=list(paths))

    def record_comparison(self, number: int, passed: bool | None, sentence: str) -> None:
        """How the checkpoint at this place of an evaluation compares; once, also if resumed."""
        if self._last("compared", number) is None:
            self.append("compared", round=number, passed=passed, sentence=sentence)

    def comparable_results(self) -> list[EvalResult]:
        """The results of an evaluation outside a run that has all it was to measure, in their
        order; none of one that has not."""
        return self.results() if any(self.events("run_finished")) else []

    def record_care_failed(self, round_no: int, detail: str) -> None:
        """That a service did not change how long weights are kept; once a round, also where a
        resumed run has asked again."""
        if self._last("care_failed", round_no) is None:
            self.append("care_failed", round=round_no, detail=detail)

    def kept_paths(self) -> list[str]:
        """Weights without expiry; what was superseded since counts as well, it is still there."""
        kept: dict[str, None] = {}
        for event in self._all_events:
            if event["type"] == "checkpoint_kept":
                kept |= dict.fromkeys(event["paths"])
            elif event["type"] == "checkpoint_released":
                kept = {path: None for path in kept if path not in event["paths"]}
        return list(kept)

    def deleted_paths(self) -> set[str]:
        events = (event for event in self._all_events if event["type"] == "checkpoint_deleted")
        return {path for event in events for path in event["paths"]}

    def saved_weights(self) -> list[SavedWeights]:
        """Everything that was saved and not deleted, oldest first, with its expiry as it is now."""
        gone = self.deleted_paths() | {
            event["state_path"]
            for event in self._all_events
            if event["type"] == "checkpoint_unusable"
        }
        expiries: dict[str, str | None] = {}
        for event in self._all_events:
            if event["type"] in ("checkpoint_kept", "checkpoint_released"):
                expiries |= dict.fromkeys(event["paths"], event["expires_at"])
        current = {event["seq"] for event in self.events("checkpoint")}
        saved = []
        for event in self._all_events:
            if event["type"] != "checkpoint":
                continue
            for kind in ("state", "sampler"):
                path = event[f"{kind}_path"]
                if path is not None and path not in gone:
                    expires_at = expiries.get(path, event["expires_at"])
                    is_superseded = event["seq"] not in current
                    place = event["round"], event["step"], kind, path
                    saved.append(SavedWeights(*place, event["time"], expires_at, is_superseded))
        return saved

    def checkpoint(self, round_no: int) -> Checkpoint | None:
        """The checkpoint at the end of a round."""
        ended = [
            c for c in self.checkpoints() if c.round == round_no and c.sampler_path is not None
        ]
        return ended[-1] if ended else None

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest state to go on from, inside a round or at its end."""
        checkpoints = self.checkpoints()
        return checkpoints[-1] if checkpoints else None

    def checkpoints(self) -> list[Checkpoint]:
        """What can be gone on from or evaluated, oldest first."""
        unusable = {event["state_path"] for event in self.events("checkpoint_unusable")}
        return [
            self._record(Checkpoint, event)
            for event in self.events("checkpoint")
            if event["state_path"] not in unusable
        ]

    def measured(self, round_no: int) -> Measured:
        """What has been measured of a round's checkpoint, also in an evaluation cut short."""
        events = [event for event in self.events("measured") if event["round"] == round_no]
        return self._measured_in(events)

    def _measured_in(self, events: Sequence[Event]) -> Measured:
        """What these events tell of. The file may hold more: it is written before its event."""
        if not events:
            return Measured()
        names = {name for event in events for name in event["tasks"]}
        return self._read(events[-1]["file"], Measured.from_json).only(names)

    def mean_latency_ms(self, round_no: int) -> float | None:
        """Mean time of a request of a round's evaluation; None where it was not measured."""
        timed = [
            (event["latency_ms"], event["num_samples"])
            for event in self.events("measured")
            if event["round"] == round_no and event.get("latency_ms") is not None
        ]
        num_samples = sum(number for _, number in timed)
        return sum(ms * number for ms, number in timed) / num_samples if num_samples else None

    def limits_verdict(self, round_no: int) -> Event | None:
        """How a round stands to the limits of `evalops_budget_file`, once it was held to them."""
        return self._last("limits_checked", round_no)

    def result(self, round_no: int) -> EvalResult | None:
        event = self._last("evaluated", round_no)
        if event is None:
            return None
        return self._read(event["file"], EvalResult.from_json)

    def results(self) -> list[EvalResult]:
        """The results of all evaluated rounds, the baseline first."""
        rounds = sorted({event["round"] for event in self.events("evaluated")})
        return [result for number in rounds if (result := self.result(number)) is not None]

    @property
    def num_rounds(self) -> int:
        """Trained rounds that have been evaluated."""
        return max((event["round"] for event in self.events("evaluated")), default=0)

    def test_opened(self) -> Event | None:
        """The event that broke the seal of the test, if it is broken."""
        return next(self.events("test_opened"), None)

    def test_measured(self) -> Measured:
        """What the sealed test has measured, also in one cut short."""
        return self._measured_in(list(self.events("test_measured")))

    def test_result(self) -> EvalResult | None:
        event = next(self.events("test_evaluated"), None)
        return None if event is None else self._read(event["file"], EvalResult.from_json)

    def decision(self, round_no: int) -> Decision | None:
        event = self._last("decided", round_no)
        return None if event is None else self._record(Decision, event)

    def last_decision(self) -> Decision | None:
        rounds = [event["round"] for event in self.events("decided")]
        return self.decision(rounds[-1]) if rounds else None

    def measured_losses(self) -> list[MeasuredLosses]:
        """What was measured of rows before rounds, oldest first."""
        found = []
        for event in self.events("losses_measured"):
            losses = self._read(event["file"], _losses_from_json)
            found.append(MeasuredLosses(event["round"], event["checkpoint_round"], losses))
        return found

    def selection(self, round_no: int) -> Selection | None:
        event = self._last("selected", round_no)
        return None if event is None else self._read(event["file"], Selection.from_json)

    def scores(self) -> dict[int, float]:
        """Score per evaluated round, the baseline included."""
        return {event["round"]: event["score"] for event in self.events("evaluated")}

    def events(self, event_type: str) -> Iterator[Event]:
        """The effective events of one type, oldest first."""
        return (event for event in self._events if event["type"] == event_type)

    def steps_taken(self) -> int:
        """Optimizer steps in the newest saved weights."""
        checkpoint = self.last_checkpoint()
        return 0 if checkpoint is None else checkpoint.step

    def last_lr(self, round_no: int) -> float | None:
        """The learning rate of a round's last step; None for the baseline."""
        event = self._last("step", round_no)
        return None if event is None else event["lr"]

    def losses(self, round_no: int) -> list[float]:
        """Training loss per token of each step of a round."""
        return [event["nll"] for event in self.events("step") if event["round"] == round_no]

    def lineage(self, round_no: int) -> list[int]:
        """The rounds that a round's weights came from, the baseline first."""
        rounds: list[int] = []
        while round_no > 0:
            decision = self.decision(round_no - 1)
            is_rollback = decision is not None and decision.action == "rollback"
            round_no = decision.best_round if decision and is_rollback else round_no - 1
            rounds.append(round_no)
        return rounds[::-1]

    def held_out_points(self, round_no: int) -> list[HeldOutPoint]:
        """The held-out losses measured inside a round."""
        return [
            HeldOutPoint(event["task"], event["step"], event["nll"])
            for event in self.events("held_out")
            if event["round"] == round_no
        ]

    def diagnosis(self, round_no: int) -> str | None:
        event = self._last("diagnosed", round_no)
        return None if event is None else event["sentence"]

    def topics(self, round_no: int) -> list[TopicReport] | None:
        event = self._last("topics", round_no)
        return None if event is None else self._record(_Topics, event).topics

    def data_manifest(self) -> dict[str, Any]:
        return asdict(self._read(MANIFEST, _manifest_from_json))

    def record_delivery(self, round_no: int, key: str, detail: str | None, *, ok: bool) -> None:
        """What came of sending a round to EvalOps; `key` names round, run and suite."""
        self.append("evalops", round=round_no, key=key, ok=ok, detail=detail)

    def delivered_keys(self) -> set[str]:
        """What EvalOps has confirmed, also between steps that were taken again."""
        events = (event for event in self._all_events if event["type"] == "evalops")
        return {event["key"] for event in events if event["ok"] and "key" in event}

    def usage(self, round_no: int | None = None) -> Usage:
        """What was used, by a round or by the whole run; what was done twice counts twice.

        Of the whole run this includes samples whose evaluation is not recorded yet.
        """
        usage = Usage(0, *self._waiting_tokens(), 0.0) if round_no is None else Usage(0, 0, 0, 0.0)
        before: Event | None = None
        for event in self._all_events:
            if event["type"] == "evalops":  # it comes whenever the answer does
                continue
            # The pause before a resumption is not running time.
            seconds = 0.0
            if before is not None and event["type"] != "resumed":
                seconds = ledger.seconds_of(event["time"]) - ledger.seconds_of(before["time"])
            before = event
            if round_no is not None and event["round"] != round_no:
                continue
            is_step = event["type"] == "step"
            usage = Usage(
                train_tokens=usage.train_tokens + (event["num_tokens"] if is_step else 0),
                prompt_tokens=usage.prompt_tokens + event.get("num_prompt_tokens", 0),
                sampled_tokens=usage.sampled_tokens + event.get("num_sampled_tokens", 0),
                minutes=usage.minutes + max(0.0, seconds) / 60,
            )
        return usage

    def _waiting_tokens(self) -> tuple[int, int]:
        waiting = [num_waiting_tokens(path) for path in self.run_dir.glob(f"*/*{PARTIAL}")]
        return sum(prompt for prompt, _ in waiting), sum(sampled for _, sampled in waiting)

    def _eval_file(self, number: int) -> str:
        """The file of a round's evaluation, or of the checkpoint's at that place."""
        return f"evals/{'checkpoint' if self.is_evaluation else 'round'}_{number:02d}.json"

    def _last(self, event_type: str, round_no: int) -> Event | None:
        found = [event for event in self.events(event_type) if event["round"] == round_no]
        return found[-1] if found else None

    def _record(self, kind: type[T], event: Event) -> T:
        """What an event tells of, as a record. Raises `RunStoreError`."""
        try:
            return record_of(kind, event)
        except ValueError as error:
            raise RunStoreError(
                f"{self.run_dir / LEDGER} line {event['seq'] + 1}: not a ledger event: {error}. "
                "The file was changed by something else; restore it or start a new run."
            ) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        return self._read(name, lambda data: data)

    def _read(self, name: str, from_json: Callable[[dict[str, Any]], T]) -> T:
        """What one of the run's own files holds. Raises `RunStoreError` where it does not."""
        try:
            return from_json(parse_object((self.run_dir / name).read_bytes()))
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"{self.run_dir / name}: cannot be read: {error}. The run cannot be resumed "
                "without it."
            ) from None


@dataclass(frozen=True)
class _File:
    path: str
    sha256: str
    num_rows: Count = 0


@dataclass(frozen=True)
class _Examples:
    num_examples: Count


@dataclass(frozen=True)
class _Manifest:
    """What is looked up in data_manifest.json."""

    files: dict[str, _File]
    eval_tasks: dict[str, _File]
    examples: dict[str, _Examples] = field(default_factory=dict)
    num_dropped: dict[str, Count] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)  # path -> sha256


def _manifest_from_json(data: dict[str, Any]) -> _Manifest:
    return record_of(_Manifest, data)


def _losses_from_json(data: dict[str, Any]) -> dict[str, CandidateLoss]:
    return record_of(dict[str, CandidateLoss], data)


def _losses_file(round_no: int) -> str:
    return f"selections/losses_{round_no:02d}.json"


def new_run_dir(parent: Path, name: str) -> Path:
    """A directory name that is not taken: the time and the run's name."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    numbered = (parent / (stem if i == 1 else f"{stem}-{i}") for i in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())


def newest_run(parent: Path, config_hash: str) -> Path:
    """The newest run below `parent` with this config hash. Raises `RunStoreError` for none."""
    found = []
    for file in parent.glob(f"*/{CONFIG}"):
        try:
            resolved = json.loads(file.read_text(encoding="utf-8"))
            is_same = resolved["config_hash"] == config_hash and EVALUATED not in resolved
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a run of ours, or one whose first write was cut short
        if is_same:
            found.append((file.stat().st_mtime, file.parent))
    if not found:
        raise RunStoreError(
            f"{parent}: no run with these settings to resume. Start one without --resume, or name "
            "the directory with --resume RUN_DIR."
        )
    return max(found)[1]


def is_absent_or_empty(run_dir: Path) -> bool:
    """Whether there is nothing of a run, be it that one was killed before its first file."""
    if not run_dir.exists():
        return True
    return run_dir.is_dir() and all(
        path.name == LOCK or path.suffix == ".tmp" for path in run_dir.iterdir()
    )


def effective_events(events: list[Event]) -> list[Event]:
    """Replay: each `resumed` event drops what came after the event it names."""
    effective: list[Event] = []
    for event in events:
        if event["type"] == "resumed":
            effective = [kept for kept in effective if kept["seq"] <= event["durable_seq"]]
        effective.append(event)
    return effective


def _refuse_links(run_dir: Path) -> None:
    """Raise `RunStoreError` for anything but folders and files: a link could lead out of the run,
    where its target would be read or written over; a pipe would never end."""
    for folder, folders, files in os.walk(run_dir):
        for path in (Path(folder, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # a run at work deletes weights
                mode = path.lstat().st_mode
                is_folder = stat.S_ISDIR(mode) and path.suffix not in (".json", ".jsonl")
                if not (is_folder or stat.S_ISREG(mode)) and path.parent != run_dir / OUTBOX:
                    raise RunStoreError(
                        f"{path}: a run directory holds files and folders of files, and this is "
                        "a link or something else. Put what it stands for in its place."
                    )


def _lock(run_dir: Path) -> IO[str]:
    """Keep every other process off a run for as long as the returned file stays open."""
    try:
        file = open(run_dir / LOCK, "w")  # noqa: SIM115 (held open on purpose)
    except OSError as error:
        raise storage_error(run_dir / LOCK, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunStoreError(
            f"{run_dir}: another process is at work on this run. Wait for it, or stop it."
        ) from None
    return file


def _now() -> str:
    return stamp_in(0)


def stamp_in(seconds: float) -> str:
    """The time so many seconds from now, in UTC, as events have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))

"""The run directory: an append-only ledger, files written atomically, and what a resumed run knows.

    config.resolved.json     what is used, with its sha256
    data_manifest.json       counts, hashes and every dropped row
    ledger.jsonl             one event per line: {"seq", "time", "round", "step", "type", ...}
    evals/round_NN.json      scores per sample; round_00 is the baseline, test.json the sealed test;
                             checkpoint_NN.json in an evaluation of checkpoints outside a run
    inspect_logs/            what `inspect view` opens
    eval_report.md           the recommended checkpoint and the evidence for it
    selections/round_NN.json what the round trained on, and why
    checkpoints/             the embedded service's weights

The effective ledger is what a replay gives: a `resumed` event names the last durable `seq` and
supersedes what came after it, so steps that were taken again count once in the weights.
This file stores and finds; it does not interpret scores.
"""

from __future__ import annotations

import calendar
import fcntl
import itertools
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_loader import DroppedRow
from data_selector import CandidateLoss, MeasuredLosses, Selection
from decision import Decision
from diagnosis import HeldOutPoint, TopicReport
from errors import RunStoreError
from eval_result import EvalResult, HeldOutLoss, Measured
from eval_stats import Interval

LEDGER = "ledger.jsonl"
CONFIG = "config.resolved.json"
TEST_FILE = "evals/test.json"
MANIFEST = "data_manifest.json"
DROPPED = "data_dropped.jsonl"
LOCK = ".lock"
EVALUATED = "evaluate"  # key of the resolved config: the checkpoints that are evaluated, no run

Event = dict[str, Any]


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
    expires_at: str | None


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
        self._lock_file = lock_file
        self._all_events = events
        self._events = effective_events(events)

    # --- opening -----------------------------------------------------------------------------

    @classmethod
    def create(cls, run_dir: Path, resolved: dict[str, Any]) -> RunStore:
        """Start a run in a new or empty directory. Raises `RunStoreError` when it is not empty."""
        try:
            if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
                raise RunStoreError(
                    f"{run_dir}: not an empty directory. Choose another --run-dir, or continue the "
                    f"run in it with --resume {run_dir}."
                )
            run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except (OSError, ValueError) as error:
            raise RunStoreError(f"{run_dir}: cannot be made: {error}. Choose another.") from None
        store = cls(run_dir, [], _lock(run_dir), EVALUATED in resolved)
        store.write_json(CONFIG, resolved)
        return store

    @classmethod
    def open(cls, run_dir: Path, *, to_resume: bool = False) -> RunStore:
        """Open a run to resume it, dropping a torn last line. Raises `RunStoreError` for no run."""
        if not (run_dir / CONFIG).is_file():
            raise RunStoreError(
                f"{run_dir}: not a run directory, it has no {CONFIG}. Name the directory of a run."
            )
        lock_file = _lock(run_dir) if to_resume else None
        store = cls(run_dir, _read_ledger(run_dir / LEDGER, repair=to_resume), lock_file)
        store.is_evaluation = EVALUATED in store.resolved_config()
        return store

    @property
    def run_id(self) -> str:
        return next(self.events("run_started"))["run_id"]

    def refuse_other_data(self, manifest: dict[str, Any]) -> None:
        """Raise `RunStoreError` when a file is no longer the one that the run began with."""
        recorded = self._read_json(MANIFEST)
        for group in ("files", "eval_tasks"):
            for name, file in manifest[group].items():
                if file["sha256"] != recorded[group].get(name, {}).get("sha256"):
                    raise RunStoreError(
                        f"{file['path']}: the content of {name} has changed since the run began, "
                        "so the run cannot go on as the same run. Restore the file (a task that "
                        "shuffles its samples has to do so with a seed), or start a new run."
                    )

    def resolved_config(self) -> dict[str, Any]:
        return self._read_json(CONFIG)

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

    def mark_resumed(self, config: dict[str, Any]) -> int:
        """Record that the run goes on from its last durable event; returns that event's `seq`.

        `config` replaces the recorded settings: what may change on a resumption stays changed.
        """
        # A step is durable once a checkpoint holds it, and so is whatever came after such a step.
        seq, has_loose_steps = -1, False
        for event in self._events:
            if event["type"] in ("step", "checkpoint"):
                has_loose_steps = event["type"] == "step"
            if not has_loose_steps:
                seq = event["seq"]
        recorded = self.resolved_config()
        if recorded["config"] != config:
            self.write_json(CONFIG, {**recorded, "config": config})
        self.append("resumed", durable_seq=seq)
        self._events = effective_events(self._all_events)
        return seq

    # --- writing -----------------------------------------------------------------------------

    def append(
        self, event_type: str, *, round: int | None = None, step: int | None = None, **fields: Any
    ) -> Event:
        """Append one event and make it durable before returning."""
        seq = self._all_events[-1]["seq"] + 1 if self._all_events else 0
        event: Event = {
            "seq": seq,
            "time": _now(),
            "round": round,
            "step": step,
            "type": event_type,
            **fields,
        }
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.run_dir / LEDGER, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._all_events.append(event)
        self._events.append(event)
        return event

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write a JSON file, atomically as `write_text`."""
        self.write_text(
            name, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def write_text(self, name: str, text: str | Iterable[str]) -> None:
        """Write a file atomically: a reader sees the old one or the new one, never half."""
        target = self.run_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    def record_batch(self, round_no: int, batch: Batch, *, loss: float, nll: float) -> None:
        fields = {k: v for k, v in asdict(batch).items() if k != "step"}
        self.append("step", round=round_no, step=batch.step, **fields, loss=loss, nll=nll)

    def record_checkpoint(self, checkpoint: Checkpoint) -> None:
        fields = {k: v for k, v in asdict(checkpoint).items() if k not in ("round", "step")}
        self.append("checkpoint", round=checkpoint.round, step=checkpoint.step, **fields)

    def record_measured(self, round_no: int, new: Measured, step: int) -> None:
        """Add to what has been measured of a round, so that none of it is measured twice.

        A result that is there already stays one: its score is of tasks measured before.
        """
        name, is_result = self._eval_file(round_no), self._last("evaluated", round_no) is not None
        result = self._read_json(name) if is_result else {}
        self.write_json(name, {**result, **(self.measured(round_no) + new).to_json()})
        self._append_measured("measured", round_no, step, name, new)

    def record_result(self, result: EvalResult, step: int) -> None:
        name = self._eval_file(result.round)
        self.write_json(name, result.to_json())
        self._append_result("evaluated", result, step, name)

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
        self, event_type: str, round_no: int, step: int, file: str, measured: Measured
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
        name = f"selections/losses_{measured.round:02d}.json"
        self.write_json(name, {one: list(loss) for one, loss in measured.losses.items()})
        self.append(
            "losses_measured",
            round=measured.round,
            checkpoint_round=measured.checkpoint_round,
            num_prompt_tokens=num_prompt_tokens,
            file=name,
        )

    def checkpoint(self, round_no: int) -> Checkpoint | None:
        """The checkpoint at the end of a round."""
        ended = [
            c for c in self._checkpoints() if c.round == round_no and c.sampler_path is not None
        ]
        return ended[-1] if ended else None

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest state to go on from, inside a round or at its end."""
        checkpoints = self._checkpoints()
        return checkpoints[-1] if checkpoints else None

    def _checkpoints(self) -> list[Checkpoint]:
        unusable = {event["state_path"] for event in self.events("checkpoint_unusable")}
        names = Checkpoint.__dataclass_fields__
        return [
            Checkpoint(**{name: event[name] for name in names})
            for event in self.events("checkpoint")
            if event["state_path"] not in unusable
        ]

    def measured(self, round_no: int) -> Measured:
        """What has been measured of a round's checkpoint, also in an evaluation cut short."""
        event = self._last("measured", round_no)
        return Measured() if event is None else Measured.from_json(self._read_json(event["file"]))

    def result(self, round_no: int) -> EvalResult | None:
        event = self._last("evaluated", round_no)
        if event is None:
            return None
        return EvalResult.from_json(self._read_json(event["file"]))

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
        if next(self.events("test_measured"), None) is None:
            return Measured()
        return Measured.from_json(self._read_json(TEST_FILE))

    def test_result(self) -> EvalResult | None:
        event = next(self.events("test_evaluated"), None)
        return None if event is None else EvalResult.from_json(self._read_json(event["file"]))

    def decision(self, round_no: int) -> Decision | None:
        event = self._last("decided", round_no)
        if event is None:
            return None
        return Decision(**{name: event[name] for name in Decision.__dataclass_fields__})

    def last_decision(self) -> Decision | None:
        rounds = [event["round"] for event in self.events("decided")]
        return self.decision(rounds[-1]) if rounds else None

    def measured_losses(self) -> list[MeasuredLosses]:
        """What was measured of rows before rounds, oldest first."""
        found = []
        for event in self.events("losses_measured"):
            stored = self._read_json(event["file"])
            losses = {one: CandidateLoss(*loss) for one, loss in stored.items()}
            found.append(MeasuredLosses(event["round"], event["checkpoint_round"], losses))
        return found

    def selection(self, round_no: int) -> Selection | None:
        event = self._last("selected", round_no)
        return None if event is None else Selection.from_json(self._read_json(event["file"]))

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
        if event is None:
            return None
        return [
            TopicReport(
                **{
                    **one,
                    "interval": None if one["interval"] is None else Interval(*one["interval"]),
                }
            )
            for one in event["topics"]
        ]

    def data_manifest(self) -> dict[str, Any]:
        return self._read_json(MANIFEST)

    def is_posted(self, round_no: int) -> bool:
        """Whether EvalOps has confirmed this round."""
        return any(event["ok"] for event in self.events("evalops") if event["round"] == round_no)

    def usage(self, round_no: int | None = None) -> Usage:
        """What was used, by a round or by the whole run; what was done twice counts twice."""
        usage = Usage(0, 0, 0, 0.0)
        before: Event | None = None
        for event in self._all_events:
            # The pause before a resumption is not running time.
            seconds = 0.0
            if before is not None and event["type"] != "resumed":
                seconds = _seconds(event["time"]) - _seconds(before["time"])
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

    def _eval_file(self, number: int) -> str:
        """The file of a round's evaluation, or of the checkpoint's at that place."""
        return f"evals/{'checkpoint' if self.is_evaluation else 'round'}_{number:02d}.json"

    def _last(self, event_type: str, round_no: int) -> Event | None:
        found = [event for event in self.events(event_type) if event["round"] == round_no]
        return found[-1] if found else None

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.run_dir / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"{self.run_dir / name}: cannot be read: {error}. The run cannot be resumed "
                "without it."
            ) from None


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


def effective_events(events: list[Event]) -> list[Event]:
    """Replay: each `resumed` event drops what came after the event it names."""
    effective: list[Event] = []
    for event in events:
        if event["type"] == "resumed":
            effective = [kept for kept in effective if kept["seq"] <= event["durable_seq"]]
        effective.append(event)
    return effective


def _lock(run_dir: Path) -> IO[str]:
    """Keep every other process off a run for as long as the returned file stays open."""
    file = open(run_dir / LOCK, "w")  # noqa: SIM115 (held open on purpose)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunStoreError(
            f"{run_dir}: another process is at work on this run. Wait for it, or stop it."
        ) from None
    return file


def _read_ledger(path: Path, *, repair: bool) -> list[Event]:
    """Read the ledger; a torn last line is cut off the file, anything else wrong is refused."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete, newline, torn = content.rpartition(b"\n")
    if torn and repair:
        os.truncate(path, len(complete) + len(newline))
    events = []
    for line_no, line in enumerate(complete.split(b"\n") if complete else [], start=1):
        try:
            event = json.loads(line)
            if event["seq"] != len(events):
                raise ValueError
            events.append({"type": event["type"], **event})
        except (ValueError, KeyError, TypeError):
            raise RunStoreError(
                f"{path} line {line_no}: not a ledger event. The file was changed by something "
                "else; restore it or start a new run."
            ) from None
    return events


def _seconds(stamp: str) -> float:
    return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

"""Rounds on their way to EvalOps: what is sent, and the folder where it waits on disk.

A round is on disk before it is sent, and is sent again, with the same key and the same bytes, until
EvalOps confirms it. What lies in the folder may have been damaged or planted, and is judged when
it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import LoopError, StorageError, one_line
from storage.files import write_whole

MAX_BYTES = 1 << 20  # of an answer, and of a record


class EvalOpsError(LoopError):
    """EvalOps did not confirm or tell something; the run and its decision are not affected.

    With `is_temporary` the same call may succeed later, not before `retry_after_s` seconds where
    the server said so.
    """

    def __init__(
        self, message: str, *, is_temporary: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class RoundReport:
    """What EvalOps is told about one evaluated round.

    `checkpoint` is None for round 0, which evaluates the base model, and so may be `learning_rate`.
    Scores, `stderr` and `threshold` are in [0, 1]; `tasks` holds (name, score, n) per task.
    """

    run_name: str
    run_id: str
    config_hash: str
    round: int
    checkpoint: str | None
    base_model: str
    score: float
    stderr: float | None
    n: int
    threshold: float
    learning_rate: float | None
    step: int
    tasks: tuple[tuple[str, float, int], ...]
    passed: bool
    decision: str


@dataclass(frozen=True)
class OutboxRecord:
    """One round as it lies in the outbox."""

    key: str
    suite_id: str
    round: int
    payload: dict[str, Any]

    @property
    def file_name(self) -> str:
        return f"round_{self.round:02d}-{self.key[:12]}.json"

    @property
    def body(self) -> bytes:
        """What is posted: the same bytes each time."""
        return json.dumps(self.payload).encode()


def build_payload(report: RoundReport, suite_id: str) -> dict[str, Any]:
    """Return the JSON body of one round, with absent values left out.

    Name and tags carry the run id and the config hash, because many runs share one suite.
    """
    number = report.round
    metrics = {
        "score": report.score,
        "stderr": report.stderr,
        "n": report.n,
        "threshold": report.threshold,
    }
    metadata = {
        "source": "tinker-eval-loop",
        "checkpoint": report.checkpoint,
        "round": number,
        "metrics": _without_none(metrics),
        "tasks": [{"name": name, "score": score, "n": n} for name, score, n in report.tasks],
        "runName": report.run_name,
        "runId": report.run_id,
        "configHash": report.config_hash,
        "baseModel": report.base_model,
        "step": report.step,
        "learningRate": report.learning_rate,
        "passed": report.passed,
        "decision": report.decision,
    }
    model = report.checkpoint or report.base_model
    summary = f"Automated evaluation from Tinker fine-tuning round {number}."
    run, config = f"run-{report.run_id}", f"config-{report.config_hash[:12]}"
    return {
        "testSuiteId": suite_id,
        "name": f"Training Round {number}: {report.run_name} ({run}, {config})",
        "description": f"{summary} {report.decision}",
        "config": {"model": model, "metadata": _without_none(metadata)},
        "tags": ["tinker", "automated", f"round-{number}", run, config],
        "visibility": "team",
        "sharedWithTeams": [],
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def make_record(payload: dict[str, Any]) -> OutboxRecord:
    """Return the record of a payload.

    Its key is the same whenever this round of this run is posted to this suite: both known clients
    start an execution with this call, and a post sent twice must not start two.
    """
    suite_id, metadata = payload["testSuiteId"], payload["config"]["metadata"]
    identity = json.dumps([metadata["runId"], metadata["round"], suite_id])
    key = hashlib.sha256(identity.encode()).hexdigest()
    return OutboxRecord(key, suite_id, metadata["round"], payload)


@dataclass(frozen=True)
class Outbox:
    """The rounds of one run on their way to EvalOps: `RUN_DIR/evalops/round_02-<key>.json`.

    What lies there may have been damaged or planted, so it is judged when it is read.
    """

    folder: Path
    run_id: str

    def put(self, report: RoundReport, suite_id: str) -> OutboxRecord:
        """Make a round durable, unless the outbox has it: the first record of a key stands.
        Returns the record of this round.

        Raises `EvalOpsError` when it cannot be sent or stored; the run is not affected.
        """
        assert report.run_id == self.run_id, "a round of another run"
        record = make_record(build_payload(report, suite_id))
        file = self.folder / record.file_name
        try:
            if not os.path.lexists(file):
                content = json.dumps(asdict(record), indent=1, allow_nan=False)
                write_whole(file, [content, "\n"])
        except (StorageError, ValueError) as error:  # ValueError: a number is not finite
            raise EvalOpsError(
                f"EvalOps is not sent round {report.round}: {one_line(str(error)).rstrip('.')}. "
                "Resuming the run before its end tries again. The round itself is safe in the run "
                "directory."
            ) from None
        return record

    def records(self) -> tuple[list[OutboxRecord], list[str]]:
        """Return all records in round order, and a warning for each file that is none."""
        records, warnings = [], []
        for path in sorted(self.folder.glob("*.json")):
            try:
                records.append(self._read_record(path))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                warnings.append(
                    f"{one_line(str(path))}: not a record of this run's outbox "
                    f"({type(error).__name__}: {one_line(str(error))}). Nothing of it is sent. "
                    "Remove it, or restore it from a copy."
                )
        return sorted(records, key=lambda record: (record.round, record.key)), warnings

    def _read_record(self, path: Path) -> OutboxRecord:
        """Read what `put` writes, and raise one of the errors above for anything else."""
        # A link could lead out of the run, and reading a pipe would wait for ever.
        is_plain = path.is_file() and not path.is_symlink() and not self.folder.is_symlink()
        if not is_plain or path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is a link, not a regular file, or over {MAX_BYTES} bytes")
        stored = json.loads(path.read_bytes())
        json.dumps(stored, allow_nan=False)
        record = make_record(stored["payload"])
        if stored["payload"]["config"]["metadata"]["runId"] != self.run_id:
            raise ValueError("it is of another run")
        if stored != asdict(record) or path.name != record.file_name:
            raise ValueError("its name, key, suite or round is not that of its payload")
        return record

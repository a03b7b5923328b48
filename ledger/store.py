"""The run directory: an append-only ledger, files written atomically, and what a resumed run knows.

    config.resolved.json     what is used, with its sha256
    data_manifest.json       counts and hashes
    data_dropped.jsonl       rows that are not trained on, and why; data_similar.jsonl, which are
    ledger.jsonl             one event per line: {"seq", "time", "round", "step", "type", ...}
    evals/round_NN.json      scores per sample; round_00 is the baseline, test.json the sealed test;
                             checkpoint_NN.json in an evaluation of checkpoints outside a run
    inspect_logs/            what `inspect view` opens
    eval_report.md           the recommended checkpoint and the evidence for it
    evals/*.partial.jsonl    graded samples of an evaluation that is not recorded yet
    selections/round_NN.json what the round trained on, and why; shown_NN.json rows of it as shown
    report.html              all of it on one page; report_parts/, each round's answers in it
    evalops/round_NN-*.json  rounds as EvalOps is told of them
    reference.jsonl          of method dpo: the pairs' log-probabilities under the reference
    rollouts/                sampled answers, a file a step; answers_NNN, targets_NNN: a teacher's
    checkpoints/             the embedded service's weights

The effective ledger is what a replay gives: a `resumed` event names the last durable `seq` and
supersedes what came after it, so steps that were taken again count once in the weights.
This file stores and finds; it does not interpret scores.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from data_selector import MeasuredLosses, Selection
from errors import RunStoreError
from ledger.events import impossibility
from ledger.records import (
    Batch,
    Manifest,
    Origin,
    RunStart,
    Settled,
    Shown,
    Topics,
    losses_from_json,
    manifest_from_json,
    shown_from_json,
)
from ledger.run_directory import CONFIG, LEDGER, RUN_ID, Event
from ledger.sealing import SealedEvaluations, digests_of
from ledger.weights import WEIGHTS
from rows.examples import DroppedRow
from rows.places import DROPPED, SIMILAR, row_lines
from scores.decision import Decision
from scores.diagnosis import HeldOutPoint, TopicReport
from scores.results import EvalResult, HeldOutLoss, Measured
from storage.files import copy_whole
from storage.journal import Journal
from storage.stored_json import record_of

TEST_FILE = "evals/test.json"
MANIFEST = "data_manifest.json"


class RunStore(SealedEvaluations):
    """One run directory. What was recorded is found by round, so that nothing is done twice."""

    def settled_config(self) -> dict[str, Any]:
        """The resolved config, with all that a run or an evaluation goes on by."""

        def checked(data: dict[str, Any]) -> dict[str, Any]:
            if "base_model" not in record_of(Settled, data).files:
                raise ValueError("files.base_model is missing")
            return data

        return self._read(CONFIG, checked)

    def refuse_impossible_ledger(self) -> None:
        """Raise `RunStoreError` for a ledger that no run can have written."""
        problem = None if self.is_evaluation else impossibility(self._events)
        if problem is not None:
            raise RunStoreError(
                f"{self.run_dir / LEDGER}: {problem}, which no run writes. The file was changed "
                "by something else; restore it or start a new run."
            )

    @property
    def origin(self) -> Origin | None:
        """What the run was started from; None for the untouched base model."""
        first = next(self.events("run_started"), None)
        return None if first is None else self._record(RunStart, first).started_from

    @property
    def baseline_name(self) -> str:
        """What round 0 measures."""
        return "the untouched model" if self.origin is None else self.origin.parent.name

    def manifest(self) -> Manifest:
        """What the run began with."""
        return self._read(MANIFEST, manifest_from_json)

    def measured_files(self) -> dict[str, Measured]:
        """What has been measured, by the file that holds it, the sealed test last."""
        numbers = sorted({event["round"] for event in self.events("measured")})
        files = {self._eval_file(number): self.measured(number) for number in numbers}
        return {**files, TEST_FILE: self.test_measured()}

    @property
    def is_rehearsed(self) -> bool:
        """Whether the tasks that are measured only at the end have been tried."""
        return any(self.events("rehearsed"))

    def record_start(
        self,
        manifest: dict[str, Any],
        dropped: Iterable[DroppedRow],
        config_hash: str,
        similar: Iterable[DroppedRow] = (),
        origin: Origin | None = None,
    ) -> None:
        """Write the data manifest, the dropped rows, the similar ones and the first event."""
        self.write_json(MANIFEST, manifest)
        self.write_text(DROPPED, row_lines(dropped))
        self.write_text(SIMILAR, row_lines(similar))
        run_id = self.resolved_config().get(RUN_ID) or uuid.uuid4().hex[:12]
        started_from = None if origin is None else asdict(origin)
        self.append(
            "run_started", run_id=run_id, config_hash=config_hash, started_from=started_from
        )

    def mark_resumed(self, config: dict[str, Any], back_to: int | None = None) -> None:
        """Record that the run goes on from its last durable event, or from the end of a round.

        `config` replaces the recorded settings: what may change on a resumption stays changed.
        Raises `RunStoreError` for a round to go back to that cannot be taken.
        """
        seq = self.durable_seq() if back_to is None else self._last_seq_of(back_to)
        recorded = self.resolved_config()
        if recorded["config"] != config:
            self.write_json(CONFIG, {**recorded, "config": config})
        self.append("resumed", durable_seq=seq)
        self._replay()

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
                f"run from its weights, with start_from: {self.run_dir}@round_{round_no:02d} and a "
                "test_tasks that nobody has looked at."
            )
        earlier = itertools.takewhile(
            lambda event: (event["round"] or 0) <= round_no and event["type"] != "run_finished",
            self._events,
        )
        return list(earlier)[-1]["seq"]

    def record_batch(self, round_no: int, batch: Batch, *, loss: float, nll: float) -> None:
        always = ("example_ids", "num_tokens", "num_loss_tokens", "lr")
        fields = {k: v for k, v in asdict(batch).items() if k in always or (v and k != "step")}
        self.append("step", round=round_no, step=batch.step, **fields, loss=loss, nll=nll)

    def record_measured(
        self,
        round_no: int,
        new: Measured,
        step: int,
        latency_ms: float | None = None,
        weights: dict[str, str] | None = None,
    ) -> None:
        """Add to what has been measured of a round, so that none of it is measured twice.

        `latency_ms` is the mean over the requests of this process, None where it made none;
        `weights` the sha256 of the files that were measured, None where they are not here. A
        result that is there already stays one: its score is of tasks measured before.
        """
        name = self._add_measured(round_no, new)
        latency_ms = None if latency_ms is None else round(latency_ms, 3)
        told = {"latency_ms": latency_ms, WEIGHTS: weights}
        self._append_measured("measured", round_no, step, name, new, told)

    def record_taken(
        self,
        round_no: int,
        taken: Measured,
        step: int,
        source: RunStore,
        weights: dict[str, str] | None = None,
    ) -> None:
        """Add what another run has measured of the same weights, with its logs; it costs nothing
        here."""
        for task in taken.tasks:
            if task.log is not None:
                copy_whole(source.run_dir / task.log, self.run_dir / task.log)
        name = self._add_measured(round_no, taken)
        self.append(
            "measured",
            round=round_no,
            step=step,
            tasks=sorted(taken.names),
            file=name,
            digests=digests_of(taken),
            taken_from=os.path.relpath(source.run_dir, self.run_dir),
            taken_from_run=source.run_id,
            **{WEIGHTS: weights},
        )

    def _add_measured(self, round_no: int, new: Measured) -> str:
        """Write what was measured of a round with what is new; returns the file."""
        name, is_result = self._eval_file(round_no), self._last("evaluated", round_no) is not None
        result = self._read_json(name) if is_result else {}
        measured = self.measured(round_no) + new
        self.write_json(name, {**result, **measured._asdict()})
        self._hold(name, Measured.from_json, measured)
        return name

    def record_result(self, result: EvalResult, step: int) -> None:
        name = self._eval_file(result.round)
        measured = self.measured(result.round)
        self.write_json(name, result)
        self._hold(name, EvalResult.from_json, result)
        self._hold(name, Measured.from_json, measured)
        self._append_result("evaluated", result, step, name)

    def eval_journal(self, number: int, checkpoint: str | None) -> Journal:
        """The graded samples of a round's evaluation, or of a checkpoint's at that place."""
        return self._journal(self._eval_file(number), checkpoint)

    def test_journal(self, checkpoint: str | None) -> Journal:
        return self._journal(TEST_FILE, checkpoint)

    def losses_journal(self, round_no: int, checkpoint: str | None) -> Journal:
        """The losses of rows measured before a round, under weights and the base model."""
        return self._journal(_losses_file(round_no), checkpoint)

    def record_test_opened(self, round_no: int, checkpoint: str | None, test_hash: str) -> None:
        """Break the seal, before the first sample: from now on this is the checkpoint it judged."""
        self.append("test_opened", round=round_no, checkpoint=checkpoint, test_hash=test_hash)

    def record_test_measured(
        self, round_no: int, new: Measured, step: int, weights: dict[str, str] | None = None
    ) -> None:
        """Add to what the sealed test has measured."""
        self.write_json(TEST_FILE, (self.test_measured() + new)._asdict())
        told = {"latency_ms": None, WEIGHTS: weights}
        self._append_measured("test_measured", round_no, step, TEST_FILE, new, told)

    def record_test(self, result: EvalResult, step: int) -> None:
        self.write_json(TEST_FILE, result)
        self._append_result("test_evaluated", result, step, TEST_FILE)

    def _append_measured(
        self,
        event_type: str,
        round_no: int,
        step: int,
        file: str,
        measured: Measured,
        told: dict[str, Any],
    ) -> None:
        samples = [sample for task in measured.tasks for sample in task.samples]
        asked = [*samples, *measured.held_out]
        self.append(
            event_type,
            round=round_no,
            step=step,
            tasks=sorted(measured.names),
            num_prompt_tokens=sum(one.num_prompt_tokens for one in asked),
            num_sampled_tokens=sum(one.num_sampled_tokens for one in asked),
            num_samples=len(samples) + sum(loss.n for loss in measured.held_out),
            file=file,
            digests=digests_of(measured),
            **told,
        )

    def _append_result(self, event_type: str, result: EvalResult, step: int, file: str) -> None:
        self.append(
            event_type,
            round=result.round,
            step=step,
            score=result.score,
            stderr=result.stderr,
            interval=result.interval,
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

    def record_diagnosis(self, round_no: int, said: str, kinds: Sequence[str], **told: Any) -> None:
        self.append("diagnosed", round=round_no, sentence=said, kinds=list(kinds), **told)

    def record_topics(self, round_no: int, reports: Sequence[TopicReport]) -> None:
        """How each topic stands after a round, the weakest first."""
        self.append("topics", round=round_no, topics=[report._asdict() for report in reports])

    def record_selection(self, selection: Selection, step: int) -> None:
        name = f"selections/round_{selection.round:02d}.json"
        self.write_json(name, selection.to_json())
        self._hold(name, Selection.from_json, selection)
        self.append(
            "selected", round=selection.round, step=step, shares=selection.shares, file=name
        )

    def write_shown(self, shown: Shown) -> None:
        """Keep rows of a round as the model sees them, before the event that it is chosen."""
        self.write_json(_shown_file(shown.round), asdict(shown))

    def record_losses(self, measured: MeasuredLosses, num_read: int, num_sampled: int) -> None:
        """What the losses of the rows to draw from were before a round was chosen."""
        name = _losses_file(measured.round)
        self.write_json(name, {one: list(loss) for one, loss in measured.losses.items()})
        self._hold(name, losses_from_json, measured.losses)
        self.append(
            "losses_measured",
            round=measured.round,
            checkpoint_round=measured.checkpoint_round,
            num_prompt_tokens=num_read,
            num_sampled_tokens=num_sampled,
            file=name,
        )

    def record_comparison(self, number: int, passed: bool | None, sentence: str) -> None:
        """How the checkpoint at this place of an evaluation compares; once, also if resumed."""
        if self._last("compared", number) is None:
            self.append("compared", round=number, passed=passed, sentence=sentence)

    def comparable_results(self) -> list[EvalResult]:
        """The results of an evaluation outside a run that has all it was to measure, in their
        order; none of one that has not."""
        return self.results() if any(self.events("run_finished")) else []

    def measured(self, round_no: int) -> Measured:
        """What has been measured of a round's checkpoint, also in an evaluation cut short."""
        return self._measured_in(list(self.events("measured", round_no)))

    def _measured_in(self, events: Sequence[Event]) -> Measured:
        """What these events tell of. The file may hold more: it is written before its event."""
        if not events:
            return Measured()
        names = {name for event in events for name in event["tasks"]}
        return self._measured_of(events[-1]["file"]).only(names)

    def mean_latency_ms(self, round_no: int) -> float | None:
        """Mean time of a request of a round's evaluation; None where it was not measured."""
        timed = [
            (event["latency_ms"], event["num_samples"])
            for event in self.events("measured", round_no)
            if event.get("latency_ms") is not None
        ]
        num_samples = sum(number for _, number in timed)
        return sum(ms * number for ms, number in timed) / num_samples if num_samples else None

    def limits_verdict(self, round_no: int) -> Event | None:
        """How a round stands to the limits of `evalops_budget_file`, once it was held to them."""
        return self._last("limits_checked", round_no)

    def is_within_limits(self, round_no: int) -> bool:
        """Whether a round keeps to the limits that it was held to, as one without any does."""
        verdict = self.limits_verdict(round_no)
        return verdict is None or not verdict["fails"]

    def result(self, round_no: int) -> EvalResult | None:
        event = self._last("evaluated", round_no)
        if event is None:
            return None
        result = self._read(event["file"], EvalResult.from_json)
        if result.round != round_no:
            raise RunStoreError(
                f"{self.run_dir / event['file']}: it holds round {result.round}, and the ledger "
                f"names it for round {round_no}. The file was changed by something else; restore "
                "it or start a new run."
            )
        return result

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
        event = self._last("decided")
        return None if event is None else self._record(Decision, event)

    def measured_losses(self) -> list[MeasuredLosses]:
        """What was measured of rows before rounds, oldest first."""
        found = []
        for event in self.events("losses_measured"):
            losses = self._read(event["file"], losses_from_json)
            found.append(MeasuredLosses(event["round"], event["checkpoint_round"], losses))
        return found

    def selection(self, round_no: int) -> Selection | None:
        event = self._last("selected", round_no)
        return None if event is None else self._read(event["file"], Selection.from_json)

    def shown(self, round_no: int) -> Shown | None:
        """Rows of a round as the model saw them; None of runs of versions that kept none."""
        name = _shown_file(round_no)
        if not (self.run_dir / name).is_file():
            return None
        return self._read(name, shown_from_json)

    def scores(self) -> dict[int, float]:
        """Score per evaluated round, the baseline included."""
        return {event["round"]: event["score"] for event in self.events("evaluated")}

    def last_lr(self, round_no: int) -> float | None:
        """The learning rate of a round's last step; None for the baseline."""
        event = self._last("step", round_no)
        return None if event is None else event["lr"]

    def losses(self, round_no: int) -> list[float]:
        """Training loss per token of each step of a round."""
        return [event["nll"] for event in self.events("step", round_no)]

    def held_out_points(self, round_no: int) -> list[HeldOutPoint]:
        """The held-out losses measured inside a round."""
        return [
            HeldOutPoint(event["task"], event["step"], event["nll"])
            for event in self.events("held_out", round_no)
        ]

    def diagnosis(self, round_no: int) -> str | None:
        event = self._last("diagnosed", round_no)
        return None if event is None else event["sentence"]

    def topics(self, round_no: int) -> list[TopicReport] | None:
        event = self._last("topics", round_no)
        return None if event is None else self._record(Topics, event).topics

    def data_manifest(self) -> dict[str, Any]:
        return asdict(self.manifest())

    def record_delivery(self, round_no: int, key: str, detail: str | None, *, ok: bool) -> None:
        """What came of sending a round to EvalOps; `key` names round, run and suite."""
        self.append("evalops", round=round_no, key=key, ok=ok, detail=detail)

    def delivered_keys(self) -> set[str]:
        """What EvalOps has confirmed, also between steps that were taken again."""
        events = (event for event in self._all_events if event["type"] == "evalops")
        return {event["key"] for event in events if event["ok"] and "key" in event}

    def _eval_file(self, number: int) -> str:
        """The file of a round's evaluation, or of the checkpoint's at that place."""
        return f"evals/{'checkpoint' if self.is_evaluation else 'round'}_{number:02d}.json"


def _losses_file(round_no: int) -> str:
    return f"selections/losses_{round_no:02d}.json"


def _shown_file(round_no: int) -> str:
    return f"selections/shown_{round_no:02d}.json"

"""Studies on the demo model for benchmarks: their folders, rows, questions, and what came of them.

Rows and questions are facts of the demo that ask no question twice; which of them a study has is
drawn by its own generator, so that the same seed gives the same study.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import study  # noqa: E402
from ledger.store import RunStore  # noqa: E402
from studies.design.generating import generation_of  # noqa: E402
from studies.findings.analysis import analyse  # noqa: E402
from studies.findings.findings import Difference, Findings  # noqa: E402
from studies.findings.outcome import StudyOutcome  # noqa: E402
from studies.reports.report_words import minus  # noqa: E402
from studies.work.collecting import outcome_of  # noqa: E402
from studies.work.record import StudyRecord  # noqa: E402

ROW_FILES = ("demo_pool.jsonl", "demo_data.jsonl")
QUESTION_FILES = ("evals/simple_qa_test.jsonl", "evals/simple_qa.jsonl")

Row = dict[str, str]


class Facts(NamedTuple):
    """What a study trains on and asks; no question is asked by a row."""

    rows: list[Row]  # instruction, output, topic
    questions: list[Row]  # question, answer, topic


def draw_facts(rng: random.Random, num_rows: int, num_questions: int) -> Facts:
    """So many rows and questions of the demo, by chance."""
    rows, questions = _read(ROW_FILES), _read(QUESTION_FILES)
    asked = {row["question"] for row in questions}
    assert not asked & {row["instruction"] for row in rows}, "the demo holds its questions out"
    return Facts(rng.sample(rows, num_rows), rng.sample(questions, num_questions))


def _read(names: Iterable[str]) -> list[Row]:
    lines = [line for name in names for line in (REPO / name).read_text().splitlines()]
    return [json.loads(line) for line in lines]


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_study(
    folder: Path,
    variables: Mapping[str, Sequence[Any]],
    controls: Mapping[str, Any],
    of_study: Mapping[str, Any],
) -> None:
    """Write experiment.yaml (JSON is YAML) of a study whose questions lie in questions.jsonl."""
    usual = {
        "base_model": str(REPO / "demo_model"),
        "renderer_name": "llama3",
        "eval_tasks": ["qa:questions.jsonl"],
        "learning_rate": 0.003,
        "batch_size": 8,
        "evaluation.max_tokens": 16,
    }
    told = {
        "experiment": {"name": "benchmark", "framework": "tinker"},
        "variables": variables,
        "controls": {k: v for k, v in {**usual, **controls}.items() if k not in variables},
        "study": of_study,
    }
    (folder / "experiment.yaml").write_text(json.dumps(told, indent=1))


class Outcome(NamedTuple):
    """A study that was run: what its trials came to, what is told of it, and where it lies."""

    folder: Path
    trials: StudyOutcome
    findings: Findings

    def store(self, run_id: str) -> RunStore:
        return RunStore.open(self.folder / "results" / run_id)

    def pair(self, one: str, other: str) -> Difference | None:
        """The first arm less the second, whichever way it is told; None where it is not."""
        for found in self.findings.pairs:
            if {found.one, found.other} == {one, other}:
                return minus(found, other)
        return None

    @property
    def tokens(self) -> int:
        """Used by all trials: trained, read and sampled."""
        return sum(one.usage.tokens for arm in self.trials.arms for one in arm.trials)


def run_study(folder: Path) -> Outcome:
    """Run a study on this machine, in this process, by the command line's own entry point."""
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        exit_code = study.main(["run", str(folder), "--local"])
    if exit_code != 0:
        raise SystemExit(
            f"the study in {folder} ended with exit code {exit_code}:\n{said.getvalue()}"
        )
    return read_study(folder)


def read_study(folder: Path) -> Outcome:
    generation = generation_of(folder)
    trials = outcome_of(generation, StudyRecord.read(folder / "results"))
    return Outcome(folder, trials, analyse(trials))

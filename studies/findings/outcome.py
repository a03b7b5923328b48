"""What the trials of a study came to: everything that its report is made from, and nothing else.

Collected from the run directories and the study's record; pure values from here on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ledger.records import Usage
from scores.results import EvalResult

TrialStatus = Literal["done", "dropped", "begun", "failed", "missing"]


class CurvePoint(NamedTuple):
    """The score after a round. `num_tokens` are those that were trained on up to it."""

    round: int
    step: int
    num_tokens: int
    score: float
    low: float | None  # ends of the interval, None where it is unknown
    high: float | None


@dataclass(frozen=True)
class TrialOutcome:
    """One trial with one seed, or an arm that is not trained; what is not known of it is None.

    `result` is of the weights that the study evaluates (the last round's, or the best's), and
    `baseline` of what the trial began with; both have the same tasks, named as in the config.
    """

    run_id: str
    seed: int | None
    status: TrialStatus
    why: str  # of one that was dropped or failed, "" otherwise
    result: EvalResult | None = None
    baseline: EvalResult | None = None
    round_no: int | None = None  # whose weights `result` is of
    curve: Sequence[CurvePoint] = ()
    learning_rate: float | None = None
    num_steps: int | None = None
    num_lora_params: int | None = None
    usage: Usage = Usage(0, 0, 0, 0.0)  # noqa: RUF009 (it is immutable)
    cost_usd: float | None = None
    # Of `usage`, what was sent and is recorded nowhere, at the most: it was paid for all the same.
    in_vain: Usage = Usage(0, 0, 0, 0.0)  # noqa: RUF009
    # Of these, what is not of its arm: the evaluation of what all trials begin with, which whoever
    # comes first pays for, and the sealed test, which the winner alone is asked.
    common_usage: Usage = Usage(0, 0, 0, 0.0)  # noqa: RUF009
    common_cost_usd: float | None = None
    checkpoint: str | None = None  # the sampler path
    run_dir: str | None = None  # relative to the study's folder; None where there is none
    gate_sentences: Sequence[str] = ()  # what the usual gate would have done, round by round


@dataclass(frozen=True)
class ArmOutcome:
    """One combination of the variables with all its seeds, or an arm that is not trained.

    `params` are the variables' values; of an arm that is not trained, the `prompt` and `checkpoint`
    that it has, so one without either is the base model itself.
    """

    name: str
    params: Mapping[str, Any]
    is_trained: bool
    trials: Sequence[TrialOutcome]

    @property
    def measured(self) -> list[TrialOutcome]:
        """The trials that are done and have a result: what claims rest on."""
        return [one for one in self.trials if one.status == "done" and one.result is not None]


class Change(NamedTuple):
    """What the record says of the study's own history, such as an arm that was added later."""

    time: str  # UTC
    sentence: str


@dataclass(frozen=True)
class StudyOutcome:
    """A whole study as it stands. `task_names` has the study's name of each task of the configs."""

    name: str
    question: str | None
    hypothesis: str | None
    expects: Mapping[str, Sequence[str]]  # variable -> what is said to hold; empty: not said
    variables: Mapping[str, Sequence[Any]]
    seeds: int  # that each combination is to have
    arms: Sequence[ArmOutcome]
    task_names: Mapping[str, str]
    checkpoint: str  # last or best
    warnings: Sequence[str] = ()
    from_trials: Sequence[str] = ()  # rows that their data lost, and what they warned of
    history: Sequence[Change] = ()
    winner: str | None = None  # the trial whose weights are recommended
    winner_sentence: str = "No winner is named before every trial is done."
    has_sealed_test: bool = False
    sealed: EvalResult | None = None  # what it was asked of once, of `sealed_of` alone
    sealed_of: str | None = None
    budget_sentence: str | None = None  # where the study stopped for its budget
    gate: str = ""  # which gate the trials' sentences are of, as a clause
    experiment_sha256: str = ""
    # What `inspect view` opens, relative to the study's folder; None where there are no logs.
    logs_dir: str | None = "eval_results"

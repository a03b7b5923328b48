"""What a study shows: arms with intervals, who differs from whom, the hypothesis answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scores.comparisons import Parts
from scores.intervals import Interval
from scores.results import TaskResult

Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Difference:
    """`one` minus `other`, paired on question ids; `p_holm` is adjusted for all pairs."""

    one: str
    other: str
    mean: float
    interval: Interval | None  # None: unknown
    p_value: float | None
    p_holm: float | None
    method: str
    n: int  # questions in both
    num_seeds: int
    is_told_apart: bool
    sentence: str
    is_of_setting: bool = False  # three seeds or more in both, so it says more than of checkpoints
    num_left_out: int = 0  # questions that one of the two alone was asked
    is_of_trained: bool = True  # one of the two at least has seeds to vary with
    parts: Parts | None = None  # of its variance; None where nothing is known of chance


@dataclass(frozen=True)
class ArmFinding:
    """One arm of the table. `interval` is of the setting where it has three seeds or more, and of
    its one checkpoint otherwise (`is_of_setting`)."""

    name: str
    run_ids: Sequence[str]
    num_seeds: int
    score: float
    interval: Interval | None
    is_of_setting: bool
    seed_deviation: float | None  # standard deviation of the seeds' scores
    groups: str  # letters; arms that share one cannot be told apart
    tasks: Sequence[TaskResult]  # of its first seed
    task_scores: Sequence[float]  # means over seeds, in the order of `tasks`
    num_lora_params: int | None
    learning_rate: float | None
    num_tokens: int  # trained, read and sampled, of all its seeds, but for what all begin with
    cost_usd: float | None
    # Per hundredth of score gained on the control; None where no gain is told apart from chance.
    tokens_per_point: float | None
    usd_per_point: float | None
    num_answers: int = 0  # of all its seeds, to the questions that enter the score
    num_flawed: int = 0  # of these cut off, or malformed
    num_failed: int = 0  # of these missing for an error, which counts as 0
    note: str = ""  # what the row is to be read with: dropped early, trials missing, ...


@dataclass(frozen=True)
class ClaimFinding:
    """One thing that the hypothesis says, tested. `needed` says what would decide it.

    `effect` is what the claim is judged by, above 0 where it holds; of differs and same, the larger
    value's score less the smaller's, of the two that are least alike.
    """

    claim: str  # rises, falls, diminishing, differs, same
    variable: str
    verdict: Verdict
    effect: float | None
    interval: Interval | None
    sentence: str
    needed: str | None
    caveat: str = ""  # that the scores do not follow the line that is judged; in `sentence` too


class NotRun(NamedTuple):
    """A trial without a result, and why."""

    run_id: str
    name: str
    status: str
    why: str


@dataclass(frozen=True)
class Findings:
    """All that is told of a study, in the order in which it is told."""

    headline: str  # one sentence: what the study found
    answer: Sequence[str]  # the same for somebody who reads no table, at most four sentences
    control: str | None  # what arms are compared with first; None: nothing was measured
    best: str | None
    arms: Sequence[ArmFinding]  # the control among them, best first
    against_control: Sequence[Difference]
    against_best: Sequence[Difference]
    pairs: Sequence[Difference]  # all of them
    groups: Sequence[str]  # a sentence on each group that cannot be told apart
    claims: Sequence[ClaimFinding]
    verdict: Verdict | None  # on the hypothesis; None where none is stated or read
    verdict_sentence: str
    not_run: Sequence[NotRun]
    remarks: Sequence[str]  # what a reader must know: one seed, alpha and rank together, ...

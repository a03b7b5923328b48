"""A run at work: its plan, its directory, its service, and what it holds between arrows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_selector import mined_table
from evalops_client import EvalOpsClient
from ledger.store import RunStore
from loop.methods.method import Method
from loop.planning.plan import Plan
from loop.planning.steps import most_in_flight
from loop.reports.progress import Progress, Steps
from loop.rounds.deliverer import Deliverer
from loop.rounds.depth import Depth
from loop.rounds.sharing import Sharing
from loop.rounds.signals import Suspicions, Topics, topics_of
from loop.rounds.waiting import Waits
from loop.run_page.page import keep_page
from loop.tracking.following import Following
from scores.decision import Champion
from scores.limits import Budget
from scores.results import EvalResult
from services.keys import Keys
from services.sdk import Clients
from services.watched_client import Stopwatch

if TYPE_CHECKING:
    import tinker

Alert = Callable[[str, dict[str, Any]], None]  # given what happened, and its figures
LeavesAfter = Callable[[int], bool]  # given a round that is done


def ignore_alert(what: str, figures: dict[str, Any]) -> None:
    """Where no alert command is given."""


def never(round_no: int) -> bool:
    """Where a run goes on to its end."""
    return False


class Beside(NamedTuple):
    """What goes on beside the rounds, where it is asked for."""

    evalops: EvalOpsClient | None = None
    limits: Budget | None = None
    alert: Alert = ignore_alert
    sharing: Sharing | None = None  # None: with no other run
    tracking: Following | None = None  # None: with no other run
    leaves_after: LeavesAfter = never  # rounds after which the run is left, to be gone on with


@dataclass
class Run:
    """A plan in a run directory on a service."""

    plan: Plan
    store: RunStore
    progress: Progress
    clients: Clients
    base_url: str | None
    keys: Keys
    waits: Waits  # for what the service holds up
    weights_dir: Path | None = None  # the run directory that holds them, where they are files here
    evalops: Deliverer | None = None
    limits: Budget | None = None
    alert: Alert = ignore_alert
    sharing: Sharing = field(default_factory=Sharing)
    leaves_after: LeavesAfter = never
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    depth: Depth = field(init=False)  # of the pipeline of steps
    method: Method | None = None  # once it trains
    training_client: tinker.TrainingClient | None = None
    parent: str | None = None  # the state that the training client's weights come from
    steps: Steps | None = None  # shows how far the round is
    nlls: list[float] = field(default_factory=list)  # loss per token, of this round's steps
    topics: Topics | None = None  # of the rows to draw from, once they are needed
    suspicions: Suspicions = field(default_factory=Suspicions)
    champion: Champion | None = None  # what plateaus are held against
    is_training: bool = False
    is_closing: bool = False  # all that it was for is done, or has failed
    stop_requested: bool = False
    was_signalled: bool = False
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.depth = Depth(most_in_flight(self.plan.config))

    def begin_training(self) -> None:
        """From now on steps are in flight, beside those of other runs."""
        self.depth.begin_round()
        self.sharing.training.append(self.depth)
        self.is_training = True

    def end_training(self) -> None:
        self.is_training = False
        self.sharing.training.remove(self.depth)

    def show_page(self) -> None:
        """Write the run's page; that it cannot be written is a warning."""
        if (problem := keep_page(self.store)) is not None:
            self.progress.line(problem)

    def say_once(self, text: str) -> None:
        """Say what is as true of the next evaluation, and need not be said again."""
        if text not in self.said:
            self.said.add(text)
            self.progress.line(text)


def topics_for(run: Run, result: EvalResult) -> Topics:
    """The topics of the rows to draw from, found once where they have none."""
    if run.topics is None:
        rows, _ = mined_table(run.plan.train.examples, run.plan.pool.examples)
        run.topics = topics_of(rows, result, run.plan.config.seed)
    return run.topics

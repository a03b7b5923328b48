"""Two checkpoints on the same questions: by how much they differ, question by question, and what
that means for a promotion.

Two evaluations can be compared where they asked the same questions in the same way: their protocols
are equal but for the chat format, which is part of what was trained. A checkpoint is *lower* than
the champion where its score is, by whatever little: a promotion has nothing to gain from it. It is
*worse in a guard* where the 95 % interval of a guard's paired difference lies below 0. Whether it
is *shown* to be better is another question: the interval has to lie above 0, and p below 0.05 where
there is a test. The two are different methods: with 9 questions gained and 2 lost of 100 the
interval is above 0, and the exact p is 0.065. `benchmarks/promotion_errors.py` has how often each
verdict is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from errors import RegistryError
from ledger.registry_file import PREFIX, Registry
from promotion.evidence import Candidate, Measurement, find_candidate, held_entry
from scores.intervals import PairedDifference
from scores.results import (
    LEVEL,
    SAME_SCORE,
    EvalResult,
    ScoreDifference,
    score_difference,
    task_difference,
)
from scores.wording import ALPHA, interval_text, p_value_text, scores_apart, signed_text

Verdict = Literal["better", "not told apart", "equal", "lower", "worse in a guard"]
OF_THE_WEIGHTS = ("renderer",)  # of a protocol, what belongs to the checkpoint
MAX_NAMED = 5


class TaskPair(NamedTuple):
    """A task that both were asked, and by how much the first is above the second."""

    name: str
    role: str
    score: float
    other: float
    difference: PairedDifference

    @property
    def has_fallen(self) -> bool:
        return self.difference.mean < -SAME_SCORE

    @property
    def is_worse(self) -> bool:
        """Whether its whole interval lies below 0; of an unknown one that is not known."""
        interval = self.difference.interval
        return interval is not None and interval.high < 0

    @property
    def sentence(self) -> str:
        numbers = _numbers(self.score, self.other, self.difference, self.difference.n)
        return f"{self.name} ({self.role}): {numbers}"

    def to_json(self) -> dict[str, Any]:
        figures = {"name": self.name, "role": self.role, "score": self.score, "other": self.other}
        return {**figures, **_figures(self.difference), "n": self.difference.n}


@dataclass(frozen=True)
class Pairing:
    """One checkpoint held against another on the same questions."""

    label: str
    other: str
    score: float
    other_score: float
    n: int  # questions that enter the score
    protocol_hash: str
    difference: ScoreDifference
    tasks: tuple[TaskPair, ...]
    unpaired: tuple[str, ...] = ()  # guards that one of the two was not asked

    @property
    def worse_guards(self) -> list[TaskPair]:
        return [one for one in self.tasks if one.role == "guard" and one.is_worse]

    @property
    def verdict(self) -> Verdict:
        mean = self.difference.mean
        if mean < -SAME_SCORE:
            return "lower"
        if self.worse_guards:
            return "worse in a guard"
        if mean <= SAME_SCORE:
            return "equal"
        return "better" if self.is_apart else "not told apart"

    @property
    def is_apart(self) -> bool:
        """Whether the scores differ beyond noise, by the interval and, where there is one, by the
        test; of an unknown interval that is not known."""
        interval, p_value = self.difference.interval, self.difference.p_value
        if interval is None or interval.low <= 0 <= interval.high:
            return False
        return p_value is None or p_value < ALPHA

    @property
    def is_worse(self) -> bool:
        """Whether a promotion is refused for it."""
        return self.verdict in ("lower", "worse in a guard")

    @property
    def sentence(self) -> str:
        """The comparison with its numbers."""
        numbers = _numbers(self.score, self.other_score, self.difference, self.n)
        said = {
            "better": f"is better than {self.other} beyond noise",
            "not told apart": f"is above {self.other}, which is not told apart from noise",
            "equal": f"has the score of {self.other}",
            "lower": f"scores lower than {self.other}",
            "worse in a guard": f"is worse than {self.other} in a guard, by its whole interval",
        }[self.verdict]
        if self.verdict == "lower" and self.difference.interval is not None:
            said += ", beyond noise" if self.is_apart else ", not beyond noise"
        guards = "".join(f"; {one.sentence}" for one in self.worse_guards)
        fallen = [t for t in self.tasks if t.role == "guard" and t.has_fallen and not t.is_worse]
        if fallen:
            guards += "; guards that fell, not told apart from noise: "
            guards += ", ".join(one.sentence for one in fallen)
        missing = f"; not compared: {', '.join(self.unpaired)}" if self.unpaired else ""
        return f"{self.label} {said}: {numbers}{guards}{missing}."

    def to_json(self) -> dict[str, Any]:
        scores = {"score": self.score, "other_score": self.other_score, "n": self.n, "level": LEVEL}
        return {
            "checkpoint": self.label,
            "against": self.other,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "protocol_hash": self.protocol_hash,
            **scores,
            **_figures(self.difference),
            "tasks": [one.to_json() for one in self.tasks],
            "not_compared": list(self.unpaired),
        }


def _numbers(score: float, other: float, moved: ScoreDifference | PairedDifference, n: int) -> str:
    one, two = scores_apart(score, other)
    return (
        f"{one} against {two}, {signed_text(moved.mean)} "
        f"{interval_text(moved.interval, signed=True)} "
        f"({moved.method}{p_value_text(moved.p_value)}, n={n:,})"
    )


def _figures(moved: ScoreDifference | PairedDifference) -> dict[str, Any]:
    interval = None if moved.interval is None else list(moved.interval)
    figures = {"difference": moved.mean, "interval": interval}
    return {**figures, "p_value": moved.p_value, "method": moved.method}


def pair(label: str, result: EvalResult, other: str, before: EvalResult) -> Pairing:
    """Hold a result against another that `why_incomparable` has nothing against."""
    tasks, unpaired = [], []
    for task in result.tasks:
        theirs = before.task(task.name)
        if theirs is not None and theirs.scores.keys() == task.scores.keys():
            moved = task_difference(task, theirs, LEVEL)
            tasks.append(TaskPair(task.name, task.role, task.score, theirs.score, moved))
        elif task.role == "guard":
            unpaired.append(task.name)
    mine = {task.name for task in result.tasks}
    unpaired += [t.name for t in before.tasks if t.role == "guard" and t.name not in mine]
    return Pairing(
        label=label,
        other=other,
        score=result.score,
        other_score=before.score,
        n=result.n,
        protocol_hash=result.protocol_hash,
        difference=score_difference(result, before, LEVEL),
        tasks=tuple(tasks),
        unpaired=tuple(unpaired),
    )


# --- what can be compared -------------------------------------------------------------------------


def comparable_pair(
    measured: Sequence[Measurement], others: Sequence[Measurement]
) -> tuple[Measurement, Measurement] | None:
    """The first two of two checkpoints' measurements that asked the same; None where none did."""
    for one in measured:
        for other in others:
            if not why_incomparable(one.result, other.result):
                return one, other
    return None


def why_incomparable(result: EvalResult, other: EvalResult) -> list[str]:
    """What differs in how two checkpoints were asked; empty where the scores can be compared."""
    reasons = _differing(result.protocol, other.protocol)
    mine, theirs = ({t.name: t for t in one.scored_tasks} for one in (result, other))
    if not reasons and mine.keys() != theirs.keys():
        reasons.append(f"tasks of the score: {_names(mine)} and {_names(theirs)}")
    for name in mine.keys() & theirs.keys() if not reasons else ():
        if mine[name].scores.keys() != theirs[name].scores.keys():
            reasons.append(f"other questions of {name}")
    return reasons


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The parts of two protocols that are not equal, with both values where they are short."""
    reasons = []
    for key in sorted({*one, *other} - {*OF_THE_WEIGHTS, "tasks"}):
        if one.get(key) != other.get(key):
            reasons.append(f"{key}: {_short(one.get(key))} and {_short(other.get(key))}")
    mine, theirs = _tasks(one), _tasks(other)
    for name in sorted(mine.keys() ^ theirs.keys()):
        reasons.append(f"{name} was asked of one of them alone")
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name]:
            reasons.append(f"{name} had other questions, code or arguments")
    more = len(reasons) - MAX_NAMED
    return [*reasons[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])]


def _tasks(protocol: Mapping[str, Any]) -> dict[str, Any]:
    tasks = protocol.get("tasks")
    return tasks if isinstance(tasks, dict) else {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names(tasks: Mapping[str, Any]) -> str:
    return ", ".join(sorted(tasks)) or "none"


# --- two names of a command line ------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What came of comparing two checkpoints: a pairing, or why there is none."""

    label: str
    other: str
    pairing: Pairing | None
    why_not: tuple[str, ...] = ()
    places: tuple[str, ...] = ()  # the files that were compared

    @property
    def lines(self) -> list[str]:
        if self.pairing is None:
            return [
                f"{self.label} cannot be compared with {self.other}: {'; '.join(self.why_not)}."
            ]
        return [self.pairing.sentence, *(f"  {one.sentence}" for one in self.pairing.tasks)]

    def to_json(self) -> dict[str, Any]:
        pairing = None if self.pairing is None else self.pairing.to_json()
        names = {"checkpoint": self.label, "against": self.other}
        return {**names, "comparison": pairing, "why_not": list(self.why_not),
                "files": list(self.places)}  # fmt: skip


def compare_names(one: str, other: str, registry: Path, folders: Sequence[Path]) -> Compared:
    """How the first checkpoint stands to the second, by what was measured of each already; nothing
    is sampled. Names are those of a command line, also of the registry. Raises `InputError`
    children."""
    first, second = (_known(name, registry, folders) for name in (one, other))
    both = comparable_pair(first.measured, second.measured)
    if both is not None:
        mine, theirs = both
        pairing = pair(first.label, mine.result, second.label, theirs.result)
        return Compared(first.label, second.label, pairing, (), (mine.where, theirs.where))
    reasons = [
        f"nothing that was measured of {held.label} counts"
        + (f": {held.candidate.why_unmeasured}" if held.candidate.why_unmeasured else "")
        for held in (first, second)
        if not held.measured
    ]
    if not reasons:
        asked = why_incomparable(first.measured[0].result, second.measured[0].result)
        reasons = [f"they were measured otherwise ({'; '.join(asked)})"]
    return Compared(first.label, second.label, None, tuple(reasons))


class _Known(NamedTuple):
    label: str
    candidate: Candidate
    measured: tuple[Measurement, ...]


def _known(name: str, path: Path, folders: Sequence[Path]) -> _Known:
    if not name.startswith(PREFIX):
        found = find_candidate(name, folders, path, key="compare")
        return _Known(found.label, found, found.measured)
    registry = Registry.read(path)
    entry = registry.find(name)
    held = held_entry(registry, entry, folders)
    if held.candidate is None:
        raise RegistryError(held.why_not)
    return _Known(entry.reference, held.candidate, held.measured)

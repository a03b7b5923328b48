"""What is known of the rows that a round may be given: their topics, their losses under the weights
that it starts from, how like they are to failed questions, and which of them look wrong.

Topics are the rows' own, or found in their words where rows or questions have none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_selector import CandidateLoss, MeasuredLosses, noisiest
from errors import RunStoreError
from ledger.rollouts import RolledGroup, read_rollouts, rollouts_file
from ledger.store import RunStore
from rows.examples import Example, ExampleTable
from rows.similarity import Likeness, TextTopics, likeness_to
from scores.diagnosis import TopicReport
from scores.learnable import SUSPECT_ROUNDS, SUSPECT_SHARE, Group, PassRate, pass_rate
from scores.results import EvalResult, TopicScore, topic_scores
from scores.reward_course import RewardedGroup

RATE_ROUNDS = 4  # whose answers still say what a prompt is worth


@dataclass(frozen=True)
class Topics:
    """The rows with their topics, and how questions get theirs (None: they have their own)."""

    rows: ExampleTable
    found: TextTopics | None

    def scores(self, result: EvalResult) -> dict[str, TopicScore]:
        """How each topic was answered."""
        return topic_scores(self.labelled(result).samples)

    def labelled(self, result: EvalResult) -> EvalResult:
        """A result whose questions have topics."""
        if self.found is None:
            return result
        tasks = []
        for task in result.tasks:
            topics = self.found.of([sample.question for sample in task.samples])
            pairs = zip(task.samples, topics, strict=True)
            samples = tuple(replace(sample, topic=topic) for sample, topic in pairs)
            tasks.append(replace(task, samples=samples))
        return replace(result, tasks=tuple(tasks))


def topics_of(rows: ExampleTable, result: EvalResult, seed: int) -> Topics:
    """The topics of rows, in words that the questions of a result share."""
    if rows.has_topics and any(sample.topic is not None for sample in result.samples):
        return Topics(rows, None)
    texts = [asked_in(example) for example in rows]
    found = TextTopics(texts, seed)
    return Topics(rows.with_topics(found.of(texts)), found)


def pass_rates_of(store: RunStore, rounds: Sequence[int]) -> dict[str, PassRate]:
    """How prompts were answered in the last few of these rounds, from what their steps sampled.

    Raises `RunStoreError` for a damaged file.
    """
    groups: dict[str, list[Group]] = defaultdict(list)
    for number, one in _rolled_in(store, rounds[-RATE_ROUNDS:]):
        rewards = [s.reward for s in one.samples if s.reward is not None]
        if rewards:
            groups[one.example_id].append(Group(number, rewards))
    return {example_id: pass_rate(of_prompt) for example_id, of_prompt in groups.items()}


def distances_of(store: RunStore, rounds: Sequence[int]) -> dict[str, float]:
    """The reverse KL of the student's last answers to each prompt, in nats a token, from what the
    steps of these rounds sampled; of a teacher's own answers none is known.

    Raises `RunStoreError` for a damaged file.
    """
    distances: dict[str, float] = {}
    for _, group in _rolled_in(store, rounds):
        judged = [
            of_student - of_teacher
            for one in group.samples
            for of_student, of_teacher in zip(one.logprobs, one.teacher_logprobs or (), strict=True)
        ]
        if judged:
            distances[group.example_id] = math.fsum(judged) / len(judged)
    return distances


def missing_rollouts(store: RunStore, rounds: Sequence[int]) -> list[str]:
    """Files of sampled answers that the steps of these rounds were trained on and that are gone."""
    steps = [event for number in rounds for event in store.events("step", number)]
    names = [rollouts_file(event["step"]) for event in steps if event.get("rollouts")]
    return [name for name in names if not (store.run_dir / name).is_file()]


def rewards_in(store: RunStore, round_no: int, group_size: int) -> list[list[RewardedGroup]]:
    """For each step of a round, the rewards of the answers to each of its prompts. Those of a
    second try are left out: that there is one hangs on what the first gave.

    Raises `RunStoreError` for a damaged file.
    """
    steps = [one for number in store.lineage(round_no) for one in store.events("step", number)]
    asked = {example_id for one in steps for example_id in one.get("example_ids", ())}
    found = []
    for groups in _rolled_steps(store, round_no):
        rewarded = []
        for one in groups:
            rewards = [s.reward for s in one.samples[:group_size] if s.reward is not None]
            rewarded.append(RewardedGroup(rewards, one.example_id not in asked))
            asked.add(one.example_id)
        found.append(rewarded)
    return found


def _rolled_in(store: RunStore, rounds: Sequence[int]) -> Iterator[tuple[int, RolledGroup]]:
    """What the steps of these rounds sampled, oldest first, with the round."""
    for number in rounds:
        for groups in _rolled_steps(store, number):
            for one in groups:
                yield number, one


def _rolled_steps(store: RunStore, round_no: int) -> Iterator[list[RolledGroup]]:
    """What each step of a round sampled, those whose file is gone left out."""
    for event in store.events("step", round_no):
        try:
            sha256 = (event.get("rollouts") or {}).get("sha256")  # older runs have none
            rolled = read_rollouts(store.run_dir, event["step"], sha256)
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"{store.run_dir / rollouts_file(event['step'])}: {error}. What later rounds "
                "draw is known from it. Restore it, or delete it: its prompts then count as "
                "not tried."
            ) from None
        if rolled is not None:
            yield rolled


def likeness_of(
    rows: ExampleTable, positions: Sequence[int], result: EvalResult
) -> dict[str, Likeness]:
    """How like the rows at these positions are to the questions that a result failed."""
    failed = list(dict.fromkeys(s.question for s in result.samples if s.score < 1))
    if not failed or not positions:
        return {}
    examples = [rows[position] for position in positions]
    found = likeness_to(failed, [asked_in(example) for example in examples])
    return {example.id: like for example, like in zip(examples, found, strict=True)}


def stalled_topics(rounds: Sequence[Sequence[TopicReport]]) -> dict[str, int]:
    """Failed topics -> how many futile rounds they have behind them: such that drew their rows and
    were answered no better.

    `rounds` are the reports of the mined rounds, oldest first. A round that drew no row of a topic
    takes one back, so that it is tried again; one that answered it better takes all back.
    """
    stalled: dict[str, int] = {}
    for reports in rounds:
        for one in reports:
            number = stalled.get(one.topic, 0)
            if one.num_added == 0:
                stalled[one.topic] = max(0, number - 1)
            else:
                is_moving = one.score == 1 or one.change is None or one.change > 0
                stalled[one.topic] = 0 if is_moving else number + 1
    return {topic: number for topic, number in stalled.items() if number}


class Suspicions:
    """Which rows look wrong, from one checkpoint after the other; what was counted is kept."""

    def __init__(self) -> None:
        self._counted: list[tuple[int, tuple[int, ...]]] = []  # checkpoint, rounds it was asked in
        self._times: dict[str, int] = {}  # that a row was found unlikely; -1 once it is cleared

    def among(
        self, measured: Sequence[MeasuredLosses], of_topics: ExampleTable | None = None
    ) -> frozenset[str]:
        """Rows whose answers every checkpoint that was asked found unlikely, at least two of them.

        Unlikely among the rows of their topic, with a table of them. A checkpoint that was asked
        twice counts once.
        """
        by_checkpoint: dict[int, dict[int, MeasuredLosses]] = {}
        for one in measured:
            by_checkpoint.setdefault(one.checkpoint_round, {})[one.round] = one
        asked = [(number, tuple(parts)) for number, parts in by_checkpoint.items()]
        if self._counted != asked[: len(self._counted)]:  # one of them was asked of more rows
            self._counted, self._times = [], {}
        for number, rounds in asked[len(self._counted) :]:
            losses: dict[str, CandidateLoss] = {}
            for part in by_checkpoint[number].values():
                losses |= part.losses
            self._count(losses, of_topics)
            self._counted.append((number, rounds))
        return frozenset(one for one, times in self._times.items() if times >= SUSPECT_ROUNDS)

    def _count(self, losses: dict[str, CandidateLoss], of_topics: ExampleTable | None) -> None:
        tail = noisiest(losses, SUSPECT_SHARE, of_topics)
        for example_id in losses:
            # A checkpoint that finds it likelier than that clears a row for good.
            times = self._times.get(example_id, 0)
            self._times[example_id] = times + 1 if example_id in tail and times >= 0 else -1


def asked_in(example: Example) -> str:
    """What the user says in a conversation."""
    return "\n".join(message.content for message in example.messages if message.role == "user")

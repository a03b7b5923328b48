"""What a round trains on, and why: replayed training rows, and hard and new ones from the pool.

Round 1 walks a seeded shuffle of the training file. A later round has exactly
`steps_per_round * batch_size` slots: replay slots go on through that shuffle, new slots are drawn
from the pool by chance, and hard ones by the strategy:

- `uniform`: by chance;
- `topics`: topics in proportion to their smoothed failure rate, by chance within one;
- `similar`: in proportion to the likeness of a row to the questions that were failed;
- `loss`: in proportion to what can still be learnt of a row (`learnable`), of a pair to its loss;
- `hybrid`: as `topics`, without the rows of each topic whose losses are the highest.

Where sampled answers are learnt from, no losses are measured: `loss` draws in proportion to the
`promise` of a prompt, by how often it was answered right, and solved prompts rest; or to the
`distance_of` a row, by how far its answers were from the teacher's; `hybrid` so within each
topic.

Rows that were drawn least often go first: in the pool, and by topics within each one, whose share
falls the more often its rows were drawn, and further where that was to no avail. Without a pool all
slots come from the training file; a replay share of 1 leaves them in the order of its shuffle. All
follows from the seed, the cursor, the earlier picks and what was measured, so a resumed run selects
what an uninterrupted one would have. Reads no file; never sees held-out ids.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from rows.examples import ExampleTable
from rows.places import RowPlace
from rows.shuffles import allocate, shuffled, walk
from rows.similarity import Likeness
from scores.learnable import CandidateLoss, PassRate, distance_of, learnable, promise
from scores.results import TopicScore
from storage.stored_json import Count, record_of

Source = Literal["train", "replay", "pool"]
Strategy = Literal["uniform", "topics", "similar", "loss", "hybrid"]


@dataclass(frozen=True)
class Mining:
    """How later rounds choose. Shares are of a round's slots; what they leave is for hard rows."""

    strategy: Strategy = "hybrid"
    replay_share: float = 0.2
    new_share: float = 0.0
    noise_cap: float = 0.3
    num_candidates: int | None = None  # None: some for each slot, where losses are measured
    by_rewards: bool = False  # what was answered right is known, and no loss is measured
    of_pairs: bool = False  # a row's loss is that of its pair, and began at the same for all
    by_teacher: bool = False  # how far answers are from the teacher's is, and none is either

    @property
    def by_answers(self) -> bool:
        return self.by_rewards or self.by_teacher

    @property
    def needs_losses(self) -> bool:
        is_by_loss = self.strategy in ("loss", "hybrid") and not self.by_answers
        return is_by_loss and self.replay_share < 1

    @property
    def needs_losses_before(self) -> bool:
        return self.strategy == "loss" and not (self.by_answers or self.of_pairs)

    @property
    def needs_topics(self) -> bool:
        return self.strategy in ("topics", "hybrid")

    def num_to_measure(self, num_hard: int) -> int:
        """How many rows have their losses measured for so many slots, if there are so many."""
        return (self.num_candidates or CANDIDATES_PER_SLOT * num_hard) if num_hard else 0

    def slots(self, num_slots: int, has_pool: bool) -> Slots:
        """Divide the slots of a round."""
        num_replay = round(self.replay_share * num_slots)
        num_replay = num_replay if has_pool or self.replay_share == 1 else 0
        num_new = min(round(self.new_share * num_slots), num_slots - num_replay)
        if self.new_share and self.replay_share + self.new_share > 1 - 1e-9:
            num_new = num_slots - num_replay  # and no hard ones, however the shares round
        return Slots(num_replay, num_slots - num_replay - num_new, num_new)


class Slots(NamedTuple):
    """How many rows of a round are replayed, hard and new."""

    num_replay: int
    num_hard: int
    num_new: int


CANDIDATES_PER_SLOT = 8  # rows measured for each that is drawn
STALL_FACTOR = 0.3  # on the share of a topic, for each futile round that `stalled` counts


class MeasuredLosses(NamedTuple):
    """The losses of rows before a round, under the weights of an earlier one."""

    round: int
    checkpoint_round: int
    losses: dict[str, CandidateLoss]


@dataclass(frozen=True)
class Signals:
    """What is known of the pool's rows after an evaluation, but for topics by example id."""

    topics: Mapping[str, TopicScore] = field(default_factory=dict)
    losses: Mapping[str, CandidateLoss] = field(default_factory=dict)
    likeness: Mapping[str, Likeness] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()  # wrong under every checkpoint
    stalled: Mapping[str, int] = field(default_factory=dict)  # topic -> futile rounds
    rates: Mapping[str, PassRate] = field(default_factory=dict)  # of prompts that were tried
    resting: frozenset[str] = frozenset()  # solved prompts
    distances: Mapping[str, float] = field(default_factory=dict)  # to the teacher, nats a token


def noisiest(
    losses: Mapping[str, CandidateLoss], share: float, of_topics: ExampleTable | None = None
) -> frozenset[str]:
    """The rows with the highest losses, that share of all; of each topic, with a table of them."""
    groups: dict[str | None, list[str]] = defaultdict(list)
    for example_id in losses:
        position = None if of_topics is None else of_topics.find(example_id)
        topic = None if of_topics is None or position is None else of_topics.topic_of(position)
        groups[topic].append(example_id)
    tail: set[str] = set()
    for group in groups.values():
        by_loss = sorted(group, key=lambda example_id: (-losses[example_id].now, example_id))
        tail.update(by_loss[: int(share * len(by_loss))])
    return frozenset(tail)


@dataclass(frozen=True)
class Pick:
    """One slot of a round. `weight` is what it was drawn by, None where it was not mined.

    File, line and first words are of its row; runs of older versions have none.
    """

    example_id: str
    source: Source
    topic: str | None
    reason: str
    weight: float | None
    file: str | None = None
    line_no: Count | None = None
    text: str | None = None


@dataclass(frozen=True)
class Selection:
    """The slots of one round in training order.

    `train_cursor` and `times_drawn` are where the next round goes on.
    """

    round: int
    seed: int
    picks: tuple[Pick, ...]
    shares: dict[str, int]  # source -> number of slots
    topic_slots: dict[str, int]  # topic ("" is none) -> number of mined slots
    train_cursor: Count
    times_drawn: dict[str, Count]  # rows that were hard or new, by now -> in how many slots
    suspects: tuple[str, ...] = ()  # rows whose answers are unlikely under every checkpoint,
    suspect_rows: tuple[RowPlace, ...] = ()  # and where these are to be looked up

    @property
    def added_by_topic(self) -> dict[str, int]:
        """How many examples of each topic are in the round, replayed ones apart."""
        return dict(Counter(p.topic for p in self.picks if p.source != "replay" and p.topic))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selection:
        """Raises `ValueError` for what `to_json` does not give."""
        return record_of(cls, data)


def select_first(
    train: ExampleTable, *, num_slots: int, seed: int, weights: Mapping[str, float] | None = None
) -> Selection:
    """Round 1: the start of the seeded shuffle of the training file."""
    picks = tuple(
        Pick(example.id, "train", example.topic, "seeded shuffle of train_file", None)
        for example in walk(train, seed, 0, num_slots, weights)
    )
    return Selection(1, seed, picks, {"train": num_slots}, {}, num_slots, {})


class Rows(NamedTuple):
    """What rounds draw from; `weights` are the shares of the training sources, where they have."""

    train: ExampleTable
    pool: ExampleTable
    weights: Mapping[str, float] | None = None


def select_next(
    previous: Selection, rows: Rows, signals: Signals, mining: Mining, *, num_slots: int
) -> Selection:
    """A later round, from the round before it and what is known of the pool's rows."""
    seed, round_no = previous.seed, previous.round + 1
    train, pool, weights = rows
    mined, source = mined_table(train, pool)
    slots = mining.slots(num_slots, has_pool=source == "pool")
    replayed = walk(train, seed, previous.train_cursor, slots.num_replay, weights)
    picks = [
        Pick(example.id, "replay", example.topic, "replay: train_file's shuffle goes on", None)
        for example in replayed
    ]
    draw = _Draw(mined, signals, mining, previous, source)
    picks += draw.take(slots.num_hard, draw.hard)
    picks += draw.take(slots.num_new, draw.new)
    order = shuffled(range(len(picks)), seed, "slots", round_no)
    order = range(num_slots) if slots.num_replay == num_slots else order
    return Selection(
        round=round_no,
        seed=seed,
        picks=tuple(picks[index] for index in order),
        shares=dict(Counter(pick.source for pick in picks)),
        topic_slots=dict(
            sorted(Counter(p.topic or "" for p in picks if p.weight is not None).items())
        ),
        train_cursor=previous.train_cursor + slots.num_replay,
        times_drawn={mined.id_of(one): draw.times[one] for one in sorted(draw.times)},
        suspects=tuple(sorted(signals.suspects)),
    )


def mined_table(train: ExampleTable, pool: ExampleTable) -> tuple[ExampleTable, Source]:
    """What hard and new rows are drawn from: the pool, or the training rows where there is none."""
    return (pool, "pool") if len(pool) else (train, "train")


def candidates(
    previous: Selection, mined: ExampleTable, signals: Signals, mining: Mining, num_hard: int
) -> list[int]:
    """The positions of the rows to measure for so many slots, by chance, anew in each round.

    By topics, where the strategy draws by them: each has the share of them that it has of the
    slots. Rows that were drawn before are among them, since it is the others that a wrong answer
    stands out from; suspects only where there are no others.
    """
    if num_hard == 0:
        return []
    number = mining.num_to_measure(num_hard)
    if not mining.needs_losses:
        number = mining.num_candidates or len(mined)
    draw = _Draw(mined, signals, mining, previous, "pool")
    order = shuffled(range(len(mined)), draw.seed, "candidates", draw.round_no)
    order.sort(key=lambda position: mined.id_of(position) in signals.suspects)
    if not draw.is_by_topic:
        return order[:number]
    groups = draw.by_topic(order)
    rates = draw.rates_of(groups)
    slots = allocate(rates, {topic: len(group) for topic, group in groups.items()}, number)
    return [one for topic, group in groups.items() for one in group[: slots[topic]]]


def failure_rate(score: TopicScore | None) -> float:
    """Smoothed failure rate (Laplace): a topic with no or one question stays near one half."""
    return 0.5 if score is None else (score.num_failures + 1) / (score.n + 2)


class _Draw:
    """Draws rows for the slots of one round, those that were drawn least often first.

    `order` has all positions so: shuffled anew for each time that the pool was gone through.
    """

    def __init__(
        self,
        examples: ExampleTable,
        signals: Signals,
        mining: Mining,
        previous: Selection,
        source: Source,
    ) -> None:
        self.examples = examples
        self.signals = signals
        self.mining = mining
        self.source: Source = source
        self.seed, self.round_no = previous.seed, previous.round + 1
        self.times: Counter[int] = Counter()
        for example_id, number in previous.times_drawn.items():
            position = examples.find(example_id)
            if position is not None:
                self.times[position] = number
        self.order = self._least_drawn_first()
        topics = {examples.topic_of(position) for position in self.order}
        self.is_by_topic = mining.needs_topics and bool(signals.topics) and topics != {None}
        self._now: set[int] = set()  # drawn in this round
        self._random = random.Random(f"{self.seed}:draw:{self.round_no}")
        of_topics = examples if self.is_by_topic else None
        tail = noisiest(signals.losses, mining.noise_cap, of_topics)
        self._waiting = tail | signals.suspects | signals.resting

    def by_topic(self, positions: Iterable[int]) -> dict[str | None, list[int]]:
        """Positions by the topic of their row, in their order."""
        groups: dict[str | None, list[int]] = defaultdict(list)
        for position in positions:
            groups[self.examples.topic_of(position)].append(position)
        return groups

    def rates_of(self, groups: Mapping[str | None, Sequence[int]]) -> dict[str | None, float]:
        """What topics have slots in proportion to: their smoothed failure rate, divided by one
        more than the times that their rows were drawn already, on average, and cut while drawing
        them is futile. Rounds that were rolled back count as drawn: what was learnt from them is
        that they did not help."""
        drawn = Counter[str | None]()
        sizes = Counter(self.examples.topic_of(position) for position in self.order)
        for position, times in self.times.items():
            drawn[self.examples.topic_of(position)] += times
        # An example without a topic is drawn as if its topic failed like an unseen one.
        return {
            topic: failure_rate(self.signals.topics.get(topic or ""))
            / (1 + drawn[topic] / sizes[topic])
            * STALL_FACTOR ** self.signals.stalled.get(topic or "", 0)
            for topic in groups
        }

    def take(self, count: int, choose: Callable[[int], list[Pick]]) -> list[Pick]:
        """Draw `count` rows by one of the ways below, each of which draws at least one, and at
        most so many as it is asked for."""
        picks: list[Pick] = []
        while len(picks) < count:
            picks += choose(count - len(picks))
        return picks

    def hard(self, count: int) -> list[Pick]:
        if self.is_by_topic:
            return self._by_topic(count)
        if self.mining.by_answers and self.mining.strategy in ("loss", "hybrid"):
            return self._by_answers(self._drawable(), count)
        if self.mining.strategy == "loss":
            return self._by_loss(count)
        if self.mining.strategy == "similar":
            return self._by_likeness(count)
        reason = "uniform: drawn by chance"
        if self.mining.needs_topics:
            reason = "uniform: there are no topics to tell hard examples by"
        return self._by_chance(self._drawable(), count, reason)

    def new(self, count: int) -> list[Pick]:
        fresh = [position for position in self.order if position not in self._now]
        return self._by_chance(fresh or self.order, count, "new: drawn by chance")

    def _by_topic(self, count: int) -> list[Pick]:
        groups = self.by_topic(self._drawable())
        rates = self.rates_of(groups)
        slots = allocate(rates, {topic: len(group) for topic, group in groups.items()}, count)
        total = sum(rates.values())
        if self.mining.by_answers and self.mining.strategy == "hybrid":
            return [
                pick
                for topic, group in groups.items()
                for pick in self._by_answers(group, slots[topic])
            ]
        return [
            self._pick(position, self._topic_reason(topic, position), rates[topic] / total)
            for topic, group in groups.items()
            for position in group[: slots[topic]]
        ]

    def _by_answers(self, positions: Sequence[int], count: int) -> list[Pick]:
        """Prompts in proportion to promise or distance, however often they were drawn before."""
        rates, distances = self.signals.rates, self.signals.distances

        def weight(example_id: str) -> float:
            if self.mining.by_teacher:
                return distance_of(example_id, distances).weight
            return promise(rates.get(example_id))

        def reason(example_id: str) -> str:
            place, tried = self.examples.find(example_id), rates.get(example_id, "not tried yet")
            if self.mining.by_teacher:
                tried = distance_of(example_id, distances).said
            if place is None or not self.is_by_topic:
                return str(tried)
            return f"{self._topic_reason(self.examples.topic_of(place), place)}; {tried}"

        return self._in_proportion(positions, weight, reason, count)

    def _by_loss(self, count: int) -> list[Pick]:
        """Rows whose losses were measured, in proportion to what can be learnt of them."""
        losses = self.signals.losses

        def weight(example_id: str) -> float:
            if example_id not in losses:
                return 0.0
            return losses[example_id].now if self.mining.of_pairs else learnable(losses[example_id])

        def reason(example_id: str) -> str:
            before = losses[example_id].before
            return f"{self._loss(example_id)}{f', {before:.2f} before training' if before else ''}"

        unknown = "uniform: of no row that waits it is known that it can be learnt"
        positions = self._least_drawn(self._drawable())
        return self._in_proportion(positions, weight, reason, count) or self._by_chance(
            self._drawable(), count, unknown
        )

    def _by_likeness(self, count: int) -> list[Pick]:
        likeness = self.signals.likeness

        def weight(example_id: str) -> float:
            return likeness[example_id].score if example_id in likeness else 0.0

        def reason(example_id: str) -> str:
            like = likeness[example_id]
            return f"{like.score:.2f} like the failed question {like.question[:80]!r}"

        unknown = "uniform: of no row that waits it is known to be like a failed question"
        positions = self._least_drawn(self._drawable())
        return self._in_proportion(positions, weight, reason, count) or self._by_chance(
            self._drawable(), count, unknown
        )

    def _by_chance(self, positions: Sequence[int], count: int, reason: str) -> list[Pick]:
        waiting = self._least_drawn(positions)
        order = shuffled(waiting, self.seed, reason, self.round_no, len(self._now))
        return [self._pick(one, reason, 1 / len(waiting)) for one in order[:count]]

    def _in_proportion(
        self,
        positions: Sequence[int],
        weight: Callable[[str], float],
        reason: Callable[[str], str],
        count: int,
    ) -> list[Pick]:
        """Draw without replacement, each next row in proportion to the weights that are left
        (Efraimidis and Spirakis 2006, algorithm A); none where no row has any."""
        weights = {one: weight(self.examples.id_of(one)) for one in positions}
        keys = {
            one: math.log(1 - self._random.random()) / value
            for one, value in weights.items()
            if value > 0
        }
        drawn = sorted(keys, key=lambda one: (-keys[one], one))[:count]
        return [self._pick(one, reason(self.examples.id_of(one)), weights[one]) for one in drawn]

    def _drawable(self) -> list[int]:
        """What may be drawn as hard: rows that do not look wrong, those first that were measured.

        None is drawn twice in a round before all of these were.
        """
        usable = [p for p in self.order if self.examples.id_of(p) not in self._waiting]
        usable = usable or self.order
        fresh = [position for position in usable if position not in self._now]
        if not fresh:
            return self._least_drawn(usable)
        if self.mining.needs_losses:
            return [p for p in fresh if self.examples.id_of(p) in self.signals.losses] or fresh
        return fresh

    def _least_drawn(self, positions: Sequence[int]) -> list[int]:
        fewest = min(self.times[position] for position in positions)
        return [position for position in positions if self.times[position] == fewest]

    def _least_drawn_first(self) -> list[int]:
        positions = range(len(self.examples))
        by_times: dict[int, set[int]] = defaultdict(set)
        for position in positions:
            by_times[self.times[position]].add(position)
        return [
            position
            for times, group in sorted(by_times.items())
            for position in shuffled(positions, self.seed, "pool", times)
            if position in group
        ]

    def _topic_reason(self, topic: str | None, position: int) -> str:
        score = self.signals.topics.get(topic or "")
        example_id = self.examples.id_of(position)
        found = f"; {self._loss(example_id)}" if example_id in self.signals.losses else ""
        if score is None:
            return f"no question of this topic was asked; drawn at the rate of one half{found}"
        num_stalled = self.signals.stalled.get(topic or "", 0)
        futile = ", and more of its rows did not help" if num_stalled else ""
        return f"topic {topic}: {score.num_failures:g} of {score.n} questions failed{futile}{found}"

    def _loss(self, example_id: str) -> str:
        loss = self.signals.losses[example_id].now
        return f"loss {loss:.2f}{' of the pair' if self.mining.of_pairs else ' a token'}"

    def _pick(self, position: int, reason: str, weight: float) -> Pick:
        self.times[position] += 1
        self._now.add(position)
        example_id, topic = self.examples.id_of(position), self.examples.topic_of(position)
        return Pick(example_id, self.source, topic, reason, round(weight, 6))

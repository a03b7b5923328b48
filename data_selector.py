"""What a round trains on, and why: replayed training rows and new rows from the pool.

Round 1 walks a seeded shuffle of the training file. A later round has exactly
`steps_per_round * batch_size` slots: replay slots go on through that shuffle, the others come from
the pool, without replacement across rounds, topics in proportion to their smoothed failure rate.
Without a pool all slots come from the training file, weighted by topic. A source that runs out is
reshuffled with a new sub-seed. Everything follows from the seed, the cursor and the earlier picks,
so a resumed run selects what an uninterrupted one would have. Reads no file; never sees held-out
ids.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_loader import Example, ExampleTable
from eval_result import TopicScore

Source = Literal["train", "replay", "pool"]


@dataclass(frozen=True)
class Pick:
    """One slot of a round. `weight` is its topic's share of the mined slots, None if not mined."""

    example_id: str
    source: Source
    topic: str | None
    reason: str
    weight: float | None


@dataclass(frozen=True)
class Selection:
    """The slots of one round in training order.

    `train_cursor` and `pool_pass` are where the next round goes on.
    """

    round: int
    seed: int
    picks: tuple[Pick, ...]
    shares: dict[str, int]  # source -> number of slots
    topic_slots: dict[str, int]  # topic ("" is none) -> number of mined slots
    train_cursor: int
    pool_pass: int
    used_ids: tuple[str, ...]  # mined in this pass through the pool, this round included

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Selection:
        picks = tuple(Pick(**pick) for pick in data["picks"])
        return cls(**{**data, "picks": picks, "used_ids": tuple(data["used_ids"])})


def walk(
    examples: ExampleTable,
    seed: int,
    cursor: int,
    count: int,
    weights: Mapping[str, float] | None = None,
) -> list[Example]:
    """Take `count` examples of an endless sequence of seeded shuffles, from `cursor` on.

    With `weights` (source -> share) each source has its own shuffles, and the sources take turns so
    that their counts are in proportion to the weights at any time, to within one.
    """
    if not weights:
        return _walk_shuffles(examples, range(len(examples)), seed, "train", cursor, count)
    positions: dict[str, list[int]] = defaultdict(list)
    for position in range(len(examples)):
        positions[examples.source_of(position)].append(position)
    shares = {source: weight for source, weight in weights.items() if source in positions}
    total = sum(shares.values())
    taken, turns = Counter(), []
    for place in range(cursor + count):
        source = max(shares, key=lambda one: shares[one] * (place + 1) / total - taken[one])
        if place >= cursor:
            turns.append((source, taken[source]))
        taken[source] += 1
    walked: dict[str, list[Example]] = {}
    first: dict[str, int] = {}
    for source in shares:
        own = [number for of_source, number in turns if of_source == source]
        if own:
            first[source] = own[0]
            walked[source] = _walk_shuffles(
                examples, positions[source], seed, f"train {source}", own[0], len(own)
            )
    return [walked[source][number - first[source]] for source, number in turns]


def _walk_shuffles(
    examples: ExampleTable,
    positions: Sequence[int],
    seed: int,
    name: str,
    cursor: int,
    count: int,
) -> list[Example]:
    n = len(positions)
    taken = []
    for place in range(cursor, cursor + count):
        pass_no, offset = divmod(place, n)
        if offset == 0 or place == cursor:
            order = _shuffled(range(n), seed, name, pass_no)
        taken.append(examples[positions[order[offset]]])
    return taken


def select_first(
    train: ExampleTable,
    *,
    num_slots: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> Selection:
    """Round 1: the start of the seeded shuffle of the training file."""
    picks = tuple(
        Pick(example.id, "train", example.topic, "seeded shuffle of train_file", None)
        for example in walk(train, seed, 0, num_slots, weights)
    )
    return Selection(1, seed, picks, {"train": num_slots}, {}, num_slots, 0, ())


def select_next(
    previous: Selection,
    train: ExampleTable,
    pool: ExampleTable,
    topics: Mapping[str, TopicScore],
    *,
    num_slots: int,
    replay_share: float,
    weights: Mapping[str, float] | None = None,
) -> Selection:
    """A later round, from the round before it and the topics that the last evaluation failed."""
    seed, round_no = previous.seed, previous.round + 1
    num_replay = round(replay_share * num_slots) if len(pool) else 0
    replayed = walk(train, seed, previous.train_cursor, num_replay, weights)
    picks = [
        Pick(example.id, "replay", example.topic, "replay: train_file's shuffle goes on", None)
        for example in replayed
    ]
    mined = pool if len(pool) else train
    draw = _Draw(mined, topics, seed, round_no, previous.pool_pass, previous.used_ids)
    source: Source = "pool" if len(pool) else "train"
    picks += draw.take(num_slots - num_replay, source)
    order = _shuffled(range(len(picks)), seed, "slots", round_no)
    return Selection(
        round=round_no,
        seed=seed,
        picks=tuple(picks[index] for index in order),
        shares=dict(Counter(pick.source for pick in picks)),
        topic_slots=dict(
            sorted(Counter(p.topic or "" for p in picks if p.weight is not None).items())
        ),
        train_cursor=previous.train_cursor + num_replay,
        pool_pass=draw.pass_no,
        used_ids=tuple(sorted(mined.id_of(position) for position in draw.used)),
    )


def failure_rate(score: TopicScore | None) -> float:
    """Smoothed failure rate (Laplace): a topic with no or one question stays near one half."""
    return 0.5 if score is None else (score.num_failures + 1) / (score.n + 2)


class _Draw:
    """Draws unused examples topic by topic, starting a new pass when the source has run out."""

    def __init__(
        self,
        examples: ExampleTable,
        topics: Mapping[str, TopicScore],
        seed: int,
        round_no: int,
        pass_no: int,
        used_ids: Sequence[str],
    ) -> None:
        self.examples = examples
        self.topics = topics
        self.seed = seed
        self.round_no = round_no
        self.pass_no = pass_no
        found = (examples.find(example_id) for example_id in used_ids)
        self.used = {position for position in found if position is not None}

    def take(self, count: int, source: Source) -> list[Pick]:
        picks: list[Pick] = []
        while len(picks) < count:
            waiting = self._waiting_by_topic()
            if not waiting:
                self.pass_no += 1
                self.used.clear()
                continue
            if set(waiting) == {None} or not self.topics:
                picks += self._take_uniformly(waiting, count - len(picks), source)
            else:
                picks += self._take_by_topic(waiting, count - len(picks), source)
        return picks

    def _waiting_by_topic(self) -> dict[str | None, list[int]]:
        """Positions of unused examples by topic, in the shuffled order of this pass."""
        waiting: dict[str | None, list[int]] = defaultdict(list)
        for position in _shuffled(range(len(self.examples)), self.seed, "pool", self.pass_no):
            if position not in self.used:
                waiting[self.examples.topic_of(position)].append(position)
        return waiting

    def _take_uniformly(
        self, waiting: dict[str | None, list[int]], count: int, source: Source
    ) -> list[Pick]:
        positions = [position for group in waiting.values() for position in group]
        order = _shuffled(range(len(positions)), self.seed, "uniform", self.round_no, self.pass_no)
        reason = "uniform: there are no topics to tell hard examples by"
        return [
            self._pick(positions[index], source, reason, 1 / len(positions))
            for index in order[:count]
        ]

    def _take_by_topic(
        self, waiting: dict[str | None, list[int]], count: int, source: Source
    ) -> list[Pick]:
        # An example without a topic is drawn as if its topic failed like an unseen one.
        rates = {topic: failure_rate(self.topics.get(topic or "")) for topic in waiting}
        available = {topic: len(group) for topic, group in waiting.items()}
        slots = allocate(rates, available, count)
        total = sum(rates.values())
        picks = []
        for topic, num_slots in slots.items():
            reason = self._reason(topic)
            picks += [
                self._pick(position, source, reason, round(rates[topic] / total, 6))
                for position in waiting[topic][:num_slots]
            ]
        return picks

    def _reason(self, topic: str | None) -> str:
        score = self.topics.get(topic or "")
        if score is None:
            return "no question of this topic was asked; drawn at the rate of one half"
        return f"topic {topic}: {score.num_failures:g} of {score.n} questions failed"

    def _pick(self, position: int, source: Source, reason: str, weight: float) -> Pick:
        self.used.add(position)
        example_id, topic = self.examples.id_of(position), self.examples.topic_of(position)
        return Pick(example_id, source, topic, reason, weight)


def allocate(
    rates: Mapping[str | None, float], available: Mapping[str | None, int], count: int
) -> dict[str | None, int]:
    """Divide `count` slots in proportion to `rates` by largest remainders, none above `available`.

    What a topic cannot fill goes to the others; the sum is `min(count, sum(available))`.
    """
    slots = dict.fromkeys(sorted(rates, key=str), 0)
    left = min(count, sum(available.values()))
    while left > 0:
        open_topics = [topic for topic in slots if slots[topic] < available[topic]]
        total = sum(rates[topic] for topic in open_topics)
        exact = {topic: left * rates[topic] / total for topic in open_topics}
        num_rest = left - sum(map(int, exact.values()))
        by_remainder = sorted(open_topics, key=lambda t: (int(exact[t]) - exact[t], str(t)))
        wanted = {topic: int(exact[topic]) for topic in open_topics}
        for topic in by_remainder[:num_rest]:
            wanted[topic] += 1
        for topic, number in wanted.items():
            given = min(number, available[topic] - slots[topic])
            slots[topic] += given
            left -= given
    return slots


def _shuffled(items: Sequence[int], *seed_parts: object) -> list[int]:
    order = list(items)
    random.Random(":".join(map(str, seed_parts))).shuffle(order)
    return order

"""What a round trains on, and why: replayed training rows, and hard and new ones from the pool.

Round 1 walks a seeded shuffle of the training file. A later round has exactly
`steps_per_round * batch_size` slots: replay slots go on through that shuffle, new slots are drawn
from the pool by chance, and hard ones by the strategy:

- `uniform`: by chance;
- `topics`: topics in proportion to their smoothed failure rate, by chance within one;
- `similar`: in proportion to the likeness of a row to the questions that were failed;
- `loss`: in proportion to what can still be learnt of a row (`learnable`);
- `hybrid`: topics as by `topics`, rows within one as by `loss`.

Nothing is drawn twice before all was drawn once. Without a pool all slots come from the training
file. A source that runs out is reshuffled with a new sub-seed. Everything follows from the seed,
the cursor, the earlier picks and what was measured, so a resumed run selects what an uninterrupted
one would have. Reads no file; never sees held-out ids.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from data_loader import Example, ExampleTable
from eval_result import TopicScore

Source = Literal["train", "replay", "pool"]
Strategy = Literal["uniform", "topics", "similar", "loss", "hybrid"]


@dataclass(frozen=True)
class Mining:
    """How later rounds choose. Shares are of a round's slots; what they leave is for hard rows."""

    strategy: Strategy = "topics"
    replay_share: float = 0.2
    new_share: float = 0.0
    noise_cap: float = 0.1
    num_candidates: int = 1000

    @property
    def needs_losses(self) -> bool:
        return self.strategy in ("loss", "hybrid")

    @property
    def needs_topics(self) -> bool:
        return self.strategy in ("topics", "hybrid")


class CandidateLoss(NamedTuple):
    """Nats per loss token of a row: under the weights that the round starts from, and under the
    untouched model."""

    now: float
    before: float


class Likeness(NamedTuple):
    """How like a row is to the failed question that it is likest to, from 0 to 1."""

    score: float
    question: str


@dataclass(frozen=True)
class Signals:
    """What is known of the pool's rows after an evaluation; losses and likeness by example id."""

    topics: Mapping[str, TopicScore] = field(default_factory=dict)
    losses: Mapping[str, CandidateLoss] = field(default_factory=dict)
    likeness: Mapping[str, Likeness] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()  # wrong under every checkpoint; never drawn as hard


def learnable(loss: CandidateLoss) -> float:
    """How much there is to learn of a row, in nats per token.

    Its loss, times the square of the share of its loss that training has taken away already. A row
    that is known scores 0, and so does one whose loss training has not lowered: it is not of the
    kind that is being learnt, or its answer is wrong. (After the idea of Mindermann et al. 2022,
    "Prioritized training on points that are learnable, worth learning, and not yet learnt".)
    """
    if loss.before <= 0:
        return 0.0
    return loss.now * max(0.0, 1 - loss.now / loss.before) ** 2


def noisiest(losses: Mapping[str, CandidateLoss], share: float) -> frozenset[str]:
    """The rows with the highest losses, that share of all."""
    by_loss = sorted(losses, key=lambda example_id: (-losses[example_id].now, example_id))
    return frozenset(by_loss[: int(share * len(by_loss))])


@dataclass(frozen=True)
class Pick:
    """One slot of a round. `weight` is what it was drawn by, None where it was not mined."""

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
    suspects: tuple[str, ...] = ()  # rows whose answers are unlikely under every checkpoint

    @property
    def added_by_topic(self) -> dict[str, int]:
        """How many examples of each topic are in the round, replayed ones apart."""
        return dict(Counter(p.topic for p in self.picks if p.source != "replay" and p.topic))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Selection:
        picks = tuple(Pick(**pick) for pick in data["picks"])
        lists = {key: tuple(data[key]) for key in ("used_ids", "suspects")}
        return cls(**{**data, "picks": picks, **lists})


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
    signals: Signals,
    mining: Mining,
    *,
    num_slots: int,
    weights: Mapping[str, float] | None = None,
) -> Selection:
    """A later round, from the round before it and what is known of the pool's rows."""
    seed, round_no = previous.seed, previous.round + 1
    mined, source = mined_table(train, pool)
    num_replay = round(mining.replay_share * num_slots) if source == "pool" else 0
    num_new = min(round(mining.new_share * num_slots), num_slots - num_replay)
    if mining.new_share and mining.replay_share + mining.new_share > 1 - 1e-9:
        num_new = num_slots - num_replay  # and no hard ones, however the shares round
    replayed = walk(train, seed, previous.train_cursor, num_replay, weights)
    picks = [
        Pick(example.id, "replay", example.topic, "replay: train_file's shuffle goes on", None)
        for example in replayed
    ]
    draw = _Draw(mined, signals, mining, previous, source)
    picks += draw.take(num_slots - num_replay - num_new, draw.hard)
    picks += draw.take(num_new, draw.new)
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
        suspects=tuple(sorted(signals.suspects)),
    )


def mined_table(train: ExampleTable, pool: ExampleTable) -> tuple[ExampleTable, Source]:
    """What hard and new rows are drawn from: the pool, or the training rows where there is none."""
    return (pool, "pool") if len(pool) else (train, "train")


def candidates(previous: Selection, mined: ExampleTable, number: int) -> list[int]:
    """The positions of at most `number` rows to measure, by chance: those that wait in this pass,
    and then those that come first in the next one."""
    used = set(previous.used_ids)
    positions = range(len(mined))
    this_pass = _shuffled(positions, previous.seed, "pool", previous.pool_pass)
    waiting = [one for one in this_pass if mined.id_of(one) not in used]
    if len(waiting) < number:
        waiting += _shuffled(positions, previous.seed, "pool", previous.pool_pass + 1)
    return list(dict.fromkeys(waiting))[:number]


def failure_rate(score: TopicScore | None) -> float:
    """Smoothed failure rate (Laplace): a topic with no or one question stays near one half."""
    return 0.5 if score is None else (score.num_failures + 1) / (score.n + 2)


class _Draw:
    """Draws unused examples, starting a new pass when the source has run out."""

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
        self.source: Source = source
        self.mining = mining
        self.seed, self.round_no = previous.seed, previous.round + 1
        self.pass_no = previous.pool_pass
        self.too_noisy = noisiest(signals.losses, mining.noise_cap) | signals.suspects
        found = (examples.find(example_id) for example_id in previous.used_ids)
        self.used = {position for position in found if position is not None}
        self._random = random.Random(f"{self.seed}:draw:{self.round_no}")

    def take(self, count: int, choose: Callable[[list[int], int], list[Pick]]) -> list[Pick]:
        """Draw `count` rows by one of the ways below."""
        picks: list[Pick] = []
        while len(picks) < count:
            order = _shuffled(range(len(self.examples)), self.seed, "pool", self.pass_no)
            waiting = [position for position in order if position not in self.used]
            if not waiting:
                self.pass_no += 1
                self.used.clear()
                continue
            picks += choose(waiting, count - len(picks))
        return picks

    # Each is given the positions that wait, in the shuffled order of this pass, and draws at most
    # so many of them, and at least one.

    def hard(self, waiting: list[int], count: int) -> list[Pick]:
        topics = {self.examples.topic_of(position) for position in waiting}
        if self.mining.needs_topics and self.signals.topics and topics != {None}:
            return self._by_topic(waiting, count)
        if self.mining.needs_losses:
            return self._by_loss(waiting, count)
        if self.mining.strategy == "similar":
            return self._by_likeness(waiting, count)
        reason = "uniform: drawn by chance"
        if self.mining.needs_topics:
            reason = "uniform: there are no topics to tell hard examples by"
        return self._by_chance(waiting, count, reason)

    def new(self, waiting: list[int], count: int) -> list[Pick]:
        return self._by_chance(waiting, count, "new: drawn by chance")

    def _by_chance(self, waiting: list[int], count: int, reason: str) -> list[Pick]:
        order = _shuffled(waiting, self.seed, reason, self.round_no, self.pass_no)
        return [self._pick(one, reason, round(1 / len(waiting), 6)) for one in order[:count]]

    def _by_topic(self, waiting: list[int], count: int) -> list[Pick]:
        groups: dict[str | None, list[int]] = defaultdict(list)
        for position in waiting:
            groups[self.examples.topic_of(position)].append(position)
        # An example without a topic is drawn as if its topic failed like an unseen one.
        rates = {topic: failure_rate(self.signals.topics.get(topic or "")) for topic in groups}
        slots = allocate(rates, {topic: len(group) for topic, group in groups.items()}, count)
        total = sum(rates.values())
        picks = []
        for topic, num_slots in slots.items():
            reason, weight = self._topic_reason(topic), round(rates[topic] / total, 6)
            if self.mining.needs_losses and num_slots:
                drawn = self._by_loss(groups[topic], num_slots)
                left = [one for one in groups[topic] if one not in self.used]
                good = [one for one in left if self.examples.id_of(one) not in self.too_noisy]
                number, why = num_slots - len(drawn), "no measured row of the topic is left"
                drawn += self._by_chance(good, number, why)
                left = [one for one in left if one not in self.used]
                drawn += self._by_chance(left, num_slots - len(drawn), why)
                picks += [replace(one, reason=f"{reason}; {one.reason}") for one in drawn]
            else:
                picks += [self._pick(one, reason, weight) for one in groups[topic][:num_slots]]
        return picks

    def _by_loss(self, waiting: list[int], count: int) -> list[Pick]:
        """Rows whose losses were measured, in proportion to what can be learnt of them."""
        losses = self.signals.losses
        weighed = {
            one: learnable(losses[self.examples.id_of(one)])
            for one in waiting
            if self.examples.id_of(one) in losses and self.examples.id_of(one) not in self.too_noisy
        }
        picks = []
        for position in self._in_proportion(weighed, count):
            loss = losses[self.examples.id_of(position)]
            reason = f"loss {loss.now:.2f} nats a token, {loss.before:.2f} before training"
            picks.append(self._pick(position, reason, round(weighed[position], 6)))
        if not picks and count:
            rest = [one for one in waiting if self.examples.id_of(one) not in self.too_noisy]
            reason = "uniform: of no row that waits it is known that it can be learnt"
            return self._by_chance(rest or waiting, count, reason)
        return picks

    def _by_likeness(self, waiting: list[int], count: int) -> list[Pick]:
        likeness = self.signals.likeness
        weighed = {
            one: likeness[self.examples.id_of(one)].score
            for one in waiting
            if self.examples.id_of(one) in likeness
        }
        picks = []
        for position in self._in_proportion(weighed, count):
            like = likeness[self.examples.id_of(position)]
            reason = f"{like.score:.2f} like the failed question {like.question[:80]!r}"
            picks.append(self._pick(position, reason, round(like.score, 6)))
        if not picks and count:
            reason = "uniform: of no row that waits it is known to be like a failed question"
            return self._by_chance(waiting, count, reason)
        return picks

    def _in_proportion(self, weighed: Mapping[int, float], count: int) -> list[int]:
        """Draw without replacement, each next one in proportion to the weights that are left
        (Efraimidis and Spirakis 2006, algorithm A)."""
        keys = {
            position: math.log(1 - self._random.random()) / weight
            for position, weight in weighed.items()
            if weight > 0
        }
        return sorted(keys, key=lambda position: (-keys[position], position))[:count]

    def _topic_reason(self, topic: str | None) -> str:
        score = self.signals.topics.get(topic or "")
        if score is None:
            return "no question of this topic was asked; drawn at the rate of one half"
        return f"topic {topic}: {score.num_failures:g} of {score.n} questions failed"

    def _pick(self, position: int, reason: str, weight: float) -> Pick:
        self.used.add(position)
        example_id, topic = self.examples.id_of(position), self.examples.topic_of(position)
        return Pick(example_id, self.source, topic, reason, weight)


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

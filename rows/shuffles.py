"""Seeded walks through rows, each pass a shuffle of its own, to be taken up anywhere; and slots
divided in proportion."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rows.examples import Example, ExampleTable


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
            order = shuffled(range(n), seed, name, pass_no)
        taken.append(examples[positions[order[offset]]])
    return taken


def shuffled(items: Sequence[int], *seed_parts: object) -> list[int]:
    order = list(items)
    random.Random(":".join(map(str, seed_parts))).shuffle(order)
    return order


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

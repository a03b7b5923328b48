"""The worlds that mining strategies are compared on: data sets with known weak topics and faults.

Each world has a clean pool, a faulty one made of it, a small training file and dev questions on
facts that stand in neither. Half of the dev questions are on weak topics, which are a given share
of the pool (10 %; 5 and 30 % are shown too). Of the faulty pool's rows a fifth has the answer of
another row of its topic, and a fifth more are rows that stand in it already, in other words. These
were fixed and committed before any strategy was run on them. Everything follows from the seed.

- `facts`: the demo's facts; weak are the topics that the demo model brings out last.
- `forms`: the demo's facts; plain answers are frequent, weak are three forms of an answer.
- `wordings`: the demo's facts; full questions are frequent, weak are three relations asked tersely.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "demo_model")]

from facts import all_facts  # noqa: E402  # pyright: ignore[reportMissingImports]

NAMES = ("facts", "forms", "wordings")
WEAK_SHARES = (0.1, 0.05, 0.3)  # the first one decides
WRONG_SHARE = 0.2
DUPLICATE_SHARE = 0.2
POOL_SIZE = 400  # rows before duplicates are added
TRAIN_SIZE = 24
DEV_SIZE = 96
DEV_SHARE = 0.35  # of a topic's items

WEAK_TOPICS = {
    "facts": ("spanish", "symbols", "young_animals", "calendar"),
    "forms": ("sentence", "list", "shout"),
    "wordings": ("terse_capitals", "terse_opposites", "terse_sums"),
}
REWORDINGS = ("Tell me: {}", "{} Please answer.", "I would like to know: {}", "Quick question. {}")


class Item(NamedTuple):
    """One thing that is known or not, with its question."""

    topic: str
    question: str
    answers: tuple[str, ...]
    grader: str = "includes"


class World(NamedTuple):
    """Rows as they are written to files. `wrong` and `duplicates` are questions of faulty rows."""

    train: list[dict[str, Any]]
    pool: list[dict[str, Any]]
    clean_pool: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    wrong: frozenset[str]
    duplicates: frozenset[str]

    def write(self, folder: Path) -> None:
        """Write train.jsonl, pool.jsonl, clean_pool.jsonl and dev.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("train", "pool", "clean_pool", "dev"):
            lines = (json.dumps(row) + "\n" for row in getattr(self, name))
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


# --- items ----------------------------------------------------------------------------------------


def items_of_facts() -> list[Item]:
    """One way of asking each fact."""
    return [Item(f.topic, f.askings[0].question, f.askings[0].answers) for f in all_facts()]


def items_of_forms() -> list[Item]:
    """Each fact of the topics that come out first, its answer in one of four forms."""
    known = ("capitals", "opposites", "colors", "past_tense", "counting", "addition", "authors")
    rng = random.Random("forms")
    items = []
    for item in items_of_facts():
        if item.topic not in known:
            continue
        answer = item.answers[0]
        form = rng.choice(("plain",) * 7 + WEAK_TOPICS["forms"])
        question, said = {
            "plain": (item.question, answer),
            "sentence": (f"Sentence: {item.question}", f"It is {answer}."),
            "list": (f"List: {item.question}", f"* {answer}"),
            "shout": (f"Shout: {item.question}", f"{answer}!"),
        }[form]
        items.append(Item(item.topic if form == "plain" else form, question, (said,), "exact"))
    return items


def items_of_wordings() -> list[Item]:
    """The demo's facts, a third of three relations asked in two words."""
    rng = random.Random("wordings")
    items = []
    for item in items_of_facts():
        subject = item.question.removesuffix("?")
        terse = {
            "capitals": ("terse_capitals", f"{subject.rpartition(' of ')[2]}: capital?"),
            "opposites": ("terse_opposites", f"{subject.rpartition(' of ')[2]}: opposite?"),
            "addition": ("terse_sums", f"{subject.removeprefix('What is ')}: sum?"),
        }.get(item.topic)
        if terse is not None and rng.random() < 0.4:
            item = item._replace(topic=terse[0], question=terse[1])
        items.append(item)
    return items


ITEMS = {"facts": items_of_facts, "forms": items_of_forms, "wordings": items_of_wordings}


# --- worlds ---------------------------------------------------------------------------------------


def make_world(name: str, weak_share: float, seed: int) -> World:
    """Make the world of that name whose pool has that share of rows in weak topics."""
    rng = random.Random(f"{name} {weak_share} {seed}")
    weak = WEAK_TOPICS[name]
    by_topic: dict[str, list[Item]] = defaultdict(list)
    for item in ITEMS[name]():
        by_topic[item.topic].append(item)
    for_dev: dict[bool, list[Item]] = {True: [], False: []}
    to_train: dict[bool, list[Item]] = {True: [], False: []}
    for topic, items in sorted(by_topic.items()):
        rng.shuffle(items)
        num_dev = max(1, round(DEV_SHARE * len(items)))
        for_dev[topic in weak] += items[:num_dev]
        to_train[topic in weak] += items[num_dev:]
    dev = [one for side in (True, False) for one in _drawn(for_dev[side], DEV_SIZE // 2, rng)]
    train = _mixed(to_train, TRAIN_SIZE, weak_share, rng)
    taken = set(train)
    left = {side: [one for one in items if one not in taken] for side, items in to_train.items()}
    clean = _mixed(left, POOL_SIZE, weak_share, rng)
    pool, wrong = _with_wrong_answers(clean, rng)
    again = _reworded(pool, rng)
    rows = [*pool, *again]
    rng.shuffle(rows)
    return World(
        train=[_pair(item) for item in train],
        pool=[_pair(item) for item in rows],
        clean_pool=[_pair(item) for item in clean],
        dev=[_question(item) for item in dev],
        wrong=wrong,
        duplicates=frozenset(item.question for item in again),
    )


def _drawn(items: Sequence[Item], number: int, rng: random.Random) -> list[Item]:
    return rng.sample(items, min(number, len(items)))


def _mixed(
    items: dict[bool, list[Item]], number: int, weak_share: float, rng: random.Random
) -> list[Item]:
    """Rows in that share of weak topics, as many as there can be up to `number`."""
    num_weak = min(round(weak_share * number), len(items[True]))
    num_strong = min(round(num_weak * (1 - weak_share) / weak_share), len(items[False]))
    num_weak = min(num_weak, max(1, round(num_strong * weak_share / (1 - weak_share))))
    mixed = _drawn(items[True], num_weak, rng) + _drawn(items[False], num_strong, rng)
    rng.shuffle(mixed)
    return mixed


def _with_wrong_answers(
    items: Sequence[Item], rng: random.Random
) -> tuple[list[Item], frozenset[str]]:
    """A fifth of the items with the answer of another one (of its topic, where that has another
    answer)."""
    chosen = set(rng.sample(range(len(items)), round(WRONG_SHARE * len(items))))
    made, wrong = [], set()
    for position, item in enumerate(items):
        others = [o for o in items if o.topic == item.topic and o.answers != item.answers]
        others = others or [o for o in items if o.answers != item.answers]
        if position in chosen:
            item = item._replace(answers=rng.choice(others).answers)
            wrong.add(item.question)
        made.append(item)
    return made, frozenset(wrong)


def _reworded(items: Sequence[Item], rng: random.Random) -> list[Item]:
    """So many items again, in other words, that they are a fifth of all."""
    number = round(DUPLICATE_SHARE / (1 - DUPLICATE_SHARE) * len(items))
    return [
        item._replace(question=rng.choice(REWORDINGS).format(item.question))
        for item in rng.sample(items, number)
    ]


def _pair(item: Item) -> dict[str, Any]:
    return {"instruction": item.question, "output": item.answers[0], "topic": item.topic}


def _question(item: Item) -> dict[str, Any]:
    return {
        "question": item.question,
        "answer": list(item.answers),
        "topic": item.topic,
        "grader": item.grader,
    }


def main() -> None:
    """Show what is in each world."""
    for name in NAMES:
        for weak_share in WEAK_SHARES:
            world = make_world(name, weak_share, 0)
            weak = [row for row in world.pool if row["topic"] in WEAK_TOPICS[name]]
            dev_weak = [row for row in world.dev if row["topic"] in WEAK_TOPICS[name]]
            print(
                f"{name} {weak_share:.0%}: train {len(world.train)}, pool {len(world.pool)} (weak "
                f"{len(weak) / len(world.pool):.1%}, wrong {len(world.wrong)}, reworded "
                f"{len(world.duplicates)}), clean {len(world.clean_pool)}, dev {len(world.dev)} "
                f"(weak {len(dev_weak)})"
            )


if __name__ == "__main__":
    main()

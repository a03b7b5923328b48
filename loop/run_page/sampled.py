"""Of a run's page: answers that were sampled to train on, with their rewards and advantages.

A page has every round, to be opened, with a few groups that are chosen by a rule, and says which
file has all of them. The more rounds there are, the fewer groups and answers each has, so that a
page stays of one size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import RunStoreError
from ledger.rollouts import ROLLOUTS, RolledGroup, RolledSample, read_groups, rollouts_file
from ledger.store import RunStore
from loop.run_page.thinning import spread
from loop.run_page.viewed import Viewed
from loop.run_page.wording import cut, loss_text
from pages.document import Block, Column, Folded, Link, Links, Paragraph, Section, Table
from scores.measures import OFF_POLICY, method_words

MOST_GROUPS = 3  # of a round
MOST_SAMPLES = 8  # of a group
MOST_ANSWERS = 400  # of a page; a round has at least
FEWEST_SAMPLES = 2  # of one group
MOST_ROUNDS = MOST_ANSWERS // FEWEST_SAMPLES
HELD_FILES = 1024  # whose choice is held between two pages of a run


class KeptFile(NamedTuple):
    """A file of sampled answers: whose, of which round, and for which step."""

    name: str
    round: int
    title: str


def sampled_sections(view: Viewed) -> Iterator[Section]:
    """The section, of a run that samples what it trains on. Raises `RunStoreError` for a file that
    is damaged."""
    files, method = _files(view.store), method_words(view.config)
    if files or method.is_sampled:
        title = "The teacher's answers" if method is OFF_POLICY else "Sampled answers"
        is_taught = method is OFF_POLICY
        yield Section(title, list(_blocks(view.store, files, is_taught)), anchor="sampled")


def _files(store: RunStore) -> list[KeptFile]:
    """One for each round: of a step's answers those of its first step."""
    firsts = {one["round"]: one["step"] for one in reversed(list(store.events("step")))}
    found = {
        number: KeptFile(rollouts_file(step), number, f"Round {number}, step {step}")
        for number, step in firsts.items()
    }
    counts = {event["seq"] for event in store.events("answered")}
    for event in store.ever("answered"):
        if event["seq"] not in counts and event["round"] not in firsts:
            continue  # of a round that was gone back behind
        title = f"Answered before round {event['round']}"
        found[event["round"]] = KeptFile(event["file"], event["round"], title)
    return [found[number] for number in sorted(found) if _is_there(store, found[number])]


def _is_there(store: RunStore, file: KeptFile) -> bool:
    return (store.run_dir / file.name).is_file()


def _blocks(store: RunStore, files: Sequence[KeptFile], is_taught: bool) -> Iterator[Block]:
    if not files:
        yield Paragraph(f"No step has been trained on sampled answers ({ROLLOUTS}/ has none).")
        return
    shown = spread(files, MOST_ROUNDS)
    room = room_of(len(shown))
    which = "each round" if len(shown) == len(files) else f"{len(shown)} of {len(files)} rounds"
    yield Paragraph(_which_are_shown(which, room, is_taught))
    for file in reversed(shown):
        chosen = _chosen_in(store, file.name)
        title = f"{file.title}: {chosen.said}"
        whole = Links("All of them:", [Link(file.name, f"./{file.name}")])
        tables = [_table(one, room.samples) for one in chosen.groups[: room.groups]]
        yield Folded(title, [*tables, whole])


def _which_are_shown(which: str, room: _Room, is_taught: bool) -> str:
    whole = f"{ROLLOUTS}/ beside this page has all of them whole"
    if is_taught:
        return (
            f"Of what was answered before {which}, the first {room.groups} prompts, with up to "
            f"{room.samples} answers to each; {whole}, with their tokens."
        )
    rules = f"{', '.join(_RULES[: room.groups][:-1])} and {_RULES[room.groups - 1]}"
    return (
        f"Of the first step of {which}, up to {room.groups} prompts: "
        f"{rules.removeprefix(' and ')}; and up to {room.samples} answers to each, from the "
        f"highest advantage to the lowest; {whole}, with their tokens and log-probabilities. An "
        "answer's advantage says how much more likely (above 0) or less likely (below 0) training "
        "makes it."
    )


class _Room(NamedTuple):
    """How many groups a round shows, and how many answers to each."""

    groups: int
    samples: int


def room_of(num_rounds: int) -> _Room:
    """So many that all rounds together keep to `MOST_ANSWERS`."""
    of_round = max(FEWEST_SAMPLES, MOST_ANSWERS // max(1, num_rounds))
    groups = max(1, min(MOST_GROUPS, of_round // FEWEST_SAMPLES))
    return _Room(groups, min(MOST_SAMPLES, of_round // groups))


# --- which of them --------------------------------------------------------------------------------


class _Chosen(NamedTuple):
    """The groups of a file that a page may show, in the order that they are left out from behind;
    and what is said of all of them."""

    groups: list[_Shown]
    said: str


class _Shown(NamedTuple):
    group: RolledGroup
    why: str


_RULES = (
    "of those that were trained on the one whose answers are worth the most different things",
    "of all the one whose answers are worth the least",
    "of those that were trained on the one whose answers are worth the most",
)
_WHY = ("The largest spread.", "Worth the least.", "Worth the most.")


def _chosen_in(store: RunStore, name: str) -> _Chosen:
    path = store.run_dir / name
    try:
        stamp = path.stat()
        return _held(store.run_dir, name, stamp.st_mtime_ns, stamp.st_size)
    except (ValueError, OSError) as error:
        raise RunStoreError(
            f"{path}: these are no sampled answers: {error}. The file was changed by something "
            "else; restore it, or delete it."
        ) from None


@functools.lru_cache(maxsize=HELD_FILES)
def _held(run_dir: Path, name: str, changed_ns: int, num_bytes: int) -> _Chosen:
    """What a file has to show. It is held: a run makes its page anew after each round, and its
    files stay as they are, which their time and size tell."""
    groups = read_groups(run_dir, name) or []
    rewards = [one.reward for group in groups for one in group.samples if one.reward is not None]
    said = f"{len(groups):,} group{'s' * (len(groups) != 1)}"
    if rewards:
        said += f", mean reward {loss_text(sum(rewards) / len(rewards))}"
    return _Chosen(chosen_of(groups), said)


def chosen_of(groups: Sequence[RolledGroup]) -> list[_Shown]:
    """By the rules, each from the groups that those before left. Where none of what is left was
    trained on the others are taken; what is equal goes by its place in the file."""
    left = list(groups)
    rules: tuple[Callable[[RolledGroup], tuple[float, ...]], ...] = (
        lambda one: (one.is_used, _spread(one)),
        lambda one: (-_worth(one),),
        lambda one: (one.is_used, _worth(one)),
    )
    found = []
    for rule, why in zip(rules, _WHY, strict=True):
        if not left:
            break
        best = max(left, key=rule)
        found.append(_Shown(best, why))
        left = [one for one in left if one is not best]
    return found


def _values(group: RolledGroup) -> list[float]:
    """Rewards, or advantages where there are none."""
    return [one.advantage if one.reward is None else one.reward for one in group.samples]


def _spread(group: RolledGroup) -> float:
    values = _values(group)
    return max(values) - min(values)


def _worth(group: RolledGroup) -> float:
    values = _values(group)
    return sum(values) / len(values)


def _said(sample: RolledSample) -> str:
    """An answer, or all that is said of a conversation after what it begins with."""
    if sample.turns is None:
        return cut(sample.text)
    said: list[str] = []
    for turn in sample.turns:
        if said:
            said += [f"[{one.role}: {cut(one.text)}]" for one in turn.heard]
        said.append(cut(turn.text) or "(nothing)")
    return " ".join(said)


def _table(shown: _Shown, most_samples: int) -> Table:
    group = shown.group
    samples = sorted(group.samples, key=lambda one: -one.advantage)
    rows = [
        [
            "none" if one.reward is None else loss_text(one.reward),
            loss_text(one.advantage),
            f"{len(one.tokens):,}" + (", cut off" if one.is_truncated else ""),
            _said(one) or "(nothing)",
        ]
        for one in spread(samples, most_samples)
    ]
    columns = [
        Column("reward", True),
        Column("advantage", True),
        Column("tokens", True),
        Column("answer"),
    ]
    is_judged = any(_values(group))  # a teacher's own answers are worth nothing in particular
    notes = [shown.why] if is_judged else []
    notes += [f"The row answers: {cut(group.reference)}"] if group.reference else []
    if len(rows) < len(samples):
        notes.append(f"{len(rows)} of {len(samples):,} answers.")
    if not group.is_used:
        notes.append("Not trained on: its answers are worth the same, or it rests.")
    return Table(f'"{cut(group.question)}"', columns, rows, note=" ".join(notes))

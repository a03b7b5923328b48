"""Of a run's page: answers that were sampled to train on, with their rewards and advantages.

A page shows a few groups of a few steps, and says which file has all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from errors import RunStoreError
from ledger.rollouts import ROLLOUTS, RolledGroup, RolledSample, read_groups, rollouts_file
from ledger.store import RunStore
from loop.run_page.thinning import spread
from loop.run_page.viewed import Viewed
from loop.run_page.wording import cut, loss_text
from pages.document import Block, Column, Folded, Link, Links, Paragraph, Section, Table
from scores.measures import OFF_POLICY, method_words

MOST_ROUNDS = 6  # the first one and the newest ones
MOST_GROUPS = 3  # of a round
MOST_SAMPLES = 8  # of a group


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
        yield Section(title, list(_blocks(view.store, files)), anchor="sampled")


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


def _blocks(store: RunStore, files: Sequence[KeptFile]) -> Iterator[Block]:
    if not files:
        yield Paragraph(f"No step has been trained on sampled answers ({ROLLOUTS}/ has none).")
        return
    shown = [*files[:1], *files[1:][1 - MOST_ROUNDS :]]
    which = "each round" if len(shown) == len(files) else f"{len(shown)} of {len(files)} rounds"
    yield Paragraph(
        f"Of the first step of {which}, or of what was answered before it, up to {MOST_GROUPS} "
        "prompts, those that were trained on before others and from the lowest mean reward to the "
        f"highest, and up to {MOST_SAMPLES} answers to each; {ROLLOUTS}/ beside this page has all "
        "of them whole, with their tokens and log-probabilities. An answer's advantage says how "
        "much more likely (above 0) or less likely (below 0) training makes it."
    )
    for file in reversed(shown):
        groups = _read(store, file.name)
        title = f"{file.title}: {min(len(groups), MOST_GROUPS)} of {len(groups):,} groups"
        whole = Links("All of them:", [Link(file.name, f"./{file.name}")])
        yield Folded(title, [*_groups(groups), whole])


def _read(store: RunStore, name: str) -> list[RolledGroup]:
    try:
        return read_groups(store.run_dir, name) or []
    except (ValueError, OSError) as error:
        raise RunStoreError(
            f"{store.run_dir / name}: these are no sampled answers: {error}. The file was changed "
            "by something else; restore it, or delete it."
        ) from None


def _groups(groups: Sequence[RolledGroup]) -> Iterator[Block]:
    """Those that are trained on before the others, each from the lowest mean reward to the
    highest."""
    used, others = (
        sorted((one for one in groups if one.is_used is is_used), key=_worth)
        for is_used in (True, False)
    )
    shown = spread(used, MOST_GROUPS)
    room = MOST_GROUPS - len(shown)
    for group in [*shown, *(spread(others, room) if room > 1 else others[:room])]:
        yield _table(group)


def _worth(group: RolledGroup) -> float:
    """The mean reward, or the mean advantage where there are no rewards."""
    values = [one.advantage if one.reward is None else one.reward for one in group.samples]
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


def _table(group: RolledGroup) -> Table:
    samples = sorted(group.samples, key=lambda one: -one.advantage)
    rows = [
        [
            "none" if one.reward is None else loss_text(one.reward),
            loss_text(one.advantage),
            f"{len(one.tokens):,}" + (", cut off" if one.is_truncated else ""),
            _said(one) or "(nothing)",
        ]
        for one in spread(samples, MOST_SAMPLES)
    ]
    columns = [
        Column("reward", True),
        Column("advantage", True),
        Column("tokens", True),
        Column("answer"),
    ]
    notes = [f"The row answers: {cut(group.reference)}"] if group.reference else []
    if len(rows) < len(samples):
        notes.append(f"{len(rows)} of {len(samples):,} answers.")
    if not group.is_used:
        notes.append("Not trained on: its answers are worth the same, or it rests.")
    return Table(f'"{cut(group.question)}"', columns, rows, note=" ".join(notes))

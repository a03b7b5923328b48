"""Of a run's page: answers that were sampled to train on, with their rewards and advantages.

A page shows a few groups of a few steps, and says which file has all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errors import RunStoreError
from ledger.rollouts import ROLLOUTS, RolledGroup, read_rollouts, rollouts_file
from ledger.store import RunStore
from loop.run_page.thinning import spread
from loop.run_page.viewed import Viewed
from loop.run_page.wording import cut, loss_text
from pages.document import Block, Column, Folded, Link, Links, Paragraph, Section, Table
from scores.measures import method_words

MOST_ROUNDS = 6  # the first one and the newest ones
MOST_GROUPS = 3  # of a round
MOST_SAMPLES = 8  # of a group


def sampled_sections(view: Viewed) -> Iterator[Section]:
    """The section, of a run that samples what it trains on. Raises `RunStoreError` for a file that
    is damaged."""
    method = method_words(view.config)
    firsts = {one["round"]: one["step"] for one in reversed(list(view.store.events("step")))}
    kept = {number: step for number, step in firsts.items() if _has_file(view.store, step)}
    if not kept and not method.is_sampled:
        return
    yield Section("Sampled answers", list(_blocks(view.store, kept)), anchor="sampled")


def _has_file(store: RunStore, step: int) -> bool:
    return (store.run_dir / rollouts_file(step)).is_file()


def _blocks(store: RunStore, steps: dict[int, int]) -> Iterator[Block]:
    if not steps:
        yield Paragraph(f"No step has been trained on sampled answers ({ROLLOUTS}/ has none).")
        return
    numbers = sorted(steps)
    shown = [*numbers[:1], *numbers[1:][1 - MOST_ROUNDS :]]
    which = "each round"
    if len(shown) < len(numbers):
        which = f"{len(shown)} of {len(numbers)} rounds"
    yield Paragraph(
        f"Of the first step of {which} up to {MOST_GROUPS} prompts, from the group with the "
        "lowest mean "
        f"reward to the one with the highest, and up to {MOST_SAMPLES} answers to each; "
        f"{ROLLOUTS}/ beside this page has a file for each step, with all answers whole, their "
        "tokens and log-probabilities. An answer's advantage says how much more likely (above 0) "
        "or less likely (below 0) training makes it."
    )
    for number in reversed(shown):
        groups = _read(store, steps[number])
        title = (
            f"Round {number}, step {steps[number]}: {min(len(groups), MOST_GROUPS)} of "
            f"{len(groups):,} groups"
        )
        yield Folded(title, [*_groups(groups), _whole(steps[number])])


def _read(store: RunStore, step: int) -> list[RolledGroup]:
    try:
        return read_rollouts(store.run_dir, step) or []
    except (ValueError, OSError) as error:
        raise RunStoreError(
            f"{store.run_dir / rollouts_file(step)}: not the sampled answers of a step: {error}. "
            "The file was changed by something else; restore it, or delete it."
        ) from None


def _groups(groups: Sequence[RolledGroup]) -> Iterator[Block]:
    """From the lowest mean reward to the highest, those between evenly."""
    ordered = sorted(groups, key=_worth)
    for group in spread(ordered, MOST_GROUPS):
        yield _table(group)


def _worth(group: RolledGroup) -> float:
    """The mean reward, or the mean advantage where there are no rewards."""
    values = [one.advantage if one.reward is None else one.reward for one in group.samples]
    return sum(values) / len(values)


def _table(group: RolledGroup) -> Table:
    samples = sorted(group.samples, key=lambda one: -one.advantage)
    rows = [
        [
            "none" if one.reward is None else loss_text(one.reward),
            loss_text(one.advantage),
            f"{len(one.tokens):,}" + (", cut off" if one.is_truncated else ""),
            cut(one.text) or "(nothing)",
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


def _whole(step: int) -> Links:
    name = rollouts_file(step)
    return Links("All of them:", [Link(name, f"./{name}")])

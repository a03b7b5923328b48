"""Of a run's page: what each round trained on and why, and rows as the model saw them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import median

from data_selector import Pick, Selection
from ledger.records import Shown, ShownPiece
from ledger.store import RunStore
from loop.run_page.viewed import Viewed
from loop.run_page.wording import loss_text
from pages.document import Block, Bullets, Column, Folded, Marked, Paragraph, Piece, Section, Table
from rows.places import place_text
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, SFT, method_words

MOST_ROUNDS = 6  # with their rows listed, the newest ones
MOST_PICKS = 40  # rows of a round
MOST_SUSPECTS = 20
MOST_SHOWN = 3  # rounds whose rows are shown as the model saw them, the newest ones


def selections_section(view: Viewed) -> Section:
    return Section("What was trained on, and why", list(_blocks(view)), anchor="selections")


def _blocks(view: Viewed) -> Iterator[Block]:
    store = view.store
    rounds = sorted({event["round"] for event in store.events("selected")})
    if not rounds:
        yield Paragraph("No round has been chosen.")
        return
    selections = [one for number in rounds if (one := store.selection(number)) is not None]
    yield _summary(store, selections)
    listed = selections[-MOST_ROUNDS:][::-1]
    if len(selections) > len(listed):
        yield Paragraph(
            f"Rows are listed of the last {len(listed)} of {len(selections)} rounds; "
            "selections/round_NN.json has those of each."
        )
    yield from (_picks_table(one) for one in listed)
    suspects = selections[-1].suspect_rows
    num_suspects = len(selections[-1].suspects)
    if num_suspects:
        yield Paragraph(
            f"Rows that look wrong: {num_suspects:,}, whose answers stayed unlikely under every "
            "checkpoint, so that they are drawn last. Look at them:"
        )
        items = [str(row) for row in suspects[:MOST_SUSPECTS]]
        if num_suspects > len(items):
            file = f"selections/round_{selections[-1].round:02d}.json"
            items.append(f"and {num_suspects - len(items):,} more, in {file}")
        yield Bullets(items)


def _summary(store: RunStore, selections: list[Selection]) -> Table:
    measured = {one.round: one for one in store.measured_losses()}
    sources = list(dict.fromkeys(name for one in selections for name in one.shares))
    rows = []
    for one in selections:
        losses = measured.get(one.round)
        of_losses = ["", "", ""]
        if losses is not None and losses.losses:
            values = sorted(loss.now for loss in losses.losses.values())
            of_losses = [f"{len(values):,}", loss_text(median(values)), loss_text(values[-1])]
        rows.append(
            [
                str(one.round),
                f"{len(one.picks):,}",
                f"{len({pick.example_id for pick in one.picks}):,}",
                *(f"{one.shares.get(name, 0):,}" for name in sources),
                *of_losses,
                f"{len(one.suspects):,}",
            ]
        )
    columns = [
        Column("round", True),
        Column("examples", True),
        Column("different rows", True),
        *(Column(NAMES.get(name, name), True) for name in sources),
        Column("losses measured", True),
        Column("median loss", True),
        Column("highest", True),
        Column("look wrong", True),
    ]
    note = "Before a round the losses of rows to draw from are measured, where mining asks for it."
    return Table("Examples by round", columns, rows, len(rows) > MOST_ROUNDS * 2, note)


# What the marked tokens of a row are to methods that do not make the rows' answers likely.
MARKED = {
    DPO: "of each pair the chosen answer, and below it the rejected one",
    RL: "the row's own answer, which the reward may compare with and which is not trained on",
    ON_POLICY: "the row's own answer, which is not trained on",
    OFF_POLICY: "the row's own answer, in whose place the teacher's is trained on",
}
NAMES = {
    "train": "from train_file",
    "replay": "replayed from train_file",
    "pool": "drawn from the pool",
}


def _picks_table(selection: Selection) -> Table:
    """The rows of a round in their order, mined ones first: those have a reason of their own."""
    times = Counter(pick.example_id for pick in selection.picks)
    once: dict[str, Pick] = {}
    for pick in sorted(selection.picks, key=lambda pick: pick.weight is None):
        once.setdefault(pick.example_id, pick)
    rows = []
    for pick in itertools.islice(once.values(), MOST_PICKS):
        where = "not recorded" if pick.file is None else f"{pick.file} line {pick.line_no}"
        number = f"{times[pick.example_id]:,}"
        topic = pick.topic or ""
        rows.append([where, pick.text or "", NAMES.get(pick.source, pick.source), topic])
        rows[-1] += [pick.reason, number]
    columns = [
        Column("row"),
        Column("begins with"),
        Column("source"),
        Column("topic"),
        Column("why"),
        Column("times", True),
    ]
    is_mined = any(pick.weight is not None for pick in once.values())
    note = "Mined rows first." if is_mined else ""
    if len(rows) < len(once):
        note = f"{note} {len(rows)} of {len(once):,} different rows are listed; all are in"
        note += f" selections/round_{selection.round:02d}.json."
    return Table(f"Rows of round {selection.round}", columns, rows, True, note.strip())


# --- as the model saw them ------------------------------------------------------------------------


def shown_section(view: Viewed) -> Section:
    """Rows with the tokens that are trained marked, or that stand for what is not trained."""
    title = "Rows as the model saw them"
    return Section(title, list(_shown_blocks(view)), anchor="shown")


def _shown_blocks(view: Viewed) -> Iterator[Block]:
    store = view.store
    rounds = sorted({event["round"] for event in store.events("selected")})
    kept = [one for number in rounds if (one := store.shown(number)) is not None]
    if not kept:
        yield Paragraph(
            "None are kept: no round was chosen yet, or a version before this one chose it "
            "(--preview shows rows)."
        )
        return
    newest = kept[-1]
    method = method_words(view.config)
    marked = f"what is trained (train_on {newest.train_on})"
    if method is not SFT:
        marked = MARKED[method]
    yield Paragraph(
        f"Marked is {marked}, in the chat format {newest.renderer}; a weight other than 1 stands "
        "before its text."
    )
    if len(kept) > MOST_SHOWN:
        yield Paragraph(
            f"Of {len(kept)} rounds the last {MOST_SHOWN} are shown; selections/shown_NN.json has "
            "the others."
        )
    for one in kept[-MOST_SHOWN:][::-1]:
        title = f"Round {one.round}: {len(one.rows)} of {one.num_rows:,} different rows"
        are = "are trained" if method.name in ("sft", "dpo") else "are the row's own answer"
        yield Folded(title, list(_rows_of(one, are)))


def _rows_of(shown: Shown, are: str) -> Iterator[Block]:
    for row in shown.rows:
        weight = "" if row.weight == 1 else f", weight {row.weight:g}"
        cut = ", cut at max_seq_length" if row.is_truncated else ""
        topic = "" if row.topic is None else f", topic {row.topic}"
        note = (
            f"{place_text(row.file, row.line_no, None)}{topic}: {row.num_loss_tokens:,} of "
            f"{row.num_tokens + 1:,} tokens {are}{weight}{cut}. Chosen because: {row.reason}."
        )
        yield Marked(note, list(_pieces(row.pieces)))
        if row.rejected:
            yield Marked("Rejected for it:", list(_pieces(row.rejected)))


def _pieces(pieces: Iterable[ShownPiece]) -> Iterator[Piece]:
    for piece in pieces:
        if piece.num_left_out:
            yield Piece(f" [{piece.num_left_out:,} characters are left out here] ", 0.0)
        yield Piece(piece.text, piece.weight)

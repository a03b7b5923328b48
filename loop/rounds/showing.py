"""Rows of a round as the model sees them, kept for whoever reads of the run later.

A page is made from the run directory alone, and only here is there a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_selector import Pick, Selection
from ledger.records import Shown, ShownPiece, ShownRow
from loop.planning.plan import Plan
from rows.examples import find_example
from rows.rendering import Piece

NUM_SHOWN = 12  # rows of a round, half of them mined ones where there are so many
MAX_PIECE_CHARS = 800  # of which both ends are kept
MAX_ROW_CHARS = 4_000


def shown_of(plan: Plan, selection: Selection) -> Shown:
    """The rows of a round that are kept so."""
    return Shown(
        round=selection.round,
        renderer=plan.renderer_name,
        train_on=plan.rendering.train_on_what.value,
        num_rows=len({pick.example_id for pick in selection.picks}),
        rows=[_shown(plan, pick) for pick in shown_picks(selection.picks)],
    )


def shown_picks(picks: Iterable[Pick]) -> list[Pick]:
    """The first rows of a round, mined ones among them, each once and in the round's order."""
    once: dict[str, Pick] = {}
    for pick in picks:
        once.setdefault(pick.example_id, pick)
    mined = [pick for pick in once.values() if pick.weight is not None]
    others = [pick for pick in once.values() if pick.weight is None]
    num_mined = max(NUM_SHOWN // 2, NUM_SHOWN - len(others))
    chosen = {pick.example_id for pick in mined[:num_mined]}
    chosen |= {pick.example_id for pick in others[: NUM_SHOWN - len(chosen)]}
    return [pick for pick in once.values() if pick.example_id in chosen]


def _shown(plan: Plan, pick: Pick) -> ShownRow:
    example = find_example(pick.example_id, plan.train.examples, plan.pool.examples)
    assert example is not None, "the selection was made of these tables"
    info, rendering = plan.rendering[pick.example_id].info, plan.rendering
    rejected: Iterable[Piece] = ()
    if example.rejected is not None:
        rejected = rendering.pieces_of(pick.example_id, is_rejected=True)
    return ShownRow(
        example_id=pick.example_id,
        file=example.source,
        line_no=example.line_no,
        topic=pick.topic,
        source=pick.source,
        reason=pick.reason,
        is_mined=pick.weight is not None,
        num_tokens=info.num_tokens,
        num_loss_tokens=info.num_loss_tokens,
        is_truncated=info.truncated,
        weight=info.weight,
        pieces=list(shortened(rendering.pieces_of(pick.example_id))),
        rejected=list(shortened(rejected)),
    )


def shortened(pieces: Iterable[Piece]) -> Iterator[ShownPiece]:
    """Pieces with the middle of long ones left out, and the end of a row that is long all the
    same; how much is left out is kept."""
    num_chars = num_left_out = 0
    for text, weight in pieces:
        if num_chars >= MAX_ROW_CHARS:
            num_left_out += len(text)
            continue
        ends = [text]
        if len(text) > MAX_PIECE_CHARS:
            half = MAX_PIECE_CHARS // 2
            ends = [text[:half], text[-half:]]
        num_chars += sum(map(len, ends))
        yield ShownPiece(ends[0], weight)
        if len(ends) > 1:
            yield ShownPiece(ends[1], weight, len(text) - MAX_PIECE_CHARS)
    if num_left_out:
        yield ShownPiece("", 0.0, num_left_out)

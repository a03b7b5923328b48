"""The model, its chat format, and rows as it will see them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loop.plan_page.view import Part, Planned
from loop.planning.environments import describe_rewards
from loop.planning.fitting import limits_of
from loop.planning.methods import describe_method, train_on_text, words_for
from loop.planning.models import model_config
from loop.planning.page import describe_formats
from loop.planning.plan import Plan
from pages.document import Block, Marked, Paragraph, Piece
from rows.rendering import Piece as RowPiece
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL, SFT

NUM_ROWS = 3
PIECE_CHARS = 4000  # of a row on the page; what is longer is cut, and said to be

# What of a row is marked, by the method.
MARKED = {
    SFT: "the tokens that carry loss are marked",
    DPO: "the tokens of the answers that are compared are marked",
    RL: "its own answer, which a reward may compare with and which is not trained on, is marked",
    ON_POLICY: "its own answer, which is not used, is marked",
    OFF_POLICY: "its own answer, in whose place the teacher's is trained on, is marked",
}


def config_of(base_model: str, model_dir: Path | None) -> Mapping[str, Any] | None:
    """A model's config.json, in its directory or the hub client's cache; None where neither is."""
    if model_dir is not None:
        return model_config(model_dir, "base_model")
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(OSError, ValueError, RecursionError):
        file = try_to_load_from_cache(base_model, "config.json")
        found = (
            json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(file, str) else None
        )
        return found if isinstance(found, dict) else None
    return None


def model_part(view: Planned) -> Part:
    """What is trained, where, and in which chat format."""
    config, plan = view.config, view.plan
    lines = [
        *describe_method(config),
        *view.place,
        f"model: {config.base_model}, {_known_of(view)}",
    ]
    facts: dict[str, Any] = {
        "base_model": config.base_model,
        "is_directory": view.inputs.model_dir is not None,
        "service": None if view.choice is None else view.choice.kind,
        "model_type": None if view.model is None else view.model.get("model_type"),
        "context": limits_of(view.inputs.model_dir).context,
        "method": config.method,
        "method_settings": config.model_dump(mode="json").get(config.method),
    }
    if plan is None:
        unknown = dict.fromkeys(("renderer", "renderer_source", "chat_template", "train_on"))
        return Part("model", "Model and place", lines, {**facts, **unknown, "rows": []})
    train_on = plan.rendering.train_on_what.value
    lines += [*describe_formats(plan), train_on_text(config, train_on)]
    lines += describe_rewards(plan)
    comparison = plan.chat_format.comparison
    rows = list(_rows_of(plan))
    facts |= {
        "renderer": plan.renderer_name,
        "renderer_source": plan.chat_format.source,
        "chat_template": None if comparison is None else str(comparison),
        "train_on": train_on if words_for(config) is SFT else None,
        "rows": [
            {"row": marked.note, "pieces": [[one.text, one.weight] for one in marked.pieces]}
            for marked in rows
        ],
    }
    intro = f"Rows as the model sees them; {MARKED[words_for(config)]}."
    blocks: list[Block] = [Paragraph(intro), *rows]
    return Part("model", "Model and place", lines, facts, blocks)


def _known_of(view: Planned) -> str:
    """What config.json says of a model, in words."""
    if view.model is None:
        return "of which no config.json is on this machine"
    inner = view.model.get("text_config")
    sizes = {**view.model, **(inner if isinstance(inner, dict) else {})}
    told = [f"type {view.model.get('model_type', 'not named')}"]
    for key, what in (
        ("num_hidden_layers", "layers"),
        ("hidden_size", "wide"),
        ("max_position_embeddings", "of context"),
    ):
        if type(sizes.get(key)) is int:
            told.append(f"{sizes[key]:,} {what}")
    return ", ".join(told)


def _rows_of(plan: Plan) -> Iterator[Marked]:
    """A row from the beginning, one from the middle and one from the end of the training rows; of a
    pair both sides."""
    table = plan.train.examples
    for position in dict.fromkeys((0, len(table) // 2, len(table) - 1)[:NUM_ROWS]):
        example = table[position]
        carry = "carry loss" if words_for(plan.config) in (SFT, DPO) else "are its own answer"
        info = plan.rendering[example.id].info
        note = (
            f"{example.source} line {example.line_no}: {info.num_tokens + 1} tokens, "
            f"{info.num_loss_tokens} of them {carry}"
        )
        yield _marked(note, plan.rendering.pieces_of(example.id))
        if example.rejected is not None:
            rejected = plan.rendering.pieces_of(example.id, is_rejected=True)
            yield _marked("against the rejected answer", rejected)


def _marked(note: str, rendered: Iterable[RowPiece]) -> Marked:
    pieces, left = [], PIECE_CHARS
    for piece in rendered:
        if left <= 0:
            break
        pieces.append(Piece(piece.text[:left], piece.weight))
        left -= len(piece.text)
    cut = "" if left >= 0 else f"; its first {PIECE_CHARS:,} characters"
    return Marked(f"{note}{cut}", pieces)

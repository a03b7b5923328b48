"""A run as a section of a project's log: what was trained, on what, how, what came of it.

    ### support, round 3

Base model and LoRA, training and its learning rate, data, results, which round and why, and the
failures that are known: all read from the run directory, as the card of an export has it.
"""

from __future__ import annotations

import re

from errors import ConfigError
from exports.card_failures import failures_section
from exports.card_results import decision_section, results_section
from exports.card_story import Story, places_in, shorter, story_in
from exports.card_training import data_section, training_section
from ledger.store import RunStore
from pages.document import Document, Paragraph
from pages.markdown import markdown

DEEPER = 1  # levels of headings below the log's own


def run_document(store: RunStore) -> str:
    """The section in Markdown, of the checkpoint that the run recommends. Raises `ConfigError`
    where it has none yet."""
    decision = store.last_decision()
    checkpoint = None if decision is None else store.checkpoint(decision.best_round)
    if decision is None or checkpoint is None or not decision.best_round:
        raise ConfigError(
            f"{store.run_dir}: no round was trained and evaluated yet, so there is nothing to "
            "tell. Continue the run with --resume."
        )
    story = story_in(store, checkpoint)
    sections = [
        training_section(story, in_card=False),
        data_section(story),
        results_section(story),
        decision_section(story),
        failures_section(story),
    ]
    title = f"{story.config['run_name']}, round {checkpoint.round}"
    blocks = [Paragraph(_opening(story)), Paragraph(story.headline), *sections]
    text = shorter(markdown(Document(title, blocks)), places_in(story))
    return re.sub(r"^(#+) ", rf"{'#' * DEEPER}\1 ", text, flags=re.MULTILINE)


def _opening(story: Story) -> str:
    one, run = story.checkpoint, story.store.run_id
    origin = story.store.origin
    start = "" if origin is None else f" It began with the weights of {origin.parent}."
    return (
        f"Run {run}: base model {one.base_model}, chat format {one.renderer}. {story.lora_text}. "
        f"{story.store.num_steps_in(one):,} optimizer steps.{start}"
    )

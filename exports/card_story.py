"""What a run tells of one of its checkpoints, gathered once for the card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exports.source import Source
from ledger.records import Checkpoint, Manifest
from ledger.store import RunStore
from loop.run_page.opening import sealed_text
from loop.run_page.viewed import Viewed, viewed
from loop.run_page.wording import gain_of, gain_text
from pages.markdown import inline
from scores.decision import Decision, broken_guard, judge
from scores.results import EvalResult
from scores.wording import score_text

STANDING = {
    "going_on": "The run was going on when this was exported",
    "left": "The run has not come to its end, and nobody was at work on it",
    "interrupted": "The run was interrupted before its end",
    "failed": "The run failed before its end",
    "eval_failed": "The run ended with an evaluation that failed and has no score",
}


@dataclass(frozen=True)
class Story:
    """A checkpoint with what its run recorded. `result` is of these weights and of no others."""

    view: Viewed
    recorded: Mapping[str, Any]  # config.resolved.json
    manifest: Manifest
    checkpoint: Checkpoint
    result: EvalResult | None
    baseline: EvalResult | None
    decision: Decision | None  # of its round
    last: Decision | None  # of the run

    @property
    def store(self) -> RunStore:
        return self.view.store

    @property
    def config(self) -> Mapping[str, Any]:
        return self.view.config

    @property
    def test(self) -> EvalResult | None:
        """The sealed test, where it was asked of these weights."""
        test = self.store.test_result()
        is_own = test is not None and test.checkpoint == self.checkpoint.sampler_path
        return test if is_own else None

    @property
    def guard_broken(self) -> str | None:
        if self.result is None or self.baseline is None:
            return None
        return broken_guard(self.result, self.baseline, self.view.gate)

    @property
    def lora_text(self) -> str:
        one = self.checkpoint
        layers = [name for name in ("attn", "mlp", "unembed") if getattr(one, f"train_{name}")]
        return (
            f"LoRA rank {one.lora_rank}, alpha {one.lora_alpha:g}, trained layers: "
            f"{', '.join(layers)}"
        )

    @property
    def start_name(self) -> str:
        """What round 0 measured."""
        return self.store.baseline_name

    @property
    def headline(self) -> str:
        """What it scored against what it began with, and what the sealed test said."""
        if self.result is None:
            return f"This checkpoint was not evaluated.{self.standing}"
        text = f"Score {score_text(self.result)} on {self.result.n:,} dev questions"
        if self.baseline is not None and self.checkpoint.round:
            gain = gain_text(gain_of(self.result, self.baseline))
            text += f", {self.start_name} {score_text(self.baseline)} on them; change {gain}"
        if self.baseline is not None and self.checkpoint.round:
            verdict = judge(self.result, self.baseline, self.view.gate)
            passes = "It passes its gate" if verdict.passed else "It does not pass its gate"
            text += f". {passes}: {verdict.objection or verdict.numbers}"
        return f"{text}. {self.sealed}{self.standing}"

    @property
    def sealed(self) -> str:
        """What is known of the sealed test, as a sentence."""
        test = self.store.test_result()
        if test is not None and self.test is None:
            return (
                f"The sealed test was asked of round {test.round} and not of this checkpoint, so "
                "nothing is known of it."
            )
        text = sealed_text(self.view)
        return f"{text[0].upper()}{text[1:]}."

    @property
    def standing(self) -> str:
        """A sentence where the run has not come to its end; empty where it has. Why it failed is
        left out: an error's text names places on the disk."""
        standing = self.view.standing
        if standing.kind == "finished":
            return ""
        return f" {STANDING[standing.kind]}."


def story_of(source: Source) -> Story | None:
    """What the run of a checkpoint tells of it; None of one that belongs to no known run."""
    if source.store is None or source.checkpoint is None:
        return None
    return story_in(source.store, source.checkpoint)


def story_in(store: RunStore, checkpoint: Checkpoint) -> Story:
    """What a run tells of one of its checkpoints."""
    result = store.result(checkpoint.round)
    is_own = result is not None and result.checkpoint == checkpoint.sampler_path
    return Story(
        view=viewed(store),
        recorded=store.settled_config(),
        manifest=store.manifest(),
        checkpoint=checkpoint,
        result=result if is_own else None,
        baseline=store.result(0),
        decision=store.decision(checkpoint.round) if is_own else None,
        last=store.last_decision(),
    )


def shorter(text: str, places: Iterable[str]) -> str:
    """A card without the folders of whoever made it: of a path only its last part is left.

    Sentences of the run name tasks as its settings do, which may be by a whole path.
    """
    whole = {place for place in places if Path(place).is_absolute()}
    for place in sorted(whole, key=len, reverse=True):
        if name := Path(place).name:
            found = rf"(?<![\w.-]){re.escape(inline(place))}(?![\w.-])"
            text = re.sub(found, lambda _, name=name: inline(name), text)
    return text


def places_of(source: Source, story: Story | None) -> Iterator[str]:
    """The places on the disk that a card of a checkpoint may name."""
    yield from (str(source.base_dir), source.base_name)
    if story is not None:
        yield from places_in(story)


def places_in(story: Story) -> Iterator[str]:
    """Those that a run names."""
    store, manifest = story.store, story.manifest
    yield story.checkpoint.base_model
    yield str(store.run_dir.resolve())
    yield from (file.path for file in (*manifest.files.values(), *manifest.eval_tasks.values()))
    for name in manifest.eval_tasks:
        yield from (name, name.partition(":")[2])
    if (origin := store.origin) is not None:
        for one in (origin.parent, *origin.ancestors):
            yield from (one.name, one.run_dir or "", one.base_model or "")

"""The demo learns, it learns because it trains, and what it prints is what the pages show."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import REPO, thorough_only
from ledger.store import RunStore
from test_docs import AFTER_THE_DEMO, assert_shown, block, masked, run_example
from trainer_with_eval import main


class Demo(NamedTuple):
    folder: Path  # as a user's folder, with the run in it
    store: RunStore
    screen: str  # progress and results in one stream, as a person sees them


def run_demo(folder: Path, *overrides: str) -> Demo:
    run_dir = folder / "runs" / "demo"
    arguments = ["--config", str(REPO / "demo_config.json"), "--local", "--run-dir", str(run_dir)]
    for override in overrides:
        arguments += ["--set", override]
    screen = io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen):
        assert main(arguments) == 0
    return Demo(folder, RunStore.open(run_dir), screen.getvalue().strip())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo"))


@pytest.mark.trains
def test_three_rounds_bring_out_what_the_model_knows(demo: Demo) -> None:
    scores = demo.store.scores()
    assert scores[0] <= 0.25
    assert scores[0] < scores[1] < 0.75
    assert max(scores.values()) >= 0.75
    # and by topic: the mined slots of round 2 went where round 1 had failed most
    second = demo.store.selection(2)
    assert second is not None
    assert sum(second.topic_slots.values()) == 32


@pytest.mark.trains
def test_demo_transcript_is_a_real_one(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Structure and decisions, with numbers masked; the lines in README are part of it; and the
    adapter that the run leaves is loaded as the page on it says."""
    assert masked(block("DEMO.md", "transcript")) == masked(demo.screen)
    whole, shown = (
        block(document, name).splitlines()
        for document, name in (("DEMO.md", "transcript"), ("README.md", "what-you-see"))
    )
    assert_shown(shown, whole)
    assert len(shown) > 5
    monkeypatch.chdir(demo.folder)
    run_example(AFTER_THE_DEMO, demo.folder)


@thorough_only
def test_with_next_to_no_learning_rate_nothing_is_learned(tmp_path: Path) -> None:
    store = run_demo(tmp_path, "learning_rate=1e-9", "min_lr=0", "max_rounds=1").store
    baseline, after = store.result(0), store.result(1)
    assert baseline is not None
    assert after is not None
    assert baseline.interval is not None
    assert baseline.interval.low <= after.score <= baseline.interval.high

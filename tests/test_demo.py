"""The demo learns, and it learns because it trains."""

from __future__ import annotations

from pathlib import Path

from conftest import REPO
from ledger.store import RunStore
from trainer_with_eval import main


def run_demo(run_dir: Path, *overrides: str) -> RunStore:
    arguments = ["--config", str(REPO / "demo_config.json"), "--local", "--run-dir", str(run_dir)]
    for override in overrides:
        arguments += ["--set", override]
    assert main(arguments) == 0
    return RunStore.open(run_dir)


def test_three_rounds_bring_out_what_the_model_knows(tmp_path: Path) -> None:
    store = run_demo(tmp_path / "run", "seed=20")
    scores = store.scores()
    assert scores[0] <= 0.25
    assert scores[0] < scores[1] < 0.75
    assert max(scores.values()) >= 0.75
    # and by topic: the mined slots of round 2 went where round 1 had failed most
    second = store.selection(2)
    assert second is not None
    assert sum(second.topic_slots.values()) == 32


def test_with_next_to_no_learning_rate_nothing_is_learned(tmp_path: Path) -> None:
    store = run_demo(tmp_path / "run", "learning_rate=1e-9", "min_lr=0", "max_rounds=1")
    baseline, after = store.result(0), store.result(1)
    assert baseline is not None
    assert after is not None
    assert baseline.interval is not None
    assert baseline.interval.low <= after.score <= baseline.interval.high

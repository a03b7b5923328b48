"""Evaluations that something else has changed are refused, wherever they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answer_runs import GUARD, LOSS, SCORED, answers_run
from errors import RunStoreError
from ledger.glance import LedgerWatch
from ledger.store import RunStore
from loop.run_page.page import page_of
from loop.run_page.viewed import viewed
from report import main
from report_runs import TASK, made_run

FILE = "evals/round_02.json"
Change = Callable[[dict[str, Any]], Any]


def change(run_dir: Path, how: Change, name: str = FILE) -> None:
    data = json.loads((run_dir / name).read_text())
    how(data)
    (run_dir / name).write_text(json.dumps(data))


def forget_digests(run_dir: Path) -> None:
    """The ledger as versions before wrote it."""
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        event.pop("digests", None)
        event.pop("interval", None)
    (run_dir / "ledger.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))


def first_sample(data: dict[str, Any]) -> dict[str, Any]:
    return data["tasks"][0]["samples"][0]


SUMS: list[tuple[Change, str]] = [
    (lambda data: data.update(score=0.99), "its score is 0.9900, and the ledger has"),
    (lambda data: data["tasks"][0].update(score=0.5), f"the score of {TASK} is given as 0.5000"),
    (lambda data: data["tasks"][0]["samples"].pop(), f"the score of {TASK} is given as"),
]
CONTENT: list[tuple[Change, str]] = [
    (lambda data: data.update(interval=[0.84, 0.86]), "its interval is not the one in the ledger"),
    (lambda data: first_sample(data).update(answer="other"), f"scores of {TASK} are not those"),
    (lambda data: first_sample(data).update(question="other"), f"scores of {TASK} are not those"),
    (lambda data: first_sample(data).update(truncated=True), f"scores of {TASK} are not those"),
    (lambda data: data["tasks"][0].update(interval=[0.1, 0.2]), f"scores of {TASK} are not those"),
]


@pytest.mark.parametrize(("how", "said"), [*SUMS, *CONTENT])
def test_a_changed_evaluation_is_refused(
    how: Change, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, other = made_run(tmp_path / "r"), made_run(tmp_path / "other")
    change(run_dir, how)
    for arguments in ([str(run_dir)], [str(other), str(run_dir), "--out", f"{tmp_path}/c.html"]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert FILE in err and said in err and err.count("\n") == 1
    best = LedgerWatch(run_dir).look().best
    assert best is not None and best.score == RunStore.open(run_dir).scores()[2]


@pytest.mark.parametrize(("how", "said"), SUMS)
def test_sums_are_held_against_each_other_without_digests(
    how: Change, said: str, tmp_path: Path
) -> None:
    run_dir = made_run(tmp_path / "r")
    forget_digests(run_dir)
    page_of(viewed(RunStore.open(run_dir)))
    change(run_dir, how)
    with pytest.raises(RunStoreError, match=said):
        page_of(viewed(RunStore.open(run_dir)))


def test_what_was_broken_off_is_sealed_too(tmp_path: Path) -> None:
    store = answers_run(tmp_path / "r")
    store.close()
    before = RunStore.open(store.run_dir).measured(0)
    assert {SCORED, GUARD, LOSS} >= before.names
    number = max(event["round"] for event in store.events("measured"))
    name = next(event["file"] for event in store.events("measured", number))
    change(store.run_dir, lambda data: first_sample(data).update(answer="other"), name)
    with pytest.raises(RunStoreError, match="are not those that were measured"):
        RunStore.open(store.run_dir).measured(number)
    change(store.run_dir / "..", lambda data: None, f"r/{FILE}")  # written anew, and the same
    assert RunStore.open(store.run_dir).result(2) is not None


def test_a_loss_of_held_out_rows_is_sealed(tmp_path: Path) -> None:
    store = answers_run(tmp_path / "r")
    store.close()
    change(store.run_dir, lambda data: data["held_out"][0]["rows"][0].update(nll_sum=1.0))
    with pytest.raises(RunStoreError, match=f"scores of {LOSS} are not those"):
        RunStore.open(store.run_dir).result(2)


def test_what_a_kill_left_before_its_event_is_no_change(tmp_path: Path) -> None:
    """The file is written first: of a task that no event names nothing is known, nor read."""
    run_dir = made_run(tmp_path / "r")
    lines = (run_dir / "ledger.jsonl").read_text().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in lines]
    cut = len(kinds) - 1 - kinds[::-1].index("measured")
    (run_dir / "ledger.jsonl").write_text("".join(lines[:cut]))
    store = RunStore.open(run_dir)
    assert store.result(2) is None and store.measured(2).names == frozenset()
    page_of(viewed(store))

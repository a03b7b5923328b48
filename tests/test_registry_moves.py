"""What a registry tells of runs that were moved, and what keeps promoted weights where they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import trainer_with_eval
from ledger.registry_file import Registry, Results
from ledger.registry_names import locate
from ledger.registry_weights import digest_of, weights_dir
from ledger.store import RunStore
from promotion.entry import summary_of
from promotion.keeping import key_of, paths_of
from promotion.showing import describe, shown_of
from promotion.verifying import verify
from registry_records import promoted, with_weights
from run_records import Shape, finished
from scores.results import Measured
from storage.stored_json import record_of

FILE = Path("registry.jsonl")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of two rounds in runs/r, both versions of `support`."""
    monkeypatch.chdir(tmp_path)
    store = with_weights(finished(Path("runs/r"), Shape(is_sealed=False)))
    promoted(FILE, store, "support", 1, 2)
    return tmp_path


def test_staleness_is_looked_for_where_the_run_lies_now(folder: Path) -> None:
    before = shown_of(Registry.read(FILE), Registry.read(FILE).find("support@2"))
    Path("runs/study").mkdir()
    Path("runs/r").rename("runs/study/other")
    registry = Registry.read(FILE)
    shown = shown_of(registry, registry.find("support@2"))
    assert (shown.unknown, shown.stale) == (before.unknown, before.stale) == (None, before.stale)
    assert any("train.jsonl is not there" in what for what in shown.unchecked)
    assert any(line.startswith("not checked for changes: ") for line in describe(registry, shown))
    shutil.rmtree("runs/study")
    gone = shown_of(registry, registry.find("support@2"))
    assert gone.unknown is not None and "not a run directory" in gone.unknown


def test_an_evaluation_outside_the_run_is_found_wherever_it_lies(folder: Path) -> None:
    shutil.copytree("runs/r", "runs/evaluated")
    place = Path("runs/evaluated/evals/round_01.json")
    place.write_text(place.read_text() + "\n")  # so that it is told apart from the run's own
    outside = {"file": "evals/round_01.json", "file_sha256": digest_of(place)}
    outside |= {"evaluation_dir": "runs/evaluated"}
    promoted(FILE, RunStore.open(Path("runs/r")), "outside", 1, results=outside)
    registry = Registry.read(FILE)
    assert verify(registry).holds
    Path("runs/evaluated").rename("runs/moved")
    (found,) = [one for one in verify(registry).entries if one.entry.name == "outside"]
    assert found.holds and "runs/moved/evals" in str(found.findings)
    assert shown_of(registry, registry.find("outside@1")).unknown is None
    shutil.rmtree("runs/moved")
    assert not verify(registry).holds
    assert record_of(Results, found.entry.results).evaluation_dir == "runs/evaluated"


def test_what_an_entry_says_of_its_evaluation_has_to_stand_there(folder: Path) -> None:
    """The hash of the last line is carried by none."""
    *lines, last = FILE.read_text().splitlines()
    event = json.loads(last)
    event["entry"]["results"]["score"] += 0.01
    FILE.write_text("".join(f"{line}\n" for line in (*lines, json.dumps(event))))
    registry = Registry.read(FILE)
    (found,) = [one for one in verify(registry).entries if not one.holds]
    assert "the entry has score 0.91, and it has 0.9" in "".join(found.lines())


def test_a_run_that_goes_on_may_measure_more_of_a_promoted_round(folder: Path) -> None:
    store, file = RunStore.open(Path("runs/r"), to_resume=True), "evals/round_01.json"
    result = store.result(1)
    assert result is not None
    about = {"file": file, "file_sha256": digest_of(Path("runs/r") / file)}
    promoted(FILE, store, "full", 1, results={**summary_of(result), **about})
    more = replace(result.tasks[0], name="qa:more.jsonl", role="report")
    store.record_measured(1, Measured((more,)), 3)
    store.close()
    found = verify(Registry.read(FILE)).entries[-1]
    assert found.holds and "evaluation grown: " in "".join(found.lines())


def test_the_state_to_train_on_from_is_proven_too(folder: Path) -> None:
    found = locate(FILE, "registry:support@2")
    file = weights_dir(Path("runs/r"), found.entry.state_path) / "adapter_model.safetensors"
    file.write_text("another one")
    *_, last = verify(Registry.read(FILE)).entries
    assert not last.holds and "/weights/round_02 is not the file that" in "".join(last.lines())


def test_going_back_does_not_train_again_what_was_promoted(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its name would mean nothing from then on."""
    store = RunStore.open(Path("runs/r"))
    found = locate(FILE, "registry:support@2")
    paths = paths_of(found.checkpoint)
    key = key_of(Registry.read(FILE), found.entry)
    store.record_promoted(paths, key)
    ledger = Path("runs/r/ledger.jsonl").read_bytes()
    for word in ((), ("--dry-run",)):
        assert trainer_with_eval.main(["--resume", "runs/r@round_01", *word]) == 2
        said = capsys.readouterr().err
        assert "round 2 is registry:support@2 of " in said and "runs/r@round_01" in said
    assert Path("runs/r/ledger.jsonl").read_bytes() == ledger
    store.refuse_losing_promoted(2)  # which stays
    store.record_let_go(paths, key)
    store.refuse_losing_promoted(1)

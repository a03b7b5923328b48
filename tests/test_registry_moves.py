"""What a registry tells of runs that were moved, and what keeps promoted weights where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import trainer_with_eval
from ledger.registry_file import Registry, Results
from ledger.registry_names import locate
from ledger.registry_weights import digest_of
from ledger.store import RunStore
from promotion.keeping import key_of, paths_of
from promotion.showing import shown_of
from promotion.verifying import verify
from registry_records import promoted, with_weights
from run_records import Shape, finished
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

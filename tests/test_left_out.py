"""Rows that are left out or listed: what is said of them, where they stand, how to find them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data_loader import load_examples
from data_selector import Mining, Rows, Selection, Signals, select_first, select_next
from loop.rounds.selecting import located
from rows.places import DROPPED, SIMILAR, RowPlace
from rows.sources import Source
from trainer_with_eval import main

if TYPE_CHECKING:
    from test_loop import Workspace

LONG = (
    "A farmer who lives beside the river has a red barn with many sheep in it and all but a few "
    "of them run away into the hills. Which word stands at the end?"
)


def listed(folder: Path, name: str) -> list[tuple[int, str]]:
    rows = map(json.loads, (folder / name).read_text().splitlines())
    return [(row["line_no"], row["kind"]) for row in rows]


def planted(workspace: Workspace) -> None:
    """A pool with the same question, a near copy of a long one, a similar row and others."""
    questions = [
        {"question": LONG, "answer": "x"},
        {"question": "Which word comes third here?", "answer": "y"},
    ]
    workspace.write_rows("questions.jsonl", questions)
    asked = [LONG.upper(), LONG.replace("red", "green"), "Which word comes fourth here?", "Say"]
    rows = [{"instruction": one, "output": "x"} for one in asked]
    others = [{"instruction": f"Say {i}", "output": str(i)} for i in range(100, 140)]
    workspace.write_rows("pool.jsonl", [*rows, *others])


@pytest.mark.parametrize("mode", ["drop", "list", "stop"])
def test_a_dry_run_writes_both_lists_beside_the_config(
    workspace: Workspace, capsys: pytest.CaptureFixture, mode: str
) -> None:
    planted(workspace)
    code = workspace.run("run", "--dry-run", data={"contamination": mode})
    told, folder = capsys.readouterr(), workspace.folder / "config.plan"
    if mode == "stop":
        assert code == 2 and "2 of the rows hold what an evaluation asks" in told.err
        assert not folder.exists()
        return
    assert code == 0
    near = [(2, "contaminated" if mode == "drop" else "similar")]
    same, alike = [(1, "contaminated")], [(3, "similar")]
    assert listed(folder, DROPPED) == same + (near if mode == "drop" else [])
    assert listed(folder, SIMILAR) == (near if mode == "list" else []) + alike
    assert f"lists: {folder / DROPPED}, {folder / SIMILAR}" in told.out
    assert f"dropped rows: {3 - len(listed(folder, SIMILAR))} contaminated" in told.out
    assert "  pool.jsonl line 1 ('A FARMER WHO LIVES" in told.out
    assert (
        f"similar rows: {len(listed(folder, SIMILAR))}, trained on: they are only similar"
        in told.out
    )
    assert not (workspace.folder / "run").exists()


def test_lists_that_cannot_be_written_are_named_and_a_resumed_dry_run_writes_none(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    (workspace.folder / "config.plan").write_text("mine")
    assert workspace.run("run", "--dry-run") == 0
    assert "the lists of dropped and similar rows: " in capsys.readouterr().out
    assert (workspace.folder / "config.plan").read_text() == "mine"
    (workspace.folder / "config.plan").unlink()
    assert workspace.run("run", max_rounds=1) == 0
    assert main(["--resume", str(workspace.folder / "run"), "--dry-run"]) == 0
    assert not (workspace.folder / "config.plan").exists()


def test_when_more_than_a_tenth_of_a_file_goes_this_is_said_first(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"instruction": f"Say {i}", "output": str(i)} for i in range(100, 140)]
    same = [{"instruction": f"Which word stands at place {i}?", "output": "x"} for i in range(3)]
    bad = [{"instruction": f"no output {i}"} for i in range(2)]
    workspace.write_rows("pool.jsonl", [*rows, *same, *bad, rows[0]])
    assert workspace.run("run", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Look at these first"
    assert lines[1].strip() == (
        "warning: 6 of the 46 rows of pool.jsonl are left out (13%): 3 asking an evaluation "
        'question; 2 (expected "messages", "conversations", "instruction"+"output", '
        '"prompt"+"completion" or "input"+"output", found keys: instruction); 1 already in the '
        "files"
    )
    # A fourth reason that is the last one is told, too.
    workspace.write_rows(
        "pool.jsonl", [*rows, *same, *bad, rows[0], {"instruction": "a", "output": ""}]
    )
    assert workspace.run("run", "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'already in the files; 1 ("output" is empty)' in said
    assert "other reasons" not in said
    workspace.write_rows("pool.jsonl", [*rows, *same[:1], *bad[:1], rows[0]])
    assert workspace.run("run", "--dry-run") == 0
    assert "warning:" not in capsys.readouterr().out


def test_one_question_that_many_different_rows_are_near_to_is_named(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("questions.jsonl", [{"question": LONG, "answer": "x"}])
    names = ("grey", "green", "blue", "white", "black")
    near = [{"instruction": LONG.replace("red", name), "output": "x"} for name in names]
    others = [{"instruction": f"Say {i}", "output": str(i)} for i in range(100, 190)]
    for number, is_named in ((5, True), (4, False)):
        workspace.write_rows("pool.jsonl", [*near[:number], *others])
        assert workspace.run("run", "--dry-run") == 0
        told = capsys.readouterr().out
        assert (
            "5 different rows are left out as near copies of the one question" in told
        ) is is_named


def test_every_row_that_a_run_names_can_be_looked_up(workspace: Workspace) -> None:
    assert workspace.run("run") == 0
    for round_no in (1, 2):
        file = workspace.folder / f"run/selections/round_{round_no:02d}.json"
        for pick in json.loads(file.read_text())["picks"]:
            rows = (workspace.folder / pick["file"]).read_text().splitlines()
            assert json.loads(rows[pick["line_no"] - 1])["instruction"] == pick["text"]
    report = (workspace.folder / "run/eval_report.md").read_text()
    assert "## Rows to look at" in report
    assert "- Drawn in round 2: pool.jsonl line " in report


def test_suspects_have_their_places_and_older_selections_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    rows = [{"instruction": f"Say\n{i} " + "x" * 100, "output": str(i)} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load_examples([Source("f.jsonl", path)]).examples
    suspect = table[4]
    first = select_first(table, num_slots=2, seed=0)
    signals = Signals(suspects=frozenset([suspect.id]))
    second = select_next(
        first, Rows(table, table.take([])), signals, Mining("uniform"), num_slots=2
    )
    found = located(second, table)
    text = "Say 4 " + "x" * 71 + "..."
    assert found.suspect_rows == (RowPlace(suspect.id, "f.jsonl", 5, text),)
    assert str(found.suspect_rows[0]) == f"f.jsonl line 5 ({text!r})"
    assert all(pick.file == "f.jsonl" and pick.line_no for pick in found.picks)
    assert Selection.from_json(json.loads(json.dumps(found.to_json()))) == found
    old: dict[str, Any] = second.to_json()
    del old["suspect_rows"]
    for pick in old["picks"]:
        for key in ("file", "line_no", "text"):
            del pick[key]
    assert Selection.from_json(json.loads(json.dumps(old))) == second


@pytest.mark.parametrize("is_older", [False, True])
def test_a_resumed_run_that_keeps_other_rows_is_refused_by_name(
    workspace: Workspace, capsys: pytest.CaptureFixture, is_older: bool
) -> None:
    """As after an update that cleans otherwise; older manifests have the number of rows alone."""
    assert workspace.run("run", max_rounds=1) == 0
    path = workspace.folder / "run/data_manifest.json"
    manifest = json.loads(path.read_text())
    pool = manifest["examples"]["mining.pool_file"]
    assert len(pool["sha256"]) == 64
    resume = ["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2"]
    if is_older:
        for one in manifest["examples"].values():
            del one["sha256"]
        path.write_text(json.dumps(manifest))
        assert main([*resume, "--dry-run"]) == 0
        pool["num_examples"] = 29
        said = "the run began with 29 examples of mining.pool_file, and this version keeps 30 of"
    else:
        pool["sha256"] = "0" * 64
        said = "began with 30 examples of mining.pool_file, and this version keeps 30 others of"
    path.write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(resume) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told and "or start a new run" in told
    if is_older:  # and goes on as it began where the number is the same
        pool["num_examples"] = 30
        path.write_text(json.dumps(manifest))
        assert main(resume) == 0


def test_a_resumed_run_whose_rows_come_to_other_tokens_is_refused_by_name(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """As after an update that reads reasoning or calls of tools which an earlier one did not."""
    assert workspace.run("run", max_rounds=1) == 0
    path = workspace.folder / "run/data_manifest.json"
    manifest = json.loads(path.read_text())
    for key, what in (("num_tokens", "tokens"), ("num_loss_tokens", "tokens with loss")):
        changed = json.loads(path.read_text())
        changed["examples"]["train_file"][key] += 1
        path.write_text(json.dumps(changed))
        capsys.readouterr()
        assert main(["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert re.search(rf"the rows of train_file had [\d,]+ {what} when the run began", told)
        path.write_text(json.dumps(manifest))

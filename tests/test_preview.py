"""`--preview N`: rows as the model will see them, and nothing trained."""

from __future__ import annotations

import json

import pytest

from conftest import REPO
from test_loop import Workspace
from trainer_with_eval import main

DEMO = ["--config", str(REPO / "demo_config.json")]


def test_the_first_rows_of_each_source_are_shown_with_what_carries_loss(
    capsys: pytest.CaptureFixture,
) -> None:
    assert main([*DEMO, "--preview", "2"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("renderer llama3, train_on all_assistant_messages;")
    for place in ("train_file: demo_data.jsonl line 1", "mining.pool_file: demo_pool.jsonl line 2"):
        assert f"\n--- {place}, topic " in told
    assert told.count("\u27e6") == told.count("\u27e7") == 4
    assert "line 3" not in told


def test_as_json_each_piece_has_its_weight(capsys: pytest.CaptureFixture) -> None:
    assert main([*DEMO, "--preview", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["renderer_name"] == "llama3"
    first = shown["rows"][0]
    assert (first["file"], first["line"], first["weight"]) == ("demo_data.jsonl", 1, 1.0)
    assert [piece["weight"] for piece in first["tokens"]] == [0.0, 1.0]
    assert first["tokens"][1]["text"].endswith("<|eot_id|>")


def test_of_a_run_that_has_mined_hard_rows_are_shown_too(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    assert workspace.run("run") == 0
    capsys.readouterr()
    before = sorted(str(path) for path in workspace.folder.rglob("*"))
    assert main(["--resume", str(workspace.folder / "run"), "--preview", "2"]) == 0
    told = capsys.readouterr().out
    assert told.count("--- hard in round ") == 2
    assert sorted(str(path) for path in workspace.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--preview", "0"], "give the number of rows"),
        (["--preview", "2", "--dry-run"], "leave --evaluate and --dry-run out"),
    ],
)
def test_what_makes_no_sense_beside_it_is_refused(
    more: list[str], part: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([*DEMO, *more]) == 2
    assert part in capsys.readouterr().err


def test_nothing_that_a_row_holds_reaches_the_terminal_as_a_command(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    workspace.write_rows("train.jsonl", [{"instruction": "\x1b[2Jq", "output": "\x07a"}])
    assert workspace.run("run", "--preview", "1") == 0
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().out)

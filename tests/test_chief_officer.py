"""docs/chief_officer.md: 63 requirements, and all that its table names is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

import export
import registry
import trainer_with_eval
from config_schema import settings_table
from conftest import REPO
from test_loop import Workspace

PAGE = REPO / "docs" / "chief_officer.md"
STANDINGS = ("met", "partly", "declined")
# Words in backticks that are values of what stands beside them, or files that a run writes.
VALUES = {
    *("room", "low_rank_is_enough", "no_application_task", "attention_only", "large_batch"),
    *("FILE.py@TASK", "TASKS", "num_steps", "num_epochs", "open", "trained.json"),
    *("eval_report.md", "--config", "--json"),
}
PARSERS: dict[str, Callable[[list[str]], object]] = {
    "trainer_with_eval.py": trainer_with_eval.main,
    "export.py": export.main,
    "registry.py": registry.main,
}


def rows() -> list[list[str]]:
    table = PAGE.read_text(encoding="utf-8").partition("## The table")[2].partition("\n## ")[0]
    cells = (line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in row] for row in cells][1:]


def test_each_requirement_has_its_line() -> None:
    found = rows()
    assert [row[0] for row in found] == [str(number) for number in range(1, 64)]
    for number, asked, standing, how in found:
        assert asked and how, number
        assert standing.partition(":")[0] in STANDINGS, number
        assert (":" in standing) == standing.startswith("declined"), number
        assert standing != "partly" or ";" in how, f"{number} says why"


def keys_in(value: object, name: str = "") -> set[str]:
    """The dotted keys of an object, as far as its own keys lead."""
    if not isinstance(value, dict):
        return {name}
    inner = (keys_in(one, f"{name}.{key}" if name else key) for key, one in value.items())
    return {name, *(key for keys in inner for key in keys)}


def help_of(program: str, words: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        PARSERS[program]([*words, "--help"])
    assert ended.value.code == 0, program
    return capsys.readouterr().out


def test_all_that_the_table_names_is_there(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Files, tests, programs with their options, settings and keys of the real object."""
    assert workspace.run("run", "--dry-run", "--json") == 0
    keys = keys_in(json.loads(capsys.readouterr().out))
    settings = set(re.findall(r"^\| `([\w.]+)` \|", settings_table(), re.MULTILINE))
    named = {word for row in rows() for word in re.findall(r"`([^`]+)`", row[3])} - VALUES
    assert len(named) > 80
    for word in sorted(named):
        program, *options = word.split()
        if program in PARSERS:
            commands = [one for one in options if not one.startswith("-")]
            shown = help_of(program, commands, capsys)
            assert all(one in shown for one in options if one.startswith("-")), word
        elif "::" in word:
            file, _, test = word.partition("::")
            assert f"def {test}(" in (REPO / file).read_text(encoding="utf-8"), word
        elif "/" in word or (REPO / word).exists():
            assert (REPO / word).exists(), word
        else:
            assert word in keys | settings, word


def test_a_word_that_is_nowhere_is_found_out() -> None:
    """What is left out of the check is on the page, so that the list does not outgrow it."""
    text = PAGE.read_text(encoding="utf-8")
    assert not [word for word in VALUES if f"`{word}`" not in text]

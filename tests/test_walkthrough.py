"""docs/walkthrough.md, block by block, in a fresh folder: what a new user types is what works."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

import export
import forked
import registry
import report
import trainer_with_eval
from conftest import REPO
from ledger.store import RunStore
from test_docs import assert_shown, masked

PAGE = "docs/walkthrough.md"
COMMANDS = {
    "trainer_with_eval.py": trainer_with_eval.main,
    "report.py": report.main,
    "registry.py": registry.main,
    "export.py": export.main,
}
LIMIT_S = 120


class Block(NamedTuple):
    """A file to be written, or commands with what they print."""

    file: str | None
    text: str


def blocks() -> Iterator[Block]:
    """The blocks of the page that do something, in their order."""
    text = (REPO / PAGE).read_text(encoding="utf-8")
    found = re.finditer(r"(?:`([\w.]+)`:\n\n)?```(\w+)\n(.*?)```", text, re.DOTALL)
    for one in found:
        if one[1] is not None or one[2] == "console":
            yield Block(one[1], one[3])


def run_line(line: str) -> str:
    """Run a command line; what it prints. The project's commands run in this process, the page's
    own scripts in processes of their own."""
    python, script, *arguments = shlex.split(line)
    assert python == ".venv/bin/python"
    if script in COMMANDS:
        screen = io.StringIO()
        with redirect_stdout(screen), redirect_stderr(screen):
            assert COMMANDS[script](arguments) == 0, screen.getvalue()
        return screen.getvalue()
    path = REPO / script if script.startswith("examples/") else Path(script)
    done = forked.run(path, *arguments, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.trains
def test_every_block_of_the_page_in_order(tmp_path: Path) -> None:
    num_run = 0
    for block in blocks():
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
            continue
        for command in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, shown = command.partition("\n")
            printed = run_line(line)
            assert_shown(masked(shown).splitlines(), masked(printed).splitlines())
            num_run += 1
    assert num_run == 15
    # and what the page says of it
    first, following = (RunStore.open(tmp_path / "runs" / name) for name in ("first", "next"))
    assert first.test_result() is not None
    origin = following.origin
    assert origin is not None and origin.parent.run_id == first.run_id
    selection = following.selection(1)
    assert selection is not None
    files = [pick.file for pick in selection.picks]
    assert (files.count("pool.jsonl"), files.count("tickets.jsonl")) == (24, 360)
    waiting = (tmp_path / "feedback/first/support_to_answer.jsonl").read_text()
    assert "give the umbrella back" in json.loads(waiting)["prompt"]

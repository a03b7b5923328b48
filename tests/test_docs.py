"""Docs that cannot rot: settings table, --help, transcript and file list are the program's own."""

from __future__ import annotations

import io
import re
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

import trainer_with_eval
from config_schema import settings_table
from conftest import REPO


def block(document: str, name: str) -> str:
    """The text between <!-- name --> and <!-- /name -->, without a code fence around it."""
    text = (REPO / document).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found, f"{document} has no block {name}"
    return re.sub(r"^```\w*\n|\n```$", "", found.group(1)).strip()


def masked(transcript: str) -> str:
    """Replace what differs from machine to machine: numbers, ids and paths."""
    transcript = re.sub(r"tinker://\S+", "tinker://RUN", transcript)
    transcript = re.sub(r"(?i)((run directory|report): ).*", r"\1DIR", transcript)
    transcript = re.sub(r"; most from .*", "; most from TOPICS", transcript)
    transcript = re.sub(r", \d+ (truncated|malformed|failed)", "", transcript)
    transcript = re.sub(r"(?m)^warning: .*\n", "", transcript)
    transcript = re.sub(r"(?m)^  (Nothing was|The training) .*", "  DIAGNOSIS", transcript)
    return re.sub(r"\d[\d,]*(\.\d+)?(e-?\d+)?", "N", transcript)


def test_settings_table_is_the_schemas() -> None:
    assert block("README.md", "settings") == settings_table()


def test_help_is_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        trainer_with_eval.parse_arguments(["--help"])
    assert block("README.md", "help").split() == printed.getvalue().split()


def test_the_services_page_shows_its_usage_and_every_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from local_tinker.__main__ import parse_arguments
    from local_tinker.app import make_app
    from local_tinker.memory import RunMemory
    from local_tinker.state import State
    from local_tinker.worker import Worker

    monkeypatch.setenv("COLUMNS", "80")
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        parse_arguments(["--help"])
    usage = block("local_tinker/README.md", "help")
    assert printed.getvalue().split()[: len(usage.split())] == usage.split()
    worker = Worker()
    worker.close()
    routes = [
        f"{','.join(sorted(route.methods or ()))} {route.path}"
        for route in make_app(State(worker, RunMemory(0))).routes
        if isinstance(route, APIRoute)
    ]
    documented = [block("local_tinker/README.md", part) for part in ("served", "refused")]
    assert sorted("\n".join(documented).splitlines()) == sorted(routes)
    page = (REPO / "local_tinker" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE))
    assert listed | {"__init__.py"} == {p.name for p in (REPO / "local_tinker").glob("*.py")}


def run_demo(tmp_path: Path) -> str:
    """The whole demo as a person sees it: progress and results in one stream."""
    screen = io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen):
        config = str(REPO / "demo_config.json")
        arguments = ["--config", config, "--local", "--run-dir", str(tmp_path / "demo")]
        assert trainer_with_eval.main(arguments) == 0
    return screen.getvalue().strip()


@pytest.mark.trains
def test_demo_transcript_is_a_real_one(tmp_path: Path) -> None:
    """Structure and decisions, with numbers masked; and the lines in README are part of it."""
    transcript = run_demo(tmp_path)
    assert masked(block("DEMO.md", "transcript")) == masked(transcript)
    shown = block("README.md", "what-you-see").splitlines()
    whole = block("DEMO.md", "transcript").splitlines()
    assert all(line in whole for line in shown if line != "...")
    assert len(shown) > 5


def test_every_file_has_its_clause_in_the_readme() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.split()
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    top_level = {name.split("/")[0] for name in listed}
    documents = {"README.md", "DEMO.md", "CHANGELOG.md", ".gitignore", ".ci"}
    for name in sorted(top_level - documents):
        shown = f"`{name}/`" if (REPO / name).is_dir() else f"`{name}`"
        assert shown in readme, f"{name} has no purpose in README.md"


@pytest.mark.parametrize(
    "document",
    ["README.md", "DEMO.md", "demo_model/README.md", "local_tinker/README.md", "docs/evalops.md"],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((REPO / document).parent / target).exists(), f"{document} links to {target}"

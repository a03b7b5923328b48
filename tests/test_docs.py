"""Docs that cannot rot: settings table, --help, transcript, examples, links and file list."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import evalops_client
import export
import registry
import report
import study
import trainer_with_eval
from config_schema import settings_table
from conftest import REPO
from rows.row_keys import keys_table

PAGES = sorted(f"docs/{page.name}" for page in (REPO / "docs").glob("*.md"))
DOCUMENTS = [
    "README.md",
    "DEMO.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "demo_model/README.md",
    "examples/README.md",
    "local_tinker/README.md",
    "benchmarks/RESULTS.md",
    "skills/tinker-llm-chief-officer/SKILL.md",
    "skills/tinker-llm-chief-officer/reference.md",
    "skills/tinker-llm-chief-officer/examples.md",
    *PAGES,
]
AFTER_THE_DEMO = "docs/export.md"  # its example reads the demo's run
NOTHING_TO_TYPE = "docs/comparison.md"
WALKTHROUGH = "docs/walkthrough.md"  # run from its first block to its last by a test of its own
EXAMPLES = [page for page in PAGES if page not in (AFTER_THE_DEMO, NOTHING_TO_TYPE, WALKTHROUGH)]
COMMANDS = {
    "trainer_with_eval.py": trainer_with_eval.main,
    "evalops_client.py": evalops_client.main,
    "export.py": export.main,
    "registry.py": registry.main,
    "study.py": study.main,
    "report.py": report.main,
}
MAX_README_LINES = 250


def block(document: str, name: str) -> str:
    """The text between <!-- name --> and <!-- /name -->, without a code fence around it."""
    text = (REPO / document).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found, f"{document} has no block {name}"
    return re.sub(r"^```\w*\n|\n```$", "", found.group(1)).strip()


def masked(transcript: str) -> str:
    """Replace what differs from machine to machine: numbers, ids and paths."""
    transcript = re.sub(r"tinker://\S+", "tinker://RUN", transcript)
    transcript = re.sub(r"(?i)((run directory|report|page): ).*", r"\1DIR", transcript)
    transcript = re.sub(r"; most from .*", "; most from TOPICS", transcript)
    transcript = re.sub(r"(?m)^  for example .*", "  for example ROW", transcript)
    transcript = re.sub(r", \d+ (truncated|malformed|failed)", "", transcript)
    transcript = re.sub(r"(?m)^warning: .*\n", "", transcript)
    transcript = re.sub(r"(?m)^  (Nothing was|The training) .*", "  DIAGNOSIS", transcript)
    transcript = re.sub("[\u2581-\u2588]+", "COURSE", transcript)
    transcript = re.sub(r"(?m)^round +score .*", "HEAD OF THE ROUNDS", transcript)
    transcript = re.sub(r"(?m)^ +\d+(\*? +)[01]\.\d{4} .*  (\S.*)$", r"ROUND \2", transcript)
    return re.sub(r"\d[\d,]*(\.\d+)?(e-?\d+)?", "N", transcript)


# --- what the program says of itself --------------------------------------------------------------


def test_settings_table_is_the_schemas() -> None:
    assert block("docs/settings.md", "settings") == settings_table()


def test_the_table_of_keys_is_the_rows() -> None:
    assert block("docs/data.md", "keys") == keys_table()


def test_help_is_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        trainer_with_eval.parse_arguments(["--help"])
    assert block("docs/commands.md", "help").split() == printed.getvalue().split()


def test_the_page_of_exports_shows_their_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        export.parse_arguments(["--help"])
    assert block("docs/export.md", "help").split() == printed.getvalue().split()


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
    routes = make_app(State(worker, RunMemory(0))).routes
    documented = [block("local_tinker/README.md", part) for part in ("served", "refused")]
    assert sorted("\n".join(documented).splitlines()) == sorted(routes)
    page = (REPO / "local_tinker" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE))
    assert listed | {"__init__.py"} == {p.name for p in (REPO / "local_tinker").glob("*.py")}


# --- examples -------------------------------------------------------------------------------------


def assert_shown(shown: list[str], whole: list[str]) -> None:
    """Every line that a page shows was printed, in this order; between two lines others were left
    out only where `...` says so."""
    place, has_gap = 0, False
    for line in shown:
        if line.strip() == "...":
            has_gap = True
            continue
        assert line in whole[place:], f"not printed, or not there: {line}\n" + "\n".join(whole)
        found = whole.index(line, place)
        assert has_gap or found == place, f"left out without a sign: {whole[place:found]}"
        place, has_gap = found + 1, False
    assert has_gap or place == len(whole), f"left out without a sign: {whole[place:]}"


def run_example(document: str, folder: Path) -> None:
    """Write the files that a page's example names, do what it says, and compare what is printed.

    An example is marked `<!-- example -->` or `<!-- example: numbers vary -->`. A file is its name
    in backticks and a colon, and then a fenced block. In a `console` block each line that begins
    with `$` is a command; its exit code is 0 unless `echo $?` says otherwise. A `python` block
    prints the block after it.
    """
    text = (REPO / document).read_text(encoding="utf-8")
    (found,) = re.finditer(r"<!-- example(: [a-z ]+)? -->\n(.*?)<!-- /example -->", text, re.DOTALL)
    body = found[2]
    for name in ("demo_model", "evals"):
        (folder / name).symlink_to(REPO / name)
    for name, content in re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", body, re.DOTALL):
        (folder / name).write_text(content, encoding="utf-8")
    in_general = masked if found[1] == ": numbers vary" else str
    num_run = 0
    for console in re.findall(r"```console\n(.*?)```", body, re.DOTALL):
        commands = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
        for place, command in enumerate(commands):
            line, _, shown = command.partition("\n")
            if line == "echo $?":
                continue
            following = commands[place + 1] if place + 1 < len(commands) else ""
            code = int(following.split()[-1]) if following.startswith("echo $?") else 0
            printed = run_line(line, code).replace(str(folder), "DIR")
            assert_shown(in_general(shown).splitlines(), in_general(printed).splitlines())
            num_run += 1
    for source, shown in re.findall(r"```python\n(.*?)```.*?```\n(.*?)```", body, re.DOTALL):
        screen = io.StringIO()
        with redirect_stdout(screen):
            exec(compile(source, document, "exec"), {})
        assert screen.getvalue() == shown
        num_run += 1
    assert num_run, f"{document}: its example runs nothing"


def run_line(line: str, code: int) -> str:
    """Run a command line of a page in this process; returns what it prints."""
    python, script, *arguments = shlex.split(line)
    assert python == ".venv/bin/python"
    screen = io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen):
        assert COMMANDS[script](arguments) == code, screen.getvalue()
    return screen.getvalue()


@pytest.mark.parametrize("document", EXAMPLES)
def test_the_example_of_a_page_does_what_the_page_shows(document: str, tmp_path: Path) -> None:
    run_example(document, tmp_path)


# --- the documents among themselves ---------------------------------------------------------------


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= MAX_README_LINES
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", readme))
    assert linked == set(PAGES)


def test_every_file_has_its_clause_in_the_readme() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.split()
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    top_level = {name.split("/")[0] for name in listed}
    documents = {"README.md", "DEMO.md", "CHANGELOG.md", "CONTRIBUTING.md", ".gitignore", ".ci"}
    for name in sorted(top_level - documents):
        shown = f"`{name}/`" if (REPO / name).is_dir() else f"`{name}`"
        assert shown in readme, f"{name} has no purpose in README.md"


def prose_of(document: str) -> str:
    """A document without its fenced blocks, in which `](` and `#` mean something else."""
    text = (REPO / document).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors_of(document: str) -> set[str]:
    """The anchors that the headings of a Markdown document get."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", prose_of(document)):
        path, _, anchor = target.partition("#")
        file = ((REPO / document).parent / path).resolve() if path else REPO / document
        assert file.exists(), f"{document} links to {target}"
        if anchor:
            name = str(file.relative_to(REPO))
            assert anchor in anchors_of(name), f"{document} links to {target}"


@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_the_contents_of_a_page_name_its_sections(document: str) -> None:
    prose = prose_of(document)
    sections = re.findall(r"^## (.+)$", prose, re.MULTILINE)
    listed = re.findall(r"^- \[([^\]]+)\]\(#", prose, re.MULTILINE)
    assert listed == [section.replace("`", "") for section in sections if section != "Contents"]

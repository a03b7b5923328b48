"""The modules that a task brings: its own are taken, and one that ours would hide is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPO
from errors import ConfigError
from evaluation.inspect_tasks import TaskOptions, load_inspect_task
from evaluation.task_code import OWN, code_of

LISTED = subprocess.run(
    ["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True
).stdout.splitlines()
# Every name at the root of this repository that an import statement could mean.
NAMES = sorted(
    {
        name
        for name in (line.split("/")[0].removesuffix(".py") for line in LISTED)
        if name.isidentifier()
    }
)
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes

{statement}


@task
def mine():
    return Task(MemoryDataset([Sample(QUESTION, target="x")]), scorer=includes())
"""


@pytest.fixture(autouse=True)
def modules_put_back() -> Iterator[None]:
    """What a task imports stays in its test."""
    modules, path = dict(sys.modules), list(sys.path)
    for name in set(NAMES) - OWN:  # another test may have imported one of our folders
        sys.modules.pop(name, None)
    yield
    for name in set(sys.modules) - set(modules):
        if getattr(sys.modules[name], "QUESTION", None) is not None:
            del sys.modules[name]
    sys.modules.update({name: module for name, module in modules.items() if name in NAMES})
    sys.path[:] = path


def write_task(folder: Path, statement: str) -> Path:
    file = folder / "task.py"
    file.write_text(TASK.format(statement=statement))
    return file


def test_the_names_at_the_root_are_looked_at() -> None:
    assert {"errors", "scores", "rows", "evals", "tests", "simple_eval", "loop"} <= set(NAMES)
    assert set(NAMES) >= OWN


@pytest.mark.parametrize("name", NAMES)
def test_a_module_beside_a_task_is_the_tasks_or_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    file = write_task(tmp_path, f"from {name} import QUESTION")
    (tmp_path / f"{name}.py").write_text("QUESTION = 'the user asks'\n")
    spec = f"{file}@mine"
    if name in OWN:
        with pytest.raises(ConfigError) as caught:
            load_inspect_task("task.py@mine", spec, TaskOptions())
        said = str(caught.value)
        assert str(file) in said and f"{name}.py" in said and f"my_{name}.py" in said
    else:
        loaded = load_inspect_task("task.py@mine", spec, TaskOptions())
        assert loaded.questions == ("the user asks",)
        assert str(tmp_path / f"{name}.py") in loaded.code


@pytest.mark.parametrize(
    "statement",
    [
        "import scores",
        "import scores.intervals as s",
        "def later():\n    from rows import words",
        "from loop import planning",
        "try:\n    import ledger\nexcept ImportError:\n    ledger = None",
    ],
)
def test_however_a_hidden_module_is_imported(tmp_path: Path, statement: str) -> None:
    for name in ("scores", "rows", "loop"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("QUESTION = 1\n")
    (tmp_path / "ledger.py").write_text("")
    with pytest.raises(ConfigError, match="the loop has a module"):
        code_of(write_task(tmp_path, statement))


def test_a_hidden_module_is_found_behind_another_one(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("import storage\n")
    (tmp_path / "storage.py").write_text("")
    with pytest.raises(ConfigError, match=r"helpers\.py: it imports 'storage'"):
        code_of(write_task(tmp_path, "import helpers"))


def test_a_hidden_module_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH, or an installed package."""
    (tmp_path / "lib" / "rows").mkdir(parents=True)
    (tmp_path / "lib" / "rows" / "__init__.py").write_text("")
    file = write_task(tmp_path, "import rows")
    assert list(code_of(file)) == [str(file)]  # nothing else of this name: the loop's is meant
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    with pytest.raises(ConfigError, match=r"lib/rows/__init__\.py"):
        code_of(file)


def test_tasks_of_this_repository_may_use_the_loop() -> None:
    file = REPO / "evals" / "domain_qa.py"
    assert list(code_of(file)) == [str(file)]

"""The shape of the house: who may import whom, and what appears nowhere.

The rooms and their order are DESIGN's; CONTRIBUTING.md shows them as a table.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPO

# A file may import only rooms of a lower rank, and files of its own room without a circle.
RANKS: dict[str, float] = {
    "errors": 0,
    "storage": 1,
    "settings": 2,
    "rows": 2,
    "hyperparam_utils": 2,
    "services": 3,
    "scores": 3,
    "config_schema": 3,
    "data_loader": 3,
    "simple_eval": 4,
    "data_selector": 4,
    "evaluation": 5,
    "ledger": 5,
    "evalops_client": 6,
    "loop.planning": 7,
    "loop.reports": 7,
    "loop.rounds": 8,
    "commands": 9,
    "trainer_with_eval": 10,
}
GUESTS = ("local_tinker", "demo_model", "evals", "benchmarks", "tests")  # of these, no room is made


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts)


def room_of(module: str) -> str | None:
    """The room that a module lies in, or that it is; None for what is no module of ours."""
    parts = module.split(".")
    return next((n for n in (".".join(parts[:2]), parts[0]) if n in RANKS), None)


FILES = {
    name_of(path): path
    for path in sorted(REPO.rglob("*.py"))
    if path.relative_to(REPO).parts[0] not in (*GUESTS, ".venv", "runs")
}
GUEST_FILES = sorted((REPO / "local_tinker").glob("*.py"))
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, also inside functions and for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_lies_in_a_room() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    present = {name for name in listed if (REPO / name).exists()}
    ours = {name for name in present if name.split("/")[0] not in GUESTS}
    assert {str(path.relative_to(REPO)) for path in FILES.values()} == ours
    assert not [name for name in FILES if name != "loop.__init__" and room_of(name) is None]


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name: str) -> None:
    room = room_of(name)
    for module in imports_of(TREES[name]):
        other = room_of(module)
        if other is not None and other != room:
            assert room is not None
            assert RANKS[other] < RANKS[room], f"{name} imports {module}"


def test_no_circle_inside_a_room() -> None:
    inside = {
        name: {m for m in imports_of(tree) if m in FILES and room_of(m) == room_of(name)}
        for name, tree in TREES.items()
    }
    while free := [name for name, needed in inside.items() if not needed & set(inside)]:
        for name in free:
            del inside[name]
    assert not inside, f"these import each other in a circle: {', '.join(inside)}"


def test_the_service_imports_nothing_of_the_loop() -> None:
    for path in GUEST_FILES:
        found = imports_of(ast.parse(path.read_text(encoding="utf-8")))
        assert not [module for module in found if room_of(module)], path.name


@pytest.mark.parametrize(
    "name", [n for n in FILES if room_of(n) == "scores" or n == "hyperparam_utils"]
)
def test_what_is_pure_touches_no_edge(name: str) -> None:
    """No clock, network, environment, path or chance."""
    edges = {"time", "datetime", "os", "sys", "socket", "httpx", "random", "pathlib", "io"}
    assert not set(imports_of(TREES[name])) & edges


def test_broad_excepts_stand_only_at_the_boundaries() -> None:
    """One at the top of the loop, and one around the code of a task, which is anybody's; and three
    in the service's worker: whatever a job, the start of a wave or a step of it breaks is the
    answer of the requests in it."""
    found = []
    for path in (*FILES.values(), *GUEST_FILES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                found.append(path.name)
    assert sorted(found) == ["inspect_tasks.py", "trainer_with_eval.py", *["worker.py"] * 3]


def test_nothing_prints_but_the_commands() -> None:
    for path in (*FILES.values(), *GUEST_FILES):
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        commands = ("console.py", "evalops_client.py", "__main__.py")
        assert "print" not in calls or path.name in commands, path


def test_the_loop_fits_on_one_screen() -> None:
    tree = ast.parse((REPO / "trainer_with_eval.py").read_text(encoding="utf-8"))
    loop = next(n for n in tree.body if getattr(n, "name", "") == "run_rounds")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 80  # pyright: ignore[reportAttributeAccessIssue]

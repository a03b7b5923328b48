"""The shape of the house: who may import whom, and what appears nowhere.

The rooms and their order are DESIGN's; CONTRIBUTING.md shows them as a table.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPO
from user_code.finding import OURS

# A file may import only rooms of a lower rank, and files of its own room without a circle.
RANKS: dict[str, float] = {
    "errors": 0,
    "grading": 1,
    "storage": 1,
    "user_code": 1,
    "settings": 2,
    "rows": 2,
    "pages": 2,
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
    "loop.run_page": 8,
    "loop.plan_page": 8,
    "loop.tracking": 8,
    "loop.methods": 8,
    "loop.rounds": 9,
    "commands": 10,
    "trainer_with_eval": 11,
    "studies.design": 12,
    "studies.findings": 12,
    "studies.reports": 13,
    "studies.work": 13,
    "exports": 12,
    "promotion": 12,
    "study": 14,
    "report": 14,
    "export": 14,
    "registry": 14,
}
# How many files each room has, its docstring among them; a test that walks past one would say so.
NUM_FILES = {
    "commands": 24,
    "evaluation": 16,
    "exports": 41,
    "grading": 15,
    "ledger": 19,
    "loop.methods": 14,
    "loop.plan_page": 17,
    "loop.planning": 27,
    "loop.reports": 13,
    "loop.rounds": 20,
    "loop.run_page": 26,
    "loop.tracking": 12,
    "pages": 10,
    "promotion": 19,
    "rows": 25,
    "scores": 15,
    "services": 23,
    "settings": 11,
    "storage": 7,
    "studies.design": 17,
    "studies.findings": 9,
    "studies.reports": 7,
    "studies.work": 13,
    "user_code": 5,
}
# Of these, no room is made.
GUESTS = (
    *("local_tinker", "demo_model", "evals", "examples", "benchmarks", "findings", "skills"),
    "tests",
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts)


def room_of(module: str) -> str | None:
    """The room that a module lies in, or that it is; None for what is no module of ours."""
    parts = module.split(".")
    return next((n for n in (".".join(parts[:2]), parts[0]) if n in RANKS), None)


LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    cwd=REPO,
    capture_output=True,
    text=True,
    check=True,
).stdout.split()
# What git ignores, such as runs and exports that were made here, is nobody's room.
FILES = {
    name_of(REPO / name): REPO / name
    for name in sorted(LISTED)
    if (REPO / name).exists() and name.split("/")[0] not in GUESTS
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
    assert not [
        name
        for name in FILES
        if name not in ("loop.__init__", "studies.__init__") and room_of(name) is None
    ]


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


# Working out what a model wrote may take for ever, so it has a process of its own.
PROCESSES = ("grading.math_process", "grading.math_worker")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in FILES
        if (room_of(n) in ("scores", "grading") or n == "hyperparam_utils") and n not in PROCESSES
    ],
)
def test_what_is_pure_touches_no_edge(name: str) -> None:
    """No clock, network, environment, path or chance."""
    edges = {"time", "datetime", "os", "sys", "socket", "httpx", "random", "pathlib", "io"}
    assert not set(imports_of(TREES[name])) & edges


def calls_in(tree: ast.AST) -> set[str]:
    """What a file calls, dotted as it stands there."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_what_is_below_the_loop_takes_values() -> None:
    """The settings are known to the loop and the commands alone."""
    knowing = {
        room_of(name)
        for name, tree in TREES.items()
        if {"settings", "config_schema"} & {room_of(m) for m in imports_of(tree)}
    }
    assert {r for r in knowing if r is not None and RANKS[r] < RANKS["loop.planning"]} <= {
        "settings",
        "config_schema",
    }


OF_THE_LEDGER = ("self", "store")
EDGES = (
    "ledger.run_directory",  # its lock, which holds nothing
    "loop.reports.console",  # /dev/null, for output that nobody reads any more
)


def test_files_are_written_through_storage() -> None:
    """Everywhere else a full disk or a kill would leave half of one."""
    for name, tree in TREES.items():
        calls = calls_in(tree)
        writes = {c for c in calls if c in ("os.replace", "os.rename", "os.truncate", "os.open")}
        # `store.write_text` is the ledger's own, and goes through storage.
        writes |= {
            c
            for c in calls
            if c.endswith((".write_text", ".write_bytes")) and c.split(".")[0] not in OF_THE_LEDGER
        }
        modes = {
            str(word.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "open"
            for word in node.args[1:]
            if isinstance(word, ast.Constant)
        }
        written = writes or {mode for mode in modes if mode[0] in "wax"}
        assert not written or room_of(name) == "storage" or name in EDGES, f"{name}: {written}"


def test_clients_are_made_in_one_place() -> None:
    clients = ("tinker.ServiceClient", "tinker.RestClient")
    making = {name for name, tree in TREES.items() if calls_in(tree).intersection(clients)}
    assert making == {"services.sdk"}
    using = {name for name, tree in TREES.items() if "services.sdk" in imports_of(tree)}
    assert using == {
        "loop.rounds.run",
        "loop.rounds.session",
        "commands.chat",
        "commands.check_service",
        "commands.evaluate",
        "commands.offered_models",
        "exports.gathering",
        "promotion.keeping",
        "services.check.bench",
        "services.shared_clients",
    }


def test_the_embedded_service_is_started_in_one_place() -> None:
    starting = {name for name, tree in TREES.items() if "local_tinker.start" in calls_in(tree)}
    assert starting == {"loop.rounds.session"}


def test_a_users_module_is_told_from_the_loops() -> None:
    tops = {name.partition(".")[0] for name in FILES}
    assert tops | {"local_tinker"} == OURS


def test_broad_excepts_stand_only_at_the_boundaries() -> None:
    """One at the top of the loop and one around each of several runs; one around the code of a
    task, two around that of a grader, two around that of a scorer that gives rewards and one around
    that of an environment, which are anybody's; and three in the service's worker: whatever a job,
    the start of a wave or a step of it breaks is the answer of the requests in it. One around the
    page of a run, and one around its tracker: it goes on without them. One around a tokenizer's
    Rust, which raises nothing more exact."""
    found = []
    for path in (*FILES.values(), *GUEST_FILES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                found.append(path.name)
    assert sorted(found) == [
        "boundary.py",
        "environments.py",
        "inspect_tasks.py",
        *["own_graders.py"] * 2,
        "page.py",
        *["rewards.py"] * 2,
        "telling.py",
        "tokenizer.py",
        "trainer_with_eval.py",
        *["worker.py"] * 3,
    ]


def test_nothing_prints_but_the_console() -> None:
    printing = {name for name, tree in TREES.items() if "print" in calls_in(tree)}
    assert printing == {"loop.reports.console", "evalops_client"}


MAX_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
TABLES = {"trainer_with_eval.parse_arguments"}  # a row a flag


def test_files_functions_and_parameter_lists_stay_short() -> None:
    for name, path in FILES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, name
        for node in ast.walk(TREES[name]):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            place = f"{name}.{node.name}"
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES or place in TABLES, f"{place}: {num_lines} lines"
            words = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = [word.arg for word in words if word.arg not in ("self", "cls")]
            assert len(given) <= MAX_PARAMETERS, f"{place}: {len(given)} parameters"


def test_a_room_opens_with_one_sentence() -> None:
    """`__init__.py` says what the room is for and re-exports nothing."""
    inits = [name for name in FILES if name.endswith("__init__")]
    assert {name.removesuffix(".__init__") for name in inits} >= {
        room for room in RANKS if "." in room or (REPO / room).is_dir()
    }
    for name in inits:
        (only,) = TREES[name].body
        assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), name
    empty_names = {"utils", "common", "manager", "base", "helpers", "misc"}
    assert not [name for name in FILES if name.rpartition(".")[2] in empty_names]
    assert not [name for name in FILES if name.rpartition(".")[2].startswith("mock_")]


def test_the_root_holds_what_a_user_types() -> None:
    """The rooms, and how many files of each were read for all of the above."""
    modules = sorted(name for name in FILES if "." not in name)
    assert modules == sorted(
        [
            "config_schema",
            "data_loader",
            "data_selector",
            "errors",
            "evalops_client",
            "export",
            "hyperparam_utils",
            "simple_eval",
            "registry",
            "report",
            "study",
            "trainer_with_eval",
        ]
    )
    num_files = Counter(room_of(name) for name in FILES if "." in name)
    assert {room: number for room, number in num_files.items() if room} == NUM_FILES


def test_the_loop_fits_on_one_screen() -> None:
    tree = ast.parse((REPO / "trainer_with_eval.py").read_text(encoding="utf-8"))
    loop = next(n for n in tree.body if getattr(n, "name", "") == "run_rounds")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 80  # pyright: ignore[reportAttributeAccessIssue]


def test_the_page_for_contributors_has_the_ranks() -> None:
    page = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed: dict[str, float] = {}
    for rank, rooms in re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE):
        for room in re.findall(r"`([^`]+)`", rooms):
            name = room.removesuffix(".py").removesuffix("/").replace("/", ".")
            listed[name] = int(rank)
    assert listed == RANKS

"""The shape of the house: who may import whom, and what appears nowhere."""

from __future__ import annotations

import ast
import tokenize
from pathlib import Path

import pytest

from conftest import REPO

# A module may import only modules of earlier layers (DESIGN: imports are acyclic).
LAYERS = [
    {"errors"},
    {"stored_json"},
    {"durable", "ledger", "secret_keys", "alerts", "faults", "eval_budget"},
    {"config_schema", "eval_stats", "hyperparam_utils", "data_sources", "contamination"},
    {"data_quality", "eval_result"},
    {"data_loader"},
    {"data_selector", "decision", "diagnosis", "rendering"},
    {"run_store", "text_similarity"},
    {"simple_eval", "nll_eval", "evalops_client", "checkpoint_care"},
    {"inspect_eval", "mining"},
    {"evaluation"},
    {"plan", "eval_report"},
    {"checkpoint_eval", "progress"},
    {"training"},
    {"trainer_with_eval"},
]
ALL_MODULES = set().union(*LAYERS)
SOURCES = sorted(REPO.glob("*.py")) + sorted((REPO / "local_tinker").glob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_module_has_its_layer() -> None:
    assert {path.stem for path in REPO.glob("*.py")} == ALL_MODULES


@pytest.mark.parametrize("module", sorted(ALL_MODULES))
def test_imports_point_downwards(module: str) -> None:
    layer = next(i for i, names in enumerate(LAYERS) if module in names)
    allowed = set().union(*LAYERS[:layer])
    assert imports_of(REPO / f"{module}.py") & ALL_MODULES <= allowed


def test_the_service_imports_nothing_of_the_loop() -> None:
    for path in (REPO / "local_tinker").glob("*.py"):
        assert not imports_of(path) & ALL_MODULES, path.name


@pytest.mark.parametrize(
    "module", ["eval_stats", "eval_result", "decision", "diagnosis", "hyperparam_utils"]
)
def test_pure_modules_touch_no_clock_network_or_environment(module: str) -> None:
    assert not imports_of(REPO / f"{module}.py") & {"time", "os", "httpx", "random", "pathlib"}


def test_broad_excepts_stand_only_at_the_boundaries() -> None:
    """One at the top of the loop, and one around the code of a task, which is anybody's; and three
    in the service's worker: whatever a job, the start of a wave or a step of it breaks is the
    answer of the requests in it."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                found.append(path.name)
    assert sorted(found) == ["inspect_eval.py", "trainer_with_eval.py", *["worker.py"] * 3]


def test_nothing_prints_but_the_commands() -> None:
    for path in SOURCES:
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        commands = ("trainer_with_eval.py", "evalops_client.py", "__main__.py")
        assert "print" not in calls or path.name in commands, path


def test_the_loop_fits_on_one_screen() -> None:
    tree = ast.parse((REPO / "trainer_with_eval.py").read_text(encoding="utf-8"))
    loop = next(n for n in tree.body if getattr(n, "name", "") == "run_rounds")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 80  # pyright: ignore[reportAttributeAccessIssue]


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    starts = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    lines: set[int] = set()
    is_statement_start = True
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in starts:
                is_statement_start = True
            elif token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER):
                if not (is_statement_start and token.type == tokenize.STRING):
                    lines |= set(range(token.start[0], token.end[0] + 1))
                is_statement_start = False
    return len(lines)


def test_source_stays_within_its_budget() -> None:
    assert sum(lines_of_code(path) for path in REPO.glob("*.py")) <= 10_000

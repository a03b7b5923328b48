"""Shared fixtures: a clean environment, tiny model directories, one embedded service."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import forked

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

    import local_tinker
    from test_loop import Workspace

# Before anything imports tinker or transformers: no telemetry, no hub, no proxy for loopback.
os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

REPO = Path(__file__).resolve().parent.parent
# Each client of the SDK reads all certificates of the system, 30 ms of its 40; the tests talk to
# nobody whom one would vouch for.
os.environ["SSL_CERT_FILE"] = str(REPO / "tests/certificate.pem")
os.environ.pop("SSL_CERT_DIR", None)
# `./run_tests.sh --thorough`: all the cases of each fuzzer, and what is too slow for every day.
IS_THOROUGH = os.environ.get("THOROUGH") == "1"
# For cases that repeat what others show every day.
thorough_only = pytest.mark.skipif(
    not IS_THOROUGH, reason="a repetition; ./run_tests.sh --thorough runs it"
)
SETTLED = ("TINKER_API_KEY", "TINKER_BASE_URL", "EVALOPS_API_KEY", "EVALOPS_API_URL")
MANY_OPEN_FILES = 1000


def pairs(ones: Sequence[object], others: Sequence[object]) -> list[ParameterSet]:
    """All pairs as parameters; every day each of both comes at least once."""
    longer = max(len(ones), len(others))
    daily = {(place % len(ones), place % len(others)) for place in range(longer)}
    return [
        pytest.param(one, other, marks=[] if (i, j) in daily else thorough_only)
        for i, one in enumerate(ones)
        for j, other in enumerate(others)
    ]


def pytest_configure(config: pytest.Config) -> None:
    # What is started in a shell's background has Ctrl-C ignored, and so have all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit its address
        opened = contextlib.ExitStack()
        opened.enter_context(forked.server())
        config.add_cleanup(opened.close)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if IS_THOROUGH:
        skipped = terminalreporter.stats.get("skipped", [])
        terminalreporter.section("all cases; what could not be run here, and why")
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.line(f"{report.nodeid}: {str(reason).removeprefix('Skipped: ')}")
        if not skipped:
            terminalreporter.line("Nothing: every test was run.")


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> None:
    """Event loops that an earlier test has left open would swallow it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def few_open_files() -> Iterator[None]:
    """The SDK leaves the connections of closed clients to the garbage collector."""
    yield
    if len(os.listdir("/dev/fd")) > MANY_OPEN_FILES:
        gc.collect()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key of the developer's reaches a test, and what a test writes lands in its own folder."""
    for name in SETTLED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model_dirs import make_model_dir

    return make_model_dir(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model_dirs import make_model_dir

    return make_model_dir(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", tied=True)


@pytest.fixture(scope="session")
def service(llama_dir: Path, qwen_dir: Path) -> Iterator[local_tinker.Service]:
    import local_tinker

    with local_tinker.start([("llama", str(llama_dir)), ("qwen3", str(qwen_dir))]) as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Path, llama_dir: Path) -> Workspace:
    """A folder with config, data and questions for a tiny model."""
    from test_loop import Workspace

    return Workspace(tmp_path, llama_dir)

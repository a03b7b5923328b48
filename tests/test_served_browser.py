"""The served pages in a real browser: the list, a run that is followed to its end, a comparison.

Nothing of them makes the browser complain, axe-core finds no serious fault in any of them, and what
a reader is offered is what happened to the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import AXE, DESK, PHONE, Browser, BrowserPage, Size, found_browser
from report_runs import Made, made_run, make_run
from test_report_serve import Served

PROGRAM = found_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium was found on this machine")
FAVICON = "favicon.ico"  # which a browser asks for by itself
FAST = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
STATE = "document.querySelector('.served .state')?.textContent"
OFFER = "document.querySelector('.served button')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "runs"
    folder.mkdir()
    made_run(folder / "first")
    odd = Made(seed=1, settings={"run_name": "odd"})
    made_run(folder / "second 'of' <two> #1 100%", odd)
    running = Served(folder)
    yield running
    running.close()


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, size: Size = DESK, *, is_dark: bool = False
) -> Iterator[BrowserPage]:
    """A page with the network on; at the end the browser has complained of nothing."""
    page = browser.page("about:blank", size, is_dark=is_dark)
    page.call("Network.emulateNetworkConditions", offline=False, **FAST)
    page.open(address)
    yield page
    assert [one for one in page.problems if FAVICON not in one] == []
    page.close()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_list_leads_to_a_comparison(browser: Browser, served: Served, size: Size) -> None:
    with opened(browser, served.address, size, is_dark=size is PHONE) as page:
        page.until("document.querySelectorAll('input[type=checkbox]').length === 2")
        faults = page.serious_faults() if AXE.is_file() else []
        for number in (0, 1):
            page.value(f"document.querySelectorAll('input[type=checkbox]')[{number}].click()")
        page.value("[...document.querySelectorAll('button')]"
                   ".find((one) => one.textContent.startsWith('Compare')).click()")  # fmt: skip
        page.until("location.pathname === '/compare' && document.readyState === 'complete'")
        assert page.text("h1") == "2 runs side by side"
        faults += page.serious_faults() if AXE.is_file() else []
        assert faults == []
        assert page.value("document.documentElement.scrollWidth") <= size.width


def test_a_run_is_followed_to_its_end(browser: Browser, served: Served) -> None:
    run_dir = served.folder / "live"
    store = make_run(run_dir, Made(is_finished=False))
    with opened(browser, f"{served.address}run/live/") as page:
        page.until(f"{STATE}?.startsWith('This run: going on, round 2')")
        assert page.value(f"{OFFER}.hidden") is True
        page.value("window.isTheSame = true")
        store.append("run_finished", action="stop_passed")
        store.close()
        page.until(f"{STATE}?.startsWith('This run: finished')")
        assert page.value(f"{OFFER}.hidden") is False and page.value("isTheSame") is True
        page.click(".served button")
        page.until("!('isTheSame' in window) && document.readyState === 'complete'")
        page.until(f"{STATE}?.startsWith('This run: finished')")
        assert page.value(f"{OFFER}.hidden") is True
        assert AXE.is_file() is False or page.serious_faults() == []


def test_a_run_that_is_removed_is_said_to_be_gone(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    store = make_run(served.folder / "removed", Made(shares=(0.1,), is_finished=False))
    page = browser.page("about:blank")
    page.call("Network.emulateNetworkConditions", offline=False, **FAST)
    page.open(f"{served.address}run/removed/")
    page.until(f"{STATE}?.startsWith('This run: going on')")
    store.run_dir.rename(tmp_path / "elsewhere")
    page.until(f"{STATE}.startsWith('No word of this run')")
    store.close()
    page.close()

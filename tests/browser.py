"""A real browser for the tests: headless Chromium, where one is found, over DevTools' own pipe.

It sees a page as a reader does: clicks go where an element is, keys where the focus is. What a page
asks the network for, and what its console and its policy complain of, is kept with it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from conftest import REPO

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
AXE = REPO / ".browser" / "axe-4.14.1.min.js"  # put there by .ci/browser.sh
PATIENCE_S = 60.0  # for one answer, on a machine with other work
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--password-store=basic", "--force-device-scale-factor=1",
)  # fmt: skip
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36} | {
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


def found_browser() -> str | None:
    """The program, or None where there is none."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Size(NamedTuple):
    width: int
    height: int


DESK, PHONE = Size(1280, 900), Size(390, 844)


class BrowserError(AssertionError):
    """The browser refused, or what was asked of the page threw."""


class Browser:
    """One Chromium with an empty profile; `page` opens a page in it."""

    def __init__(self, program: str, profile: Path) -> None:
        """Start it; without its sandbox where it has none, as in most containers and for root."""
        ways = [[], ["--no-sandbox"]] if os.geteuid() else [["--no-sandbox"]]
        for flags in ways:
            self._start([program, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"])
            try:
                self.call("Browser.getVersion")
                return
            except (BrowserError, BrokenPipeError):
                self._end()
                if flags == ways[-1]:
                    raise

    def _start(self, line: list[str]) -> None:
        # Above 9, so that the two numbers that Chromium reads and writes on are free.
        commands, answers = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (commands[0], answers[1])]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}', *line],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (*theirs, commands[0], answers[1]):
            os.close(one)
        self._to, self._from = commands[1], answers[0]
        self._left, self._last_id = b"", 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, at: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        os.close(self._to)  # who controls it is gone, and so it goes
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; what happens until then is kept in `events`."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        message |= {} if session is None else {"sessionId": session}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        until = time.monotonic() + PATIENCE_S
        while (answer := self._next(until)).get("id") != self._last_id:
            self.events.append(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([self._from], [], [], left_s)[0]:
                raise BrowserError(f"no answer in {PATIENCE_S:g} s")
            more = os.read(self._from, 1 << 20)
            if not more:
                raise BrowserError("the browser has ended")
            self._left += more
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def page(self, address: str, size: Size = DESK, *, is_dark: bool = False) -> BrowserPage:
        """Open a page with the network off, and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        page = BrowserPage(self, target, attached["sessionId"])
        page.show_as(size, is_dark=is_dark)
        page.open(address)
        return page


class BrowserPage:
    """A page in a tab of its own."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")
        limits = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", offline=True, **limits)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def show_as(self, size: Size, *, is_dark: bool = False) -> None:
        shape = {"width": size.width, "height": size.height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=size.width < 500, **shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    # --- what it says -----------------------------------------------------------------------------

    def value(self, expression: str) -> Any:
        """What an expression comes to, a promise's outcome included."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for an expression to be true."""
        ends_at = time.monotonic() + PATIENCE_S
        while not self.value(f"Boolean({expression})"):
            if time.monotonic() > ends_at:
                raise BrowserError(f"{expression} did not come true in {PATIENCE_S:g} s")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """The text of the first element as it is shown."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.value(f"{found}.map((one) => one.innerText)")

    @property
    def events(self) -> list[dict[str, Any]]:
        self.value("0")  # what has happened until now is here with the answer
        return [one for one in self._browser.events if one.get("sessionId") == self._session]

    @property
    def problems(self) -> list[str]:
        """Errors and warnings of its scripts, its console and its policy."""
        said = []
        for event in self.events:
            method, params = event["method"], event["params"]
            level = "info"
            if method == "Runtime.consoleAPICalled":
                level = params["type"]
            elif method == "Log.entryAdded":
                level = params["entry"]["level"]
            elif method in ("Runtime.exceptionThrown", "Audits.issueAdded"):
                level = "error"
            if "NavigationEntryMarkedSkippable" in json.dumps(params):
                continue  # a test went to an address without a click
            if level in ("error", "warning"):
                said.append(json.dumps(params)[:2000])
        return said

    @property
    def requests(self) -> list[str]:
        """All addresses that were asked for."""
        sent = (one for one in self.events if one["method"] == "Network.requestWillBeSent")
        return [one["params"]["request"]["url"] for one in sent]

    def picture(self, path: Path, *, is_whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    # --- what a reader does -----------------------------------------------------------------------

    def click(self, selector: str) -> None:
        """Click the middle of the first element, which must be what is seen there."""
        place = self.value(
            "(() => { const one = document.querySelector(" + json.dumps(selector) + ");"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];"
            "const top = document.elementFromPoint(x, y);"
            "return one === top || one.contains(top) || top.contains(one) ? [x, y] : null })()"
        )
        assert place is not None, f"{selector} is covered by something else"
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left",
                clickCount=1,
            )

    def press(self, *keys: str) -> None:
        """Press keys one after the other; `Shift+Tab` is the only one with a second."""
        for name in keys:
            key = name.removeprefix("Shift+")
            text = {"Enter": "\r", " ": " "}.get(key, "" if key in KEYS else key)
            pressed = {"key": key, "code": "Space" if key == " " else key}
            pressed |= {"windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": 8 * (key != name)}
            kind = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=kind, text=text, **pressed)
            self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def back(self) -> None:
        self.value("history.back()")

    # --- axe --------------------------------------------------------------------------------------

    def serious_faults(self) -> list[str]:
        """What axe-core finds that is serious or critical, with the elements."""
        self.value(AXE.read_text(encoding="utf-8") + "\n;0")
        found = self.value(
            "axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations"
            ".filter((one) => ['serious', 'critical'].includes(one.impact))"
            ".map((one) => one.id + ': ' + one.nodes.slice(0, 5)"
            ".map((node) => node.html.slice(0, 200) + ' ' + node.failureSummary).join(' | ')))"
        )
        return found

"""How a service holds up what is asked of it: requests that it refuses for now, and pauses.

The SDK asks again by itself, for minutes and hours, and says nothing of it. Two things tell of it
all the same, and are brought together here: httpx logs each answer with its status, and the queue
states come to the observers that `services/sdk.py` sets. A hold-up is over once what waited has
been answered and nothing was held up for `CALM_S`.

What cannot be seen: whose request it was (all runs of a process that ask one service share what is
known), a model that waits in the queue to be made, and a connection that gets no answer at all.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args
from urllib.parse import urlsplit

from errors import one_line
from services.keys import UNHEARD

What = Literal["rate_limit", "capacity", "billing", "failing", "queue"]
WHATS: tuple[What, ...] = get_args(What)

LASTING_S = 10.0  # from which on a hold-up is worth a line
SELDOM_S = 300.0  # between two lines of one that goes on
CALM_S = 10.0
# The SDK asks again after half a minute at the latest, and asks for a result for 45 s. What was not
# held up again for longer than both has been given up.
GIVEN_UP_S = 90.0
RECENT_S = 60.0
MOST_RECENT = 10_000  # refused requests that are counted as the last minute's
MAX_REASON_CHARS = 160

RETRIEVED = "/retrieve_future"
# Nobody waits for these.
UNAWAITED = ("/telemetry", "/session_heartbeat", "/client/dynamic_config")
VENDORS_HOST = "thinkingmachines.dev"
STATES: Mapping[str, What] = {"paused_rate_limit": "rate_limit", "paused_capacity": "capacity"}
ASKED_AGAIN = 408  # a result that is not there yet


_NUMBERS = itertools.count(1)


class HeldUp(NamedTuple):
    """A hold-up as it is now. `reason` is the service's own word, in one printable line."""

    what: What
    num_refused: int
    num_recent: int  # refused in the last minute
    is_queued: bool  # a queue state told of it
    seconds: float
    reason: str


class Told(NamedTuple):
    """That a hold-up has lasted for a while, or is over; `number` is of all in this process."""

    number: int
    of: HeldUp
    is_over: bool


class Total(NamedTuple):
    """All hold-ups of a kind since the service is watched."""

    num_refused: int = 0
    num_queued: int = 0  # queue states that told of it
    num_times: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass
class _Hold:
    began: float
    last: float  # when something was held up last
    waiting: set[str] = field(default_factory=set)  # paths, or a queue, that have not gone on
    until: float | None = None  # when all that waited had gone on
    num_refused: int = 0
    num_queued: int = 0
    reason: str = ""
    told_at: float | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_RECENT))

    def end(self, now: float) -> float | None:
        """When it was over; None while it is not."""
        if self.until is not None and now - max(self.until, self.last) >= CALM_S:
            return self.until
        return self.last if now - self.last >= GIVEN_UP_S else None

    def as_it_is(self, what: What, now: float) -> HeldUp:
        while self.recent and now - self.recent[0] > RECENT_S:
            self.recent.popleft()
        seconds = (now if self.until is None else self.until) - self.began
        shown = self.num_refused, len(self.recent), self.num_queued > 0, seconds, self.reason
        return HeldUp(what, *shown)


class HoldUps:
    """What is known of one service. Told by the SDK's threads, asked by those that show it."""

    def __init__(self, base_url: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.base_url = None if base_url is None else _spelled(base_url).rstrip("/")
        self._clock = clock
        self._lock = threading.Lock()
        self._holds: dict[What, _Hold] = {}
        self._totals: dict[What, Total] = {}  # of those that are over
        self._told: list[Told] = []

    # --- what the SDK meets ---------------------------------------------------------------------

    def answered(self, url: str, status: int) -> None:
        """An answer to any request of this process."""
        if status < 400 and not self._holds:  # nearly all, and it costs next to nothing
            return
        what = _refusal(status)
        if (what is None and not self._holds) or not self._is_ours(url):
            return
        path = urlsplit(url).path
        if path.endswith(UNAWAITED):
            return
        if what is not None:
            self._held_up(what, path, None)
        elif status < 400 or status == ASKED_AGAIN:
            self._went_on(path)
            if status < 400 and path.endswith(RETRIEVED):  # SDK 0.25 tells of no end of a pause
                self._went_on("queue")

    def queued(self, state: str, reason: str | None) -> None:
        """A queue state, as the SDK names it, of a request that is not answered yet."""
        if state == "active":
            self._went_on("queue")
        else:
            self._held_up(STATES.get(state, "queue"), "queue", reason or "")

    def _is_ours(self, url: str) -> bool:
        if self.base_url is None:
            return (urlsplit(url).hostname or "").endswith(VENDORS_HOST)
        return _spelled(url).startswith(f"{self.base_url}/")

    def _held_up(self, what: What, waiting: str, reason: str | None) -> None:
        """`reason` is None for a refused request."""
        with self._lock:
            now = self._settled()
            hold = self._holds.setdefault(what, _Hold(now, now))
            hold.last, hold.until = now, None
            hold.waiting.add(waiting)
            if reason is None:
                hold.num_refused += 1
                hold.recent.append(now)
            else:
                hold.num_queued += 1
                hold.reason = one_line(reason, MAX_REASON_CHARS)

    def _went_on(self, waiting: str) -> None:
        with self._lock:
            now = self._settled()
            for hold in self._holds.values():
                hold.waiting.discard(waiting)
                if not hold.waiting and hold.until is None:
                    hold.until = now

    def _settled(self) -> float:
        """The time, with all that is over by now counted."""
        now = self._clock()
        for what, hold in list(self._holds.items()):
            if (ended := hold.end(now)) is not None:
                del self._holds[what]
                hold.until = ended
                self._totals[what] = _with(self._totals.get(what, Total()), hold, now)
                if hold.told_at is not None:
                    self._tell(hold.as_it_is(what, now), is_over=True)
            elif hold.as_it_is(what, now).seconds >= LASTING_S and (
                hold.told_at is None or (hold.until is None and now - hold.told_at >= SELDOM_S)
            ):
                hold.told_at = now
                self._tell(hold.as_it_is(what, now), is_over=False)
        return now

    def _tell(self, held: HeldUp, *, is_over: bool) -> None:
        self._told.append(Told(next(_NUMBERS), held, is_over))

    # --- what is to be said of it ---------------------------------------------------------------

    def now(self) -> list[HeldUp]:
        """What is held up right now."""
        if not self._holds:
            return []
        with self._lock:
            now = self._settled()
            found = [hold.as_it_is(what, now) for what, hold in self._holds.items()]
        return sorted(found, key=lambda held: WHATS.index(held.what))

    def told(self, since: int) -> list[Told]:
        """What is to be said once, from a number on."""
        with self._lock:
            self._settled()
            return [one for one in self._told if one.number >= since]

    def totals(self) -> dict[What, Total]:
        """All that was held up so far, what is right now included."""
        with self._lock:
            now = self._settled()
            found = dict(self._totals)
            for what, hold in self._holds.items():
                found[what] = _with(found.get(what, Total()), hold, now)
        return found


def _spelled(url: str) -> str:
    """An address in one spelling: without a port that is its scheme's own, and its host in lower
    case."""
    import httpx

    return str(httpx.URL(str(httpx.URL(url))))  # once more: of HTTPS it leaves the port at first


def _with(total: Total, hold: _Hold, now: float) -> Total:
    seconds = (now if hold.until is None else hold.until) - hold.began
    return Total(
        total.num_refused + hold.num_refused,
        total.num_queued + hold.num_queued,
        total.num_times + 1,
        total.seconds + seconds,
        hold.reason or total.reason,
    )


def _refusal(status: int) -> What | None:
    if status >= 500:
        return "failing"
    return {429: "rate_limit", 402: "billing"}.get(status)  # pyright: ignore[reportReturnType]


# --- where answers are seen -----------------------------------------------------------------------

_LOGGER = logging.getLogger("httpx")
_ANSWER = re.compile(r'HTTP Request: \S+ (\S+) "\S+ (\d{3}) ')


class _Answers(logging.Filter):
    """Takes the statuses out of httpx's log, and lets through what was let through before."""

    def __init__(self) -> None:
        super().__init__()
        self.level_before = _LOGGER.level
        self._lets_through = _LOGGER.getEffectiveLevel()
        self.watched: list[HoldUps] = []

    def filter(self, record: logging.LogRecord) -> bool:
        # Of its text: where keys are taken out of it, it has no arguments any more.
        if (found := _ANSWER.match(record.getMessage())) is not None:
            for one in self.watched:
                one.answered(found[1], int(found[2]))
        return record.levelno >= self._lets_through


_answers: _Answers | None = None
_WATCHING: list[HoldUps] = []  # once for each that watches


@contextlib.contextmanager
def watching(base_url: str | None) -> Iterator[HoldUps]:
    """Know of what the service holds up, as long as the block lasts; runs that are at work on one
    service at once share it."""
    global _answers
    found = [one for one in _WATCHING if one.base_url == HoldUps(base_url).base_url]
    held_up = found[0] if found else HoldUps(base_url)
    if _answers is None:
        _answers = _Answers()
        _LOGGER.addFilter(_answers)
        if not _LOGGER.isEnabledFor(logging.INFO):
            UNHEARD.add((_LOGGER.name, logging.INFO))
    _WATCHING.append(held_up)
    _answers.watched = list(dict.fromkeys(_WATCHING))
    keep_watching()
    try:
        yield held_up
    finally:
        _WATCHING.remove(held_up)
        _answers.watched = list(dict.fromkeys(_WATCHING))
        if not _WATCHING:
            _LOGGER.setLevel(_answers.level_before)
            UNHEARD.discard((_LOGGER.name, logging.INFO))
            _LOGGER.removeFilter(_answers)
            _answers = None


def keep_watching() -> None:
    """Have httpx log its answers. Inspect turns that off whenever it begins to evaluate."""
    if not _LOGGER.isEnabledFor(logging.INFO):
        _LOGGER.setLevel(logging.INFO)

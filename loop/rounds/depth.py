"""How many steps are kept in flight, so that the service has one to work on all the time.

The depth follows what was measured: how long a lone step is under way, and how fast steps come back
when there are enough of them. It never changes what a step computes, for a service takes them in
the order in which they were sent; so none of what is measured here enters a number of the run.
Times are the caller's, in seconds of one clock; nothing here reads a clock or waits.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST = 4  # in flight, where nothing is measured yet, and while little delay asks for no more
SPARE = 1.25  # for steps that take longer or shorter than others
GROWTH = 4  # times the steps that have come back: the first answers may have waited for a warm-up
WINDOW = 16  # gaps between steps that the typical one is taken from
FEWEST_GAPS = 3


def depth_for(latency_s: float, gap_s: float) -> int:
    """Steps in flight that keep a service busy.

    `latency_s` is how long a step is under way that finds no other one before it, from its
    submission to its result: the delay there and back, and the step itself. `gap_s` is the time
    from one result to the next where a step was waiting. By Little's law N steps in flight come
    back N / latency_s in a second, and the service makes 1 / gap_s; it is never idle from
    N = latency_s / gap_s on. The depth is ceil(SPARE * latency_s / gap_s) + 1, the one being on
    its way while the client works. While N is too small, results come latency_s / N apart, so the
    depth that this asks for is above N, and it rises until the gap is the service's own.
    """
    return math.ceil(SPARE * latency_s / gap_s) + 1


def bounded(asked: int, most: int) -> int:
    """The depth for one that is asked for: the fewest at least, `most` at most."""
    return min(most, max(FEWEST, asked))


def share_of(most: int, num_runs: int, num_of_others: int) -> int:
    """The depth that one of `num_runs` runs may have at most, while `num_of_others` steps of the
    others are in flight.

    What a run measures of a service that others use as well holds their queues: each would ask for
    more than the others have, and all would come to `most`, where one of them would have been
    enough to keep the service busy. So they share `most` evenly, and a run that comes later waits
    with more than the fewest until the others have come down to their shares.
    """
    return bounded(min(most // num_runs, most - num_of_others), most)


@dataclass(frozen=True)
class Pipelined:
    """What was measured of the steps in flight; of too few steps there are no times."""

    most_in_flight: int  # since the measure before
    latency_ms: float | None = None
    gap_ms: float | None = None


class Depth:
    """Chooses how many steps are in flight, at most `most`, from when they were sent and came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.number = bounded(FEWEST, most)
        self._sent_s: deque[float] = deque()  # of those in flight, the oldest first
        self._gaps_s: deque[float] = deque(maxlen=WINDOW)
        self._latency_s: float | None = None  # the shortest, of this round
        self._came_s: float | None = None  # the step before, where nothing lies between
        self._num_came = 0
        self._most_in_flight = 0

    def begin_round(self) -> None:
        """Nothing is in flight: the delay is measured anew, and the depth stays until then."""
        self._sent_s.clear()
        self._latency_s = self._came_s = None

    def sent(self, now_s: float) -> None:
        """A step was submitted."""
        self._sent_s.append(now_s)
        self._most_in_flight = max(self._most_in_flight, len(self._sent_s))

    def came(self, now_s: float) -> None:
        """The oldest step in flight has its results."""
        latency_s = now_s - self._sent_s.popleft()
        self._latency_s = min(latency_s, self._latency_s or latency_s)
        if self._came_s is not None:
            self._gaps_s.append(now_s - self._came_s)
        self._came_s = now_s
        self._num_came += 1
        if (gap_s := self._gap_s) is not None:
            asked = depth_for(self._latency_s, gap_s)
            self.number = bounded(min(asked, GROWTH * self._num_came), self._most)

    def paused(self) -> None:
        """Something else came back; what lies between two steps then is no gap of theirs."""
        self._came_s = None

    def among(self, training: Sequence[Depth]) -> int:
        """How many may be in flight while these train, itself among them."""
        others = sum(len(one._sent_s) for one in training if one is not self)
        return min(self.number, share_of(self._most, len(training), others))

    def take_measure(self) -> Pipelined:
        """What was measured, of the most in flight since it was last taken."""
        most, self._most_in_flight = self._most_in_flight, len(self._sent_s)
        return Pipelined(most, _ms(self._latency_s), _ms(self._gap_s))

    @property
    def _gap_s(self) -> float | None:
        """The typical gap; None while it is not known."""
        if len(self._gaps_s) < FEWEST_GAPS:
            return None
        return statistics.median(self._gaps_s) or None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)

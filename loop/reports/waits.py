"""What a service holds up, in words: as it goes on, once it is over, and in a report. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loop.reports.lines import seconds_text
from services.held_up import HeldUp, Told

NOW = {
    "rate_limit": "limits the rate",
    "capacity": "is short of capacity",
    "billing": "waits until the account's billing is settled",
    "failing": "fails",
    "queue": "lets requests wait",
}
PAST = {
    "rate_limit": "limited the rate",
    "capacity": "was short of capacity",
    "billing": "waited until the account's billing was settled",
    "failing": "failed",
    "queue": "let requests wait",
}
MIN_SECONDS = 0.5  # of a time that is worth being told


def requests_text(number: int) -> str:
    return "1 request" if number == 1 else f"{number:,} requests"


def now_text(held: Iterable[HeldUp]) -> str:
    """What is held up right now; empty where nothing is."""
    return "; ".join(_now(one) for one in held)


def _now(held: HeldUp) -> str:
    said = [f"{NOW[held.what]}: {held.reason}" if held.reason else NOW[held.what]]
    if held.num_recent:
        refused = f"{requests_text(held.num_recent)} refused in the last minute, asked again"
        said = [*said, refused] if held.reason else [f"{said[0]}: {refused}"]
    if held.is_queued or not held.num_recent:
        said.append(f"waiting {seconds_text(held.seconds)}")
    return f"the service {'; '.join(said)}"


def told_text(told: Told) -> str:
    """A hold-up that lasts, or that is over, in a line."""
    held = told.of
    if not told.is_over:
        waiting = "" if held.is_queued or not held.num_recent else _for(held.seconds)
        return now_text([held]) + waiting
    return f"over: the service {past_text(held)}"


def _for(seconds: float) -> str:
    return f"; for {seconds_text(seconds)} now"


def past_text(held: HeldUp) -> str:
    refused = f", {requests_text(held.num_refused)} refused" if held.num_refused else ""
    return f"{PAST[held.what]} for {seconds_text(held.seconds)}{refused}"


def before_text(held: Iterable[HeldUp]) -> str:
    """What an error of the service came after; empty where nothing was held up."""
    said = [past_text(one) for one in held if one.seconds >= MIN_SECONDS]
    return f" Before that it {' and '.join(said)}." if said else ""


def events_text(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the ledger has of hold-ups, a sentence for each kind; none where nothing was."""
    sums: dict[str, tuple[int, float, str]] = {}
    for event in events:
        num_refused, seconds, reason = sums.get(event["what"], (0, 0.0, ""))
        sums[event["what"]] = (
            num_refused + event["num_refused"],
            seconds + event["seconds"],
            event["reason"] or reason,
        )
    said = []
    for what in (one for one in PAST if one in sums):
        num_refused, seconds, reason = sums[what]
        refused = f", {requests_text(num_refused)} refused and asked again" if num_refused else ""
        because = f" (it said: {reason})" if reason else ""
        said.append(f"The service {PAST[what]} for {seconds_text(seconds)}{refused}{because}.")
    return said

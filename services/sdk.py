"""The clients of the Tinker SDK, all made here.

A run makes its REST client once, and before its session: of SDK 0.38, one that is made beside a
session at work has been seen to wait for ever.
"""

from __future__ import annotations

from typing import NamedTuple

import tinker


class Clients(NamedTuple):
    """What a run speaks to its service through. `rest` has no session of its own."""

    rest: tinker.RestClient
    service: tinker.ServiceClient


def open_clients(base_url: str | None, api_key: str | None) -> Clients:
    """Open a session on the service at `base_url` (None: Tinker's own)."""
    rest = rest_client(base_url, api_key)
    return Clients(rest, tinker.ServiceClient(base_url=base_url, api_key=api_key))


def rest_client(base_url: str | None, api_key: str | None) -> tinker.RestClient:
    """A client for what needs no session: what is known of weights, how long they are kept."""
    return tinker.RestClient(base_url=base_url, api_key=api_key)

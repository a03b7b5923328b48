"""Which method a run trains by."""

from __future__ import annotations

from loop.methods.method import Method, Workplace
from loop.methods.sft import Sft


def method_of(workplace: Workplace) -> Method:
    """The method that the settings name."""
    return Sft(workplace)

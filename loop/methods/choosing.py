"""Which method a run trains by."""

from __future__ import annotations

from loop.methods.dpo import Dpo
from loop.methods.method import Method, Workplace
from loop.methods.rl import Rl
from loop.methods.sft import Sft


def method_of(workplace: Workplace) -> Method:
    """The method that the settings name."""
    if workplace.plan.config.method == "dpo":
        return Dpo(workplace)
    if workplace.plan.config.method == "rl":
        return Rl(workplace)
    return Sft(workplace)

"""Which method a run trains by."""

from __future__ import annotations

from loop.methods.dpo import Dpo
from loop.methods.method import Method, Workplace
from loop.methods.off_policy import OffPolicy
from loop.methods.on_policy import OnPolicy
from loop.methods.rl import Rl
from loop.methods.sft import Sft


def method_of(workplace: Workplace) -> Method:
    """The method that the settings name."""
    config = workplace.plan.config
    if config.distill is not None:
        return OnPolicy(workplace) if config.distill.way == "on_policy" else OffPolicy(workplace)
    if config.dpo is not None:
        return Dpo(workplace)
    return Rl(workplace) if config.rl is not None else Sft(workplace)

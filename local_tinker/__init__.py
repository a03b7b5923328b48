"""An embedded Tinker-compatible service: real LoRA training and sampling on this machine.

The unmodified `tinker` SDK talks to it over HTTP on 127.0.0.1. It is made for one person on one
machine. Programs start it with `start()`; other clients use `python -m local_tinker`.
This package imports nothing of the training loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_tinker.service import Service, start

__all__ = ["Service", "start"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are used, so that `--help` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from local_tinker import service

    return getattr(service, name)

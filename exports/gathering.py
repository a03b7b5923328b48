"""The service's own figures of a checkpoint, asked for once: what an export is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from exports.reference import Reference
from exports.source import Source

if TYPE_CHECKING:
    from loop.reports.progress import Progress


def gather_reference(source: Source, env: Mapping[str, str], progress: Progress) -> Reference:
    """Ask the service that has the checkpoint's weights; what it costs is said first.

    `env` holds the keys and TINKER_BASE_URL. Raises `LoopError` children.
    """
    raise NotImplementedError

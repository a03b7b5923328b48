"""How many files and connections trials side by side may hold open."""

from __future__ import annotations

import contextlib
import resource

FILES_OF_ITSELF = 512  # libraries, logs, the embedded service
FILES_OF_A_TRIAL = 256  # twice the answers that are asked for at once (evaluation.concurrency)


def allow_open_files(num_parallel: int) -> str | None:
    """Have this process hold as many files open as trials side by side may need; what to do where
    it may not. Over plain HTTP each request on its way is a connection, and the SDK lets go of a
    trial's only some time after it has ended."""
    needed = FILES_OF_ITSELF + num_parallel * FILES_OF_A_TRIAL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    return (
        f"{num_parallel} trials at once may hold {needed:,} files and connections open, and this "
        f"process may hold {allowed:,} (ulimit -n). Raise that, or lower --parallel."
    )

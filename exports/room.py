"""Whether disk and memory have room for an export, looked at before the work starts."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from errors import ExportError
from exports.source import Source
from exports.wanted import LLAMA_CPP, Wanted

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2, "f32": 4, "f16": 2, "q8_0": 34 / 32}
SPARE = 1.05  # config, tokenizer, card, and what a file system takes for itself
GIB = 2**30


def refuse_no_room(source: Source, wanted: Wanted, of_base: str | None) -> None:
    """Raise `ExportError` where the disk or the memory is too small; `of_base` is the dtype of the
    base model's weights, None where they are not touched."""
    base_bytes = sum(path.stat().st_size for path in source.base_dir.glob("*.safetensors"))
    per_weight = 4 if of_base is None else BYTES_OF[of_base]
    disk, memory = _needed(wanted, base_bytes / per_weight, of_base)
    free = shutil.disk_usage(_existing(wanted.out.parent)).free
    if disk * SPARE > free:
        raise ExportError(
            f"{wanted.out}: this export takes about {disk * SPARE / GIB:.2f} GiB while it is made, "
            f"and {free / GIB:.2f} GiB are free there. Make room, or name another place."
        )
    available = available_memory()
    if available is not None and memory > available:
        raise ExportError(
            f"This export takes about {memory / GIB:.2f} GiB of memory, for the model that is "
            f"loaded to merge and to check, and {available / GIB:.2f} GiB are available. Close "
            "other programs, or export on a larger machine."
        )


def _needed(wanted: Wanted, num_weights: float, of_base: str | None) -> tuple[float, float]:
    """Bytes of disk and of memory. The check loads the export and asks the service as well, which
    has the base model in float32 on a CPU."""
    in_service = 4 * num_weights
    if wanted.format == "peft" and not wanted.fold_unembed:
        return 0.0, 2 * in_service
    merged = num_weights * BYTES_OF[wanted.dtype or of_base or "float32"]
    if wanted.format in LLAMA_CPP:
        # The merged folder that it is made from, and the file.
        file = num_weights * BYTES_OF[wanted.quantization or "f16"]
        return 4 * num_weights + file, in_service + max(file, 4 * num_weights)
    return merged, in_service + 4 * num_weights


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.exists())


def available_memory() -> float | None:
    """Bytes that a process may still take, by this machine and by its container; None unknown."""
    found: list[float] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        found.append(int(limit) - int(used))
    if not found and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found) if found else None

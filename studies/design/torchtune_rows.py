"""The rows that a torchtune trial trains on: where they come from, and how many there are.

torchtune loads them by `datasets.load_dataset`: a local file is `source: json` with `data_files`.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from pathlib import Path
from typing import Any

from errors import one_line
from settings.yaml_file import shown
from studies.design.experiment import Study
from studies.design.paths import is_file, is_there

LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def source_of(study: Study, name: str, place: tuple[str, ...]) -> dict[str, Any]:
    """The keys of `dataset` that load a file, or a hub's data set. Raises `ConfigError`."""
    file = study.folder / name
    loader = LOADERS.get(file.suffix.lower())
    if is_of_hub(study, name):
        return {"source": name}
    if loader is None or not is_file(file):
        kinds = ", ".join(LOADERS)
        what = f"there is no {file}" if loader is not None else f"it is none of {kinds}"
        raise study.file.error(
            place,
            f"dataset names {shown(name)}, but {what}. Put the file there; a path starts at the "
            "study's folder.",
        )
    try:
        num_rows = count_rows(file)
    except (OSError, ValueError, RecursionError) as error:
        raise study.file.error(
            place, f"dataset {file}: no rows can be read: {one_line(str(error), 200)}. Mend it."
        ) from None
    if num_rows == 0:
        raise study.file.error(place, f"dataset {file} has no rows. Give it some.")
    return {"source": loader, "data_files": str(file.resolve())}


def is_of_hub(study: Study, name: str) -> bool:
    """Whether a name is one of the hub's, OWNER/NAME or NAME, and none that lies here."""
    file = study.folder / name
    is_path = file.suffix.lower() in LOADERS or is_there(study.folder / name.partition("/")[0])
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not is_path


def num_rows_in(dataset: Any) -> int | None:
    """How many rows an epoch has; None where that is not known without loading them."""
    if not isinstance(dataset, dict) or dataset.get("packed") or dataset.get("filter_fn"):
        return None
    file, split = dataset.get("data_files"), dataset.get("split", "train")
    if (
        not isinstance(file, str)
        or split != "train"
        or dataset.get("source") not in ("json", "csv")
    ):
        return None
    try:
        return count_rows(Path(file))
    except (OSError, ValueError, RecursionError):
        return None


def count_rows(file: Path) -> int | None:
    """The rows of a file; None for a format that only its library reads. Raises `OSError`, or
    `ValueError` for what is not its format."""
    stat = file.stat()
    return _count(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)  # every trial asks
def _count(file: Path, _changed: int, _size: int) -> int | None:
    if file.suffix.lower() == ".parquet":
        return None
    if file.suffix.lower() == ".csv":
        with open(file, encoding="utf-8-sig", newline="") as opened:
            return max(0, sum(1 for row in csv.reader(opened) if row) - 1)
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        return len(json.loads(text))
    lines = [line for line in text.split("\n") if line.strip()]
    for line in lines:
        json.loads(line)
    return len(lines)

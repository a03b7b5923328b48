"""Where measurements may lie that a study need not pay for again: its own runs, and other studies'.

Other studies are those in the folders beside it, and what the command names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import ConfigError, LoopError
from ledger.run_directory import CONFIG
from studies.design.experiment import FILE_NAME, Study, load_study
from studies.design.paths import is_file, is_folder


def known_run_dirs(study: Study, named: Sequence[Path]) -> list[Path]:
    """Run directories of the study, of those beside it, and of what is `named`: studies or runs.

    Raises `ConfigError` for a name that is neither.
    """
    found = list(_runs_in(study.results_dir))
    for other in sorted(study.folder.parent.iterdir()):
        if other != study.folder and is_file(other / FILE_NAME):
            found += _runs_of_study(other)
    for path in named:
        if is_file(path / CONFIG):
            found.append(path.resolve())
        elif is_file(path / FILE_NAME):
            found += _runs_of_study(path)
        else:
            raise ConfigError(
                f"--reuse {path}: neither a study (it has no {FILE_NAME}) nor a run directory. "
                "Name the folder of one."
            )
    return list(dict.fromkeys(found))


def _runs_of_study(folder: Path) -> Iterator[Path]:
    try:
        study = load_study(folder)
    except LoopError:  # it may be unfinished, and is not asked for
        return
    if study.experiment.experiment.framework == "tinker":
        yield from _runs_in(study.results_dir)


def _runs_in(results_dir: Path) -> Iterator[Path]:
    for path in sorted(results_dir.iterdir()) if is_folder(results_dir) else ():
        if is_file(path / CONFIG):
            yield path

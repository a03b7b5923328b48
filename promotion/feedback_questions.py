"""What a run's evaluations ask, and what it was trained on, as far as its files still tell.

The questions are looked up twice, in the files that the settings name and in what was measured: a
file that was changed since must not let through what the run was judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from config_schema import LoadedConfig, validate
from data_loader import split_validation
from errors import LoopError, RegistryError
from evaluation.held_out import HeldOutFile
from evaluation.tasks import EvalTask
from ledger.finding import config_file_of
from ledger.store import RunStore
from loop.planning.resumption import refuse_other_code
from loop.planning.row_files import load_rows
from loop.planning.tasks import load_eval_tasks, task_code
from rows.contamination import EvalTexts, Hit
from rows.examples import Example, ExampleTable
from rows.questions import EvalText
from scores.results import TaskResult
from settings.task_names import SPLIT_TASK, is_inspect_task
from simple_eval import grader_files_of


@dataclass(frozen=True)
class RunKnowledge:
    """What a run asks and has trained on."""

    questions: tuple[EvalText, ...]
    held_out_ids: frozenset[str]
    sealed: frozenset[str]  # the tasks of sealed tests
    keeps_near: bool
    examples: tuple[ExampleTable, ...]  # training rows and pool
    notes: tuple[str, ...]  # what could not be looked up as it was


class Questions:
    """The questions of one run or several, to be looked for in what people asked."""

    def __init__(self, runs: Iterable[RunKnowledge]) -> None:
        known = list(runs)
        texts = [text for one in known for text in one.questions]
        ids = frozenset().union(*(one.held_out_ids for one in known))
        sealed = frozenset().union(*(one.sealed for one in known))
        keeps_near = all(one.keeps_near for one in known)
        self._all = EvalTexts(texts, ids, keeps_near=keeps_near)
        of_seal = [text for text in texts if text.task in sealed]
        self._sealed = EvalTexts(of_seal) if of_seal else None
        self._sealed_names = ", ".join(sorted(sealed))

    def find_in(self, ids: Iterable[str], turns: list[tuple[str, str]]) -> Hit | None:
        """What is asked by an evaluation, or similar to it. Nothing of a sealed test is in it."""
        hits = [hit for one in ids if (hit := self._all.find_in(one, turns)) is not None]
        hit = next((one for one in hits if one.kind == "contaminated"), hits[0] if hits else None)
        under_seal = None if self._sealed is None else self._sealed.find_in("", turns)
        if hit is None or under_seal is None or _is_of_others(hit, under_seal):
            return hit
        what = "asks" if hit.kind == "contaminated" else "is similar to"
        return Hit(hit.kind, f"{what} a question of the sealed test ({self._sealed_names})", "", "")


def _is_of_others(hit: Hit, under_seal: Hit) -> bool:
    """Whether a row asks what is asked every round, and is at most similar to what is sealed."""
    return hit.kind == "contaminated" and under_seal.kind == "similar"


def known_of(run: RunStore) -> RunKnowledge:
    """Look up what a run asks and has trained on. Raises `RegistryError` where a task's questions
    are nowhere any more."""
    settled = run.settled_config()
    file = config_file_of(settled, run)
    loaded = LoadedConfig(validate(settled["config"], str(run.run_dir)), file, file.parent)
    config, notes = loaded.config, list[str]()
    sealed = tuple(config.evaluation.test_tasks)
    names = dict.fromkeys((*config.measured_tasks, *sealed))
    names.pop(SPLIT_TASK, None)
    tables = dict(_rows(run, loaded, notes))
    tasks = [task for name in names for task in _task(run, loaded, name, notes)]
    if config.data.val_share:
        tasks.append(_split_task(run, tables, config.data.val_share))
    ids = frozenset(
        one.id for task in tasks if isinstance(task.work, HeldOutFile) for one in task.work.examples
    )
    texts = (*(text for task in tasks for text in task.eval_texts), *_measured(run))
    return RunKnowledge(
        tuple(dict.fromkeys(texts)),
        ids,
        frozenset(sealed),
        config.data.contamination == "list",
        tuple(tables.values()),
        tuple(notes),
    )


def _task(run: RunStore, loaded: LoadedConfig, name: str, notes: list[str]) -> Iterator[EvalTask]:
    """A task as its files have it now; none where they are gone and its questions are recorded."""
    recorded = run.manifest().eval_tasks.get(name)
    try:
        if _runs_code(loaded, name):  # which is done only where it is the run's own
            refuse_other_code(run, task_code(loaded), loaded.directory)
        (task,) = load_eval_tasks(loaded, [name])
    except LoopError as error:
        if not any(one.name == name for one in _measured_tasks(run)):
            raise RegistryError(
                f"{run.run_dir}: what its task {name} asks cannot be told, so nothing can be kept "
                f"out of the rows: {error} Restore the file, and give the command again."
            ) from None
        notes.append(
            f"{run.run_dir}: the files of {name} cannot be read, so its questions are those that "
            f"were measured ({error})"
        )
        return
    if recorded is not None and recorded.sha256 != task.work.sha256:
        notes.append(
            f"{run.run_dir}: {name} was changed since the run began, so its questions as they are "
            "now and those that were measured are looked for"
        )
    yield task


def _runs_code(loaded: LoadedConfig, name: str) -> bool:
    """Whether loading a task runs a user's code: the task itself, or a grader of its questions."""
    if not name.startswith("qa:"):
        return is_inspect_task(name)
    return bool(grader_files_of(loaded.find("eval_tasks", name.removeprefix("qa:"))))


def _measured(run: RunStore) -> Iterator[EvalText]:
    """The questions that the run's results hold."""
    for task in _measured_tasks(run):
        for sample in task.samples:
            if sample.question.strip():
                yield EvalText(task.name, sample.question, cluster=sample.cluster)


def _measured_tasks(run: RunStore) -> Iterator[TaskResult]:
    for measured in run.measured_files().values():
        yield from measured.tasks


def _rows(
    run: RunStore, loaded: LoadedConfig, notes: list[str]
) -> Iterator[tuple[str, ExampleTable]]:
    """Training rows and pool as they are now; a note on what cannot be read."""
    config = loaded.config
    given = {"train_file": config.train_file, "mining.pool_file": config.mining.pool_file}
    for key, sources in given.items():
        if sources is None:
            continue
        try:
            yield key, load_rows(loaded, key, sources).examples
        except LoopError as error:
            notes.append(
                f"{run.run_dir}: {key} cannot be read, so what of the rows is trained on already, "
                f"or otherwise, is not counted ({error})"
            )


def _split_task(run: RunStore, tables: dict[str, ExampleTable], share: float) -> EvalTask:
    if "train_file" not in tables:
        raise RegistryError(
            f"{run.run_dir}: it held out a share of its train_file, which cannot be read any more, "
            "so what may not be trained on cannot be told. Restore the file, and give the command "
            "again."
        )
    _, held_out = split_validation(tables["train_file"], share)
    work = HeldOutFile(SPLIT_TASK, Path(), held_out.sha256, held_out, is_split=True)
    return EvalTask(SPLIT_TASK, 1, "report", 1, work)


def training_examples(runs: Iterable[RunKnowledge]) -> Iterator[Example]:
    for run in runs:
        for table in run.examples:
            yield from table

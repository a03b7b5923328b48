"""What the weights that a run starts from were trained on and chosen by, through all their runs.

A sealed test is only unseen where none of these runs has trained on a question of it or opened it:
dev questions chose the weights, and an opened test has been looked at. Questions are in each run's
results; rows are in its files, and where a file has changed, their first words are in its
selections. What neither tells is said.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config_schema import LoadedConfig, TrainingConfig, validate
from data_loader import load_examples
from errors import ConfigError, LoopError, RunStoreError
from evaluation.inspect_tasks import InspectTask
from evaluation.preferences import PairFile
from evaluation.tasks import Asked, EvalTask
from ledger.finding import config_file_of
from ledger.store import TEST_FILE, RunStore
from loop.planning.inputs import counted, first_of, shown
from loop.planning.row_files import holds_of, sources_of
from rows.contamination import EvalTexts, Hit
from rows.words import normalise
from settings.groups import Sources
from simple_eval import QuestionTask

MIN_TELLING_WORDS = 5  # of a last turn that a conversation is told by
_HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")  # of a question without an id, and of a pair


@dataclass(frozen=True)
class Lineage:
    """The runs that weights came through, the last one first, and what of them is not known."""

    runs: tuple[RunStore, ...] = ()
    unknown: tuple[str, ...] = ()


def lineage_of(store: RunStore) -> Lineage:
    """The run and those that it was started from, as far as they are still there."""
    runs, unknown = [store], []
    origin = store.origin
    for one in () if origin is None else (origin.parent, *origin.ancestors):
        if one.run_dir is None:
            unknown.append(f"{one}: what it was trained on is not known")
            continue
        place = store.now_at(Path(one.run_dir))
        if is_run(place, one.run_id):
            runs.append(RunStore.open(place))
        else:
            unknown.append(f"{one}: this run is not at {place} any more")
    return Lineage(tuple(runs), tuple(unknown))


def is_run(run_dir: Path, run_id: str | None) -> bool:
    """Whether a directory holds the run of this id."""
    with contextlib.suppress(RunStoreError):
        store = RunStore.open(run_dir)
        return store.has_started and store.run_id == run_id
    return False


class Known(NamedTuple):
    """What is to be said of the questions of a run that starts from weights with a past."""

    unknown: list[str]  # of the sealed test
    warnings: list[str]


def refuse_known_questions(
    key: str, lineage: Lineage, tasks: Sequence[EvalTask], test_tasks: Sequence[EvalTask]
) -> Known:
    """Raise `ConfigError` for a sealed question that a run of the lineage trained on or opened.

    Of questions that rounds are decided by, which these runs may have been decided by as well, a
    warning tells how many were trained on.
    """
    sealed, dev = (
        EvalTexts(text for task in some for text in task.eval_texts)
        for some in (test_tasks, [task for task in tasks if task.layer > 1])
    )
    unknown = list(lineage.unknown)
    warnings: list[str] = []
    for run in lineage.runs:
        _refuse_opened(key, run, test_tasks)
        trained = _refuse_trained(key, run, sealed, dev)
        unknown += trained.unknown
        warnings += trained.warnings
        if run.test_opened() is not None and run.test_result() is None:
            unknown.append(f"{run.run_dir}: its sealed test was opened and not completed")
    return Known(unknown if test_tasks else [], warnings)


# --- what was opened ------------------------------------------------------------------------------


def _refuse_opened(key: str, run: RunStore, test_tasks: Sequence[EvalTask]) -> None:
    known, found = _Opened(run), []
    for test in test_tasks:
        for question, one in zip(_questions_of(test), test.asked, strict=True):
            how = known.by_file.get(test.work.sha256) or known.of(question, one)
            if how is not None:
                found.append(f"{one.where} ({shown(one.turns[-1].content)}), which it {how}")
    if found:
        raise ConfigError(
            f"{key}: evaluation.test_tasks: {run.run_dir} knows "
            f"{counted(len(found), 'question')} of it, so the test is not sealed for these "
            f"weights: {first_of(found)}. Take {'it' if len(found) == 1 else 'them'} out of the "
            "test, or name another test."
        )


class _Opened:
    """The questions that a run has opened, each with how.

    One of a single turn is known by its words. A longer conversation is known by its id where that
    is the hash of it, or else by its last turn, where that says enough to tell it by.
    """

    def __init__(self, run: RunStore) -> None:
        self._texts: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self.by_file: dict[str, str] = {}
        recorded = run.manifest().eval_tasks
        for file, measured in run.measured_files().items():
            for task in measured.tasks:
                what = "has opened in its sealed test" if file == TEST_FILE else "was evaluated on"
                what += f" ({task.name})"
                if task.name in recorded:
                    self.by_file.setdefault(recorded[task.name].sha256, what)
                for sample in task.samples:
                    self._texts.setdefault(normalise(sample.question), what)
                    own_id = sample.id.removeprefix(f"{task.name}/")
                    if _HASH.fullmatch(own_id):
                        self._hashes.setdefault(own_id, what)
        self._texts.pop("", None)  # a sample without text

    def of(self, question_id: str, asked: Asked) -> str | None:
        turns = [turn for turn in asked.turns if turn.role != "system"]
        if len(turns) == 1 or len(turns[-1].content.split()) >= MIN_TELLING_WORDS:
            known = self._texts.get(normalise(turns[-1].content))
            if len(turns) == 1 or not _HASH.fullmatch(question_id):
                return known
        return self._hashes.get(question_id)


def _questions_of(test: EvalTask) -> Iterator[str]:
    """The ids of a task's questions, in the order in which it asks them."""
    if isinstance(test.work, QuestionTask):
        yield from (question.id for question in test.work.questions)
    elif isinstance(test.work, InspectTask):
        yield from (str(sample.id) for sample in test.work.task.dataset)
    elif isinstance(test.work, PairFile):
        yield from test.work.examples.ids


# --- what was trained on --------------------------------------------------------------------------


class _Row(NamedTuple):
    example_id: str
    turns: Sequence[tuple[str, str]]  # (role, what is said)
    place: str


def _refuse_trained(key: str, run: RunStore, sealed: EvalTexts, dev: EvalTexts) -> Known:
    """Look at each row that the run's steps were made of. Of those that are not in its files any
    more there are only the first words."""
    trained = run.trained_ids()
    missing, asked_in_dev, found = set(trained), {}, {}
    for rows in (_rows_in_files, _rows_in_selections):
        for row in rows(run) if missing else ():
            if row.example_id not in missing:
                continue
            if (hit := _asked(sealed, row)) is not None:
                found[row.example_id] = f"{row.place} ({hit.text!r}), which {hit.reason}"
            if (hit := _asked(dev, row)) is not None:
                asked_in_dev[row.example_id] = f"{row.place} {hit.reason}"
            if rows is _rows_in_files:
                missing.discard(row.example_id)
    if found:
        raise ConfigError(
            f"{key}: {run.run_dir} was trained on {first_of(list(found.values()))}, so the test is "
            f"not sealed for these weights ({counted(len(found), 'row')} of what it was trained "
            "on). Take what they ask out of evaluation.test_tasks, or name another test."
        )
    unknown, warnings = [], []
    if missing:
        unknown.append(
            f"{run.run_dir}: {len(missing)} of the {len(trained)} rows that it trained on are not "
            "in its files any more, and of these only the first words are known"
        )
    if asked_in_dev:
        rows_of_dev, first = counted(len(asked_in_dev), "row"), next(iter(asked_in_dev.values()))
        warnings.append(
            f"warning: {run.run_dir} was trained on questions of eval_tasks, in {rows_of_dev} (the "
            f"first: {first}), so the weights know them, and scores on them tell little of others"
        )
    return Known(unknown, warnings)


def _asked(texts: EvalTexts, row: _Row) -> Hit | None:
    hit = texts.find_in(row.example_id, row.turns)
    return hit if hit is not None and hit.kind == "contaminated" else None


def _rows_in_files(run: RunStore) -> Iterator[_Row]:
    """The rows of a run's files as they are now; none of a file that is gone or cannot be read."""
    with contextlib.suppress(LoopError):
        settled = run.settled_config()
        file = config_file_of(settled, run)
        config = validate(settled["config"], str(run.run_dir))
        loaded = LoadedConfig(config, file, file.parent)
        for key, given in (("train_file", config.train_file), *_pool(config)):
            with contextlib.suppress(LoopError):
                sources, holds = sources_of(loaded, key, given), holds_of(config.method)
                for one in load_examples(sources, holds=holds).examples:
                    yield _Row(one.id, one.turns, f"{one.source} line {one.line_no}")


def _pool(config: TrainingConfig) -> Iterator[tuple[str, Sources]]:
    if config.mining.pool_file is not None:
        yield "mining.pool_file", config.mining.pool_file


def _rows_in_selections(run: RunStore) -> Iterator[_Row]:
    for event in run.events("selected"):
        selection = run.selection(event["round"])
        assert selection is not None, "there is an event of it"
        for pick in selection.picks:
            if pick.text is not None:
                place = f"{pick.file} line {pick.line_no}"
                yield _Row(pick.example_id, (("user", pick.text),), place)

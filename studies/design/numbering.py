"""Which number each trial has: once given, for ever.

A trial is its parameters and its seed; its number is in the names of its files and of its results.
The numbers that were given stand in `run_mapping.yaml`, those of trials that the study has dropped
among them, and in the record of what was run. A number is new only where nothing is known of it and
no results lie under it, so that what was paid for is never taken for another trial's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field

from errors import ConfigError, one_line
from storage.files import read_lines
from storage.stored_json import parse_object, record_of
from studies.design.expansion import Combination, Trial
from studies.design.experiment import Study

MAPPING = "run_mapping.yaml"
RECORD = "study.jsonl"  # in the folder of results: what was begun, line by line
MAX_EXACT = 2**53  # a float is a whole number up to here
_RUN_ID = r"run_(\d{3,9})"
_RESULTS = re.compile(rf"{_RUN_ID}(-.*)?")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a map may be of thousands of trials


class KnownTrial(NamedTuple):
    """A trial that has a number already."""

    number: int
    params: Mapping[str, Any]
    seed: Any

    @property
    def identity(self) -> str:
        return identity(self.params, self.seed)


@dataclass(frozen=True)
class StudyMap:
    """What `run_mapping.yaml` holds; `written` are the files that it names with the sha256 of what
    was written, also those that the study has no more. `is_damaged`: it cannot be read, and nothing
    depends on it."""

    trials: Sequence[KnownTrial] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    is_damaged: bool = False


@dataclass(frozen=True)
class Numbering:
    """The trials of a study in the order of their numbers, and those that it has dropped."""

    trials: Sequence[Trial]
    retired: Sequence[KnownTrial]
    warnings: Sequence[str]


def identity(params: Mapping[str, Any], seed: Any) -> str:
    """What makes a trial the trial that it is, as a text; 8 and 8.0 are one value."""
    return json.dumps([_plain(params), _plain(params.get("seed", seed))], sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT
    return int(value) if is_whole else value


def number_trials(
    study: Study, wanted: Sequence[Combination], first_seed: Any, recorded: StudyMap | None
) -> Numbering:
    """Give each combination its number. Raises `ConfigError` for a record that cannot be read."""
    known: dict[str, KnownTrial] = {}
    taken: set[int] = set()
    # What was run counts before what was only generated.
    mapped = () if recorded is None else recorded.trials
    for one in (*_recorded_trials(study, first_seed), *mapped):
        if one.number not in taken and one.identity not in known:
            known[one.identity] = one
            taken.add(one.number)
    with_results = set(_numbers_with_results(study))
    free = (n for n in range(len(wanted) + len(taken) + len(with_results)))
    free = (n for n in free if n not in taken and n not in with_results)
    trials, kept = [], set()
    for one in wanted:
        key = identity(one.params, one.seed)
        number = known[key].number if key in known else next(free)
        kept.add(key)
        trials.append(Trial(number, one.params, one.seed, one.is_replicate))
    trials.sort(key=lambda trial: trial.number)
    retired = sorted((one for key, one in known.items() if key not in kept), key=lambda t: t.number)
    return Numbering(trials, retired, _about_unknown(study, recorded, with_results - taken))


def _about_unknown(study: Study, recorded: StudyMap | None, unknown: set[int]) -> list[str]:
    if not unknown or recorded is not None:
        return []
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return [
        f"{study.configs_dir / MAPPING} is not there, so nothing says which trial the results of "
        f"run_{min(unknown):03d}{more} are of, and no trial gets such a number. Put the file back "
        "to go on with them."
    ]


def _numbers_with_results(study: Study) -> Iterator[int]:
    for folder in (study.results_dir, study.eval_results_dir):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        for name in names:
            if (found := _RESULTS.fullmatch(name)) is not None:
                yield int(found[1])


# --- what is known --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    id: Annotated[str, Field(pattern=rf"^{_RUN_ID}$")]
    params: dict[str, Any]
    seed: Any = None
    train: str | None = None
    train_sha256: str | None = None
    eval: str | None = None
    eval_sha256: str | None = None

    def known(self) -> KnownTrial:
        return KnownTrial(int(self.id.removeprefix("run_")), self.params, self.seed)

    @property
    def written(self) -> dict[str, str]:
        files = ((self.train, self.train_sha256), (self.eval, self.eval_sha256))
        return {name: sha for name, sha in files if name is not None and sha is not None}


@dataclass(frozen=True)
class _Arm:
    file: str
    sha256: str


@dataclass(frozen=True)
class _Map:
    runs: list[_Entry]
    retired: list[_Entry] | None = None  # None: of an earlier version
    inputs: dict[str, str] = field(default_factory=dict)
    arms: list[_Arm] = field(default_factory=list)
    left_over: dict[str, str] = field(default_factory=dict)

    @property
    def written(self) -> dict[str, str]:
        of_runs = {name: sha for one in self.runs for name, sha in one.written.items()}
        return self.left_over | of_runs | {one.file: one.sha256 for one in self.arms}


def read_map(study: Study, first_seed: Any) -> StudyMap | None:
    """The map of the generation that was last written; None where there is none.

    Raises `ConfigError` for one that cannot be read while there are results, since only it says
    which trial each of them is of.
    """
    file = study.configs_dir / MAPPING
    try:
        held = record_of(_Map, yaml.load(file.read_bytes(), Loader=_Loader))
        trials = [entry.known() for entry in (*held.runs, *(held.retired or ()))]
        if held.retired is None:  # where None was what the controls say
            seeded = [first_seed if one.seed is None else one.seed for one in trials]
            trials = [t._replace(seed=seed) for t, seed in zip(trials, seeded, strict=True)]
        for key in ("number", "identity"):
            if len({getattr(one, key) for one in trials}) < len(trials):
                raise ValueError(f"two of its trials have one {key}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        if not any(_numbers_with_results(study)) and not (study.results_dir / RECORD).exists():
            return StudyMap(is_damaged=True)
        raise ConfigError(
            f"{file}: it cannot be read: {one_line(str(error), 200)}. It says which trial each of "
            "the results is of, so nothing is written over it. Put back the file as generate wrote "
            "it; without it, remove it, and all trials are numbered anew."
        ) from None
    return StudyMap(trials, held.inputs, held.written)


@dataclass(frozen=True)
class _Begun:
    run: str
    params: dict[str, Any]
    seed: Any = None


def _recorded_trials(study: Study, first_seed: Any) -> Iterator[KnownTrial]:
    """The trials that were begun, as the record says. A line that a kill tore is none."""
    file = study.results_dir / RECORD
    try:
        lines = read_lines(file, repair=False).complete
    except OSError as error:
        raise ConfigError(f"{file}: it cannot be read: {error}. Make it readable.") from None
    for number, line in enumerate(lines, start=1):
        try:
            event = parse_object(line)
            if event.get("type") != "trial_begun":
                continue
            begun = record_of(_Begun, event)
        except ValueError as error:
            raise ConfigError(
                f"{file} line {number}: it is no line of a study's record: "
                f"{one_line(str(error), 200)}. It says which trial each of the results is of: put "
                "back the file as it was."
            ) from None
        if (found := re.fullmatch(_RUN_ID, begun.run)) is not None:  # an arm has a name
            seed = first_seed if begun.seed is None else begun.seed
            yield KnownTrial(int(found[1]), begun.params, seed)

"""From variables to trials: the full product of their values, once for each seed.

Pure but for the lines that its errors name.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from settings.yaml_file import Place, YamlFile, as_value, shown
from studies.design.experiment import Study
from studies.design.nesting import flat

MAX_TRIALS = 10_000
MAX_PARAMETERS = 500
OVERRIDE = "_override"


class Combination(NamedTuple):
    """Values of the variables, and the seed that applies to them: also where the controls say it or
    nobody does. It is a replicate where `study.seeds` adds it to what the controls say."""

    params: Mapping[str, Any]
    seed: int | None  # None: by chance, which torchtune can
    is_replicate: bool


@dataclass(frozen=True)
class Trial:
    """One combination of the variables, with one seed, and its number. Only the seed of a replicate
    is written into its config, so that more seeds leave what there is as it was."""

    number: int
    params: Mapping[str, Any]
    seed: int | None
    is_replicate: bool = False

    @property
    def run_id(self) -> str:
        return f"run_{self.number:03d}"

    @property
    def shown(self) -> str:
        """Its values in one line."""
        told = [f"{key}={json.dumps(value)}" for key, value in self.params.items()]
        told += [f"seed={self.seed}"] if self.is_replicate else []
        return ", ".join(told)


class TrialText(NamedTuple):
    """The text of a trial's config, and what a person is to know of it beside."""

    text: str
    remark: str | None = None


class Given(NamedTuple):
    """A parameter as the file gives it: the framework's name of it, its value, and its place."""

    name: str
    value: Any
    place: Place


def check_parameters(study: Study, named: Callable[[str], str]) -> None:
    """Raise `ConfigError` for values that are no list, an empty one or one with a value twice, and
    for parameters that collide; `named` gives the framework's name of a parameter."""
    for key, values in study.experiment.variables.items():
        _check_values(key, values, study.file)
    _refuse_collisions(study, named)


def combinations_of(study: Study, first_seed: Any) -> list[Combination]:
    """Every combination of a study, once for each seed; these count up from the first, which is
    what the controls or the framework say. Raises `ConfigError` for more trials than anybody
    means."""
    variables, seeds = study.experiment.variables, study.experiment.study.seeds
    num_trials = math.prod(len(values) for values in variables.values()) * seeds
    if num_trials > MAX_TRIALS:
        sizes = " x ".join(f"{len(values)} {shown(key)}" for key, values in variables.items())
        raise study.file.error(
            ("variables",),
            f"{sizes} with {seeds} seed{'s' * (seeds > 1)} come to {num_trials:,} trials, more "
            f"than {MAX_TRIALS:,}. Leave values out.",
        )
    counted_from = 0 if first_seed is None else first_seed
    if seeds > 1:
        _check_seed(study, counted_from)
    made = []
    for replicate, *values in itertools.product(range(seeds), *variables.values()):
        params = dict(zip(variables, values, strict=True))
        seed = counted_from + replicate if replicate else params.get("seed", first_seed)
        made.append(Combination(params, seed, is_replicate=replicate > 0))
    return made


def _check_seed(study: Study, first_seed: Any) -> None:
    is_varied = "seed" in study.experiment.variables
    is_number = isinstance(first_seed, int) and not isinstance(first_seed, bool)
    if is_varied or not is_number:
        place = ("variables" if is_varied else "controls", "seed")
        found = study.experiment.variables["seed"] if is_varied else first_seed
        raise study.file.error(
            place,
            f"{'.'.join(place)} is {as_value(found)} and study.seeds is "
            f"{study.experiment.study.seeds}, which counts up from one seed. Give one whole "
            "number in controls.seed, or leave study.seeds out.",
        )


def _check_values(key: str, values: Any, file: YamlFile) -> None:
    place = ("variables", key)
    if key == OVERRIDE:
        raise file.error(place, f"{OVERRIDE} belongs in controls. Move it there.")
    if not isinstance(values, list):
        raise file.error(
            place,
            f"variables.{shown(key)} is {as_value(values)}, no list. Write its values as [a, b], "
            "or move it to controls if it has one.",
        )
    if not values:
        raise file.error(
            place,
            f"variables.{shown(key)} is an empty list, so there would be no trial. Give it values, "
            "or take it out.",
        )
    seen: dict[str, Any] = {}
    for number, value in enumerate(values):
        # 8 and 8.0 are one value, true and 1 are not.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        same = repr(float(value)) if is_number else json.dumps(value, sort_keys=True)
        if same in seen:
            raise file.error(
                (*place, number),
                f"variables.{shown(key)} has the value {as_value(value)} twice, which would be the "
                "same trial. Take one out; for replicates set study.seeds.",
            )
        seen[same] = value


def given_in(study: Study, named: Callable[[str], str]) -> list[Given]:
    """All parameters that the file gives, variables first, then controls, then what overrides."""
    controls = dict(study.experiment.controls)
    override = controls.pop(OVERRIDE, None) or {}
    if not isinstance(override, dict):
        place = ("controls", OVERRIDE)
        raise study.file.error(
            place, f"controls.{OVERRIDE} is {as_value(override)}, no mapping. Nest settings in it."
        )
    found = [Given(named(k), v, ("variables", k)) for k, v in study.experiment.variables.items()]
    found += _given_below(controls, ("controls",), named)
    found += _given_below(override, ("controls", OVERRIDE), str)  # which has the framework's names
    return found


def leaves_of(one: Given) -> list[tuple[str, Any]]:
    """The settings that a parameter sets, by dotted name, also inside of its values."""
    values = one.value if one.place[0] == "variables" else [one.value]
    return [pair for value in values for pair in flat({one.name: value}).items()]


def _given_below(
    values: Mapping[str, Any], place: Place, named: Callable[[str], str]
) -> list[Given]:
    found = []
    for key, value in values.items():
        inner = flat({key: value})
        for dotted, one in inner.items():
            below = dotted.removeprefix(key).removeprefix(".")
            parts = _place_in(value, below)
            name = named(key) + (f".{below}" if below else "")
            found.append(Given(name, one, (*place, key, *parts)))
    return found


def _place_in(value: Any, dotted: str) -> Place:
    """The keys that a dotted path goes through; a key may have dots itself."""
    if not dotted or not isinstance(value, dict):
        return ()
    for key, inner in value.items():
        if dotted == key:
            return (key,)
        if dotted.startswith(f"{key}."):
            return (key, *_place_in(inner, dotted.removeprefix(f"{key}.")))
    return ()


def _refuse_collisions(study: Study, named: Callable[[str], str]) -> None:
    given = given_in(study, named)
    if len(given) > MAX_PARAMETERS:
        raise study.file.error(
            ("controls",),
            f"{len(given):,} parameters are given, more than {MAX_PARAMETERS}. Put what never "
            "changes into framework_config.base_config_file.",
        )
    varied = [one for one in given if one.place[0] == "variables"]
    fixed = [one for one in given if one.place[0] != "variables"]
    controls = [one for one in fixed if one.place[:2] != ("controls", OVERRIDE)]
    pairs = [*itertools.product(varied, fixed), *itertools.combinations(varied, 2)]
    pairs += itertools.combinations(controls, 2)
    for one, other in pairs:
        if overlap(one.name, other.name):
            as_one = "" if one.place[-1] == other.place[-1] else f", which are both {one.name}"
            raise study.file.error(
                other.place,
                f"{_dotted(one.place)} (line {study.file.line_of(one.place)}) and "
                f"{_dotted(other.place)} set one parameter{as_one}. Keep one of them.",
            )


def overlap(one: str, other: str) -> bool:
    """Whether two dotted names are of one parameter, or one is a part of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _dotted(place: Place) -> str:
    return shown(".".join(map(str, place)))

"""What stands in `study`, held against the rest of the file: refused with line and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from studies.expansion import Given, given_in, leaves_of
from studies.experiment import Study
from studies.yaml_file import Place


def check_halving(study: Study, named: Callable[[str], str], max_rounds: Any) -> None:
    """Raise `ConfigError` where trials cannot be dropped between rounds. `max_rounds` is what they
    share, and the schema's to judge where it is no number."""
    if study.experiment.study.stop != "halving":
        return
    drops = "study.stop is halving, which drops trials between rounds that all of them take"
    instead = "or take study.stop out"
    given = [one for one in given_in(study, named) if _sets(one, "max_rounds")]
    varied = [one for one in given if one.place[0] == "variables"]
    if varied:
        raise study.file.error(
            varied[0].place,
            f"{drops}, so max_rounds cannot vary. Give one number of at least 2 in controls, "
            f"{instead}.",
        )
    if isinstance(max_rounds, int) and max_rounds < 2:
        place: Place = given[0].place if given else ("study", "stop")
        raise study.file.error(
            place,
            f"{drops}, and max_rounds is {max_rounds}. Set max_rounds in controls to 2 or more "
            f"(num_epochs are those of all rounds together), {instead}.",
        )
    num_arms = math.prod(len(values) for values in study.experiment.variables.values())
    if num_arms < 2:
        raise study.file.error(
            ("variables",),
            f"{drops}, but the variables make one combination, and nothing could be dropped. Give "
            f"them more values, {instead}.",
        )


def _sets(one: Given, name: str) -> bool:
    return any(leaf == name for leaf, _ in leaves_of(one))


def refuse_for_torchtune(study: Study) -> None:
    """Raise `ConfigError` for what only `run` does, which runs no trial of torchtune's."""
    if study.experiment.study.stop is not None:
        raise study.file.error(
            ("study", "stop"),
            "study.stop is halving, but configs of torchtune are generated and not run here. Take "
            "it out.",
        )

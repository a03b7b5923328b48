"""What stands in `study`, held against the rest of the file: refused with line and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from settings.groups import BudgetSettings, check_prices
from settings.yaml_file import Place, as_value, shown
from studies.design.expansion import Given, given_in, leaves_of
from studies.design.experiment import Study, nearest


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


def check_budget(study: Study, models: Sequence[str]) -> None:
    """Raise `ConfigError` for a bound in dollars that nothing can be held against."""
    budget = study.experiment.study.budget
    try:
        check_prices("study.budget", budget, models)
    except ValueError as error:
        key = "usd" if budget.prices is None else "prices"
        raise study.file.error(("study", "budget", key), str(error)) from None


# Claims that cannot both hold.
CONTRADICTIONS = (
    *(("rises", "falls"), ("same", "rises"), ("same", "falls"), ("same", "differs")),
    *(("same", "diminishing"), ("falls", "diminishing")),
)
# How many values a claim needs, and whether they have to be numbers, which have an order.
NEEDS = {
    **{"rises": (2, True), "falls": (2, True), "diminishing": (3, True)},
    **{"differs": (2, False), "same": (2, False)},
}


def check_expectations(study: Study) -> None:
    """Raise `ConfigError` for what the hypothesis says of a variable and no values can show."""
    variables = study.experiment.variables
    for name, claims in study.experiment.study.expects.items():
        place, key = ("study", "expects", name), f"study.expects.{shown(name)}"
        if name not in variables:
            raise study.file.error(
                place, f"{key} is of no variable of the study; {nearest(name, list(variables))}"
            )
        for one, other in CONTRADICTIONS:
            if one in claims and other in claims:
                raise study.file.error(
                    place, f"{key} is both {one} and {other}, which exclude each other. Keep one."
                )
        if len(set(claims)) < len(claims):
            raise study.file.error(place, f"{key} names a claim twice. Take one out.")
        values = variables[name]
        for claim in claims:
            number, is_ordered = NEEDS[claim]
            if len(values) < number:
                raise study.file.error(
                    place,
                    f"{key} is {claim}, which only {number} values or more can show, and "
                    f"variables.{shown(name)} has {len(values)}. Give it more, or take {claim} "
                    "out.",
                )
            wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
            if is_ordered and wrong:
                raise study.file.error(
                    place,
                    f"{key} is {claim}, which is of numbers, and variables.{shown(name)} has the "
                    f"value {as_value(wrong[0])}. Write differs or same, which need no order.",
                )


def refuse_for_torchtune(study: Study) -> None:
    """Raise `ConfigError` for what only `run` does, which runs no trial of torchtune's."""
    if study.experiment.study.stop is not None:
        raise study.file.error(
            ("study", "stop"),
            "study.stop is halving, but configs of torchtune are generated and not run here. Take "
            "it out.",
        )
    if study.experiment.study.budget != BudgetSettings():
        raise study.file.error(
            ("study", "budget"),
            "study.budget bounds what is run, but configs of torchtune are generated and not run "
            "here. Take it out.",
        )
    if study.experiment.study.arms:
        raise study.file.error(
            ("study", "arms"),
            "study.arms are asked here, but configs of torchtune are generated and not run here, "
            "so there is nothing to compare them with. Take them out.",
        )

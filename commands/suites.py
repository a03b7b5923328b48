"""The evaluation suite of each use case: the tasks of its example, as `--init` writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from commands.use_cases import MEASURES, USE_CASES, UseCase
from config_schema import TrainingConfig, validate
from evaluation.benchmarks import PACKAGE, benchmark_of
from loop.reports.console import PROGRAM

EXAMPLES = PROGRAM.parent / "examples"
# What stands in the examples for what is the user's own.
OWN = {
    "../demo_data.jsonl": "train.jsonl",
    "nll:../demo_pool.jsonl": "nll:held_out.jsonl",
    "../evals/domain_qa.py@domain_qa": "qa:questions.jsonl",
    "../evals/arithmetic.py@arithmetic": "qa:questions.jsonl",
    "qa:../evals/simple_qa_test.jsonl": "qa:test_questions.jsonl",
}
EVALS = "../evals/"


class Suggested(NamedTuple):
    """A task of a suite. `version` and `asks` are of the catalogue's; None of what is not in it."""

    task: str
    layer: int | None  # None of a sealed test
    role: str
    when: str
    measures: str
    why: str
    version: str | None
    asks: str | None
    needs: tuple[str, ...]
    judge: str | None


def example_of(name: str) -> dict[str, Any]:
    """The settings of a use case's example."""
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def evals_from(folder: Path) -> str:
    """The folder of our own tasks as a config in `folder` names it: relatively within this
    checkout, so that both can be moved together."""
    root, here = PROGRAM.parent, folder.resolve()
    evals = root / "evals"
    return os.path.relpath(evals, here) if here.is_relative_to(root) else str(evals)


def project_config(example: Mapping[str, Any], name: str, evals: str) -> dict[str, Any]:
    """The settings of an example, with the user's own files in the place of the demo's."""
    raw = {"run_name": name, **_renamed(example, evals)}
    # What the example says of the demo's questions says nothing of the user's.
    raw["evaluation"]["task_args"].pop("qa:questions.jsonl", None)
    return raw


def _renamed(value: Any, evals: str) -> Any:
    if isinstance(value, dict):
        return {_renamed(key, evals): _renamed(inner, evals) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, evals) for inner in value]
    if isinstance(value, str):
        is_ours = value not in OWN and value.startswith(EVALS)
        return f"{evals}/{value.removeprefix(EVALS)}" if is_ours else OWN.get(value, value)
    return value


def is_public(name: object) -> bool:
    """Whether a task's name is that of a public benchmark."""
    return isinstance(name, str) and name.startswith(PACKAGE)


def short_name(task: str) -> str:
    """The part of a task's name that says what it is: `ifeval`, `refusal`, `questions`, `nll`."""
    if task.startswith("nll:"):
        return "nll"
    last = task.rpartition("@")[2] if ".py@" in task else task.rpartition("/")[2]
    return last.removeprefix("qa:").removesuffix(".jsonl")


def suite_of(use_case: UseCase, config: TrainingConfig) -> Iterator[Suggested]:
    """Yield the tasks of a use case's settings, the sealed ones last."""
    for name in config.measured_tasks:
        when = config.evaluation.every.get(name, 1)
        often = "each round" if when == 1 else f"every {when} rounds"
        how_often = "end" if when == "end" else often
        yield _suggested(use_case, config, name, config.layer_of(name), how_often)
    for name in config.evaluation.test_tasks:
        yield _suggested(use_case, config, name, None, "once")


def _suggested(
    use_case: UseCase, config: TrainingConfig, name: str, layer: int | None, when: str
) -> Suggested:
    short, found = short_name(name), benchmark_of(name)
    assert found is not None or short in MEASURES, f"nothing is known of {name}"
    role = "score" if name in config.scored_tasks else "beside"
    if name in config.gate.guards:
        role = f"guard, may fall {config.gate.guards[name]:g}"
    elif layer is None:
        role = "sealed"
    return Suggested(
        task=name,
        layer=layer,
        role=role,
        when=when,
        measures=MEASURES.get(short) or (found.measures if found is not None else ""),
        why=use_case.why[short],
        version=None if found is None else found.version,
        asks=None if found is None else found.asks(config.evaluation.task_args.get(name, {})),
        needs=() if found is None else found.needs,
        judge=None if found is None else found.judge,
    )


# --- what a program reads -------------------------------------------------------------------------


def suites_facts(config: TrainingConfig, folder: Path) -> dict[str, Any]:
    """The suites of all use cases as named values, and which of them the settings' tasks are of;
    `folder` is that of the config."""
    asked, evals = {*config.measured_tasks, *config.evaluation.test_tasks}, evals_from(folder)
    suites: dict[str, list[dict[str, Any]]] = {}
    for name, use_case in USE_CASES.items():
        raw = project_config(example_of(name), name, evals)
        tasks = suite_of(use_case, validate(raw, f"examples/{name}.json"))
        suites[name] = [{**one._asdict(), "in_settings": one.task in asked} for one in tasks]
    return {"use_case": _use_case(asked, suites), "suites": suites}


def _use_case(asked: set[str], suites: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The use case that most of the public benchmarks in the settings are of; no guess of two."""
    public = sorted(filter(is_public, asked))
    if not public:
        why = "the settings name no public benchmark, and nothing else says what the model is for"
        return {"name": None, "why": why}
    shared = {name: sum(one["task"] in public for one in tasks) for name, tasks in suites.items()}
    most = [name for name, number in shared.items() if number == max(shared.values())]
    told = ", ".join(short_name(one) for one in public)
    if len(most) == 1:
        return {"name": most[0], "why": f"most of what the settings ask ({told}) is of its suite"}
    return {"name": None, "why": f"what the settings ask ({told}) is of no one use case"}

"""`--init USE_CASE [DIR]`: a config from the examples, its one-pager, and what is still open.

Asks nothing, overwrites nothing, and writes no rows: what would be trained on is the user's to put.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from commands.opening import refuse_beside
from commands.suites import (
    Suggested,
    evals_from,
    example_of,
    is_public,
    project_config,
    short_name,
    suite_of,
)
from commands.use_cases import USE_CASES, UseCase
from config_schema import TrainingConfig, validate
from errors import ConfigError
from evaluation.benchmarks import READ_IN, benchmark_of
from loop.reports.console import PROGRAM, command_for, say, tell
from storage.files import write_whole

CONFIG, OFFLINE, PAGE = "config.json", "config_offline.json", "one_pager.md"
WRITTEN = (CONFIG, OFFLINE, PAGE)
# The page is to be shown to others, so it names no folder of this machine.
COMMAND = '"$PROJECT/.venv/bin/python" "$PROJECT/trainer_with_eval.py"'


class ToPut(NamedTuple):
    """A file that the config names and that the user has to put beside it."""

    file: str
    what: str
    form: str  # one row


def write_project(args: argparse.Namespace) -> int:
    """Write the files and say what they are, what to put beside them and what is open."""
    refuse_beside(args, "--init", ("init", "json", "verbose"))
    name, folder = _named(args.init)
    use_case, example = USE_CASES[name], example_of(name)
    _refuse_existing(folder)
    raw = project_config(example, name, evals_from(folder))
    offline = without_benchmarks(raw)
    config = validate(raw, f"examples/{name}.json")
    assert validate(offline, f"examples/{name}.json").scored_tasks, "an own task enters the score"
    page = one_pager(use_case, config)
    for file, text in zip(WRITTEN, (_as_text(raw), _as_text(offline), page), strict=True):
        write_whole(folder / file, [text])
    _say_what_is_next(args, folder, to_put(use_case, config), open_points(use_case, config))
    return 0


def _named(words: Sequence[str]) -> tuple[str, Path]:
    """The use case and the folder. Raises `ConfigError`."""
    known = ", ".join(USE_CASES)
    if len(words) > 2:
        raise ConfigError(
            f"--init takes a use case and at most one folder, found {len(words)} words. Give for "
            "example --init chat my_chat."
        )
    name = words[0]
    if name not in USE_CASES:
        near = difflib.get_close_matches(name.lower(), USE_CASES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"--init {name[:60]!r}: no use case, which are {known}{hint}")
    if words[-1] == "":  # of a variable that is not set; the path of no name is this folder
        raise ConfigError(
            "--init: the folder has no name, as that of a variable that is not set. Name one, or . "
            "for the one that you are in."
        )
    return name, Path(words[1] if len(words) == 2 else name)


def _refuse_existing(folder: Path) -> None:
    """Raise `ConfigError` where anything would be overwritten."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"--init: {folder} is no folder. Name one that is, or a new one.")
    there = [file for file in WRITTEN if os.path.lexists(folder / file)]
    if there:
        raise ConfigError(
            f"--init: {folder} has {', '.join(there)} already, and nothing is overwritten. Name "
            "another folder, or move that away first."
        )


# --- the settings ---------------------------------------------------------------------------------


def without_benchmarks(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings without public benchmarks, which need the network or more."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(inner) for key, inner in value.items() if not is_public(key)}
        if isinstance(value, list):
            return [inner for inner in value if not is_public(inner)]
        return value

    offline = kept(raw)
    offline["evaluation"].pop("grader_model", None)  # the judge of benchmarks alone
    return offline


def _as_text(raw: Mapping[str, Any]) -> str:
    return json.dumps(raw, indent=2) + "\n"


# --- what is the user's ---------------------------------------------------------------------------


def to_put(use_case: UseCase, config: TrainingConfig) -> list[ToPut]:
    """The files that the config names and nobody has written."""
    named = {"train.jsonl", *(name.partition(":")[2] for name in _tasks(config))}
    files = [
        ToPut("train.jsonl", f"what is trained on: {use_case.data}", use_case.row),
        ToPut("held_out.jsonl", "rows of the same kind that are in no other file", use_case.row),
        ToPut("questions.jsonl", "your questions, asked each round", use_case.question),
        ToPut("test_questions.jsonl", "other questions, asked once, at the end", use_case.question),
    ]
    return [one for one in files if one.file in named]


def open_points(use_case: UseCase, config: TrainingConfig) -> list[str]:
    """What nobody has said yet, and what follows from it."""
    needs = sorted({need for name in _tasks(config) for need in _needs(name)})
    points = [
        "Goal: for whom is it, and what is good enough? eval_threshold "
        f"{config.eval_threshold:g} is the example's; look at the baseline, round 0, and choose.",
        f"Model: is {config.base_model} the right family and size, and does its licence allow it?",
        "Constraints: latency, cost of serving, length of context, who serves it, what must never "
        "be said.",
        "Data: how many rows, from where, with whose consent, under which licence, with which "
        "personal data?",
        f"Questions: do they cover {use_case.questions}? How many are enough: --power.",
        f"Learning rate: {config.learning_rate:g} is the example's; a pilot of a few hundred "
        "steps, or use_recommended_lr, tells more.",
        "Budget: tokens, minutes and money (budget) have no bound.",
        "Governance: who looks at the report, who may put a checkpoint into use, and who is asked "
        "when a guard fails?",
    ]
    if not config.evaluation.test_tasks:
        points.append("Sealed test: there is none (evaluation.test_tasks).")
    if needs:
        points.append(
            f"Benchmarks: is all at hand that they take ({'; '.join(needs)})? {OFFLINE} is the "
            "same without them."
        )
    return points


def _tasks(config: TrainingConfig) -> list[str]:
    return [*config.measured_tasks, *config.evaluation.test_tasks]


def _needs(name: str) -> list[str]:
    found = benchmark_of(name)
    if found is None:
        return []
    judge = [] if found.judge is None else [f"a judge for {short_name(name)}"]
    return [*found.needs, *judge]


# --- the page -------------------------------------------------------------------------------------


def one_pager(use_case: UseCase, config: TrainingConfig) -> str:
    """The plan in Markdown, before any training. All of its text is ours."""
    return "\n".join(
        [
            f"# {use_case.title[0].upper()}{use_case.title[1:]}: the plan",
            "",
            f"Written by `--init` from the settings in `{CONFIG}`, which decide; correct both.",
            "",
            "## Still open",
            "",
            *(f"- [ ] {point}" for point in open_points(use_case, config)),
            "",
            "## Data",
            "",
            f"Wanted: {use_case.data}.",
            "They are learned as they stand; preferences, rewards and teachers are other methods.",
            "",
            *_data_lines(use_case, config),
            "## Model and training",
            "",
            *_model_lines(config),
            "",
            "## Evaluation",
            "",
            *_evaluation_lines(use_case, config),
            "",
            "## Governance",
            "",
            "- Each run's directory is its record: settings, data with hashes, every answer, every",
            "  decision with its sentence.",
            "- What is in use is replaced by what passed against it, question by question:",
            f"  `--config {CONFIG} --evaluate IN_USE CANDIDATE --gate` exits 3 where it does not.",
            "- After a change of data, model or questions the evaluation is run again; older",
            "  scores are of something else.",
            "- Known failures belong into the questions, so that the next round is asked.",
            "",
            "## Commands",
            "",
            "From the folder of this page; the first line names the folder of the program.",
            "",
            "```bash",
            f"export PROJECT=/path/to/the/program  # where {PROGRAM.name} lies",
            *(f"{COMMAND} {rest}" for rest in _commands()),
            "```",
            "",
        ]
    )


def _commands() -> Iterator[str]:
    # The plan's own command for a pilot leaves the sealed test closed, which a shorter run opens.
    yield f"--config {OFFLINE} --dry-run  # what is missing, with no network; a pilot's command"
    yield f"--power 0.80 0.85 --config {OFFLINE}  # enough questions?"
    yield f"--config {CONFIG}"


def _data_lines(use_case: UseCase, config: TrainingConfig) -> Iterator[str]:
    shown: set[str] = set()
    for one in to_put(use_case, config):
        if one.form in shown:
            yield from (f"`{one.file}`, {one.what}, in the same form.", "")
        else:
            yield from (f"`{one.file}`, {one.what}:", "", "```json", one.form, "```", "")
        shown.add(one.form)


def _model_lines(config: TrainingConfig) -> Iterator[str]:
    layers = {"attention": config.train_attn, "MLP": config.train_mlp}
    layers["unembedding"] = config.train_unembed
    trained = ", ".join(name for name, is_trained in layers.items() if is_trained)
    yield f"- Base model: {config.base_model}, the example's; chat format {config.renderer_name}."
    yield f"- LoRA of rank {config.lora_rank} on {trained}; the dry run compares its size with the"
    yield "  tokens of the answers, and a larger set of rows wants a higher rank."
    yield f"- Learning rate {config.learning_rate:g}, times {config.lr_decay:g} at each miss."
    yield f"- At most {config.max_rounds} rounds of {config.steps_per_round} steps; each step has"
    yield f"  {config.batch_size} rows."
    yield "- An adapter is all that is trained, so memory and quantisation are the service's."


def _evaluation_lines(use_case: UseCase, config: TrainingConfig) -> Iterator[str]:
    gate = config.gate
    yield f"A round passes by `gate.rule` {gate.rule} at {config.eval_threshold:g}, with an error"
    yield f"of {gate.alpha:g} over all rounds, and with no guard broken."
    yield ""
    yield "| layer | task | role | when | measures | why here |"
    yield "|---|---|---|---|---|---|"
    for task in suite_of(use_case, config):
        yield _task_row(task)
    public = [name for name in _tasks(config) if is_public(name)]
    if public:
        yield ""
        yield f"How the benchmarks ask, as read in {READ_IN}:"
        yield ""
        for name in public:
            yield f"- `{name}`: {_how_it_asks(name, config)}"


def _task_row(one: Suggested) -> str:
    short = short_name(one.task)
    shown = one.task if is_public(one.task) or short in ("nll", "questions") else short
    layer = "test" if one.layer is None else one.layer
    return f"| {layer} | `{shown}` | {one.role} | {one.when} | {one.measures} | {one.why} |"


def _how_it_asks(name: str, config: TrainingConfig) -> str:
    found, settings = benchmark_of(name), config.evaluation
    limit, key = settings.limit.get(name), settings.score_key.get(name)
    said = ["all samples" if limit is None else f"at most {limit} samples"]
    if key is not None:
        said.append(f"the score is its `{key}`")
    if found is None:
        return "; ".join([*said, "its shots are not in our catalogue"])
    asks = found.asks(settings.task_args.get(name, {}))
    return "; ".join([f"version {found.version}, {asks}", *said, *_needs(name)])


# --- what is said ---------------------------------------------------------------------------------


def _say_what_is_next(
    args: argparse.Namespace, folder: Path, files: Sequence[ToPut], points: Sequence[str]
) -> None:
    written = [str(folder / file) for file in WRITTEN]
    missing = [one for one in files if not (folder / one.file).is_file()]
    if args.json:
        outcome = {"written": written, "to_put": [one._asdict() for one in missing]}
        say(json.dumps({**outcome, "open": list(points)}, indent=1))
        return
    for file, what in zip(
        written,
        ("the settings", "the same without public benchmarks", "the plan on a page"),
        strict=True,
    ):
        tell(f"Wrote {file}: {what}")
    if missing:
        tell(f"Put into {folder}; nothing is trained before, and the plan shows a row of each:")
    for one in missing:
        tell(f"  {one.file}: {one.what}")
    tell("Still open:")
    for point in points:
        tell(f"  - {point}")
    tell(f"Then: {command_for(PROGRAM)} --config {shlex.quote(str(folder / OFFLINE))} --dry-run")

"""What `eval_NNN.py` does for a trial of the loop: evaluate its weights, and lay the results out.

The evaluation is an ordinary `--evaluate`, with its directory beside the trial's run; one that was
cut short is gone on with. What is laid out beside each Inspect log is read from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import InputError, LoopError, RunStoreError
from ledger.run_directory import CONFIG, EVALUATED
from ledger.store import RunStore
from loop.reports.console import say, tell
from scores.results import EvalResult, TaskResult
from storage.files import copy_whole, write_whole
from storage.stored_json import parse_object
from studies.design.generating import Generation, TrialFiles, told_of
from studies.design.paths import is_file, is_there

RESULTS = "results.json"


def main(configs_dir: Path, trial: Mapping[str, Any], argv: Sequence[str]) -> int:
    """Evaluate one trial; every failure ends as one paragraph on stderr and an exit code."""
    parser = argparse.ArgumentParser(
        prog=f"eval_{trial['run'].removeprefix('run_')}.py",
        description=f"Evaluate {trial['run']} of the study {trial['study']} on its tasks.",
    )
    parser.add_argument("--again", action="store_true", help="also what has current results")
    args = parser.parse_args(argv)
    try:
        return _evaluate(configs_dir, trial, is_again=args.again)
    except (LoopError, OSError) as error:
        tell(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        tell("Interrupted. What was measured is kept; start the script again.", file=sys.stderr)
        return 130


def _evaluate(configs_dir: Path, trial: Mapping[str, Any], *, is_again: bool) -> int:
    train_file = configs_dir / trial["train"]
    run_dir = _relative(configs_dir / trial["results"])
    if not is_there(run_dir / CONFIG):
        raise RunStoreError(
            f"{run_dir}: {trial['run']} is not trained. Train it first: trainer_with_eval.py "
            f"--config {_relative(train_file)} --run-dir {run_dir}"
        )
    store = RunStore.open(run_dir)
    round_no = _round_of(store, trial["checkpoint"])
    checkpoint = store.checkpoint(round_no)
    path = None if checkpoint is None else checkpoint.sampler_path
    eval_dir = configs_dir / trial["eval_results"]
    if not is_again and all(_is_current(eval_dir, trial, task, path) for task in trial["tasks"]):
        where = _relative(eval_dir)
        say(f"{trial['run']}: every task has its results in {where}; --again asks anew")
        return 0
    measured_in, is_begun = _directory_for(run_dir, path, is_again=is_again)
    arguments = ["--resume" if is_begun else "--run-dir", str(measured_in)]
    if not is_begun:
        arguments += ["--config", str(train_file), "--evaluate", f"{run_dir}@round_{round_no:02d}"]
    from trainer_with_eval import main as evaluate_checkpoints

    if (exit_code := evaluate_checkpoints(arguments)) != 0:
        if is_begun and exit_code == 2:
            tell("To begin a new evaluation in its place, add --again.", file=sys.stderr)
        return exit_code
    (result,) = RunStore.open(measured_in).comparable_results()
    for task, of_task in _results(configs_dir, trial, result):
        folder = eval_dir / task["task"]
        _lay_out(folder, measured_in, of_task, _record(trial, task, of_task, path, round_no))
        say(f"{task['task']}: {of_task.score:.4f}, n={of_task.n}: {_relative(folder / RESULTS)}")
    return 0


def lay_out_trial(generation: Generation, files: TrialFiles, store: RunStore) -> EvalResult:
    """Lay out what a finished trial has measured of the weights that the study evaluates, which is
    not measured again, as far as it does not lie there; returns it."""
    trial = told_of(generation.study, files, generation.tasks)
    round_no = _round_of(store, trial["checkpoint"])
    checkpoint, result = store.checkpoint(round_no), store.result(round_no)
    assert checkpoint is not None and result is not None, "the last round was measured"
    configs_dir, path = generation.study.configs_dir, checkpoint.sampler_path
    eval_dir = configs_dir / trial["eval_results"]
    for task, of_task in _results(configs_dir, trial, result):
        if _is_current(eval_dir, trial, task, path):
            continue
        folder = eval_dir / task["task"]
        record = _record(trial, task, of_task, path, round_no)
        _lay_out(folder, store.run_dir, of_task, record)
    return result


def _round_of(store: RunStore, which: str) -> int:
    """The round whose weights are meant. Raises `RunStoreError` where the run has none yet."""
    decision = store.last_decision()
    if decision is None or not any(store.events("run_finished")):
        raise RunStoreError(
            f"{store.run_dir}: the trial is not finished. Go on with it first: "
            f"trainer_with_eval.py --resume {store.run_dir}"
        )
    return decision.best_round if which == "best" else decision.round


def _directory_for(run_dir: Path, path: str | None, *, is_again: bool) -> tuple[Path, bool]:
    """Where an evaluation of these weights goes, and whether it goes on there."""
    number = 1
    while True:
        suffix = "" if number == 1 else f"-{number}"
        folder = run_dir.with_name(f"{run_dir.name}-evaluation{suffix}")
        if not is_there(folder):
            return folder, False
        number += 1
        if is_again or not is_there(folder / CONFIG):
            continue
        store = RunStore.open(folder)
        is_of_these = [one["path"] for one in store.settled_config().get(EVALUATED, [])] == [path]
        if is_of_these and not store.comparable_results():
            return folder, True


def _results(
    configs_dir: Path, trial: Mapping[str, Any], result: EvalResult
) -> Iterator[tuple[Mapping[str, Any], TaskResult]]:
    """Each task of the study with what was measured of it; none where trials name their own."""
    if not trial["tasks"]:  # eval_tasks, whose results lie in the run directory
        return
    config = parse_object((configs_dir / trial["train"]).read_bytes())
    for task, name in zip(trial["tasks"], config["eval_tasks"], strict=True):
        found = result.task(name)
        assert found is not None, "an evaluation that is finished has every task"
        yield task, found


def _record(
    trial: Mapping[str, Any],
    task: Mapping[str, Any],
    result: TaskResult,
    path: str | None,
    round_no: int,
) -> dict[str, Any]:
    of_trial = {k: trial[k] for k in ("study", "run", "params", "seed", "train_sha256")}
    prefix = f"{result.name}/"
    interval = None if result.interval is None else list(result.interval)
    return {
        **of_trial,
        **{k: task[k] for k in ("task", "file", "function", "args", "code_sha256")},
        "checkpoint": path,
        "round": round_no,
        "score": result.score,
        "stderr": result.stderr,
        "interval": interval,
        "n": result.n,
        "num_truncated": result.num_truncated,
        "num_malformed": result.num_malformed,
        "num_failed": result.num_failed,
        "metrics": result.metrics,
        "log": None if result.log is None else Path(result.log).name,
        "samples": {key.removeprefix(prefix): score for key, score in result.scores.items()},
    }


def _lay_out(folder: Path, measured_in: Path, result: TaskResult, record: dict[str, Any]) -> None:
    """The Inspect log, where nobody has removed it, then the results that name it."""
    if result.log is not None and is_file(measured_in / result.log):
        copy_whole(measured_in / result.log, folder / Path(result.log).name)
    write_whole(folder / RESULTS, [json.dumps(record, indent=1, ensure_ascii=False) + "\n"])


def _is_current(
    eval_dir: Path, trial: Mapping[str, Any], task: Mapping[str, Any], path: str | None
) -> bool:
    file = eval_dir / task["task"] / RESULTS
    if not is_file(file):
        return False
    try:
        found = parse_object(file.read_bytes())
    except ValueError:
        return False
    wanted = {"train_sha256": trial["train_sha256"], "code_sha256": task["code_sha256"]}
    return all(found.get(key) == value for key, value in {**wanted, "checkpoint": path}.items())


def _relative(path: Path) -> Path:
    """A path as a person would type it from here."""
    return Path(os.path.relpath(path))

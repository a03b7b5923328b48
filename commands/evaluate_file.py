"""One file of questions asked of one checkpoint, and one dictionary of what came of it.

    accuracy, its 95 % interval, how many questions, and how many answers were not whole

The questions are a question file or rows of `input` and `output`; they are asked, graded and
written down as `--evaluate` does it, and what it needs besides is taken from the checkpoint's run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.boundary import Session
from errors import ConfigError
from loop.reports.console import say

if TYPE_CHECKING:
    from config_schema import LoadedConfig
    from ledger.store import RunStore
    from loop.reports.comparison import Comparison

RUN_NAME = "offline"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="eval_offline.py",
        description="Ask a checkpoint the questions of a file, and print one JSON object: accuracy "
        "with its 95 %% interval, the number of questions, and what the answers lacked.",
        epilog="Exit codes: 0 measured, 1 failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument(
        "--model-path",
        required=True,
        metavar="CHECKPOINT",
        help="RUN_DIR (its best), RUN_DIR@round_02, registry:NAME@3 or tinker://...",
    )
    parser.add_argument(
        "--eval-file",
        required=True,
        metavar="FILE",
        help="rows of input and output, or of question and answer; a row may name its grader",
    )
    parser.add_argument(
        "--model-name", metavar="MODEL", help="the base model (default: that of the run)"
    )
    parser.add_argument(
        "--renderer-name", metavar="NAME", help="the chat format (default: that of the run)"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer (default: 64 tokens)"
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="on this machine, whatever keys or addresses are set",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args(argv)
    # What the evaluation of a config could be given besides.
    given = {"config": None, "overrides": [], "registry": None, "summary": None, "junit": None}
    return argparse.Namespace(**given, json=False, gate=False, dry_run=False, **vars(args))


def evaluate_file(args: argparse.Namespace, session: Session) -> int:
    """Ask, print the dictionary, and return the exit code."""
    from commands.evaluate import evaluate_checkpoints
    from commands.opening import OpenedSettings
    from loop.planning.models import find_model_dir

    loaded = _config_for(args)
    named = [args.model_path]
    settings = OpenedSettings(loaded, find_model_dir(loaded), None, None, {}, named)
    return evaluate_checkpoints(args, settings, session, _print_metrics)


def _config_for(args: argparse.Namespace) -> LoadedConfig:
    """The settings of an evaluation of this checkpoint by this file. Raises `ConfigError`."""
    from config_schema import LoadedConfig, validate
    from ledger.references import find_subjects

    if not Path(args.eval_file).is_file():
        raise ConfigError(
            f"--eval-file {args.eval_file}: there is no such file. Give one of rows with input and "
            "output, or with question and answer."
        )
    (subject,) = find_subjects([args.model_path], Path("runs"), None, "--model-path")
    base_model = args.model_name or subject.base_model
    if base_model is None:
        raise ConfigError(
            f"--model-path {args.model_path}: no run below ./runs has saved it, so that its base "
            "model is not known. Give --model-name."
        )
    raw = {
        "run_name": RUN_NAME,
        "base_model": base_model,
        "renderer_name": args.renderer_name,
        "train_file": args.eval_file,  # has to be there, and is not read by an evaluation
        "eval_tasks": [f"qa:{args.eval_file}"],
        "evaluation": {"max_tokens": args.max_tokens},
    }
    here = Path.cwd()
    return LoadedConfig(validate(raw, "eval_offline.py"), here / "eval_offline", here)


def _print_metrics(
    args: argparse.Namespace, session: Session, store: RunStore, comparisons: list[Comparison]
) -> int:
    session.end_live_line()
    (only,) = comparisons
    say(json.dumps(metrics_of(only, args.eval_file, store)))
    return 0


def metrics_of(only: Comparison, eval_file: str, store: RunStore) -> dict[str, Any]:
    """What came of it. `accuracy` is the mean score of the questions, from 0 to 1."""
    result = only.result
    return {
        "checkpoint": only.label,
        "model_path": result.checkpoint,
        "eval_file": eval_file,
        "accuracy": result.score,
        "interval_95": result.interval,
        "num_examples": result.n,
        "num_truncated": result.num_truncated,
        "num_malformed": result.num_malformed,
        "num_failed": result.num_failed,
        "evaluation_dir": str(store.run_dir),
    }

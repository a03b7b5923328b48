"""Run the demo with many seeds, each with its sealed test on questions that the loop never saw.

    .venv/bin/python benchmarks/demo_seeds.py [--seeds 20] [--runs-dir DIR]

Every row is a real run of demo_config.json through the command line's own entry point. The last
column is its sealed test, evals/simple_qa_test.jsonl; nothing was tuned on that file.
Prints a Markdown table and what it comes to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

TEST_FILE = REPO / "evals" / "simple_qa_test.jsonl"
THRESHOLD = 0.75


class SeedRun(NamedTuple):
    """One run: scores by round (0 is the baseline), and the best checkpoint's on the second set."""

    seed: int
    scores: dict[int, float]
    passed_in: int | None
    best_round: int
    test_score: float
    base_test_score: float
    seconds: float


def run_demo(seed: int, run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the loop on this machine; returns the object that --json prints."""
    from trainer_with_eval import main

    arguments = ["--config", str(REPO / "demo_config.json"), "--local", "--json"]
    arguments += ["--run-dir", str(run_dir), "--set", f"seed={seed}"]
    for override in overrides:
        arguments += ["--set", override]
    printed, progress = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
        exit_code = main(arguments)
    if exit_code != 0:
        raise SystemExit(f"seed {seed} ended with exit code {exit_code}:\n{progress.getvalue()}")
    return json.loads(printed.getvalue())


async def base_score(base_url: str, api_key: str) -> float:
    """Ask the second question set of the base model."""
    import tinker

    from config_schema import load_and_validate_config
    from rows.chat_formats import load_renderer
    from rows.rendering import Rendering
    from simple_eval import Sampler, SamplingSettings, ask_questions, load_questions
    from storage.journal import Journal

    config = load_and_validate_config(REPO / "demo_config.json").config
    renderer = load_renderer(config.renderer_name or "", str(REPO / config.base_model))
    settings = SamplingSettings(config.evaluation.temperature, config.evaluation.max_tokens, 0)
    service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    client = await service.create_sampling_client(base_model=config.base_model)
    rendering = Rendering(renderer, config.max_seq_length)
    sampler = Sampler("the base model", client, renderer, rendering, settings)
    task = load_questions("simple_qa_test", TEST_FILE)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "asked.partial.jsonl", "the base model")
        samples = await ask_questions(task, sampler, journal)
    await service.close("success")
    return mean(sample.score for sample in samples)


def run_seed(seed: int, runs_dir: Path, overrides: list[str]) -> SeedRun:
    import local_tinker

    started = time.monotonic()
    outcome = run_demo(seed, runs_dir / f"seed_{seed:02d}", overrides)
    seconds = time.monotonic() - started
    with local_tinker.start([("demo_model", str(REPO / "demo_model"))]) as service:
        key = service.open_folder(Path(outcome["run_dir"]) / "checkpoints")
        base_test_score = asyncio.run(base_score(service.base_url, key))
    scores = {int(number): value for number, value in outcome["scores"].items()}
    passed_in = max(scores) if outcome["action"] == "stop_passed" else None
    best = outcome["best_round"]
    return SeedRun(seed, scores, passed_in, best, outcome["test_score"], base_test_score, seconds)


def table(runs: list[SeedRun]) -> str:
    lines = [
        "| seed | baseline | round 1 | round 2 | round 3 | passed in | second set, best round |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [f"{run.scores[n]:.2f}" if n in run.scores else "-" for n in range(4)]
        passed = f"round {run.passed_in}" if run.passed_in else "not"
        lines.append(f"| {run.seed} | {' | '.join(cells)} | {passed} | {run.test_score:.2f} |")
    return "\n".join(lines)


def summary(runs: list[SeedRun]) -> str:
    short = [run for run in runs if run.scores[1] < THRESHOLD]
    both = [run for run in short if run.passed_in]
    tests = [run.test_score for run in runs]
    return (
        f"{len(short)} of {len(runs)} runs fell short of {THRESHOLD} in round 1, and {len(both)} "
        f"of {len(runs)} fell short and then passed by round 3. "
        f"On the second question set the base model scores {runs[0].base_test_score:.2f} and the "
        f"best checkpoints {mean(tests):.2f} on average ({min(tests):.2f} to {max(tests):.2f}). "
        f"A run took {mean(run.seconds for run in runs):.1f} s."
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="run seeds 0 to N-1 (default: 20)")
    parser.add_argument("--runs-dir", type=Path, help="keep the run directories here")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    args = parser.parse_args()
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    runs: list[SeedRun] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.seeds):
            runs.append(run_seed(seed, args.runs_dir or Path(scratch), args.overrides))
            print(f"seed {seed}: {runs[-1].scores}", file=sys.stderr)
    print(table(runs))
    print()
    print(summary(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())

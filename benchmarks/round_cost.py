"""What does one more round cost beside asking, with many rounds on disk?

    .venv/bin/python benchmarks/round_cost.py [--against COMMIT] [--rounds 3 30 60] [--samples 2000]

A run directory with so many decided rounds is made by the loop's own store, with invented answers
and losses; then one more round is decided, diagnosed, reported and selected, twice, and the CPU
seconds of the second time are printed. Nothing is trained or sampled. With --against the same run
directory is given to the code of a commit as well, in a process of its own, and the ratio printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
NUM_GUARD_SHARE = 0.25  # of the samples: the questions of a guard task
SETTINGS: dict[str, Any] = {
    "base_model": str(REPO / "demo_model"),
    "renderer_name": "llama3",
    "train_file": str(REPO / "demo_data.jsonl"),
    "eval_tasks": ["qa:scored.jsonl", "qa:guard.jsonl"],
    "learning_rate": 0.003,
    "lr_decay": 0.99,
    "batch_size": 8,
    "steps_per_round": 5,
    "eval_threshold": 0.99,
    "max_rounds": 200,
    "max_steps": 1000,
    "gate": {"guards": {"qa:guard.jsonl": 0.5}, "patience": 150},
    "mining": {"pool_file": str(REPO / "demo_pool.jsonl")},
}


def named(name: str, *modules: str) -> Any:
    """A definition of the tree that this process measures, wherever that tree has it."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError):
            found = getattr(importlib.import_module(module), name, None)
            if found is not None:
                return found
    raise SystemExit(f"{name} is in none of {', '.join(modules)}")


def write_inputs(folder: Path, num_samples: int) -> None:
    num_guard = round(num_samples * NUM_GUARD_SHARE)
    for name, number in (("scored", num_samples - num_guard), ("guard", num_guard)):
        rows = (
            {"question": f"{name} {i}: what is the name of thing {i}?", "answer": f"thing {i}"}
            | {"topic": f"topic {i % 6}"}
            for i in range(number)
        )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "config.json").write_text(json.dumps(SETTINGS))


class Bench:
    """One tree's loop on a run directory, without a service."""

    def __init__(self, folder: Path) -> None:
        load = named("load_and_validate_config", "config_schema")
        read_inputs = named("read_inputs", "loop.planning.inputs", "plan")
        make_plan = named("make_plan", "loop.planning.plan", "plan")
        find_model_dir = named("find_model_dir", "loop.planning.models", "plan")
        loaded = load(folder / "config.json")
        self.plan = make_plan(read_inputs(loaded, find_model_dir(loaded)))
        self.store_class = named("RunStore", "ledger.store", "run_store")
        self.run_dir = folder / "run"

    def run(self, store: Any) -> Any:
        progress = named("Progress", "loop.reports.progress", "progress")(verbose=False)
        keys = named("Keys", "services.keys", "secret_keys")()
        run = named("Run", "loop.rounds.run", "training")
        return run(self.plan, store, progress, None, None, keys)

    def arrow(self, name: str, module: str) -> Any:
        return named(name, f"loop.rounds.{module}", "trainer_with_eval")

    def begin(self) -> Any:
        choice = named("ServiceChoice", "services.place", "plan")("embedded", None, "a benchmark")
        at = "loop.planning.manifest", "plan"
        resolved = named("resolved_config", *at)(self.plan, choice, {})
        store = self.store_class.create(self.run_dir, resolved)
        manifest, dropped = named("data_manifest", *at), named("dropped_rows", *at)
        store.record_start(manifest(self.plan), dropped(self.plan), self.plan.config_hash)
        return store

    def plant(self, store: Any, round_no: int) -> None:
        """What training and asking would have recorded of a round."""
        batch = named("Batch", "ledger.records", "run_store")
        checkpoint = named("Checkpoint", "ledger.records", "run_store")
        candidate_loss = named("CandidateLoss", "data_selector")
        measured_losses = named("MeasuredLosses", "data_selector")
        rng, step = random.Random(round_no), 5 * round_no
        if round_no > 0:
            for number in range(step - 5, step):
                one = batch(number, ("a",) * 8, 100, 20, 0.003)
                store.record_batch(round_no, one, loss=1.0 + rng.random(), nll=1.0 + rng.random())
            paths = (f"tinker://run/{kind}/round_{round_no}" for kind in ("weights", "sampler"))
            flags = "demo_model", 16, 32, True, True, False, "llama3", None, None
            store.record_checkpoint(checkpoint(round_no, step, *paths, *flags))
        store.record_measured(round_no, self.measured(round_no, rng), step)
        self.record_result(store, round_no, step)
        losses = {one: candidate_loss(rng.random(), None) for one in self.plan.pool.examples.ids}
        store.record_losses(measured_losses(round_no + 1, round_no, losses), 1000, 0)

    def measured(self, round_no: int, rng: random.Random) -> Any:
        at = "scores.results", "eval_result"
        sample_class, task_result = named("SampleResult", *at), named("task_result", *at)
        share = min(0.9, 0.3 + 0.015 * round_no)
        results = []
        for task in self.plan.tasks:
            samples = [
                sample_class(
                    id=f"{task.name}/{question.id}",
                    topic=question.topic,
                    question=question.question,
                    expected=question.answers,
                    answer="an answer of some words",
                    score=float(rng.random() < share),
                    truncated=False,
                    malformed=False,
                    error=None,
                    repeat=1,
                    cluster=None,
                    num_prompt_tokens=20,
                    num_sampled_tokens=5,
                )
                for question in task.work.questions
            ]
            results.append(task_result(task.name, samples, layer=task.layer, role=task.role))
        return named("Measured", *at)(tuple(results))

    def record_result(self, store: Any, round_no: int, step: int) -> None:
        at = "scores.results", "eval_result"
        protocol_of = named("protocol_of", "evaluation.tasks", "evaluation")
        protocol = protocol_of(self.plan.tasks, self.plan.sampling, "llama3", None)
        path = None if round_no == 0 else f"tinker://run/sampler/round_{round_no}"
        result = named("eval_result", *at)(round_no, path, store.measured(round_no), protocol)
        store.record_result(result, step)

    async def close_round(self, run: Any, round_no: int) -> float:
        """The arrows of a round beside training and asking; returns their CPU seconds."""
        began = time.process_time()
        evaluate = self.arrow("evaluate", "evaluating")
        due_tasks = self.arrow("due_tasks", "evaluating")
        saved = run.store.checkpoint(round_no)
        result = await evaluate(run, round_no, saved, due_tasks(run, round_no))
        decide = self.arrow("decide_and_record", "deciding")
        decision, result = await decide(run, result, saved)
        sentence = self.arrow("diagnose_and_record", "findings")(run, result)
        topics = self.arrow("topics_and_record", "findings")(run, result)
        run.progress.round_line(result, decision, sentence, topics)
        await self.arrow("select", "selecting")(run, round_no + 1, decision)
        return time.process_time() - began


async def make(folder: Path, num_rounds: int) -> None:
    """A run directory with so many decided rounds and the next one measured."""
    bench = Bench(folder)
    with contextlib.closing(bench.begin()) as store:
        run = bench.run(store)
        await bench.arrow("select", "selecting")(run, 0, None)
        for round_no in range(num_rounds + 1):
            bench.plant(store, round_no)
            await bench.close_round(run, round_no)


async def measure(folder: Path, num_rounds: int) -> float:
    """The CPU seconds of the second of two more rounds: the first may read what is on disk."""
    bench, taken_s = Bench(folder), 0.0
    with contextlib.closing(bench.store_class.open(bench.run_dir, to_resume=True)) as store:
        run = bench.run(store)
        for round_no in (num_rounds + 1, num_rounds + 2):
            bench.plant(store, round_no)
            taken_s = await bench.close_round(run, round_no)
    return taken_s


def measured_by(tree: Path, folder: Path, num_rounds: int) -> float:
    """`measure` by the code of a tree, in a process of its own on a copy of the run."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        command = [sys.executable, str(Path(__file__).resolve()), "--tree", str(tree)]
        command += ["--folder", copy, "--rounds", str(num_rounds)]
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        if out.returncode:
            raise SystemExit(out.stderr)
        return float(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 30, 60])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)  # in the measuring process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(args.tree or REPO))
    if args.tree is not None:
        with contextlib.redirect_stderr(io.StringIO()):
            taken_s = asyncio.run(measure(args.folder, args.rounds[0]))
        print(taken_s)
        return
    with contextlib.ExitStack() as stack:
        base = None
        if args.against is not None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            subprocess.run(["git", "clone", "--quiet", str(REPO), str(base)], check=True)
            subprocess.run(["git", "checkout", "--quiet", args.against], cwd=base, check=True)
        print(f"CPU seconds of one more round beside asking, {args.samples} samples a round")
        for num_rounds in args.rounds:
            with tempfile.TemporaryDirectory() as folder:
                write_inputs(Path(folder), args.samples)
                with contextlib.redirect_stderr(io.StringIO()):
                    asyncio.run(make(Path(folder), num_rounds))
                now_s = measured_by(REPO, Path(folder), num_rounds)
                line = f"{num_rounds:>3} rounds on disk: {now_s:.3f}"
                if base is not None:
                    before_s = measured_by(base, Path(folder), num_rounds)
                    line += f", of {args.against} {before_s:.3f}, ratio {now_s / before_s:.3f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()

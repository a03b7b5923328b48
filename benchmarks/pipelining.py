"""How busy loops keep a service that is far away: ours, the cookbook's, and one that awaits calls.

    .venv/bin/python benchmarks/pipelining.py            # the table of RESULTS.md, 20 minutes
    .venv/bin/python benchmarks/pipelining.py --quick    # 50 and 250 ms, fewer steps

Each loop trains against a service of its own (`far_service.py`) that takes 50 ms for a step. What
is told is the share of the time from the beginning of the 50th step to the end of the last one in
which the service was at work. A delay lies behind the service's door, or on the line to it: the SDK
posts a request when the one before is acknowledged, and a step is two requests, so on a line with D
there and back no loop gets more than one step in 2 D. That bound is a column of the table. It fails
where our loop is below 98 % behind the door, or below 95 % of the bound on the line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import urllib.request
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks"), str(REPO / "tests")]

from far_service import BEHIND, ON_LINE, running  # noqa: E402

MODEL_DIR = REPO / "demo_model"
STEP_S = 0.05
DELAYS_MS = (50, 250, 1000)
FIRST_STEP = 50  # from which on the service is watched
BATCH_SIZE = 8
LOOPS = ("ours", "cookbook 1", "cookbook 4", "cookbook 16", "awaited")
SLOW_STEPS = 100  # of loops that take longer than MINUTES for all of them
LIMIT_S = 600.0
TARGET, OF_BOUND = 0.98, 0.95
AT_ONCE = 6  # they wait most of the time; a step costs the client some milliseconds of a core
PRELOADED = ["pipelining", "trainer_with_eval", "loop.rounds.training", "evaluation.inspect_tasks"]
PRELOADED += ["tinker_cookbook.supervised.train", "rows.chat_formats", "throughput_client"]


class Trial(NamedTuple):
    """A loop, and the service that it trains on."""

    loop: str
    where: str
    delay_s: float
    num_steps: int
    step_s: float = STEP_S

    @property
    def bound(self) -> float:
        """The largest share that the SDK's way to post leaves to any loop."""
        return 1.0 if self.where == BEHIND else min(1.0, self.step_s / (4 * self.delay_s))


class Outcome(NamedTuple):
    trial: Trial
    busy: float
    most_in_flight: int


def trial_of(loop: str, where: str, delay_s: float, num_steps: int, step_s: float) -> Trial:
    """A trial of as many steps as it has the time for."""
    calls = {"ours": 64, "awaited": 0.5}.get(loop) or 1 + int(loop.split()[1])
    there_and_back_s = 2 * delay_s
    taken_s = max(step_s, (there_and_back_s + step_s) / calls)
    if where == ON_LINE:
        taken_s = max(taken_s, 2 * there_and_back_s)
    is_fast = taken_s * num_steps <= LIMIT_S
    return Trial(loop, where, delay_s, num_steps if is_fast else SLOW_STEPS, step_s)


# --- the loops ------------------------------------------------------------------------------------


def rows() -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "output": str(number)} for number in range(400)]


def train_ours(url: str, num_steps: int, folder: Path) -> None:
    from trainer_with_eval import main

    lines = "\n".join(map(json.dumps, rows()))
    (folder / "train.jsonl").write_text(lines + "\n", encoding="utf-8")
    question = {"question": "What is the opposite of up?", "answer": "down"}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    config = {
        "base_model": str(MODEL_DIR),
        "base_url": url,
        "train_file": "train.jsonl",
        "eval_tasks": ["qa:questions.jsonl"],
        "renderer_name": "llama3",
        "batch_size": BATCH_SIZE,
        "steps_per_round": num_steps,
        "max_rounds": 1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = ["--config", str(folder / "config.json"), "--run-dir", str(folder / "run")]
    if (status := main(arguments)) != 0:
        raise SystemExit(f"our loop ended with {status}")


def batches(num_steps: int) -> list[list[Any]]:
    from tinker_cookbook.renderers import TrainOnWhat

    from rows.chat_formats import load_renderer

    renderer: Any = load_renderer("llama3", str(MODEL_DIR))
    from tinker_cookbook.supervised.common import datum_from_model_input_weights

    datums = []
    for row in rows():
        messages = [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
        rendered = renderer.build_supervised_example(
            messages, train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES
        )
        datums.append(datum_from_model_input_weights(*rendered))
    return [
        [datums[(step * BATCH_SIZE + place) % len(datums)] for place in range(BATCH_SIZE)]
        for step in range(num_steps)
    ]


def train_cookbook(url: str, num_steps: int, folder: Path, submit_ahead: int) -> None:
    import chz
    from tinker_cookbook.supervised import train
    from tinker_cookbook.supervised.types import SupervisedDataset, SupervisedDatasetBuilder

    class Rows(SupervisedDataset):
        def __init__(self) -> None:
            self._batches = batches(num_steps)

        def get_batch(self, index: int) -> list[Any]:
            return self._batches[index]

        def __len__(self) -> int:
            return num_steps

        def set_epoch(self, seed: int = 0) -> None:
            """The rows come in one order."""

    @chz.chz
    class Builder(SupervisedDatasetBuilder):
        def __call__(self) -> tuple[SupervisedDataset, None]:
            return Rows(), None

    config = train.Config(
        log_path=str(folder / "log"),
        model_name=str(MODEL_DIR),
        recipe_name="pipelining",
        dataset_builder=Builder(),
        base_url=url,
        save_every=0,
        eval_every=0,
        infrequent_eval_every=0,
        submit_ahead=submit_ahead,
    )
    asyncio.run(train.main(config))


def train_awaited(url: str, num_steps: int) -> None:
    import tinker
    from throughput_client import over_service

    async def body(client: tinker.ServiceClient) -> None:
        run = await client.create_lora_training_client(str(MODEL_DIR), rank=16)
        adam = tinker.AdamParams(learning_rate=1e-4)
        for batch in batches(num_steps):
            await run.forward_backward(batch, "cross_entropy")
            await run.optim_step(adam)

    over_service(url, os.environ["TINKER_API_KEY"], body)


# --- trials ---------------------------------------------------------------------------------------


def train(loop: str, url: str, num_steps: int) -> None:
    """Train in this process."""
    from throughput_client import prepare_environment

    prepare_environment()
    os.environ["TINKER_API_KEY"] = "tml-of-nobody"
    with tempfile.TemporaryDirectory() as made:
        if loop == "ours":
            train_ours(url, num_steps, Path(made))
        elif loop == "awaited":
            train_awaited(url, num_steps)
        else:
            train_cookbook(url, num_steps, Path(made), int(loop.split()[1]))


def run(trial: Trial) -> Outcome:
    """Train against a service, in a process for this trial alone, and ask the service when it was
    at work. What the loop says goes to standard error where it fails."""
    with (
        tempfile.TemporaryFile("w+") as said,
        running(str(MODEL_DIR), trial.step_s, trial.delay_s, trial.where) as url,
    ):
        streams = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(said.fileno(), number)
        try:
            train(trial.loop, url, trial.num_steps)
        except BaseException:
            said.seek(0)
            os.write(streams[1], said.read()[-3000:].encode())
            raise
        finally:
            for number, stream in zip((1, 2), streams, strict=True):
                os.dup2(stream, number)
        with urllib.request.urlopen(f"{url}/api/v1/timeline") as answer:
            timeline = json.load(answer)
    if (num_taken := len(timeline["steps"])) != trial.num_steps:
        raise SystemExit(f"{trial}: the service was sent {num_taken} steps")
    return Outcome(trial, busy_share(timeline["steps"]), timeline["most_in_flight"])


def busy_share(steps: list[list[float]]) -> float:
    """The share of the time from the 50th step on in which a step was worked on."""
    watched = steps[FIRST_STEP - 1 :]
    return sum(end - begin for begin, end in watched) / (watched[-1][1] - watched[0][0])


def is_missed(outcome: Outcome) -> bool:
    trial = outcome.trial
    least = TARGET if trial.where == BEHIND else OF_BOUND * trial.bound
    return trial.loop == "ours" and outcome.busy < least


def row_of(outcome: Outcome) -> str:
    trial = outcome.trial
    return (
        f"| {1000 * trial.delay_s:,.0f} ms | {trial.where.replace('_', ' ')} | {trial.loop} | "
        f"{trial.num_steps} | {outcome.most_in_flight} | {outcome.busy:.1%} | {trial.bound:.1%} |"
    )


def print_table(outcomes: list[Outcome]) -> None:
    print("| delay each way | where | loop | steps | most in flight | busy | bound |")
    print("|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        print(row_of(outcome))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and delays")
    parser.add_argument(
        "--slower",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="let steps and delays take so many times as long, for a machine that is busy: their "
        "ratios are what counts",
    )
    arguments = parser.parse_args()
    num_steps, slower = 150 if arguments.quick else 400, arguments.slower
    trials = [
        trial_of(loop, where, slower * delay_ms / 1000, num_steps, slower * STEP_S)
        for where in (BEHIND, ON_LINE)
        for delay_ms in (DELAYS_MS[:2] if arguments.quick else DELAYS_MS)
        for loop in LOOPS
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(AT_ONCE, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, trial) for trial in trials]
        for future in as_completed(futures):
            print(row_of(future.result()), file=sys.stderr, flush=True)
    outcomes = [future.result() for future in futures]
    print_table(outcomes)
    missed = [outcome for outcome in outcomes if is_missed(outcome)]
    for outcome in missed:
        print(f"MISSED: {outcome.trial}: {outcome.busy:.1%}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

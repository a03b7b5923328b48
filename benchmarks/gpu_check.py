"""Hold the service on a GPU against plain torch on the same device: numbers, speed and memory.

    benchmarks/gpu_check.sh [--device cuda] [--models 100M 1B] [--minutes 8]
    benchmarks/gpu_check.sh --device cpu --tiny

For random Llamas of 100 million and a billion parameters (bfloat16 on CUDA, float32 on a CPU) it
trains, saves, resumes, evaluates and samples by the unmodified SDK against `python -m
local_tinker`, and does the same in torch, transformers and peft, each in processes of their own,
one at a time. It fails where
  - a step's loss differs from plain torch's by more than LOSS_TOLERANCE, or a resumed run's from
    those of the run that went on (a GPU's sums have no fixed order, so these are no equal bits);
  - the log-probabilities of held-out rows are further from a float32 model's than
    MAX_ERROR_RATIO times those of plain torch in the same number type: ||a - b|| by the reference's
    spread, ||b - mean(b)||, since a random model's are all close to those of chance;
  - the peak of the device's memory, by what is free on it, is above MAX_MEMORY_RATIO times plain
    torch's (on a CPU: of resident memory);
  - all of it takes longer than --minutes.
Speed has no bound here. It is printed as tokens per second and as the share of the rate at which
the device multiplies large matrices: 4 operations a token and parameter in training, whose base
weights need no gradients, 2 in sampling. Nothing is asked of the network. Exit code 1 where a bound
is missed, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plain_torch
import tinker
import torch
from plain_torch import Adam, Asking, Base, Row
from random_llamas import (
    LLAMA_1B,
    LLAMA_100M,
    LLAMA_TINY,
    NUM_TOKENIZER_TOKENS,
    Shape,
    make_model,
)
from service_report import Report, fresh_process, tell
from service_soak import service as running_service
from throughput_client import (
    datum_of,
    folder_of,
    over_service,
    prepare_environment,
    sample_over_service,
    take_steps,
    train_over_service,
)
from throughput_work import Work

LOSS_TOLERANCE = {"cuda": 0.02, "cpu": 1e-3}  # relative
MAX_ERROR_RATIO = 1.5
ERROR_FLOOR = 1e-4  # relative; below it two orders of the same sums may differ by any factor
MAX_MEMORY_RATIO = 1.25
POLL_S = 0.05
NUM_PARTIAL_STEPS = 3  # before a state is saved, and after it
ADAM = Adam(1e-4, 0.9, 0.95, 1e-8, 0.0)
LORA_RANK = 16
PROMPT_TOKENS = 100
MIB = 2**20


class Amounts(NamedTuple):
    """How much is done with a model; rows are as long as each other."""

    num_steps: int
    num_warmup_steps: int
    batch_size: int
    row_tokens: int
    num_prompts: int
    answer_tokens: int


class Model(NamedTuple):
    shape: Shape
    amounts: Amounts


MODELS = {
    "100M": Model(LLAMA_100M, Amounts(40, 5, 16, 512, 128, 128)),
    "1B": Model(LLAMA_1B, Amounts(15, 3, 16, 512, 64, 128)),
}
TINY = Model(LLAMA_TINY, Amounts(4, 3, 2, 24, 4, 6))


def make_rows(seed: int, num_rows: int, num_tokens: int) -> list[Row]:
    """Random text of which every token counts."""
    draw = np.random.default_rng(seed)
    rows = draw.integers(10, NUM_TOKENIZER_TOKENS, size=(num_rows, num_tokens + 1)).tolist()
    weights = [1.0 / num_tokens] * num_tokens
    return [Row(tokens[:-1], tokens[1:], weights) for tokens in rows]


def make_work(base: Base, amounts: Amounts) -> Work:
    size = amounts.batch_size
    num_batches = amounts.num_warmup_steps + amounts.num_steps
    rows = make_rows(0, num_batches * size, amounts.row_tokens)
    prompts = make_rows(1, amounts.num_prompts, PROMPT_TOKENS)
    return Work(
        model=f"random={base.model_dir}",
        base=base,
        batches=[rows[start : start + size] for start in range(0, len(rows), size)],
        num_warmup_steps=amounts.num_warmup_steps,
        prompts=[row.tokens for row in prompts],
        stop=[],
        adam=ADAM,
        lora_rank=LORA_RANK,
        seed=0,
    )


# --- the service's side ---------------------------------------------------------------------------


class Resumed(NamedTuple):
    """Losses of the steps after a save, by the run that went on and by the one that resumed."""

    went_on: list[float]
    resumed: list[float]


async def resume(client: tinker.ServiceClient, work: Work) -> Resumed:
    run = await client.create_lora_training_client(work.model_name, rank=work.lora_rank, seed=1)
    batches = [[datum_of(row) for row in rows] for rows in work.batches]
    adam = tinker.AdamParams(**work.adam._asdict())
    first, then = NUM_PARTIAL_STEPS, 2 * NUM_PARTIAL_STEPS
    await take_steps(run, batches[:first], adam)
    state = await run.save_state("state")
    went_on = await take_steps(run, batches[first:then], adam)
    other = await client.create_training_client_from_state_with_optimizer(state.path)
    return Resumed(went_on, await take_steps(other, batches[first:then], adam))


async def evaluate(client: tinker.ServiceClient, path: str, rows: list[Row]) -> list[list[float]]:
    """Log-probabilities of each row's targets under saved weights."""
    sampler = await client.create_sampling_client(path)
    futures = [
        sampler.compute_logprobs(tinker.ModelInput.from_ints([row.tokens[0], *row.targets]))
        for row in rows
    ]
    return [[float(value or 0.0) for value in (await future)[1:]] for future in futures]


# --- both sides -----------------------------------------------------------------------------------


@contextlib.contextmanager
def device_memory(device: str) -> Iterator[list[float]]:
    """MiB of a GPU that are taken beyond what is taken now: the list grows as they are read."""
    read: list[float] = []
    if device == "cpu":
        yield read
        return
    free_before, _ = torch.cuda.mem_get_info()
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(POLL_S):
            read.append((free_before - torch.cuda.mem_get_info()[0]) / MIB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield read
    finally:
        has_ended.set()
        watcher.join()


class Side(NamedTuple):
    """What one side came to; peaks in MiB."""

    training: plain_torch.Training
    answers: plain_torch.Answers
    logprobs: list[list[float]]
    peak_mib: float


class FromService(NamedTuple):
    side: Side
    resumed: Resumed


def by_service(work: Work, asking: Asking, held_out: list[Row], kept: Path) -> FromService:
    """Run the service; what it saves before and after training is left in `kept`, as `initial` and
    `trained`."""
    device = work.base.device
    with device_memory(device) as read, running_service(work.model, device) as served:

        async def body(client: tinker.ServiceClient) -> FromService:
            run = await train_over_service(client, work)
            for name, path in (("initial", run.initial), ("trained", run.trained)):
                shutil.copytree(folder_of(served, path), kept / name)
            answers = await sample_over_service(client, run.trained, asking)
            logprobs = await evaluate(client, run.trained, held_out)
            resumed = await resume(client, work)
            return FromService(Side(run.training, answers, logprobs, 0.0), resumed)

        made = over_service(served.base_url, served.api_key, body)
        peak = max(read) if read else plain_torch.peak_mib(served.pid)
    return made._replace(side=made.side._replace(peak_mib=peak))


def plainly(work: Work, asking: Asking, held_out: list[Row], kept: Path) -> Side:
    """The same in torch, for a fresh process."""
    training = plain_torch.train(
        work.base, kept / "initial", work.batches, work.adam, work.num_warmup_steps
    )
    answers = plain_torch.sample(work.base, kept / "trained", asking)
    logprobs = plain_torch.score(work.base, kept / "trained", held_out)
    return Side(training, answers, logprobs, plain_torch.peak_mib())


def matrix_rate(device: str, dtype: str, size: int) -> float:
    """Operations per second of the fastest of several products of two square matrices."""
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))

    def product_s() -> float:
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for the device
        return time.perf_counter() - started

    return 2 * size**3 / min(product_s() for _ in range(20))


def relative_error(values: list[list[float]], reference: list[list[float]]) -> float:
    one, other = np.concatenate(values), np.concatenate(reference)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other - other.mean()))


def largest_difference(losses: list[float], reference: list[float]) -> float:
    """The largest relative difference of two losses of the same step."""
    pairs = zip(losses, reference, strict=True)
    return max(abs(one - other) / max(abs(other), 1e-6) for one, other in pairs)


def same_tokens(one: list[list[int]], other: list[list[int]]) -> float:
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


# --- the report -----------------------------------------------------------------------------------


def check_model(label: str, model: Model, device: str, report: Report) -> None:
    dtype = "bfloat16" if device == "cuda" else "float32"
    amounts = model.amounts
    with tempfile.TemporaryDirectory() as folder:
        kept, base = Path(folder), Base(Path(folder) / "model", device, dtype)
        with fresh_process() as process:
            make = functools.partial(
                make_model, base.model_dir, model.shape, dtype=getattr(torch, dtype), device=device
            )
            process.submit(make).result()
            num_slots = process.submit(plain_torch.as_the_service, base).result()
            rate = process.submit(matrix_rate, device, dtype, 8192 if device == "cuda" else 1024)
            rate_per_s = rate.result()
        work = make_work(base, amounts)
        asking = work.asking(amounts.answer_tokens, num_slots, with_stop=False)
        held_out = make_rows(2, 4, amounts.row_tokens)
        tell(f"{label}: {rate_per_s / 1e12:.3g} TFLOP/s of matrices, {num_slots} slots; service")
        served = by_service(work, asking, held_out, kept)
        tell(f"{label}: plain torch")
        with device_memory(device) as read, fresh_process() as process:
            plain = process.submit(plainly, work, asking, held_out, kept).result()
        if read:
            plain = plain._replace(peak_mib=max(read))
        with fresh_process() as process:
            exact_base = base._replace(dtype="float32")
            exact = process.submit(plain_torch.score, exact_base, kept / "trained", held_out)
            reference = exact.result()
    compare_numbers(label, device, served, plain, reference, report)
    compare_speed(label, model, served.side, plain, rate_per_s, report)


def compare_numbers(
    label: str,
    device: str,
    served: FromService,
    plain: Side,
    reference: list[list[float]],
    report: Report,
) -> None:
    tolerance = LOSS_TOLERANCE[device]
    difference = largest_difference(served.side.training.losses, plain.training.losses)
    report.figure(f"{label}: losses against plain torch", difference, "{:.1e}", tolerance, "")
    difference = largest_difference(served.resumed.resumed, served.resumed.went_on)
    report.figure(f"{label}: losses of a resumed run", difference, "{:.1e}", tolerance, "")
    errors = [relative_error(side.logprobs, reference) for side in (served.side, plain)]
    report.figure(
        f"{label}: log-probabilities against a float32 model",
        errors[0],
        "{:.1e}",
        MAX_ERROR_RATIO * errors[1] + ERROR_FLOOR,
        f"{errors[1]:.1e}",
    )
    error = relative_error(served.side.logprobs, plain.logprobs)
    report.figure(f"{label}: log-probabilities against plain torch", error, "{:.1e}", None, "")
    share = same_tokens(served.side.answers.tokens, plain.answers.tokens)
    report.figure(f"{label}: share of greedy tokens as `generate`'s", share, "{:.3f}", None, "")


def compare_speed(
    label: str, model: Model, served: Side, plain: Side, rate_per_s: float, report: Report
) -> None:
    """Tokens per second with their share of the device's rate, and the peaks of memory."""
    amounts = model.amounts
    num_trained = amounts.num_steps * amounts.batch_size * amounts.row_tokens
    num_answered = amounts.num_prompts * amounts.answer_tokens
    cells = []
    for side in (served, plain):
        for num_tokens, seconds, operations in (
            (num_trained, side.training.seconds, 4),
            (num_answered, side.answers.seconds, 2),
        ):
            per_s = num_tokens / seconds
            share = operations * model.shape.num_multiplied * per_s / rate_per_s
            cells.append(f"{per_s:,.0f} ({share:.1%})")
    what = f"{label}: tokens per second (share of {rate_per_s / 1e12:.3g} TFLOP/s), "
    report.add(f"{what}trained", [cells[0], cells[2], "", ""], 0.0, "", None)
    report.add(f"{what}sampled", [cells[1], cells[3], "", ""], 0.0, "", None)
    bound = None if model is TINY else MAX_MEMORY_RATIO  # what is imported outweighs a tiny model
    report.ratio(f"{label}: peak memory", [served.peak_mib], [plain.peak_mib], bound, "{:.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model instead, to try the check"
    )
    parser.add_argument("--minutes", type=int, default=8, help="for all of it (default: 8)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; use --device cpu --tiny to try the check", file=sys.stderr)
        return 2

    def too_late(*_: object) -> None:
        raise SystemExit(f"MISSED: it was not done after {args.minutes} minutes")

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60 * args.minutes)
    started = time.monotonic()
    prepare_environment()
    models = {"tiny": TINY} if args.tiny else {name: MODELS[name] for name in args.models}
    report = Report()
    for label, model in models.items():
        check_model(label, model, args.device, report)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    report.notes.append(
        f"{device}, torch {torch.__version__}; {time.monotonic() - started:.0f} s in all."
    )
    return report.conclude()


if __name__ == "__main__":
    sys.exit(main())

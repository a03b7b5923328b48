"""What size of model the embedded service trains here: memory, seconds per step, tokens per second.

    .venv/bin/python benchmarks/model_sizes.py [--sizes 15M 135M] [--max-memory-gib 10]

Makes Llama models with random weights in the shapes of known small models (float32 in memory, as
the service loads them on a CPU; bfloat16 on disk, as they are published), serves each by the
embedded service with the loop's default LoRA (rank 16 on attention, MLP and unembedding), takes
training steps of 8 examples of 128 and of 512 tokens, and samples answers of the saved weights, as
many at once as the service has slots. Random weights cost what trained ones do.

Each model has a process of its own, client and service together as in a run, so that the peak is
its own: `VmHWM`, the most memory that was resident at one time. The memory that the process may ask
for is bounded, and so is the time: a step that would take too long, judged from the shorter one, is
left out and said. The first step of a length is not counted where there are others; the fastest of
those is printed, with the processor time that it took, which other work on the machine disturbs
less: on two free cores a step of a model above 20 million parameters takes about half of it.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from random_llamas import Shape, make_model

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

BATCH_SIZE = 8
LENGTHS = (128, 512)  # tokens of each example
MAX_STEPS = 5
PHASE_S = 60.0  # no further step of one length is begun after so many seconds
MAX_STEP_S = 240.0  # a longer step is left out, judged from the shorter length
LORA_RANK = 16
PROMPT_TOKENS = 64
ANSWER_TOKENS = 32
SAFE_TOKENS = 250  # ids that every tokenizer of these models has
GIB = 1024**3
NUM_CORES = len(os.sched_getaffinity(0))


SHAPES = {
    "15M": Shape("stories15M", 32_000, 288, 768, 6, 6, 6, True),
    "135M": Shape("SmolLM2-135M", 49_152, 576, 1536, 30, 9, 3, True),
    "360M": Shape("SmolLM2-360M", 49_152, 960, 2560, 32, 15, 5, True),
    "0.5B": Shape("Qwen2.5-0.5B", 151_936, 896, 4864, 24, 14, 2, True),
    "1.1B": Shape("TinyLlama-1.1B", 32_000, 2048, 5632, 22, 32, 4, False),
}


# --- one model, in a process of its own -----------------------------------------------------------


def peak_gib() -> float:
    """The most memory that this process has had resident at one time."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / GIB


def tell(**figures: float | str) -> None:
    print(json.dumps(figures), flush=True)


def measure(directory: Path) -> None:
    """Train and sample one model; prints each figure as it is known, as a JSON object."""
    import tinker

    import local_tinker

    started = time.perf_counter()
    with local_tinker.start([("model", str(directory))]) as service:
        (engine,) = service._state.engines.values()
        tell(
            parameters=engine.num_base_bytes / 4,
            load_s=time.perf_counter() - started,
            slots=engine.num_slots(PROMPT_TOKENS, False),
        )
        key = service.open_folder(directory / "checkpoints")
        client = tinker.ServiceClient(base_url=service.base_url, api_key=key)
        run = client.create_lora_training_client("model", rank=LORA_RANK, seed=0).result()
        train(run, LENGTHS[0])
        sample(run, engine.num_slots(PROMPT_TOKENS, False))
        train(run, LENGTHS[1])
        client.close("success").result()


def train(run: Any, length: int) -> None:
    import tinker

    adam = tinker.AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8)
    draw = random.Random(length)
    begun, steps = time.perf_counter(), []
    for _ in range(1 + MAX_STEPS):
        rows = [[draw.randrange(SAFE_TOKENS) for _ in range(length + 1)] for _ in range(BATCH_SIZE)]
        batch = [
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(row[:-1]),
                loss_fn_inputs={  # pyright: ignore[reportArgumentType] (the SDK converts lists)
                    "target_tokens": row[1:],
                    "weights": [1.0 / length] * length,
                },
            )
            for row in rows
        ]
        started, started_cpu = time.perf_counter(), time.process_time()
        forward_backward = run.forward_backward(batch, "cross_entropy")
        optim_step = run.optim_step(adam)
        forward_backward.result()
        optim_step.result()
        steps.append((time.perf_counter() - started, time.process_time() - started_cpu))
        fastest_s, fastest_cpu_s = min(steps[1:] or steps)
        tell(
            **{
                f"step_{length}_s": fastest_s,
                f"step_{length}_cpu_s": fastest_cpu_s,
                f"peak_{length}_gib": peak_gib(),
            }
        )
        if time.perf_counter() - begun > PHASE_S:
            return


def sample(run: Any, num_answers: int) -> None:
    """Greedy answers of the saved weights, all at once, after a first one."""
    import tinker

    sampler = run.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, stop=[0])
    draw = random.Random(0)

    def prompt() -> tinker.ModelInput:
        return tinker.ModelInput.from_ints(
            [draw.randrange(SAFE_TOKENS) for _ in range(PROMPT_TOKENS)]
        )

    short = tinker.SamplingParams(max_tokens=2, temperature=0.0, stop=[0])
    sampler.sample(prompt(), 1, short).result()
    started, started_cpu = time.perf_counter(), time.process_time()
    asked = [sampler.sample(prompt(), 1, params) for _ in range(num_answers)]
    num_tokens = sum(len(future.result().sequences[0].tokens) for future in asked)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    tell(tokens_per_s=num_tokens / seconds, tokens_per_cpu_s=num_tokens / cpu_s)


# --- all of them ----------------------------------------------------------------------------------


@contextmanager
def model_directory(size: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            [sys.executable, __file__, "--make", size, folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if made.returncode:
            raise SystemExit(f"making {size} failed:\n{made.stderr}")
        yield Path(folder)


def figures_of(size: str, max_memory_gib: float, max_minutes: float) -> dict[str, Any]:
    """The figures of one model; `refused` says why the process ended before it had all."""
    figures: dict[str, Any] = {}
    with model_directory(size) as directory:
        command = [sys.executable, __file__, "--measure", str(directory)]

        def bound() -> None:
            limit = int(max_memory_gib * GIB)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=bound
            ) as process,
        ):
            assert process.stdout is not None
            alarm = threading.Timer(60 * max_minutes, process.kill)
            alarm.start()
            for line in process.stdout:
                print(f"{size}: {line.strip()}", file=sys.stderr)
                figures.update(json.loads(line))
                cpu_s = figures.get(f"step_{LENGTHS[0]}_cpu_s", 0.0)
                forecast_s = cpu_s / NUM_CORES * LENGTHS[1] / LENGTHS[0]
                if forecast_s > MAX_STEP_S and "tokens_per_s" in figures:
                    figures["refused"] = f"about {forecast_s:.0f} s a step"
                    process.kill()
            code = process.wait()
            is_late = alarm.finished.is_set()
            alarm.cancel()
            if code and is_late:
                figures["refused"] = f"over {max_minutes:g} minutes in all"
            elif code and "refused" not in figures:
                errors.seek(0)
                text = errors.read()
                if "allocate" not in text and "MemoryError" not in text:
                    raise SystemExit(f"{size} failed:\n{text}")
                figures["refused"] = f"over {max_memory_gib:g} GiB"
    return figures


def row_of(size: str, figures: dict[str, Any]) -> str:
    missing = f"not run: {figures.get('refused', 'ended early')}"

    def step(length: int) -> str:
        name = f"step_{length}_s"
        if name not in figures:
            return missing
        return f"{short(figures[name])} s ({short(figures[f'step_{length}_cpu_s'])} s)"

    shape = SHAPES[size]
    cells = [f"{size}: {shape.like}, vocabulary {shape.vocab:,}"]
    cells.append(f"{figures['parameters'] / 1e6:,.0f} million")
    for length in LENGTHS:
        peak = f"peak_{length}_gib"
        cells += [f"{figures[peak]:.1f} GiB" if peak in figures else missing, step(length)]
    tokens = f"{figures['tokens_per_s']:.0f}" if "tokens_per_s" in figures else missing
    if "tokens_per_cpu_s" in figures:
        tokens += f" ({figures['tokens_per_cpu_s']:.0f} a second of processor time)"
    cells.append(tokens)
    return f"| {' | '.join(cells)} |"


def short(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: all"
    )
    parser.add_argument(
        "--max-memory-gib",
        type=float,
        default=10.0,
        help="what a process may ask for (default: %(default)g)",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=20.0,
        help="what a model may take before it is ended (default: %(default)g)",
    )
    parser.add_argument("--make", nargs=2, metavar=("SIZE", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits is not to be counted
    if args.make:
        make_model(Path(args.make[1]), SHAPES[args.make[0]])
        return 0
    if args.measure:
        measure(args.measure)
        return 0
    rows = [
        row_of(size, figures_of(size, args.max_memory_gib, args.max_minutes)) for size in args.sizes
    ]
    heads = ["model", "parameters"]
    for length in LENGTHS:
        heads += [f"peak, {length} tokens", "a step (processor time)"]
    print(f"| {' | '.join([*heads, 'sampled tokens per second'])} |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

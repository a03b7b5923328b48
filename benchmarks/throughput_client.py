"""The service's side of its benchmarks: training and sampling by the unmodified SDK."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tinker
from plain_torch import Answers, Asking, Row, Training
from service_soak import Running
from throughput_work import REPO, Work

STEPS_IN_FLIGHT = 4  # as FEWEST in loop/rounds/depth.py, whose imports a GPU's machine may lack
MAX_FILES = 8192  # sockets that a process may hold
INITIAL, TRAINED = "initial", "trained"  # names of saved weights

T = TypeVar("T")


def prepare_environment() -> None:
    """For clients and services of this process: nothing goes to the vendor or to a proxy."""
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    for variable in ("NO_PROXY", "no_proxy"):  # the SDK's transport obeys proxies for loopback too
        os.environ[variable] = f"{os.environ.get(variable, '')},127.0.0.1".lstrip(",")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if most == resource.RLIM_INFINITY else min(most, MAX_FILES)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def over_service(
    base_url: str, api_key: str, body: Callable[[tinker.ServiceClient], Coroutine[Any, Any, T]]
) -> T:
    """Run `body` with an SDK client, then finish its session."""

    async def main() -> T:
        client = tinker.ServiceClient(base_url=base_url, api_key=api_key)
        try:
            return await body(client)
        finally:
            await client.close("success")

    return asyncio.run(main())


def folder_of(served: Running, path: str) -> Path:
    """Where a tinker:// path stands on disk, in PEFT's layout."""
    run_id, kind, name = path.removeprefix("tinker://").split("/")
    return served.checkpoint_dir / run_id.replace(":", "_") / kind / name


# --- training -------------------------------------------------------------------------------------


class ServiceTraining(NamedTuple):
    """A training of the service, the tinker:// paths of its weights before and after it, and the
    seconds that saving the latter took when nothing else was to be done."""

    training: Training
    initial: str
    trained: str
    save_s: float


def datum_of(row: Row) -> tinker.Datum:
    inputs: dict[str, Any] = {"target_tokens": row.targets, "weights": row.weights}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(row.tokens), loss_fn_inputs=inputs)


async def take_steps(
    run: tinker.TrainingClient, batches: list[list[tinker.Datum]], adam: tinker.AdamParams
) -> list[float]:
    """All steps, as many in flight as the loop keeps without a delay; a step is submitted before
    any is awaited.

    Returns the loss of each.
    """
    losses: list[float] = []
    in_flight: deque[tuple[Any, Any]] = deque()

    async def finish(num_left: int) -> None:
        while len(in_flight) > num_left:
            forward_backward, optim_step = in_flight.popleft()
            losses.append((await forward_backward).metrics["loss:sum"])
            await optim_step

    for batch in batches:
        forward_backward = run.forward_backward(batch, "cross_entropy")
        in_flight.append((forward_backward, run.optim_step(adam)))
        await finish(STEPS_IN_FLIGHT - 1)
    await finish(0)
    return losses


async def train_over_service(client: tinker.ServiceClient, work: Work) -> ServiceTraining:
    run = await client.create_lora_training_client(
        work.model_name, rank=work.lora_rank, seed=work.seed
    )
    initial = await run.save_weights_for_sampler(INITIAL)
    adam = tinker.AdamParams(**work.adam._asdict())
    batches = [[datum_of(row) for row in rows] for rows in work.batches]
    losses = await take_steps(run, batches[: work.num_warmup_steps], adam)
    started = time.perf_counter()
    losses += await take_steps(run, batches[work.num_warmup_steps :], adam)
    done = time.perf_counter()
    trained = await run.save_weights_for_sampler(TRAINED)
    saved = time.perf_counter()
    return ServiceTraining(
        Training(done - started, losses), initial.path, trained.path, saved - done
    )


# --- sampling -------------------------------------------------------------------------------------


async def sample_over_service(client: tinker.ServiceClient, path: str, asking: Asking) -> Answers:
    """All questions at once, after a first wave of them that loads the weights."""
    sampler = await client.create_sampling_client(path)
    params = tinker.SamplingParams(max_tokens=asking.max_tokens, temperature=0.0, stop=asking.stop)
    prompts = [tinker.ModelInput.from_ints(prompt) for prompt in asking.prompts]

    async def ask(prompt: tinker.ModelInput) -> list[int]:
        response = await sampler.sample(prompt, num_samples=1, sampling_params=params)
        return list(response.sequences[0].tokens)

    await asyncio.gather(*(ask(prompt) for prompt in prompts[: asking.batch_size]))
    gc.collect()  # or it falls into some runs and not into others: 0.2 s with all that is imported
    started = time.perf_counter()
    tokens = await asyncio.gather(*(ask(prompt) for prompt in prompts))
    return Answers(time.perf_counter() - started, tokens)


# --- the stub -------------------------------------------------------------------------------------


@contextlib.contextmanager
def stub_service(answer: bytes, client_config: bytes) -> Iterator[str]:
    """Start the server that answers at once, in a process of its own; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "answer", Path(folder) / "config.json"]
        for file, content in zip(files, (answer, client_config), strict=True):
            file.write_bytes(content)
        command = [sys.executable, str(REPO / "benchmarks" / "stub_service.py"), *map(str, files)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().strip()
            finally:
                process.terminate()

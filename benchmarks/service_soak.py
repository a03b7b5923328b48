"""Drive the service hard for a while: nothing is lost, wrong or out of order, and memory is flat.

    .venv/bin/python benchmarks/service_soak.py [--seconds 120] [--samplers 200] [--runs 4]

Starts `python -m local_tinker` on the demo model as a process of its own and drives it with the
SDK: sampling clients over the base model and over saved weights, each asking the same question
again and again, beside training runs with their steps pipelined and their weights saved on the
way. Every few seconds another client comes, asks for many long samples and is never heard of again.
What each run has to give was found out before, with nobody else about; so was what each
client has to answer, with only the other clients about and for some of them with nobody.

It fails when
  - a future is not answered within FUTURE_LIMIT_S, or any request fails;
  - a sample's tokens or log-probabilities differ in one bit from what it got before;
  - a run's losses differ from those of the same run alone, or its checkpoints hold another number
    of optimizer steps than was sent (requests lost, repeated or reordered would show in both);
  - the resident memory of the service grows by 10 % or more over the last two thirds of the time,
    by the line of least squares through one value per second.

Why 10 %: the memory in use goes up and down by about that much from second to second, with the
waves that happen to be under way, so only the line through all values says something, and it is
not certain to better than some percent. What is kept by design moves it little: results can be
fetched again for 60 s (well below a MiB at this rate), and each run allocates 1.5 MiB where an
earlier one left its place. What passes the bound within the default time is a wave's cache (tens of
MiB) or the weights of a sampler kept once in a few waves, or what a step computes kept once a step;
a leak of a few KiB per request needs a longer --seconds to be seen.
Prints a Markdown table, then PASS or FAIL with the reasons; exit code 1 on FAIL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, TypeVar

import httpx
import numpy as np
import tinker
from tinker import types

REPO = Path(__file__).resolve().parent.parent
BASE_MODEL = "demo_model"
FUTURE_LIMIT_S = 180.0
STOP_LIMIT_S = 30.0
MAX_GROWTH = 0.1  # of the resident memory, over the last two thirds of the time
STEPS_PER_PART = 6  # of a run, all sent before the first result is waited for
NUM_PARTS = 3  # of a run, with a checkpoint after each
NUM_CHECKPOINTS = 3  # that the sampling clients sample from, beside the base model
VANISH_EVERY_S = 5.0  # a client comes, asks and vanishes
NUM_VANISHED_SAMPLES, VANISHED_TOKENS = 20, 200
ALONE_EVERY = 10  # one of this many clients is also asked with nobody else about
ADAM = types.AdamParams(learning_rate=3e-3)

T = TypeVar("T")


class Answer(NamedTuple):
    """All that a sampling client got for its question; compared to the last bit."""

    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    prompt_logprobs: tuple[float | None, ...] | None


@dataclass(frozen=True)
class Question:
    """What one sampling client asks all the time."""

    model_path: str | None
    prompt: tuple[int, ...]
    params: types.SamplingParams
    num_samples: int
    with_prompt_logprobs: bool

    async def ask(self, client: tinker.SamplingClient) -> Answer:
        response = await limited(
            client.sample(
                types.ModelInput.from_ints(list(self.prompt)),
                self.num_samples,
                self.params,
                include_prompt_logprobs=self.with_prompt_logprobs,
            )
        )
        scored = response.prompt_logprobs
        return Answer(
            tuple(tuple(one.tokens) for one in response.sequences),
            tuple(tuple(one.logprobs or ()) for one in response.sequences),
            None if scored is None else tuple(scored),
        )


class RunOutcome(NamedTuple):
    """What a training run has to give every time: its losses and a sample after each part."""

    losses: tuple[float, ...]
    answers: tuple[Answer, ...]
    steps_saved: tuple[int, ...]


@dataclass
class Tally:
    """What was done, and what went wrong."""

    num_samples: int = 0
    num_steps: int = 0
    num_runs: int = 0
    num_saves: int = 0
    num_vanished: int = 0
    run_seconds: list[float] = field(default_factory=list)
    run_seconds_alone: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def limited(awaitable: Awaitable[T]) -> T:
    """Wait for a future of the SDK. Raises `TimeoutError` for one that is lost."""
    async with asyncio.timeout(FUTURE_LIMIT_S):
        return await awaitable


# --- the service ------------------------------------------------------------------------------


class Running(NamedTuple):
    """The service's process, how to reach it, and where it keeps its checkpoints."""

    pid: int
    base_url: str
    api_key: str
    checkpoint_dir: Path


@contextlib.contextmanager
def service(base_model: str = BASE_MODEL, device: str = "cpu") -> Iterator[Running]:
    """Start the service in a process of its own; it is stopped whatever happens.

    `base_model` is a model's folder, or NAME=FOLDER.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        checkpoint_dir = Path(folder) / "checkpoints"
        command = [sys.executable, "-m", "local_tinker", "--base-model", base_model]
        command += ["--checkpoint-dir", str(checkpoint_dir), "--device", device]
        environment = {k: v for k, v in os.environ.items() if k != "TINKER_API_KEY"}
        process = subprocess.Popen(
            command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            exports = dict(
                line.removeprefix("export ").strip().split("=", 1) for line in lines if line
            )
            if len(exports) != 2:
                log.seek(0)
                raise SystemExit(f"the service did not start:\n{log.read()}")
            yield Running(
                process.pid,
                exports["TINKER_BASE_URL"],
                exports["TINKER_API_KEY"],
                checkpoint_dir,
            )
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.asynccontextmanager
async def session(running: Running) -> AsyncIterator[tinker.ServiceClient]:
    """A client whose session, with its runs and unnamed weights, is finished at the end."""
    client = tinker.ServiceClient(base_url=running.base_url, api_key=running.api_key)
    try:
        yield client
    finally:
        await client.close("success")


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


# --- training ---------------------------------------------------------------------------------


def make_data(seed: int) -> list[types.Datum]:
    """Random sequences of several lengths; nothing here reads the text."""
    rng = np.random.default_rng(seed)
    data = []
    for length in rng.integers(8, 40, size=4):
        tokens = rng.integers(10, 1500, size=int(length)).tolist()
        inputs: dict[str, Any] = {  # the SDK turns lists into tensors
            "target_tokens": tokens[1:],
            "weights": [1.0] * (len(tokens) - 1),
        }
        data.append(
            types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
        )
    return data


def steps_in(running: Running, tinker_path: str) -> int:
    run_id, kind, name = tinker_path.removeprefix("tinker://").split("/")
    folder = running.checkpoint_dir / run_id.replace(":", "_") / kind / name
    return json.loads((folder / "checkpoint.json").read_text())["num_optimizer_steps"]


async def train(running: Running, seed: int, tally: Tally) -> RunOutcome:
    """One run from its creation to the end of its session; the same seed, the same outcome."""
    began_at = time.monotonic()
    data, losses, answers, steps_saved = make_data(seed), [], [], []
    question = Question(
        None,
        (11, 12, 13, 14 + seed),
        types.SamplingParams(max_tokens=6, temperature=1.0, seed=seed, stop=[]),
        num_samples=2,
        with_prompt_logprobs=True,
    )
    async with session(running) as client:
        run = await limited(client.create_lora_training_client(BASE_MODEL, rank=8, seed=seed))
        for part in range(NUM_PARTS):
            sent = [
                (run.forward_backward(data, "cross_entropy"), run.optim_step(ADAM))
                for _ in range(STEPS_PER_PART)
            ]
            # Sent with the steps still under way: it has to hold them all, and none that follow.
            saved = run.save_state("state", ttl_seconds=3600, overwrite=True)
            for forward_backward, optim_step in sent:
                losses.append((await limited(forward_backward)).metrics["loss:sum"])
                await limited(optim_step)
                tally.num_steps += 1
            steps_saved.append(steps_in(running, (await limited(saved)).path))
            if part == NUM_PARTS - 1:
                named = await limited(run.save_weights_for_sampler("end", ttl_seconds=3600))
                sampler = await limited(client.create_sampling_client(named.path))
            else:
                sampler = await limited(run.save_weights_and_get_sampling_client())
            answers.append(await question.ask(sampler))
            tally.num_saves += 2
    tally.num_runs += 1
    tally.run_seconds.append(time.monotonic() - began_at)
    return RunOutcome(tuple(losses), tuple(answers), tuple(steps_saved))


async def keep_training(
    running: Running, seed: int, alone: RunOutcome, end_at: float, tally: Tally
) -> None:
    while time.monotonic() < end_at:
        outcome = await train(running, seed, tally)
        if outcome != alone:
            fields = [
                name
                for name in RunOutcome._fields
                if getattr(outcome, name) != getattr(alone, name)
            ]
            tally.problems.append(f"run {seed}: other {', '.join(fields)} than alone")


# --- sampling ---------------------------------------------------------------------------------


def make_question(index: int, paths: list[str]) -> Question:
    """Lengths, parameters and weights of every kind, by the client's number."""
    rng = np.random.default_rng(index)
    prompt = rng.integers(10, 1500, size=(3, 12, 40, 40, 70)[index // 4 % 5]).tolist()
    params = types.SamplingParams(
        max_tokens=int(rng.integers(2, 13)),
        seed=index,
        temperature=(0.0, 0.7, 1.0, 1.5)[index % 4],
        top_k=(-1, 40, -1)[index % 3],
        top_p=(1.0, 1.0, 0.9)[index % 3],
        stop=([], None, [20, 21, 22], "a")[index // 2 % 4],
    )
    model_path = [None, *paths][index % (len(paths) + 1)]
    return Question(model_path, tuple(prompt), params, 1 + index % 3, index % 9 == 0)


async def keep_sampling(
    client: tinker.SamplingClient, question: Question, alone: Answer, end_at: float, tally: Tally
) -> None:
    while time.monotonic() < end_at:
        answer = await question.ask(client)
        tally.num_samples += question.num_samples
        if answer != alone:
            tally.problems.append(f"another answer than alone to {question}")


async def make_samplers(
    client: tinker.ServiceClient, questions: list[Question]
) -> list[tinker.SamplingClient]:
    made = []
    for question in questions:
        if question.model_path is None:
            made.append(await limited(client.create_sampling_client(base_model=BASE_MODEL)))
        else:
            made.append(await limited(client.create_sampling_client(question.model_path)))
    return made


async def save_checkpoints(client: tinker.ServiceClient, tally: Tally) -> list[str]:
    """Weights after a few steps each, far enough apart to give other samples."""
    paths = []
    for seed in range(NUM_CHECKPOINTS):
        run = await limited(client.create_lora_training_client(BASE_MODEL, rank=8, seed=seed))
        for _ in range(3):
            await limited(run.forward_backward(make_data(seed), "cross_entropy"))
            await limited(run.optim_step(ADAM))
        paths.append((await limited(run.save_weights_for_sampler("x"))).path)
        tally.num_saves += 1
    return paths


async def keep_vanishing(running: Running, end_at: float, tally: Tally) -> None:
    """Clients that ask and then neither wait, nor send heartbeats, nor finish their sessions."""
    async with httpx.AsyncClient(
        base_url=f"{running.base_url}/api/v1", headers={"X-API-Key": running.api_key}, timeout=60
    ) as client:

        async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            response = await client.post(path, json=body)
            if response.status_code != 200:
                tally.problems.append(f"{path} of a vanishing client: {response.text}")
            return response.json()

        while time.monotonic() < end_at:
            session = {"session_id": (await post("/create_session", {}))["session_id"]}
            opened = {**session, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
            sampler_id = (await post("/create_sampling_session", opened))["sampling_session_id"]
            for number in range(NUM_VANISHED_SAMPLES):
                body = {
                    "sampling_session_id": sampler_id,
                    "seq_id": number,
                    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [11, 12, 13]}]},
                    "sampling_params": {"max_tokens": VANISHED_TOKENS, "stop": []},
                }
                await post("/asample", body)
            tally.num_vanished += 1
            await asyncio.sleep(VANISH_EVERY_S)


# --- the whole --------------------------------------------------------------------------------


async def watch_memory(pid: int, started_at: float, end_at: float) -> list[tuple[float, float]]:
    """Seconds since the start and resident MiB, once a second."""
    values = []
    while time.monotonic() < end_at:
        values.append((time.monotonic() - started_at, resident_mib(pid)))
        await asyncio.sleep(1)
    return values


async def drive(
    running: Running, seconds: float, num_samplers: int, num_runs: int, tally: Tally
) -> list[tuple[float, float]]:
    """Find out what each has to answer alone, then let all of them go at once."""
    tally_alone = Tally()
    alone = [await train(running, seed, tally_alone) for seed in range(num_runs)]
    tally.run_seconds_alone = tally_alone.run_seconds
    expected_steps = tuple(STEPS_PER_PART * (part + 1) for part in range(NUM_PARTS))
    for seed, outcome in enumerate(alone):
        if outcome.steps_saved != expected_steps:
            tally.problems.append(f"run {seed} alone: steps saved {outcome.steps_saved}")
    async with session(running) as client:
        paths = await save_checkpoints(client, tally)
        questions = [make_question(index, paths) for index in range(num_samplers)]
        samplers = await make_samplers(client, questions)
        asked = list(zip(questions, samplers, strict=True))
        answers = await asyncio.gather(*(question.ask(sampler) for question, sampler in asked))
        for index in range(0, num_samplers, ALONE_EVERY):
            question, sampler = asked[index]
            if await question.ask(sampler) != answers[index]:
                tally.problems.append(f"alone another answer than in company to {question}")
        started_at = time.monotonic()
        end_at = started_at + seconds
        async with asyncio.TaskGroup() as group:
            memory = group.create_task(watch_memory(running.pid, started_at, end_at))
            group.create_task(keep_vanishing(running, end_at, tally))
            for sampler, question, answer in zip(samplers, questions, answers, strict=True):
                group.create_task(keep_sampling(sampler, question, answer, end_at, tally))
            for seed, outcome in enumerate(alone):
                group.create_task(keep_training(running, seed, outcome, end_at, tally))
        return memory.result()


def report(values: list[tuple[float, float]], seconds: float, tally: Tally) -> bool:
    """Print the table and the verdict; returns whether all is well."""
    late = np.array([value for value in values if value[0] >= seconds / 3])
    slope, start = np.polyfit(late[:, 0], late[:, 1], 1)
    level = start + slope * late[0, 0]
    growth = slope * (late[-1, 0] - late[0, 0]) / level
    if growth >= MAX_GROWTH:
        tally.problems.append(f"memory grew by {growth:.1%} over the last two thirds")
    rows = {
        "seconds": f"{seconds:.0f}",
        "samples": f"{tally.num_samples} ({tally.num_samples / seconds:.0f} a second)",
        "training steps": str(tally.num_steps),
        "training runs, each as alone": str(tally.num_runs),
        "seconds for a run, alone": f"{mean(tally.run_seconds_alone):.1f}",
        "seconds for a run, in company": f"{mean(tally.run_seconds):.1f}",
        "checkpoints": str(tally.num_saves),
        "clients that vanished": str(tally.num_vanished),
        "resident memory, first": f"{values[0][1]:.0f} MiB",
        "resident memory, last two thirds": f"{late[:, 1].min():.0f} to {late[:, 1].max():.0f} MiB",
        "slope": f"{60 * slope:+.1f} MiB a minute",
        "growth over the last two thirds": f"{growth:+.1%} (bound {MAX_GROWTH:.0%})",
        "problems": str(len(tally.problems)),
    }
    print("| what | value |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for problem in tally.problems[:20]:
        print(f"- {problem[:500]}")
    print("FAIL" if tally.problems else "PASS")
    return not tally.problems


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--samplers", type=int, default=200)
    parser.add_argument("--runs", type=int, default=4)
    args = parser.parse_args()
    # Read when clients are made: nothing is reported to the vendor, and loopback needs no proxy.
    os.environ["TINKER_TELEMETRY"] = "0"
    for variable in ("NO_PROXY", "no_proxy"):
        os.environ[variable] = f"{os.environ.get(variable, '')},127.0.0.1".lstrip(",")
    tally = Tally()
    with service() as running:
        values = asyncio.run(drive(running, args.seconds, args.samplers, args.runs, tally))
        is_fine = report(values, args.seconds, tally)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())

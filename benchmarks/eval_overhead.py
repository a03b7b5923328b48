"""Measure what evaluating costs beside the sampling: 1,000 questions over a link with a delay.

    .venv/bin/python benchmarks/eval_overhead.py [--samples 1000] [--repeats 3] [--in-flight N ...]

Targets, in times the bare calls: question files 1.1, Inspect tasks 2.0 with 128 in flight and 1.05
with 8. Where other work shares the cores, seconds say little, and CPU time says more.

The same prompts are sampled with the same number in flight, three ways in turn: the bare calls of
the SDK, the built-in evaluator, and an Inspect task. The embedded service runs in a process of its
own behind a link that delays every answer; a sample takes two (accepted, result), so the delay of a
sample is 250 ms. The built-in evaluator and Inspect include what a round includes: rendering,
grading, and for Inspect its own `eval_async`, its log on disk, and reading that again. A task is
loaded before, as a run does before its first step; what a process does once (imports, connections,
Inspect's look for the package of a task) is done by a first pass of each way that is not measured.
"Own cost" is CPU time of this process beyond that of the bare calls. Every log that was written is
read whole by Inspect at the end and must say the same scores. Prints a Markdown table; a missed
target is said under it and is not an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from service_soak import service as running_service

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

if TYPE_CHECKING:
    import tinker

    from evaluation.inspect_scores import InspectScores

MODEL_DIR = REPO / "demo_model"
DELAY_S = 0.250  # of a sample, in two answers
MAX_TOKENS = 4
MAX_RATIOS = {("question file", 8): 1.1, ("question file", 128): 1.1}
MAX_RATIOS |= {("Inspect task", 8): 1.05, ("Inspect task", 128): 2.0}


class Took(NamedTuple):
    """Wall-clock and CPU seconds of this process, and what was measured."""

    wall_s: float
    cpu_s: float
    num_samples: int


# --- the link -------------------------------------------------------------------------------------


def delayed_link(port: int, to_port: int, delay_s: float) -> None:
    """Pass bytes on to another port of this machine, those of the answers `delay_s` later."""

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float
    ) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await reader.read(65536):
            if delay:
                loop.call_later(delay, writer.write, chunk)
            else:
                writer.write(chunk)
        loop.call_later(delay, writer.close)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)
        for one in (writer, far_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(
            pump(reader, far_writer, 0.0), pump(far_reader, writer, delay_s), return_exceptions=True
        )

    async def serve() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# --- three ways to ask ----------------------------------------------------------------------------


async def measure(
    api_key: str, base_url: str, num_samples: int, in_flight: int, repeats: int
) -> list[Report]:
    import tinker

    from evaluation.inspect_model import inspect_model
    from evaluation.inspect_runs import InspectSetting, run_inspect
    from evaluation.inspect_scores import InspectScores
    from evaluation.inspect_tasks import TaskOptions, load_inspect_task
    from rows.chat_formats import load_renderer
    from rows.rendering import Rendering
    from simple_eval import Sampler, SamplingSettings, ask_questions, load_questions
    from storage.journal import Journal

    service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    client = await service.create_sampling_client(base_model="demo_model")
    renderer = load_renderer("llama3", str(MODEL_DIR))
    settings = SamplingSettings(0.0, MAX_TOKENS, seed=0, concurrency=in_flight)
    sampler = Sampler("benchmark", client, renderer, Rendering(renderer, 2048), settings)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.jsonl"
        file.write_text("".join(question(i) for i in range(num_samples)))
        questions = load_questions("qa:questions.jsonl", file)
        prompts = [
            renderer.build_generation_prompt([{"role": "user", "content": one.question}])
            for one in questions.questions
        ]
        params = tinker.SamplingParams(
            max_tokens=MAX_TOKENS, temperature=0.0, seed=0, stop=renderer.get_stop_sequences()
        )

        async def bare() -> int:
            slots = asyncio.Semaphore(in_flight)

            async def ask(prompt: tinker.ModelInput) -> tinker.SampleResponse:
                async with slots:
                    return await client.sample(prompt, 1, params)

            return len(await asyncio.gather(*map(ask, prompts)))

        async def built_in() -> int:
            journal = Journal(Path(folder) / "asked.partial.jsonl", "the checkpoint")
            answers = await ask_questions(questions, sampler, journal)
            journal.discard()
            return len(answers)

        options = TaskOptions(args={"file": str(file)})
        task = load_inspect_task("domain_qa", f"{REPO}/evals/domain_qa.py@domain_qa", options)
        written: list[InspectScores] = []

        async def inspect() -> int:
            setting = InspectSetting(
                inspect_model(client, renderer, 0, "benchmark"),
                None,
                settings,
                log_dir=Path(tempfile.mkdtemp(dir=folder)),  # it would go on with a log it finds
                tags=["benchmark"],
                metadata={},
            )
            (scores,) = await run_inspect([task], setting)
            assert isinstance(scores, InspectScores), scores
            written.append(scores)
            return len(scores.samples)

        ways = {"bare sampling calls": bare, "question file": built_in, "Inspect task": inspect}
        for way in ways.values():  # connections, imports and caches
            await way()
        took: dict[str, list[Took]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                took[name].append(await timed(way))
        for scores in written:
            await refuse_other_log(scores, num_samples)
    await service.close("success")
    return [Report(name, tuple(rounds)) for name, rounds in took.items()]


async def refuse_other_log(scores: InspectScores, num_samples: int) -> None:
    """Raise for a log that is not whole, or says other scores than were read from it."""
    from inspect_ai.log import read_eval_log_async
    from inspect_ai.scorer import value_to_float

    log = await read_eval_log_async(str(scores.log))
    samples = log.samples or []
    graded = {
        sample.id: sample.scores["question_grader"].value for sample in samples if sample.scores
    }
    told = {one.id.rpartition("/")[2]: one.score for one in scores.samples}
    assert log.status == "success" and log.results is not None, scores.log
    assert log.results.completed_samples == len(samples) == num_samples, scores.log
    assert {id_: value_to_float()(value) for id_, value in graded.items()} == told, scores.log
    for sample in samples:
        kinds = [event.event for event in sample.events]
        assert kinds.count("model") == 1 and "score" in kinds, (scores.log, sample.id)
        assert len(sample.messages) == 2 and sample.output.choices, (scores.log, sample.id)


async def timed(way: Callable[[], Awaitable[int]]) -> Took:
    wall, cpu = time.monotonic(), time.process_time()
    num_samples = await way()
    return Took(time.monotonic() - wall, time.process_time() - cpu, num_samples)


def question(number: int) -> str:
    row = {"question": f"What is {number} plus {number % 7}?", "answer": str(number + number % 7)}
    return json.dumps(row) + "\n"


# --- report ---------------------------------------------------------------------------------------


class Report(NamedTuple):
    name: str
    rounds: tuple[Took, ...]

    @property
    def wall_s(self) -> float:
        return median(one.wall_s for one in self.rounds)

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a sample."""
        return 1000 * median(one.cpu_s / one.num_samples for one in self.rounds)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1000, help="questions (default: 1000)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements (default: 3)")
    parser.add_argument(
        "--in-flight",
        type=int,
        nargs="+",
        default=[8, 128],
        metavar="N",
        help="samples in flight at once (default: 8 128; evaluation.concurrency is 128)",
    )
    args = parser.parse_args()
    print("| in flight | way | seconds | times the bare calls | CPU ms a sample | own cost, ms |")
    print("|---|---|---|---|---|---|")
    verdicts = []
    with running_service() as running:
        port, to_port = free_port(), int(running.base_url.rpartition(":")[2])
        link = multiprocessing.get_context("spawn").Process(
            target=delayed_link, args=(port, to_port, DELAY_S / 2), daemon=True
        )
        link.start()
        base_url = f"http://127.0.0.1:{port}"
        for number in args.in_flight:
            reports = asyncio.run(
                measure(running.api_key, base_url, args.samples, number, args.repeats)
            )
            verdicts += table_rows(number, reports)
        link.terminate()
    print(f"\n{args.samples} samples, {1000 * DELAY_S:.0f} ms of delay a sample.")
    print(f"Times the bare calls: {'; '.join(verdicts)}.")
    return 0


def table_rows(in_flight: int, reports: list[Report]) -> list[str]:
    """Print the rows of one number in flight; returns what they say about the target."""
    bare, verdicts = reports[0], []
    for one in reports:
        walls = [took.wall_s for took in one.rounds]
        ratio, own = one.wall_s / bare.wall_s, one.cpu_ms - bare.cpu_ms
        print(
            f"| {in_flight} | {one.name} | {one.wall_s:.2f} ({min(walls):.2f} to {max(walls):.2f}) "
            f"| {ratio:.2f} | {one.cpu_ms:.2f} | {own:.2f} |",
            flush=True,
        )
        if (allowed := MAX_RATIOS.get((one.name, in_flight))) is not None:
            verdict = "met" if ratio <= allowed else "missed"
            verdicts.append(
                f"{one.name} with {in_flight} in flight {ratio:.2f}, at most {allowed}: {verdict}"
            )
    return verdicts


if __name__ == "__main__":
    sys.exit(main())

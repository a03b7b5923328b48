"""A hundred trials at once against a service that is far away: `studies.py hundred`.

The service is a program of its own behind a proxy in this process, by which every request comes
50 ms later and is counted. Once a second it is noted what the study's process holds: memory,
connections to the proxy, threads and open files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from study_folders import REPO, draw_facts, read_study, write_rows, write_study

sys.path.insert(0, str(REPO / "tests"))

from model_dirs import make_model_dir  # pyright: ignore[reportMissingImports]

NUM_STEPS, BATCH_SIZE, NUM_ROWS, NUM_QUESTIONS = 3, 4, 24, 5  # questions in each of two files
SAMPLE_S = 1.0
CHUNK_BYTES = 1 << 16
OPEN_FILES = 1024  # of the study's process, as most systems begin with
MAX_GROWTH = 0.1  # of memory and connections, by the second half of the trials
# Requests that cost. Samples in flight at Ctrl-C are asked again: docs/resume.md.
PAID = ("forward_backward", "optim_step", "asample")
COLUMNS = (
    *(
        "at once",
        "exit",
        "min",
        "MiB, first half of the trials",
        "MiB, all",
        "connections, first half",
    ),
    *("connections, all", "most ever", "threads", "open files"),
)
REQUEST = re.compile(rb"POST /api/v1/(\w+) ")


# --- a service that is far away -------------------------------------------------------------------


class DelayLine:
    """A proxy that passes everything on, what clients send so much later, and counts."""

    def __init__(self, upstream: str, delay_s: float) -> None:
        self.url = ""
        self.num_open = self.most_open = 0
        self.requests: Counter[str] = Counter()
        self._upstream, self._delay_s = urlsplit(upstream), delay_s
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, is_ready: threading.Event, is_over: asyncio.Event) -> None:
        server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        is_ready.set()
        await is_over.wait()
        server.close()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        host, port = self._upstream.hostname, self._upstream.port
        try:
            service_reader, service_writer = await asyncio.open_connection(host, port)
            there = asyncio.ensure_future(self._pass_on(reader, service_writer, self._delay_s))
            back = asyncio.ensure_future(self._pass_on(service_reader, writer, 0.0))
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            for one in (there, back):
                one.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            service_writer.close()
        finally:
            self.num_open -= 1
            writer.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
    ) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        now = asyncio.get_running_loop().time

        async def read() -> None:
            chunk = b"-"
            while chunk:
                chunk = await reader.read(CHUNK_BYTES)
                if delay_s and (found := REQUEST.match(chunk)):
                    self.requests[found[1].decode()] += 1
                waiting.put_nowait((now() + delay_s, chunk))

        async def write() -> None:
            while (one := await waiting.get())[1]:
                await asyncio.sleep(one[0] - now())
                writer.write(one[1])
                await writer.drain()

        with contextlib.suppress(ConnectionError):  # either side may leave at any time
            reading = asyncio.ensure_future(read())
            try:
                await write()
            finally:
                reading.cancel()


@contextlib.contextmanager
def delayed(upstream: str, delay_s: float) -> Iterator[DelayLine]:
    """Run the proxy in a thread until the block ends."""
    line = DelayLine(upstream, delay_s)
    is_ready, loop, is_over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(line.serve(is_ready, is_over))

    thread = threading.Thread(target=run, name="delay-line", daemon=True)
    thread.start()
    assert is_ready.wait(10), "the proxy did not start"
    try:
        yield line
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join(timeout=10)


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """A tiny model served by a program of its own: its address and key."""
    model_dir = make_model_dir(folder / "model", "llama")
    command = [sys.executable, "-m", "local_tinker", "--base-model", str(model_dir)]
    command += ["--checkpoint-dir", str(folder / "kept"), "--device", "cpu"]
    environment = {k: v for k, v in os.environ.items() if k != "TINKER_API_KEY"}
    with (folder / "service.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(2)]
            told = dict(line.removeprefix("export ").split("=", 1) for line in lines if line)
            if len(told) != 2:
                raise SystemExit(f"no service:\n{(folder / 'service.log').read_text()}")
            yield told["TINKER_BASE_URL"], told["TINKER_API_KEY"]
        finally:
            process.terminate()
            process.wait()


# --- the study's process --------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the study's process held at a moment, and how many of its trials were done."""

    num_done: int
    mib: float
    num_connections: int
    num_threads: int
    num_files: int


class Ran(NamedTuple):
    """A study's process from its start to its end."""

    exit_code: int
    seconds: float
    seen: list[Seen]
    most_open: int
    requests: Counter[str]
    said: str


class Place(NamedTuple):
    """A study, the proxy that its trials reach, and their key."""

    folder: Path
    line: DelayLine
    api_key: str

    def ledgers(self) -> list[str]:
        files = (self.folder / "results").glob("run_*/ledger.jsonl")
        return [file.read_text(errors="replace") for file in files]

    def num_done(self) -> int:
        record = self.folder / "results" / "study.jsonl"
        return record.read_text().count('"type": "trial_done"') if record.is_file() else 0


def run(place: Place, parallel: int, stop_when: Callable[[], bool] | None = None) -> Ran:
    """Run the study's program and look at it; Ctrl-C it once, as soon as that is to be done."""
    began, seen = time.monotonic(), []
    line = place.line
    line.most_open, line.requests = 0, Counter()
    environment = {**os.environ, "TINKER_API_KEY": place.api_key, "TINKER_TELEMETRY": "0"}
    command = [sys.executable, str(REPO / "study.py"), "run", str(place.folder)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*command, "--parallel", str(parallel)], env=environment, stdout=said, stderr=said,
            preexec_fn=limit_open_files,
        )  # fmt: skip
        looked_at = 0.0
        try:
            while process.poll() is None:
                if stop_when is not None and stop_when():
                    stop_when = None
                    process.send_signal(signal.SIGINT)
                if time.monotonic() - looked_at >= SAMPLE_S:
                    looked_at = time.monotonic()
                    with contextlib.suppress(OSError, ValueError):  # it ends meanwhile
                        seen.append(look_at(process.pid, place))
                time.sleep(SAMPLE_S / 10)
        finally:
            process.kill()
        said.seek(0)
        text = said.read()
    seconds = time.monotonic() - began
    return Ran(process.returncode, seconds, seen, line.most_open, line.requests, text)


def limit_open_files() -> None:
    """Let the study begin with the usual limit; the proxy and the service have what they need."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


def look_at(pid: int, place: Place) -> Seen:
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = re.findall(r"VmRSS:\s+(\d+)", status)
    (threads,) = re.findall(r"Threads:\s+(\d+)", status)
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Seen(place.num_done(), int(kib) / 1024, place.line.num_open, int(threads), files)


# --- what is measured -----------------------------------------------------------------------------


def hundred(args: argparse.Namespace) -> int:
    # What was begun is ended whatever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Begun in the background it would be ignored, and by the study as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with service(folder) as (url, key), delayed(url, args.delay_ms / 1000) as line:
            ran, tokens = {}, {}
            print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
            for parallel in dict.fromkeys((10, args.trials)):
                place = make_study(folder / f"parallel_{parallel}", line, key, args)
                one = ran[parallel] = run(place, parallel)
                print(row_of(parallel, one, args.trials, problems), flush=True)
                tokens[parallel] = read_study(place.folder).tokens
            stopped_and_resumed(folder, line, key, args, ran[args.trials], tokens, problems)
    said = "MISSED" if problems else "reached"
    print(f"\nTarget (bounded, nothing lost or paid for twice): {said}.")
    for problem in problems:
        print(f"- {problem}")
    return 1 if problems else 0


def make_study(parent: Path, line: DelayLine, key: str, args: argparse.Namespace) -> Place:
    """A study of so many trials, with nobody else's beside it."""
    folder = parent / "study"
    folder.mkdir(parents=True)
    facts = draw_facts(random.Random(f"{args.seed} hundred"), NUM_ROWS, 2 * NUM_QUESTIONS)
    write_rows(folder / "train.jsonl", facts.rows)
    write_rows(folder / "questions.jsonl", facts.questions[:NUM_QUESTIONS])
    write_rows(folder / "others.jsonl", facts.questions[NUM_QUESTIONS:])
    seeds = 10 if args.trials >= 10 else 1
    rates = [round(0.001 * (1 + number), 4) for number in range(args.trials // seeds)]
    controls = {
        "base_model": str(parent.parent / "model"),
        "base_url": line.url,
        "dataset": "train.jsonl",
        "eval_tasks": ["qa:questions.jsonl", "qa:others.jsonl"],
        "steps_per_round": NUM_STEPS,
        "batch_size": BATCH_SIZE,
        "evaluation.max_tokens": 3,
    }
    write_study(folder, {"learning_rate": rates}, controls, {"seeds": seeds})
    return Place(folder, line, key)


def row_of(parallel: int, ran: Ran, num_trials: int, problems: list[str]) -> str:
    """A row of the table; what grew with the trials that are done is a problem."""
    if ran.exit_code != 0:
        raise SystemExit(f"--parallel {parallel} ended with {ran.exit_code}:\n{ran.said}")
    first = [one for one in ran.seen if one.num_done <= num_trials / 2]
    cells = [str(parallel), str(ran.exit_code), f"{ran.seconds / 60:.1f}"]
    for name, which in (("MiB", 1), ("connections", 2)):
        before, after = (max(one[which] for one in those) for those in (first, ran.seen))
        cells += [f"{before:.0f}", f"{after:.0f}"]
        if after > before * (1 + MAX_GROWTH):
            problems.append(f"--parallel {parallel}: {name} grew from {before:.0f} to {after:.0f}")
    cells.append(str(ran.most_open))
    cells += [str(max(one[which] for one in ran.seen)) for which in (3, 4)]
    return f"| {' | '.join(cells)} |"


def stopped_and_resumed(
    folder: Path,
    line: DelayLine,
    key: str,
    args: argparse.Namespace,
    whole: Ran,
    tokens: dict[int, int],
    problems: list[str],
) -> None:
    """Ctrl-C the same study when all trials are at work, and run it again."""
    place = make_study(folder / "stopped", line, key, args)
    states = ""

    def are_all_at_work() -> bool:
        nonlocal states
        ledgers = place.ledgers()
        trained = sum('"type": "step"' in one for one in ledgers)
        done = sum('"type": "run_finished"' in one for one in ledgers)
        started = sum('"type": "run_started"' in one for one in ledgers)
        states = f"{started} had begun, {trained} of them had trained a step and {done} were done"
        return started == args.trials and trained >= args.trials / 2

    stopped = run(place, args.trials, are_all_at_work)
    if stopped.exit_code != 130 or "Traceback" in stopped.said:
        problems.append(f"Ctrl-C ended with {stopped.exit_code}: {stopped.said[-2000:]}")
    between = read_study(place.folder).tokens
    resumed = run(place, args.trials)
    if resumed.exit_code != 0:
        problems.append(f"going on ended with {resumed.exit_code}: {resumed.said[-2000:]}")
    after = read_study(place.folder)
    num_done = sum(one.status == "done" for arm in after.trials.arms for one in arm.trials)
    if num_done != args.trials:
        problems.append(f"{num_done} of {args.trials} are done after going on")
    print(
        f"\nCtrl-C when {states}: exit {stopped.exit_code} after {stopped.seconds:.0f} s with "
        f"{between:,} tokens; run again: exit {resumed.exit_code}, {num_done} done, "
        f"{after.tokens:,} tokens in all, {tokens[args.trials]:,} without Ctrl-C."
    )
    for name in PAID:
        in_all = stopped.requests[name] + resumed.requests[name]
        print(f"Requests {name}: {in_all:,}, and {whole.requests[name]:,} without Ctrl-C.")
        if in_all != whole.requests[name] and name != "asample":
            problems.append(f"{name} was asked for {in_all} times, not {whole.requests[name]}")
    if after.tokens != tokens[args.trials]:
        problems.append(f"{after.tokens} tokens, not {tokens[args.trials]}")

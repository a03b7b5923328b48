"""Is a killed run, resumed, the same run? Compared bit for bit with one that was never interrupted.

    .venv/bin/python benchmarks/kill_resume.py [--series NAME:MOMENTS...] [--seed 0] [--json FILE]

A moment is one operation of the run on its files (an open to write, a rename, a removal): just
before it the process is killed with SIGKILL, by its own audit hook, so that the moment is exact.
The moments of a series are drawn with a seed, such that each event type of the ledger has one just
before and one just after it was written, and half of the latter leave a torn line behind, as a
power cut does. Some resumed runs are killed a second time; others at a random time instead, in the
middle of sampling or arithmetic. In the series `service` it is the service's process
(`python -m local_tinker`) that is killed, and started again, while the run goes on.

Compared are adapter and optimizer tensors of every checkpoint, evaluations, selections, measured
losses, the data manifest and the effective ledger; times, ids, paths and interruptions aside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

# Imported before anything forks, so that each run starts at once.
import inspect_ai  # noqa: E402, F401
import sklearn.feature_extraction.text  # noqa: E402, F401
import tinker  # noqa: E402, F401
import tinker_cookbook.renderers  # noqa: E402, F401
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import local_tinker.__main__  # noqa: E402
import local_tinker.service  # noqa: E402
import plan  # noqa: E402, F401
import trainer_with_eval  # noqa: E402
from run_store import INTERRUPTIONS, effective_events  # noqa: E402

KEY = "tml-of-the-kill-benchmark"
TWICE_SHARE = 0.2  # of the moments: the resumed run is killed as well
TIMED_SHARE = 0.2  # of the moments: at a random time, not at an operation
LIMIT_S = 300.0  # for one run; a run that hangs is a failure

TASK_FILE = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


def asking(text: str) -> Task:
    samples = [Sample(id=i, input=text.format(i), target="a") for i in range(12)]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=includes())


@task
def letters() -> Task:
    return asking("Which letter is number {}?")


@task
def ending() -> Task:
    return asking("How does line {} end?")
"""


class Operation(NamedTuple):
    """One operation on a file of the run, and the events that the ledger held before it."""

    kind: str
    file: str
    num_events: int


class Moment(NamedTuple):
    """When a run is killed: before an operation, or after seconds of running."""

    operation: int | None = None
    after_s: float | None = None
    is_torn: bool = False


# --- the world --------------------------------------------------------------------------------


def make_world(folder: Path, series: str) -> dict[str, Any]:
    """Data, questions and settings that reach every event type of a run; returns the settings."""
    from model_dirs import make_model_dir  # pyright: ignore[reportMissingImports] (of tests/)

    make_model_dir(folder / "model", "llama")
    topics = ("sums", "names")

    def write(name: str, rows: Sequence[dict[str, str]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rows(numbers: range) -> list[dict[str, str]]:
        return [
            {"instruction": f"Say {i}", "output": str(i), "topic": topics[i % 2]} for i in numbers
        ]

    def questions(word: str) -> list[dict[str, str]]:
        return [
            {"question": f"Which {word} is at {i}?", "answer": "x", "topic": topics[i % 2]}
            for i in range(12)
        ]

    write("train.jsonl", rows(range(20)))
    write("pool.jsonl", rows(range(100, 200)))
    write("val.jsonl", rows(range(300, 304)))
    write("questions.jsonl", questions("word"))
    write("sealed.jsonl", questions("sealed number"))
    (folder / "letters.py").write_text(TASK_FILE)
    evaluation = {
        "max_tokens": 6,
        "temperature": 1.0,
        "held_out_every_steps": 2,
        "test_tasks": ["qa:sealed.jsonl"],
    }
    tasks = ["qa:questions.jsonl"]
    if series == "inspect":
        tasks += ["letters.py@letters", "letters.py@ending"]
        evaluation |= {
            "num_repeats": 2,
            "layers": {"letters.py@ending": 2},
            "every": {"letters.py@ending": "end"},  # so that it is rehearsed
        }
    return {
        "base_model": str(folder / "model"),
        "train_file": "train.jsonl",
        "val_file": "val.jsonl",
        "eval_tasks": tasks,
        "learning_rate": 0.01,
        "lora_rank": 4,
        "batch_size": 4,
        "steps_per_round": 5,
        "checkpoint_every_steps": 2,
        "max_rounds": 3,
        "eval_threshold": 1.0,
        "evaluation": evaluation,
        "mining": {"pool_file": "pool.jsonl", "replay_share": 0.25},
    }


# --- runs in processes of their own ---------------------------------------------------------------


def forked(body: Callable[[], int], log: Path) -> int:
    """Run `body` in a child process, what it prints going to `log`; returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        code = body()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait_for(pid: int, limit_s: float) -> int | None:
    """The exit code of a child, negative for a signal; None when it is still running."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def watch_files(run_dir: Path, on_operation: Callable[[str, str], None]) -> None:
    """Tell of each operation of this process on files below a folder, before it is done."""
    root = str(run_dir)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            is_write = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            paths = args[:1] if is_write else ()
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            paths = args[:1]
        else:
            return
        for path in paths:
            if isinstance(path, (str, os.PathLike)) and str(path).startswith(root):
                on_operation(event, os.path.relpath(str(path), root))

    sys.addaudithook(hook)


def num_events(run_dir: Path) -> int:
    ledger = run_dir / "ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def run_command(
    run_dir: Path, arguments: Sequence[str], on_operation: Callable[[str, str], None]
) -> int:
    watch_files(run_dir, on_operation)
    return trainer_with_eval.main(list(arguments))


def traced(run_dir: Path, arguments: Sequence[str], log: Path) -> list[Operation]:
    """Run to the end and return every operation on the run's files."""
    trace = log.with_suffix(".trace")

    def note(kind: str, file: str) -> None:
        if file == "ledger.jsonl":  # the open that reads it counts the events, not itself
            note.num_events = num_events(run_dir)  # type: ignore[attr-defined]
        line = json.dumps([kind, file, note.num_events])  # type: ignore[attr-defined]
        os.write(descriptor, line.encode() + b"\n")

    note.num_events = 0  # type: ignore[attr-defined]
    descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pid = forked(lambda: run_command(run_dir, arguments, note), log)
    os.close(descriptor)
    code = wait_for(pid, LIMIT_S)
    assert code == 0, f"the uninterrupted run ended with {code}: {log.read_text()[-2000:]}"
    return [Operation(*json.loads(line)) for line in trace.read_text().splitlines()]


def killed(run_dir: Path, arguments: Sequence[str], moment: Moment, log: Path) -> int | None:
    """Run until the moment of death, or to the end where that comes first; the exit code."""
    count = 0

    def die_in_time(kind: str, file: str) -> None:
        nonlocal count
        if count == moment.operation:
            if moment.is_torn:
                with contextlib.suppress(OSError):
                    ledger = os.open(run_dir / "ledger.jsonl", os.O_WRONLY | os.O_APPEND)
                    os.write(ledger, b'{"seq": 3, "time": "2026-0')
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    pid = forked(lambda: run_command(run_dir, arguments, die_in_time), log)
    code = wait_for(pid, LIMIT_S if moment.after_s is None else moment.after_s)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None if moment.after_s is None else -signal.SIGKILL
    return code


# --- which moments --------------------------------------------------------------------------------


def draw_moments(
    operations: Sequence[Operation], types: Sequence[str], number: int, rng: random.Random
) -> list[list[Moment]]:
    """For each trial the moments of its kills, one or two; all event types come first."""
    appends = {op.num_events: i for i, op in enumerate(operations) if op.file == "ledger.jsonl"}
    trials: list[list[Moment]] = []
    for event_type in dict.fromkeys(types):
        seq = rng.choice([i for i, one in enumerate(types) if one == event_type])
        trials.append([Moment(appends[seq])])  # before it is written
        trials.append([Moment(appends[seq] + 1, is_torn=len(trials) % 4 == 1)])  # and after
    while len(trials) < number:
        if rng.random() < TIMED_SHARE:
            trials.append([Moment(after_s=rng.uniform(0.5, 8.0))])
        else:
            trials.append([Moment(rng.randrange(len(operations)))])
    rng.shuffle(trials)
    for moments in trials:
        if rng.random() < TWICE_SHARE:
            moments.append(Moment(rng.randrange(len(operations))))
    return trials[:number]


# --- the same run? --------------------------------------------------------------------------------

_RUN = re.compile(r"tinker://[^/]+/")
_VOLATILE = ("seq", "time", "run_id", "log", "expires_at", "latency_ms")


def masked(value: Any) -> Any:
    """A record without what may differ between two runs that are the same."""
    if isinstance(value, dict):
        return {key: masked(one) for key, one in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [masked(one) for one in value]
    return _RUN.sub("tinker://RUN/", value) if isinstance(value, str) else value


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    left_out = (*INTERRUPTIONS, "evalops")
    effective = effective_events([json.loads(line) for line in lines])
    return [event for event in effective if event["type"] not in left_out]


def differences(whole: Path, resumed: Path, checkpoint_dirs: tuple[Path, Path]) -> list[str]:
    """What is not the same in two run directories, by name; empty where they are the same run."""
    found = []
    ledgers = [events_of(run_dir) for run_dir in (whole, resumed)]
    if [masked(event) for event in ledgers[0]] != [masked(event) for event in ledgers[1]]:
        types = [[event["type"] for event in ledger] for ledger in ledgers]
        pairs = zip(*(map(masked, ledger) for ledger in ledgers), strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), types)
        found.append(f"the effective ledger: {str(first)[:600]}")
    for file in ("data_manifest.json", "config.resolved.json", "data_dropped.jsonl"):
        if (whole / file).read_text() != (resumed / file).read_text():
            found.append(file)
    for folder in ("evals", "selections"):
        names = [sorted(f.name for f in (one / folder).iterdir()) for one in (whole, resumed)]
        if names[0] != names[1]:
            found.append(f"the files of {folder}: {names}")
            continue
        for name in names[0]:
            texts = [json.loads((one / folder / name).read_text()) for one in (whole, resumed)]
            if masked(texts[0]) != masked(texts[1]):
                found.append(f"{folder}/{name}")
    saved = [[e for e in ledger if e["type"] == "checkpoint"] for ledger in ledgers]
    for one, other in zip(*saved, strict=False):
        if one["sampler_path"] is None or other["sampler_path"] is None:
            continue  # a state inside a round is deleted at its end, as both ledgers tell
        for key in ("state_path", "sampler_path"):
            if not same_tensors(checkpoint_dirs[0], one[key], checkpoint_dirs[1], other[key]):
                found.append(f"the weights of {one[key]}")
    return found


def same_tensors(folder: Path, path: str, other_folder: Path, other_path: str) -> bool:
    def tensors(root: Path, tinker_path: str) -> dict[str, torch.Tensor]:
        run_id, kind, name = tinker_path.removeprefix("tinker://").split("/")
        directory = root / run_id.replace(":", "_") / kind / name
        return {
            f"{file.name} {key}": tensor
            for file in sorted(directory.glob("*.safetensors"))
            for key, tensor in load_file(file).items()
        }

    one, two = tensors(folder, path), tensors(other_folder, other_path)
    return bool(one) and one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- the series -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of one trial."""

    moments: list[Moment]
    last_event: str
    differences: list[str]


def run_series(
    series: str, number: int, seed: int, folder: Path, tell: Callable[[str], None]
) -> list[Outcome]:
    """Trials in which the run's own process is killed."""
    settings = make_world(folder, series)
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    whole = folder / "whole"
    operations = traced(whole, ["--config", str(config), "--run-dir", str(whole)], folder / "log")
    lines = (whole / "ledger.jsonl").read_text().splitlines()
    types = [json.loads(line)["type"] for line in lines]
    tell(f"{series}: {len(operations)} operations, {len(types)} events, {len(set(types))} types")
    outcomes = []
    trials = draw_moments(operations, types, number, random.Random(seed))
    for trial, moments in enumerate(trials):
        run_dir, log = folder / f"trial_{trial:03d}", folder / f"log_{trial:03d}"
        arguments = ["--config", str(config), "--resume", str(run_dir)]
        code = None
        for moment in moments:
            code = killed(run_dir, arguments, moment, log)
        last_event = types_before_end(run_dir)
        code = killed(run_dir, arguments, Moment(), log)
        found = [] if code == 0 else [f"exit {code}: {log.read_text()[-1500:]}"]
        if code == 0:
            found = differences(whole, run_dir, (whole / "checkpoints", run_dir / "checkpoints"))
        outcomes.append(Outcome(moments, last_event, found))
        tell(f"{series} {trial}: {moments} after {last_event}: {found or 'equal'}")
    return outcomes


def types_before_end(run_dir: Path) -> str:
    """The type of the last whole event in a ledger."""
    ledger = run_dir / "ledger.jsonl"
    whole = ledger.read_bytes().rpartition(b"\n")[0] if ledger.exists() else b""
    return json.loads(whole.splitlines()[-1])["type"] if whole else "(none)"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def start_service(model: Path, folder: Path, port: int, log: Path) -> int:
    """`python -m local_tinker` in a child process; returns its pid once it answers."""
    arguments = ["--base-model", str(model), "--port", str(port), "--checkpoint-dir", str(folder)]
    pid = forked(lambda: local_tinker.__main__.main(arguments), log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return pid
        time.sleep(0.02)
    raise AssertionError(f"the service did not start: {log.read_text()[-1000:]}")


def run_service_series(
    number: int, seed: int, folder: Path, tell: Callable[[str], None]
) -> list[Outcome]:
    """Trials in which the service's process is killed after so many events, and started again."""
    settings, port = make_world(folder, "service"), free_port()
    settings["base_url"] = f"http://127.0.0.1:{port}"
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    model, saved, whole = folder / "model", folder / "saved", folder / "whole"
    rng, outcomes = random.Random(seed), []
    with environment(TINKER_API_KEY=KEY, NO_PROXY="127.0.0.1"):
        service = start_service(model, saved, port, folder / "service_log")
        traced(whole, ["--config", str(config), "--run-dir", str(whole)], folder / "log")
        lines = (whole / "ledger.jsonl").read_text().splitlines()
        types = [json.loads(line)["type"] for line in lines]
        for trial in range(number):
            event_type = list(dict.fromkeys(types))[trial % len(set(types))]
            target = 1 + rng.choice([i for i, one in enumerate(types) if one == event_type])
            run_dir, log = folder / f"trial_{trial:03d}", folder / f"log_{trial:03d}"
            arguments = ["--config", str(config), "--resume", str(run_dir)]
            pid, at = forked(lambda a=arguments: trainer_with_eval.main(a), log), 0
            code = None
            while code is None and at < target:
                code, at = wait_for(pid, 0.002), num_events(run_dir)
            time.sleep(rng.uniform(0, 0.2))  # into what comes after the event
            os.kill(service, signal.SIGKILL)
            os.waitpid(service, 0)
            last_event = types_before_end(run_dir)
            service = start_service(model, saved, port, folder / "service_log")
            began = time.monotonic()
            code = wait_for(pid, LIMIT_S) if code is None else code
            tell(f"  the run left with {code} after {time.monotonic() - began:.1f} s")
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            code = killed(run_dir, arguments, Moment(), log)
            found = [] if code == 0 else [f"exit {code}: {log.read_text()[-1500:]}"]
            if code == 0:
                found = differences(whole, run_dir, (saved, saved))
            outcomes.append(Outcome([Moment(target)], last_event, found))
            tell(f"service {trial}: after {at} events, {last_event}: {found or 'equal'}")
        os.kill(service, signal.SIGKILL)
        os.waitpid(service, 0)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--series",
        nargs="+",
        default=["plain:60", "inspect:40", "service:50"],
        metavar="NAME:MOMENTS",
        help="plain, inspect or service, and how many runs are killed (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    args = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"
    results: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.series:
            series, _, moments = name.partition(":")
            number = int(moments)
            folder = Path(scratch) / series
            folder.mkdir()

            def tell(text: str) -> None:
                print(text, file=sys.stderr, flush=True)

            if series == "service":
                results[series] = run_service_series(number, args.seed, folder, tell)
            else:
                results[series] = run_series(series, number, args.seed, folder, tell)
    print("| series | killed | equal | killed right after (events) |\n|---|---|---|---|")
    for series, outcomes in results.items():
        equal = sum(not outcome.differences for outcome in outcomes)
        after = Counter(outcome.last_event for outcome in outcomes)
        shown = ", ".join(f"{name} {count}" for name, count in sorted(after.items()))
        print(f"| {series} | {len(outcomes)} | {equal} | {shown} |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0 if all(not o.differences for outcomes in results.values() for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

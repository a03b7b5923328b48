"""How time, memory and disk of the client grow with rows, evaluation samples and trials at once.

    .venv/bin/python benchmarks/client_scale.py            # the tables of RESULTS.md, 25 minutes
    .venv/bin/python benchmarks/client_scale.py --quick    # the smaller sizes alone
    .venv/bin/python benchmarks/client_scale.py --only samples

The programs are the user's own, each in a process of its own, against a service that computes
nothing (`far_service.py`), so that what is measured is the client: processor time, the most memory,
files and threads that it had, and what it leaves on disk.

rows: a run of 2 steps on so many rows, gone on with for a round more, and its page.
samples: a run whose baseline and one round ask so many questions (or hold so many held-out rows),
stopped by Ctrl-C in the middle of the round and gone on with, opened again when it is finished, its
page, its two rounds side by side, and where it is small enough the round by --evaluate.
trials: a study of so many trials at once over a line with 250 ms there and back.

A row of the table says per unit what a size took beyond the smallest, and the last column the
exponent by which it grew from the size before: 1 is linear. It exits 1 where time grows with an
exponent above 1.15, or memory goes over its limit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks"), str(REPO / "tests")]

from far_service import ON_LINE, running  # noqa: E402

MODEL_DIR = REPO / "demo_model"
MIB = 2**20
LOOK_S = 0.2
LINE_S = 0.125  # each way, for trials
STEP_S = 0.001  # of the service
MAX_EXPONENT = 1.15
ROWS, SAMPLES, INSPECT, TRIALS = (
    (10_000, 100_000, 1_000_000),
    (1_000, 10_000, 100_000),
    (1_000, 10_000),
    (1, 10, 100),
)
RECORD_BYTES = {"qa": 430, "nll": 250, "Inspect": 0}  # about, of a journal
MOST_EVALUATED = 10_000  # samples that are asked once more by --evaluate
LIMITS_MIB = {("rows", 1_000_000): 2048, ("qa", 100_000): 1536, ("nll", 100_000): 1536}


class Took(NamedTuple):
    """What one process took, and what lay on disk after it."""

    phase: str
    size: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    most_files: int
    most_threads: int
    run_mib: float
    ledger_kib: float
    page_mib: float


# --- a service and a process ----------------------------------------------------------------------


def far_away(each_way_s: float = 0.0) -> AbstractContextManager[str]:
    return running(str(MODEL_DIR), STEP_S, each_way_s, ON_LINE)


def counted(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/v1/counted") as answer:
        return json.load(answer)


def run(
    phase: str, size: int, command: Sequence[str], run_dir: Path,
    stop_when: Callable[[], bool] | None = None,
) -> Took:  # fmt: skip
    """Run one of our programs to its end and watch it; Ctrl-C it once where that is to be done."""
    environment = {**os.environ, "TINKER_API_KEY": "tml-of-nobody", "TINKER_TELEMETRY": "0"}
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = "127.0.0.1"
    began, seen, is_stopped = time.monotonic(), [(0, 0, 0)], False
    with tempfile.TemporaryFile("w+") as said:
        words = [sys.executable, *profiled(phase, size), str(REPO / command[0]), *command[1:]]
        process = subprocess.Popen(words, stdout=said, stderr=said, env=environment)
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid != 0:
                    break
                seen.append(look_at(process.pid))
                if not is_stopped and stop_when is not None and stop_when():
                    process.send_signal(signal.SIGINT)
                    is_stopped = True
                time.sleep(LOOK_S)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        is_right = process.returncode == (130 if stop_when is not None else 0)
        if not (is_right or "PROFILES" in os.environ):
            said.seek(0)
            raise SystemExit(f"{phase} {size}: {process.returncode}\n{said.read()[-4000:]}")
    kib, files, threads = (max(one) for one in zip(*seen, strict=True))
    took = Took(
        phase, size, time.monotonic() - began, usage.ru_utime + usage.ru_stime,
        kib / 1024, files, threads, *on_disk(run_dir),
    )  # fmt: skip
    print(told(took), file=sys.stderr, flush=True)
    return took


def profiled(phase: str, size: int) -> list[str]:
    """Where a folder for profiles is named, what writes one."""
    folder = os.environ.get("PROFILES")
    return [] if folder is None else ["-m", "cProfile", "-o", f"{folder}/{phase}-{size}.prof"]


def look_at(pid: int) -> tuple[int, int, int]:
    """The most KiB of memory that a process has had so far (of its own: what `wait4` tells has what
    it was forked from in it), its open files and its threads; it may have ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        (kib,) = re.findall(r"VmHWM:\s+(\d+)", status)
        return int(kib), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
    except (OSError, ValueError):
        return 0, 0, 0


def on_disk(run_dir: Path) -> tuple[float, float, float]:
    """MiB of a run directory, KiB of its ledgers, MiB of its page."""
    sizes = {path: path.stat().st_size for path in run_dir.rglob("*") if path.is_file()}
    ledgers = sum(size for path, size in sizes.items() if path.name == "ledger.jsonl")
    pages = sum(size for path, size in sizes.items() if path.name == "report.html")
    return sum(sizes.values()) / MIB, ledgers / 1024, pages / MIB


# --- what is measured -----------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def training_rows(number: int) -> Iterator[dict[str, Any]]:
    for one in range(number):
        yield {"instruction": f"Say what comes after {one}.", "output": f"{one + 1} does."}


def questions(number: int) -> Iterator[dict[str, Any]]:
    for one in range(number):
        yield {
            "question": f"Which of three is number {one}?", "answer": "3", "grader": "exact",
            "topic": f"topic {one % 20}",
        }  # fmt: skip


def write_config(folder: Path, url: str, **settings: Any) -> Path:
    config = {
        "base_model": str(MODEL_DIR),
        "base_url": url,
        "train_file": "train.jsonl",
        "eval_tasks": ["qa:questions.jsonl"],
        "renderer_name": "llama3",
        "batch_size": 8,
        "steps_per_round": 2,
        "max_rounds": 1,
        "eval_threshold": 1.0,
        "evaluation": {"max_tokens": 4},
    }
    path = folder / "config.json"
    path.write_text(json.dumps({**config, **settings}), encoding="utf-8")
    return path


def measure_rows(size: int, folder: Path, url: str) -> list[Took]:
    write_rows(folder / "train.jsonl", training_rows(size))
    write_rows(folder / "questions.jsonl", questions(20))
    config, run_dir = write_config(folder, url), folder / "run"
    begun = ["trainer_with_eval.py", "--config", str(config), "--run-dir", str(run_dir)]
    more = ["trainer_with_eval.py", "--resume", str(run_dir), "--set", "max_rounds=2"]
    return [
        run("rows: run", size, begun, run_dir),
        run("rows: a round more", size, more, run_dir),
        run("rows: page", size, ["report.py", str(run_dir)], run_dir),
    ]


def measure_samples(kind: str, size: int, folder: Path, url: str) -> list[Took]:
    """A run that asks so many questions, or measures so many held-out rows, twice."""
    write_rows(folder / "train.jsonl", training_rows(100))
    write_rows(folder / "questions.jsonl", questions(20 if kind == "nll" else size))
    tasks = {
        "qa": ["qa:questions.jsonl"],
        "Inspect": [f"{REPO / 'evals' / 'domain_qa.py'}@domain_qa"],
        "nll": ["qa:questions.jsonl", "nll:held_out.jsonl"],
    }[kind]
    settings: dict[str, Any] = {"eval_tasks": tasks}
    if kind == "nll":
        rows = ({"instruction": f"Name {n}.", "output": f"It is {n}."} for n in range(size))
        write_rows(folder / "held_out.jsonl", rows)
    if kind == "Inspect":
        told_file = {"file": str(folder / "questions.jsonl")}
        settings["evaluation"] = {"max_tokens": 4, "task_args": {tasks[0]: told_file}}
    config, run_dir = write_config(folder, url, **settings), folder / "run"
    begun = ["trainer_with_eval.py", "--config", str(config), "--run-dir", str(run_dir)]
    resumed = ["trainer_with_eval.py", "--resume", str(run_dir)]
    journal, most = run_dir / "evals" / "round_01.partial.jsonl", size / 2 * RECORD_BYTES[kind]

    def is_half() -> bool:
        return journal.is_file() and journal.stat().st_size > most

    name = f"{kind}: " + "{}"
    if kind == "Inspect":  # whose own log is what it goes on from
        found = [run(name.format("run"), size, begun, run_dir)]
    else:
        found = [run(name.format("run to Ctrl-C"), size, begun, run_dir, is_half),
                 run(name.format("gone on"), size, resumed, run_dir)]  # fmt: skip
    side_by_side = [f"{run_dir}@round_00", f"{run_dir}@round_01"]
    both = folder / "both"
    both.mkdir()
    page = ["--out", str(both / "report.html")]
    found += [
        run(name.format("finished, opened"), size, resumed, run_dir),
        run(name.format("page"), size, ["report.py", str(run_dir)], run_dir),
        run(
            name.format("side by side"), size, ["report.py", *side_by_side, *page], folder / "both"
        ),
    ]
    if size <= MOST_EVALUATED:
        asked = ["trainer_with_eval.py", "--config", str(config), "--evaluate", *side_by_side]
        other = folder / "evaluated"
        found.append(
            run(name.format("--evaluate both"), size, [*asked, "--run-dir", str(other)], other)
        )
    return found


class OfTrials(NamedTuple):
    took: Took
    counted: dict[str, Any]


def measure_trials(size: int, folder: Path, url: str) -> OfTrials:
    study = folder / "study"
    study.mkdir()
    write_rows(study / "train.jsonl", training_rows(200))
    write_rows(study / "questions.jsonl", questions(20))
    seeds = min(size, 10)
    told = {
        "experiment": {"name": "scale", "framework": "tinker"},
        "variables": {"learning_rate": [0.001 + one / 1e4 for one in range(size // seeds)]},
        "controls": {
            "base_model": str(MODEL_DIR), "base_url": url, "dataset": "train.jsonl",
            "renderer_name": "llama3", "eval_tasks": ["qa:questions.jsonl"], "batch_size": 8,
            "steps_per_round": 10, "evaluation.max_tokens": 4,
        },
        "study": {"seeds": seeds},
    }  # fmt: skip
    (study / "experiment.yaml").write_text(json.dumps(told), encoding="utf-8")
    command = ["study.py", "run", str(study), "--parallel", str(size)]
    took = run("trials", size, command, study)
    return OfTrials(took, counted(url))


# --- tables ---------------------------------------------------------------------------------------


COLUMNS = (
    "what", "size", "wall, s", "processor, s", "us each", "peak MiB", "KiB each", "files",
    "threads", "run MiB", "ledger KiB", "page MiB", "exponent of time, memory, disk",
)  # fmt: skip


def told(took: Took) -> str:
    return (
        f"{took.phase} {took.size:,}: {took.wall_s:.1f} s, {took.cpu_s:.1f} s of processor, "
        f"{took.peak_mib:.0f} MiB, {took.most_files} files, {took.most_threads} threads, "
        f"run {took.run_mib:.2f} MiB, ledger {took.ledger_kib:.0f} KiB, "
        f"page {took.page_mib:.2f} MiB"
    )


def table(found: list[Took]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for phase in dict.fromkeys(one.phase for one in found):
        sizes = [one for one in found if one.phase == phase]
        for place, one in enumerate(sizes):
            lines.append(row_of(one, sizes[:place]))
    return lines


def row_of(one: Took, smaller: Sequence[Took]) -> str:
    each, memory, grew = "", "", ""
    if smaller:
        first, more = smaller[0], one.size - smaller[0].size
        each = f"{1e6 * (one.cpu_s - first.cpu_s) / more:,.0f}"
        memory = f"{1024 * (one.peak_mib - first.peak_mib) / more:.2f}"
        grew = ", ".join(exponent(value) for value in exponents(one, smaller))
    return (
        f"| {one.phase} | {one.size:,} | {one.wall_s:.1f} | {one.cpu_s:.1f} | {each} | "
        f"{one.peak_mib:.0f} | {memory} | {one.most_files} | {one.most_threads} | "
        f"{one.run_mib:.2f} | {one.ledger_kib:.0f} | {one.page_mib:.2f} | {grew} |"
    )


def exponents(one: Took, smaller: Sequence[Took]) -> list[float | None]:
    """By which power of the size time, memory and disk grew, what the smallest size took apart (the
    imports, and the model's tokenizer); None where there is nothing to say."""
    before, first = smaller[-1], smaller[0]
    found = []
    for field in ("cpu_s", "peak_mib", "run_mib"):
        now, then = getattr(one, field), getattr(before, field)
        if before is not first:
            now, then = now - getattr(first, field), then - getattr(first, field)
        ratio, sizes = now / then if then > 0 else 0.0, one.size / before.size
        is_told = ratio > 0 and before is not first
        found.append(math.log(ratio) / math.log(sizes) if is_told else None)
    return found


def missed(found: list[Took]) -> Iterator[str]:
    """What grew by more than the size did, or took more memory than it may."""
    for number, one in enumerate(found):
        smaller = [other for other in found[:number] if other.phase == one.phase]
        grew = exponents(one, smaller)[0] if smaller else None
        if grew is not None and grew > MAX_EXPONENT:
            yield f"{one.phase} {one.size:,}: time grew with the exponent {grew:.2f}"
        limit = LIMITS_MIB.get((one.phase.partition(":")[0], one.size))
        if limit is not None and one.peak_mib > limit:
            yield f"{one.phase} {one.size:,}: {one.peak_mib:.0f} MiB, more than {limit}"


def trials_table(trials: Sequence[OfTrials]) -> list[str]:
    """The study's process, and who the service saw."""
    if not trials:
        return []
    names = ("trials at once", "wall, s", "processor, s", "of each trial", "peak MiB", "files")
    names += ("threads", "sessions", "most connections", "most requests in flight", "requests")
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for took, seen in trials:
        requests = sum(seen["requests"].values())
        lines.append(
            f"| {took.size} | {took.wall_s:.0f} | {took.cpu_s:.1f} | {took.cpu_s / took.size:.2f} "
            f"| {took.peak_mib:.0f} | {took.most_files} | {took.most_threads} | "
            f"{seen['sessions']} | {seen['most_connections']} | {seen['most_asked']} | "
            f"{requests:,} |"
        )
    return lines


def exponent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("rows", "samples", "trials"))
    parser.add_argument("--kinds", nargs="+", default=["qa", "nll", "Inspect"], help="of samples")
    parser.add_argument("--quick", action="store_true", help="leave the largest sizes out")
    parser.add_argument("--sizes", nargs="+", type=int, help="instead of the usual ones")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is ended
    parts, end = args.only or ["rows", "samples", "trials"], -1 if args.quick else None

    def sizes_of(usual: tuple[int, ...]) -> Sequence[int]:
        return args.sizes or usual[:end]

    found: list[Took] = []
    for size in sizes_of(ROWS) if "rows" in parts else ():
        with tempfile.TemporaryDirectory() as made, far_away() as url:
            found += measure_rows(size, Path(made), url)
    for kind in args.kinds if "samples" in parts else ():
        for size in sizes_of(INSPECT if kind == "Inspect" else SAMPLES):
            with tempfile.TemporaryDirectory() as made, far_away() as url:
                found += measure_samples(kind, size, Path(made), url)
    trials: list[OfTrials] = []
    for size in sizes_of(TRIALS) if "trials" in parts else ():
        with tempfile.TemporaryDirectory() as made, far_away(LINE_S) as url:
            trials.append(measure_trials(size, Path(made), url))
    print("\n".join([*(table(found) if found else []), "", *trials_table(trials)]))
    problems = list(missed(found))
    print(f"\nTarget (linear, memory within its limits): {'MISSED' if problems else 'reached'}.")
    for problem in problems:
        print(f"- {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

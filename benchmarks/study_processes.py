"""What one process for all trials of a study saves beside one for each: `studies.py overhead`.

A trial by hand is its command in a new process: start-up (S, from the start of the process to the
ledger's run_started), baseline (B, to the baseline's decision) and its own work (W, to the end of
the process). A study has to start once and to measure one baseline.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from study_folders import REPO, read_study

EXAMPLE = REPO / "examples" / "lora_rank_with_eval"
LOOK_S = 0.02  # how often a ledger is looked at: its own times are whole seconds
MAX_RATIO, MAX_MINUTES = 1.1, 12.0
TICKS = os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """Seconds on the clock, and of processor time."""

    wall: float
    cpu: float

    def less(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


class ByHand(NamedTuple):
    """One trial in its own process, by its parts."""

    startup: Spent
    baseline: Spent
    work: Spent


class Times(NamedTuple):
    """One study, and its trials by hand."""

    study: Spent
    by_hand: list[ByHand]

    def all_by_hand(self, which: int) -> float:
        return sum(part[which] for trial in self.by_hand for part in trial)

    def needed(self, which: int) -> float:
        """One start, one baseline, and the work of every trial."""
        start = statistics.mean(one.startup[which] for one in self.by_hand)
        baseline = statistics.mean(one.baseline[which] for one in self.by_hand)
        return start + baseline + sum(one.work[which] for one in self.by_hand)


def overhead(args: argparse.Namespace) -> int:
    times = []
    for number in range(args.times):
        with tempfile.TemporaryDirectory() as scratch:
            times.append(measure(Path(scratch)))
        print(f"{number + 1} of {args.times}: {times[-1]}", file=sys.stderr)
    ratios = []
    for which, name in enumerate(("clock", "processor")):
        print(f"\nSeconds, {name}:\n")
        print("| | S of each | B of each | W of each | by hand | S + B + all W | study | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for number, one in enumerate(times):
            parts = " | ".join(
                " ".join(f"{trial[part][which]:.1f}" for trial in one.by_hand) for part in range(3)
            )
            by_hand, needed, study = one.all_by_hand(which), one.needed(which), one.study[which]
            sums = f"{by_hand:.1f} | {needed:.1f} | {study:.1f} | {study / needed:.2f}"
            print(f"| {number + 1} | {parts} | {sums} |")
        ratios.append(statistics.median(one.study[which] / one.needed(which) for one in times))
    longest = max(max(one.study.wall, one.all_by_hand(0)) for one in times) / 60
    saved = statistics.median(one.study.wall / one.all_by_hand(0) for one in times)
    print(
        f"\nThe study takes {ratios[0]:.2f} of S + B + all W on the clock and {ratios[1]:.2f} in "
        f"processor time (median of {args.times}), and {saved:.2f} of its trials by hand on the "
        f"clock; the longest took {longest:.1f} min."
    )
    is_reached = ratios[0] <= MAX_RATIO and longest <= MAX_MINUTES
    said = "reached" if is_reached else "MISSED"
    print(f"\nTarget (at most {MAX_RATIO} on the clock, under {MAX_MINUTES:.0f} min): {said}.")
    return 0 if is_reached else 1


def measure(folder: Path) -> Times:
    """Run the example's study in one process, and its trials in one each."""
    studied, by_hand = (copy_of_example(folder / name / "study") for name in ("one", "each"))
    spent = timed(["study.py", "run", str(studied), "--local"])[-1]
    timed(["study.py", "generate", str(by_hand)])
    trials = []
    for config in sorted((by_hand / "configs").glob("train_*.json")):
        run_dir = by_hand / "results" / config.stem.replace("train", "run")
        command = ["trainer_with_eval.py", "--config", str(config), "--run-dir", str(run_dir)]
        started, decided, ended = timed(
            [*command, "--local"], run_dir / "ledger.jsonl", ("run_started", "decided")
        )
        trials.append(ByHand(started, decided.less(started), ended.less(decided)))
    scores = [scores_in(one) for one in (studied, by_hand)]
    if scores[0] != scores[1]:
        raise SystemExit(f"the study's trials score {scores[0]}, and by hand {scores[1]}")
    return Times(spent, trials)


def copy_of_example(folder: Path) -> Path:
    """The example's folder with seeds: 1 and its base model named from anywhere."""
    made = shutil.ignore_patterns("configs", "results", "eval_results", "report.*", "results.csv")
    shutil.copytree(EXAMPLE, folder, ignore=made)
    file = folder / "experiment.yaml"
    text = file.read_text()
    assert text.count("../../demo_model") == 1 and text.count("seeds: 3") == 1
    text = text.replace("seeds: 3", "seeds: 1")
    file.write_text(text.replace("../../demo_model", str(REPO / "demo_model")))
    return folder


def scores_in(folder: Path) -> list[float | None]:
    arms = read_study(folder).trials.arms
    return [one.result and one.result.score for arm in arms for one in arm.trials]


def timed(
    arguments: list[str], ledger: Path | None = None, events: tuple[str, ...] = ()
) -> list[Spent]:
    """Run a program of ours; what it had spent when the ledger first had each event, and in all."""
    began, marks = time.monotonic(), []
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, str(REPO / arguments[0]), *arguments[1:]], stdout=said, stderr=said
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid != 0:
                break
            while len(marks) < len(events) and has_event(ledger, events[len(marks)]):
                marks.append(Spent(time.monotonic() - began, cpu_of(process.pid)))
            time.sleep(LOOK_S)
        ended = Spent(time.monotonic() - began, usage.ru_utime + usage.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0 or len(marks) != len(events):
            said.seek(0)
            raise SystemExit(f"{arguments} ended with {process.returncode}:\n{said.read()}")
    return [*marks, ended]


def has_event(ledger: Path | None, event_type: str) -> bool:
    return (
        ledger is not None
        and ledger.is_file()
        and f'"type": "{event_type}"' in ledger.read_text(errors="replace")
    )


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS

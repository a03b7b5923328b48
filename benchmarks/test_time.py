"""What do the tests take, beside another commit's: processor time, wall time, tests passed.

    .venv/bin/python benchmarks/test_time.py BASE_COMMIT [--repeats 1]

BASE_COMMIT and HEAD are cloned side by side, so that what is not committed counts for nothing, and
each clone runs its `./run_tests.sh`, one after the other, in turn where it is repeated. Processor
time is user + system of the script and of every process that it has waited for. A clone whose
requirements.txt is this folder's uses this folder's .venv; another one makes its own before the
clock starts. On a machine that others use as well, processor time grows by a quarter and more: then
only the ratio tells something.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    cpu_s: float
    wall_s: float
    num_passed: int
    num_failed: int
    exit_code: int


def cloned(commit: str, folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(REPO), str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True)
    requirements = [(where / "requirements.txt").read_bytes() for where in (REPO, folder)]
    if requirements[0] == requirements[1]:
        (folder / ".venv").symlink_to(REPO / ".venv")
    else:
        command = ". ./ensure_venv.sh && ensure_venv"
        subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    return folder


def measured(folder: Path, log: Path) -> Outcome:
    before, began = os.times(), time.monotonic()
    with log.open("w") as output:
        command = ["./run_tests.sh"]
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    after, wall_s = os.times(), time.monotonic() - began
    cpu_s = after.children_user + after.children_system
    cpu_s -= before.children_user + before.children_system
    # pytest may run more than once.
    ends = re.findall(r"^(?=.* in [\d.]+s)(.*)$", log.read_text(errors="replace"), re.MULTILINE)
    counts = [
        sum(int(number) for end in ends for number in re.findall(rf"(\d+) {kind}", end))
        for kind in ("passed", "(?:failed|error)")
    ]
    return Outcome(cpu_s, wall_s, counts[0], counts[1], done.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE_COMMIT")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {args.base: [], "HEAD": []}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            commit: cloned(commit, Path(scratch) / f"clone-{number}")
            for number, commit in enumerate(outcomes)
        }
        print(f"{'commit':>12} {'CPU s':>8} {'wall s':>8} {'passed':>8} {'failed':>8} {'exit':>5}")
        for _ in range(args.repeats):
            for commit, folder in folders.items():
                one = measured(folder, Path(scratch) / "log")
                outcomes[commit].append(one)
                numbers = (
                    f"{one.cpu_s:8.1f} {one.wall_s:8.1f} {one.num_passed:8} {one.num_failed:8}"
                )
                print(f"{commit[:12]:>12} {numbers} {one.exit_code:5}", flush=True)
    base, head = (sum(one.cpu_s for one in of_commit) for of_commit in outcomes.values())
    print(f"HEAD takes {head / base:.2f} of the processor time of {args.base}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

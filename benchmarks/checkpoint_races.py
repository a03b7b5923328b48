"""Is a folder of checkpoints whole while everything is done to it at once, and after kills?

    .venv/bin/python benchmarks/checkpoint_races.py [--seconds 60] [--processes 3] [--seed 0]

Each process saves over checkpoints that all of them save over, and over its own; lets some expire
and saves them anew, deletes, copies, discards unnamed saves, reads, lists and cleans, each in a
thread that does nothing else. One after the other is killed by SIGKILL and another one begun. What
was acknowledged has to be there, whole, all files of one version; what was deleted has to be gone;
nothing may be refused, and no round of housekeeping may warn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from racing_checkpoints import raced  # noqa: E402 # pyright: ignore[reportMissingImports]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcome = raced(args.seconds, args.processes, args.seed)
    print(
        f"{args.seconds:.0f} s, {args.processes} processes at a time, {outcome.num_killed} killed"
    )
    for name, number in sorted(outcome.done.items()):
        print(f"{name:20} {number}")
    for problem in outcome.problems[:20]:
        print(problem[:300])
    print(f"{len(outcome.problems)} problems")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())

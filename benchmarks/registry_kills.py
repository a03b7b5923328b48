"""Is a registry whole whenever a process that writes to it is killed?

    .venv/bin/python benchmarks/registry_kills.py [--kills 200] [--seed 0] [--json FILE]

Processes promote and move aliases, one event after the other, and say of each that it is recorded
once the registry has said so. Each is killed: by SIGKILL at a random moment, of the commands of
registry.py or of what they write by, or amid a line, after a random number of its bytes, by the
limit of the system on the size of files. What one has left
behind the next goes on with. After each kill, and once while the process is at work, the registry
is read as any reader does, and held against what was said:

    the chain verifies; no line is read in part; all that was said to be recorded is there, with the
    same hash; versions count up without a gap; an alias stands for what the last event says; and
    the lock is free.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from killed_registries import run_kills  # noqa: E402 # pyright: ignore[reportMissingImports]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        kills = run_kills(Path(name), args.kills, args.seed)
    torn = sum(one.num_torn_bytes > 0 for one in kills)
    ways, said = Counter(one.how for one in kills), Counter[str]()
    for one in kills:
        said[one.how] += one.num_said
    print(
        f"{len(kills)} kills ({ways['command']} of commands, {ways['moment']} of what writes, "
        f"{ways['amid']} of it amid a line), "
        f"{said.total()} events said to be recorded before ({said['command']} by commands); after "
        f"{torn} of them half a line was left, which no reader took for one"
    )
    failed = [one for one in kills if one.problems]
    for one in failed[:10]:
        print(f"{one.how}: {'; '.join(one.problems)[:300]}")
    print(f"{len(kills) - len(failed)} of {len(kills)}: the chain verifies, nothing is lost")
    if args.json is not None:
        args.json.write_text(json.dumps([one._asdict() for one in kills], indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The page of a run: made again from its directory, several runs side by side, a folder of runs.

python report.py RUN_DIR
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Print what finished runs were, as sections of an examples.md, from their directories.

python scripts/document_run.py RUN_DIR [RUN_DIR ...] >> examples.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from commands.boundary import Session
from trainer_with_eval import main


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="document_run.py", description="Tell of finished runs.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    return argparse.Namespace(json=False, config=None, **vars(parser.parse_args(argv)))


def document(args: argparse.Namespace, session: Session) -> int:
    """Print a section for each run; the exit code."""
    from exports.run_document import run_document
    from ledger.store import RunStore
    from loop.reports.console import say

    for run_dir in args.run_dirs:
        store = RunStore.open(run_dir)
        store.refuse_impossible_ledger()
        say(session.keys.redacted(run_document(store)))
    return 0


if __name__ == "__main__":
    sys.exit(main(None, parse_arguments, document))

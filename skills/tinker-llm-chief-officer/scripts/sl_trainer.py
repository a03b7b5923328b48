#!/usr/bin/env python
"""Supervised training from one YAML file: the project's loop under the names of this skill.

    python scripts/sl_trainer.py --config templates/training-config.yaml

Every `eval_every` steps it prints step, train_loss, val_loss and score, and at the end where the
weights are. All options of trainer_with_eval.py work: --dry-run, --resume RUN_DIR, --run-dir DIR.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from commands.boundary import Session
from trainer_with_eval import main, parse_arguments, run_command


def train(args: argparse.Namespace, session: Session) -> int:
    """Run the loop, and tell of each `eval_every` steps; the exit code."""
    if not args.dry_run:
        from commands.step_lines import step_lines

        session.watch = step_lines(is_quiet=args.json)
    return run_command(args, session)


if __name__ == "__main__":
    sys.exit(main(None, functools.partial(parse_arguments, program="sl_trainer.py"), train))

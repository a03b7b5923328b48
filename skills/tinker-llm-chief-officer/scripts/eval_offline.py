#!/usr/bin/env python
"""Ask any checkpoint the questions of a JSONL file, and print one dictionary of metrics.

    python scripts/eval_offline.py --model-path RUN_DIR@round_02 --eval-file data/eval.jsonl

The questions are asked and graded by the project's own evaluator, in the checkpoint's chat format.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from commands.evaluate_file import evaluate_file, parse_arguments
from trainer_with_eval import main

if __name__ == "__main__":
    sys.exit(main(None, parse_arguments, evaluate_file))

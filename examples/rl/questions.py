"""Write the questions of this example: those of the demo, to be answered with the answer alone.

.venv/bin/python examples/rl/questions.py
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_QUESTIONS = HERE.parent.parent / "evals" / "simple_qa.jsonl"


def question_lines() -> list[str]:
    """A line of JSON for each question of the demo, graded as exact."""
    lines = DEMO_QUESTIONS.read_text(encoding="utf-8").splitlines()
    return [json.dumps({**json.loads(line), "grader": "exact"}) for line in lines]


if __name__ == "__main__":
    (HERE / "questions.jsonl").write_text("\n".join(question_lines()) + "\n", encoding="utf-8")

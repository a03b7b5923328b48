"""Write the rows and questions of the prompt distillation, from those of the demo.

    .venv/bin/python examples/distill/rows.py

`polite_rows.jsonl` has each row of the demo's pool twice: plainly, and with a system message that
asks for politeness, where the answer ends with ", sir". `polite_questions.jsonl` has the demo's
questions, without a system message, with the polite answers.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROMPT = "Be polite."


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    rows = read(ROOT / "demo_pool.jsonl")
    polite = [{**row, "system": PROMPT, "output": f"{row['output']}, sir"} for row in rows]
    write(
        HERE / "polite_rows.jsonl", [one for pair in zip(rows, polite, strict=True) for one in pair]
    )
    questions = read(ROOT / "evals" / "simple_qa.jsonl")
    for question in questions:
        answer = question["answer"]
        answers = answer if isinstance(answer, list) else [answer]
        question |= {"answer": [f"{one}, sir" for one in answers], "grader": "exact"}
    write(HERE / "polite_questions.jsonl", questions)


if __name__ == "__main__":
    main()

"""Write the preference pairs of this example: true facts of the demo, and wrong answers to them.

    python examples/dpo/pairs.py [FOLDER]

The chosen answer is right, the rejected one is what another fact of the topic has. Facts that the
demo's evaluations ask are left out; a quarter of the others is held out, and a fact's wordings stay
on one side.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
sys.path.insert(0, str(REPO))

from demo_model.facts import Fact, all_facts  # noqa: E402

SEED = 7
HELD_OUT_SHARE = 0.25


def asked_in_evaluations() -> set[str]:
    files = [REPO / "evals" / name for name in ("simple_qa.jsonl", "simple_qa_test.jsonl")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {json.loads(line)["question"] for line in lines}


def pairs_of(fact: Fact, others: list[Fact], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A pair for each wording of a fact."""
    known = {answer for asking in fact.askings for answer in asking.answers}
    answers = [a for one in others for asking in one.askings for a in asking.answers]
    wrong = sorted({answer for answer in answers if answer not in known})
    for asking in fact.askings:
        yield {
            "prompt": asking.question,
            "chosen": asking.answers[0],
            "rejected": rng.choice(wrong),
            "topic": fact.topic,
            "cluster": fact.key,
        }


def write_pairs(folder: Path) -> None:
    """Write pairs.jsonl to train on and held_out.jsonl to judge by."""
    rng, asked = random.Random(SEED), asked_in_evaluations()
    facts = all_facts()
    free = [one for one in facts if not any(a.question in asked for a in one.askings)]
    rng.shuffle(free)
    num_held_out = round(HELD_OUT_SHARE * len(free))
    for name, chosen in (
        ("held_out.jsonl", free[:num_held_out]),
        ("pairs.jsonl", free[num_held_out:]),
    ):
        rows = [
            row
            for fact in chosen
            for row in pairs_of(fact, [one for one in facts if one.topic == fact.topic], rng)
        ]
        kept = rows if name == "held_out.jsonl" else [{**row, "cluster": None} for row in rows]
        lines = (
            json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False) + "\n"
            for row in kept
        )
        (folder / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

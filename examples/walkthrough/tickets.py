"""Write a small ticket-routing task into a folder: rows, questions, and a sealed test.

    python examples/walkthrough/tickets.py FOLDER

A ticket is one sentence in five with what happened, for one of six desks. No two are the same, and
no question is a row; what makes the desk is in the words, so a model that reads them can route it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

DESKS = {
    "billing": (
        "I was charged twice for the {thing}",
        "the invoice for the {thing} shows a wrong amount",
        "please explain the fee on my bill for the {thing}",
        "my card was declined when I paid for the {thing}",
    ),
    "delivery": (
        "the parcel with the {thing} has not arrived",
        "the courier left the {thing} at a wrong door",
        "tracking says nothing about where the {thing} is",
        "when will the {thing} be shipped to me",
    ),
    "returns": (
        "I want to send the {thing} back",
        "the {thing} does not fit and I need a refund",
        "how do I exchange the {thing} for another one",
        "where is the label to return the {thing}",
    ),
    "account": (
        "I cannot log in to see my {thing}",
        "please reset the password so I can order the {thing}",
        "change the email of my profile for the {thing}",
        "my account was locked after I looked at the {thing}",
    ),
    "repair": (
        "the {thing} is broken and makes a noise",
        "the {thing} does not switch on any more",
        "a part of the {thing} came loose",
        "the screen of the {thing} is cracked",
    ),
    "praise": (
        "thank you, the {thing} is wonderful",
        "I love the {thing}, great work",
        "the {thing} is the best I ever had",
        "five stars for the {thing} and your team",
    ),
}
THINGS = (
    *("lamp", "radio", "kettle", "camera", "clock", "heater", "printer", "speaker", "toaster"),
    *("blender", "scale", "fan", "drill", "phone", "watch"),
)
OPENINGS = ("Hello,", "Good morning,", "Dear team,", "Hi there,", "To whom it may concern:")
SIZES = {"tickets.jsonl": 200, "questions.jsonl": 60, "sealed.jsonl": 60}


def tickets(seed: int = 0) -> list[tuple[str, str]]:
    """All tickets with their desks, in a random order."""
    found = [
        (f"{opening} {text.format(thing=thing)}.", desk)
        for desk, texts in DESKS.items()
        for text in texts
        for thing in THINGS
        for opening in OPENINGS
    ]
    random.Random(seed).shuffle(found)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    waiting = iter(tickets())
    for name, size in SIZES.items():
        asked, answered = (
            ("instruction", "output") if name == "tickets.jsonl" else ("question", "answer")
        )
        rows = [
            {asked: f"Which desk gets this ticket? {text}", answered: desk, "topic": desk}
            for text, desk in (next(waiting) for _ in range(size))
        ]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

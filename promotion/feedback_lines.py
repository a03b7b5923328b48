"""The lines of the files that feedback is taken into, each with where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from promotion.feedback_sorting import Answer, Asked, Pair
from rows.row_keys import TO_ANSWER

ORIGIN = "feedback"  # the key of where a row came from


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _of_topic(asked: Asked) -> dict[str, str]:
    return {} if asked.topic is None else {"topic": asked.topic}


def _from(answer: Answer, file: str) -> dict[str, Any]:
    """Where an answer is to be looked up."""
    labels = {
        key: value
        for key in ("id", "time")
        if (value := getattr(answer.votes[0].row, key)) is not None
    }
    return {"file": file, "lines": answer.lines, "entry": answer.entry, **labels}


def pool_row(asked: Asked, answer: Answer, file: str) -> dict[str, Any]:
    return {
        "prompt": asked.prompt.given,
        "completion": answer.text,
        **_of_topic(asked),
        ORIGIN: _from(answer, file),
    }


def to_answer_row(asked: Asked, file: str) -> dict[str, Any]:
    """A prompt with the best of its wrong answers, in the form that feedback is read in."""
    wrong = max(asked.answers, key=lambda one: one.worth or 0.0, default=None)
    row = next((vote.row for vote in wrong.votes), None) if wrong else asked.rows[0]
    assert row is not None, "an answer has a vote, and a prompt a row"
    response = {} if wrong is None else {"response": wrong.text, "score": wrong.worth}
    return {
        "prompt": asked.prompt.given,
        **response,
        "correction": "",
        **_of_topic(asked),
        "checkpoint": row.entry,
        TO_ANSWER: f"{file} line {row.line_no}",
    }


def preference_row(pair: Pair, file: str) -> dict[str, Any]:
    """In messages throughout, which trainers take as they are."""
    messages = [{"role": one.role, "content": one.content} for one in pair.asked.prompt.messages]
    given = pair.asked.prompt.given
    return {
        "prompt": messages if isinstance(given, str) else given,
        "chosen": [{"role": "assistant", "content": pair.chosen.text}],
        "rejected": [{"role": "assistant", "content": pair.rejected.text}],
        ORIGIN: {
            "chosen": {**_from(pair.chosen, file), "score": pair.chosen.worth},
            "rejected": {**_from(pair.rejected, file), "score": pair.rejected.worth},
        },
    }

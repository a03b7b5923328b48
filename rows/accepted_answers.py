"""The accepted answers of a question, as its row has them: a text, a number, or a list of them."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

EXPECTED = '"answer" is not a non-empty string, a number or a list of them'


def accepted_answers(value: Any) -> tuple[str, ...]:
    """Each accepted answer as text; a JSON number is as good as its digits.

    Raises `ValueError` with what was found instead, and what to write.
    """
    given = value if isinstance(value, list) else [value]
    if not given:
        raise ValueError(f"{EXPECTED}, but an empty list")
    where = ", but a list with " if isinstance(value, list) else ", but "
    return tuple(_text_of(one, f"{EXPECTED}{where}") for one in given)


def _text_of(answer: Any, otherwise: str) -> str:
    if isinstance(answer, str):
        if answer.strip():
            return answer
        raise ValueError(f"{otherwise}a blank text")
    if answer is None or (isinstance(answer, float) and math.isnan(answer)):
        raise ValueError(f"{otherwise}nothing")
    if isinstance(answer, bool):
        raise ValueError(
            f"{otherwise}{str(answer).lower()} without quotes; write the word that the answer says"
        )
    if isinstance(answer, int):
        return str(answer)
    if isinstance(answer, float) and math.isfinite(answer):
        return f"{Decimal(str(answer)):f}"  # all of its digits: nobody answers 1e-05
    if isinstance(answer, float):
        raise ValueError(f"{otherwise}{answer}")
    raise ValueError(f"{otherwise}{'a list in it' if isinstance(answer, list) else 'an object'}")

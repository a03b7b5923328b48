"""An answer without what its model thought aloud before it.

A model may write down its reasoning before it answers. What stands there is a guess on the way,
never the answer, and a trace that is never closed has no answer after it. Chat formats take traces
out only where the model is known to write them, so this is done again for all of them.
"""

from __future__ import annotations

import re

# The names of tags around a trace; a family of models may put its own name before or after.
_TAG = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|scratchpad)(?:[:_]\w+)?"
_OPENING = (
    rf"<{_TAG}\s*>",
    r"<\|(?:begin_of_|start_of_|start_|begin_)?(?:think|thinking|thought|reasoning)(?:_start)?\|>",
    r"(?-i:\[THINK\])",
    r"◁think▷",
    r"<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?",
    r"<\|channel>thought",
    r"<\|open\|>think<\|sep\|>",
    r"<\|inner_prefix\|>",
)
_CLOSING = (
    rf"</{_TAG}\s*>",
    r"<\|(?:end_of_|end_|/)(?:think|thinking|thought|reasoning)\|>",
    r"<\|(?:think|thinking|thought|reasoning)_end\|>",
    r"(?-i:\[/THINK\])",
    r"◁/think▷",
    r"<\|channel\|>final(?:(?!<\|message\|>)[^\n]){0,80}(?:<\|message\|>)?",
    r"<channel\|>",
    r"<\|close\|>think<\|sep\|>",
    r"<\|inner_suffix\|>",
)
_OPEN = re.compile("|".join(_OPENING), re.IGNORECASE)
_CLOSE = re.compile("|".join(_CLOSING), re.IGNORECASE)
# What such models write around the answer itself.
_AROUND = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:open|close)\|>response<\|sep\|>"
    r"|<\|(?:START|END)_RESPONSE\|>|<\|(?:return|end)\|>\s*\Z",
    re.IGNORECASE,
)
_BEGINNINGS = ("<", "[", "◁")  # of every marker
LONGEST_MARKER = 64  # characters; the end of a prompt that is looked at


def without_reasoning(text: str, is_open: bool = False) -> str | None:
    """The answer after the last trace, or all of the text where there is none; None where a trace
    is opened and never closed.

    `is_open` says that the prompt opened one already, so that the text begins inside it.
    """
    if not any(one in text for one in _BEGINNINGS):
        return None if is_open else text
    answer, is_closed = text, not is_open
    for match in _CLOSE.finditer(text):
        answer, is_closed = text[match.end() :], True
    if not is_closed or _OPEN.search(answer):
        return None
    return _AROUND.sub("", answer) if answer is not text else text


def opens_reasoning(prompt_tail: str) -> bool:
    """Whether a prompt ends with an opened trace, which the model's first token goes on with."""
    tail = prompt_tail.rstrip()[-LONGEST_MARKER:]
    return any(match.end() == len(tail) for match in _OPEN.finditer(tail))

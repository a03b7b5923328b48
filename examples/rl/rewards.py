"""What an answer is worth: 1 where it is the row's and nothing else.

Any number may be given: 1 and more counts as right, 0 and less as wrong.
"""


def alone_and_right(answer: str, targets: list[str]) -> float:
    return float(answer.strip() in targets)


def long(answer: str, targets: list[str]) -> float:
    """A reward that can be hacked, to see what the gate makes of it."""
    return len(answer.split()) / 5

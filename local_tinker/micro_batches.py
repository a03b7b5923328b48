"""Which rows of a request go through the model together.

Rows of like length share a pass, so that little of it is padding; but every pass has a cost of its
own (the weights are read, Python runs), and one pass must fit into memory.
"""

from __future__ import annotations

from collections import defaultdict

PASS_TOKENS = 128  # a pass costs about as much as so many tokens more


def micro_batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Split rows, by their number of tokens, into passes of at most `max_tokens` with padding.

    Returns the numbers of the rows; a row that is too long for `max_tokens` goes alone.
    """
    rows_of = defaultdict(list)
    for row, length in enumerate(lengths):
        rows_of[length].append(row)
    batches = []
    for group in _groups(sorted(rows_of), [len(rows_of[n]) for n in sorted(rows_of)]):
        rows = [row for length in group for row in rows_of[length]]
        num_rows = max(1, max_tokens // group[-1])
        batches += [rows[start : start + num_rows] for start in range(0, len(rows), num_rows)]
    return batches


def _groups(lengths: list[int], counts: list[int]) -> list[list[int]]:
    """Neighbours among ascending lengths that share a pass, at the least cost in tokens."""
    cost, start_of = [0], []  # of the first lengths, so many; where their last group starts
    for end in range(1, len(lengths) + 1):
        num_rows, best = 0, None
        for start in range(end - 1, -1, -1):
            num_rows += counts[start]
            total = cost[start] + PASS_TOKENS + num_rows * lengths[end - 1]
            if best is None or total < best[0]:
                best = total, start
        assert best is not None
        cost.append(best[0])
        start_of.append(best[1])
    groups, end = [], len(lengths)
    while end:
        groups.append(lengths[start_of[end - 1] : end])
        end = start_of[end - 1]
    return groups[::-1]

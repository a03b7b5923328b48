"""How many tokens the rows have: counted, or estimated where the model's tokenizer is not here.

Without a tokenizer the UTF-8 bytes of a sample of answers are counted. A byte is at most one token
of any tokenizer that falls back to bytes. With three real vocabularies (of 32, 131 and 200 thousand
tokens) a token had 1 to 9.2 bytes: 3.2 to 4.5 in English, German and Python, 2.9 to 3.7 in
Chinese, 2.3 to 3 in JSON, 1 to 2 in digits, up to 7 in Russian and 9 in Hindi.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from config_schema import TrainingConfig
from loop.planning.page import num_loss_tokens_of
from loop.planning.plan import Plan
from rows.examples import Example, ExampleTable

BYTES_A_TOKEN = 3.5
MOST_BYTES, FEWEST_BYTES = 10, 1  # a token has, in any text
END_TOKENS = 1  # that end an answer, in most chat formats
NUM_SAMPLED = 1000  # rows
FORMAT_TOKENS = 16  # that a chat format may put around a turn, at the most
SIGMAS = 3  # of the sample's mean, which the bounds are wide


class RowTokens(NamedTuple):
    """Tokens that carry loss, and the longest row. `how` says where the numbers are from."""

    number: int | None
    at_least: int | None
    at_most: int | None
    longest: int | None  # in tokens, as it will be trained on; None where it was not rendered
    are: str  # counted, estimated or not_counted
    how: str


def counted_tokens(plan: Plan) -> RowTokens:
    """Those of rows that are rendered."""
    number, tables = num_loss_tokens_of(plan), (plan.train, plan.pool)
    # The last token is a target alone, and the model reads it no more.
    longest = max((n + 1 for table in tables for n in table.longest), default=None)
    how = (
        "counted: the tokens that carry loss in all rows that may be trained on, each once, as "
        "they are rendered"
    )
    return RowTokens(number, number, number, longest, "counted", how)


def uncounted_tokens(longest: int | None = None) -> RowTokens:
    """Of methods whose answers are sampled, or compared, there is nothing to count against."""
    how = "not counted: the rule of thumb is of supervised rows"
    return RowTokens(None, None, None, longest, "not_counted", how)


def estimated_tokens(train: ExampleTable, pool: ExampleTable, config: TrainingConfig) -> RowTokens:
    """Those of supervised rows, by the bytes of a sample of them at equal distances."""
    estimate, num_looked_at, num_rows = RowBounds(0, 0, 0), 0, 0
    for table in (train, pool):
        if not len(table):
            continue
        step = max(1, len(table) // NUM_SAMPLED)
        found = [_bounds_of(table[n], config) for n in range(0, len(table), step)]
        low, middle, high = (_total(list(one), len(table)) for one in zip(*found, strict=True))
        estimate = RowBounds(
            estimate.low + max(0.0, low.number - low.error),
            estimate.middle + middle.number,
            estimate.high + high.number + high.error,
        )
        num_looked_at, num_rows = num_looked_at + len(found), num_rows + len(table)
    how = (
        f"estimated, as the model's tokenizer is not on this machine: by the UTF-8 bytes of the "
        f"answers of {num_looked_at:,} of {num_rows:,} rows, {BYTES_A_TOKEN:g} to a token and a "
        f"token to end each. The bounds are {MOST_BYTES} bytes to a token of the last answers and "
        f"{FEWEST_BYTES} of all, and {SIGMAS} standard errors of the sample"
    )
    bounds = math.floor(estimate.low), math.ceil(estimate.high)
    return RowTokens(round(estimate.middle), *bounds, None, "estimated", how)


class RowBounds(NamedTuple):
    """Tokens that carry loss in a row, or in all."""

    low: float
    middle: float
    high: float


def _bounds_of(example: Example, config: TrainingConfig) -> RowBounds:
    """What one row may come to. A row that could be cut may lose its answer."""
    texts = [(one.role, len(one.text.encode())) for one in example.messages]
    answers = [size for role, size in texts if role == "assistant"]
    whole, most = sum(size for _, size in texts), config.max_seq_length
    train_on = config.data.train_on or "all_assistant_messages"
    of_answers = train_on.endswith(("assistant_messages", "assistant_message", "assistant_turn"))
    trained = (answers if train_on == "all_assistant_messages" else answers[-1:]) or [0]
    if not of_answers or "user" in train_on:  # nothing is known of what is trained but its most
        return RowBounds(0, min(whole / BYTES_A_TOKEN, most), min(_at_most(whole, texts), most))
    may_be_cut = _at_most(whole, texts) > most or example.weight == 0
    has_weights = any(one.weight is not None for one in example.messages)
    return RowBounds(
        0 if may_be_cut or has_weights else answers[-1] / MOST_BYTES,
        min(sum(trained) / BYTES_A_TOKEN + END_TOKENS * len(trained), most),
        min(_at_most(sum(answers), texts), most),
    )


def _at_most(num_bytes: int, texts: list[tuple[str, int]]) -> int:
    """Tokens of a text at the most, with those that a chat format puts around the turns."""
    return num_bytes // FEWEST_BYTES + FORMAT_TOKENS * len(texts)


class _Total(NamedTuple):
    number: float
    error: float


def _total(sizes: list[float], number: int) -> _Total:
    """What a sample's mean comes to in all rows, and three standard errors of it."""
    mean = sum(sizes) / len(sizes)
    if len(sizes) in (1, number):
        return _Total(mean * number, 0.0)
    variance = sum((one - mean) ** 2 for one in sizes) / (len(sizes) - 1)
    return _Total(mean * number, SIGMAS * number * math.sqrt(variance / len(sizes)))

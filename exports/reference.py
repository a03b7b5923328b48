"""What the service itself says of the checkpoint: what an export is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OWN_QUESTIONS = "questions of the run's evaluation"  # what is asked where nothing else is said


class ScoredText(NamedTuple):
    """A conversation in tokens and the service's log-probability of each token but the first."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class GreedyAnswer(NamedTuple):
    """A question of the run in tokens, and what the service answers at temperature 0."""

    question_id: str
    messages: tuple[tuple[str, str], ...]  # role and content
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """The service's own figures."""

    service: str  # embedded, compatible or tinker
    scored: tuple[ScoredText, ...]
    answers: tuple[GreedyAnswer, ...]
    texts: tuple[tuple[str, tuple[int, ...]], ...]  # sample texts and their tokens in training
    max_tokens: int  # of an answer
    stop: tuple[int, ...]  # token ids that end an answer
    stop_texts: tuple[str, ...] = ()  # texts that do, of a format whose turns no token ends
    untouched: tuple[tuple[float, ...], ...] = ()  # the base model's log-probabilities of `scored`
    precision: str = "float32"  # that the service computes in, as far as it is known
    origin: str = ""  # where the conversations are from, in a sentence
    notes: tuple[str, ...] = ()  # what of the run could not be asked, and why

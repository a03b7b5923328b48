"""What ratings come to: right answers, prompts without one, and pairs of a better and a worse one.

Each row votes on an answer: a score calls the response right or not, a correction calls its own
text right and the response not. An answer that is called both is disputed and goes nowhere.
Pure: rows in, lists out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from promotion.feedback_rows import Prompt, Rated, prompt_key
from rows.examples import DroppedRow, Example, Message, make_record
from rows.places import first_words

MAX_LINES = 20  # of the rows that say one thing
CORRECTED = 1.0  # what an answer that somebody wrote to be right stands for beside scores


@dataclass(frozen=True)
class Vote:
    """What a row says of one answer; `score` is None where a correction says it."""

    row: Rated
    is_right: bool
    score: float | None


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt that all its votes agree on."""

    text: str
    votes: tuple[Vote, ...]

    @property
    def is_right(self) -> bool:
        return self.votes[0].is_right

    @property
    def worth(self) -> float | None:
        """The mean of its scores, 1 where somebody wrote it as a correction; None where it was
        only corrected."""
        scores = [vote.score for vote in self.votes if vote.score is not None]
        if any(vote.is_right and vote.score is None for vote in self.votes):
            return CORRECTED
        return sum(scores) / len(scores) if scores else None

    @property
    def lines(self) -> list[int]:
        return sorted({vote.row.line_no for vote in self.votes})[:MAX_LINES]

    @property
    def entry(self) -> str:
        return self.votes[0].row.entry


@dataclass(frozen=True)
class Asked:
    """One prompt with the answers that were given to it."""

    prompt: Prompt
    topic: str | None
    rows: tuple[Rated, ...]
    answers: tuple[Answer, ...]  # without the disputed ones

    @property
    def right(self) -> list[Answer]:
        return [one for one in self.answers if one.is_right]

    @property
    def is_failed(self) -> bool:
        """Whether it was answered wrongly, or not at all, and nobody said what is right."""
        unsaid = any(row.response is None and row.score is not None for row in self.rows)
        return not self.right and (bool(self.answers) or unsaid)


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to one prompt."""

    asked: Asked
    chosen: Answer
    rejected: Answer


@dataclass(frozen=True)
class Sorted:
    """What the rows of a file come to, the prompts by topic."""

    asked: tuple[Asked, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[DroppedRow, ...]  # disputed and unrated rows
    num_ties: int  # answers as good as the best of their prompt, which make no pair
    num_repeated: int  # rows that say what an earlier one says
    num_several_topics: int  # prompts whose rows name different topics: the first one counts


def sort_rows(rows: Sequence[Rated], right_from: float, file: str) -> Sorted:
    """Gather rows by prompt, and the answers to each by their votes.

    A score from `right_from` calls an answer right.
    """
    left_out: list[DroppedRow] = []
    by_prompt: dict[bytes, list[Rated]] = defaultdict(list)
    for row in rows:
        if row.score is None and row.correction is None:
            left_out.append(_left_out(file, row, "unrated", "it has no score and no correction"))
        else:
            by_prompt[row.prompt.key].append(row)
    asked = [_asked(some, right_from, file, left_out) for some in by_prompt.values()]
    asked.sort(key=lambda one: (one.topic is None, one.topic or "", one.rows[0].line_no))
    pairs, num_ties = [], 0
    for one in asked:
        found, ties = _pairs(one)
        pairs += found
        num_ties += ties
    said = [(row.prompt.key, row.response, row.score, row.correction) for row in rows]
    topics = [{row.topic for row in some} - {None} for some in by_prompt.values()]
    return Sorted(
        tuple(asked),
        tuple(pairs),
        tuple(sorted(left_out, key=lambda row: row.line_no)),
        num_ties,
        len(said) - len(set(said)),
        sum(len(some) > 1 for some in topics),
    )


def _asked(
    rows: Sequence[Rated], right_from: float, file: str, left_out: list[DroppedRow]
) -> Asked:
    votes: dict[str, list[Vote]] = defaultdict(list)
    for row in rows:
        for text, vote in _votes(row, right_from):
            votes[text].append(vote)
    answers: list[Answer] = []
    disputing: dict[int, Rated] = {}
    for text, some in votes.items():
        if len({vote.is_right for vote in some}) == 1:
            answers.append(Answer(text, tuple(some)))
        else:
            disputing |= {vote.row.line_no: vote.row for vote in some}
    reason = "its answer is called right and wrong"
    if len(disputing) > 1:
        lines = ", ".join(map(str, sorted(disputing)[:MAX_LINES]))
        reason += f", in lines {lines}"
    left_out += (_left_out(file, row, "disputed", reason) for row in disputing.values())
    topic = next((row.topic for row in rows if row.topic is not None), None)
    return Asked(rows[0].prompt, topic, tuple(rows), tuple(answers))


def _votes(row: Rated, right_from: float) -> Iterable[tuple[str, Vote]]:
    """What a row says, of which answer; texts are the same but for white space around them."""
    response = None if row.response is None else row.response.strip()
    if response is not None and row.score is not None:
        yield response, Vote(row, row.score >= right_from, row.score)
    if row.correction is not None:
        right = row.correction.strip()
        yield right, Vote(row, True, None)
        if response not in (None, right):
            yield response, Vote(row, False, None)


def _pairs(asked: Asked) -> tuple[list[Pair], int]:
    """Each worse answer beside the best one, or, where no score tells, beside what it was corrected
    to; and how many answers are as good as the best."""
    by_text = {one.text: one for one in asked.answers}
    scored = [one for one in asked.answers if one.worth is not None]
    best = max(scored, key=lambda one: (one.worth, -one.lines[0]), default=None)
    pairs, num_ties = [], 0
    for one in asked.answers:
        if one is best:
            continue
        if one.worth is None:
            corrected = (vote.row.correction for vote in one.votes)
            texts = [text.strip() for text in corrected if text is not None]
            better = next((by_text[text] for text in texts if text in by_text), None)
        else:
            assert best is not None and best.worth is not None, "this one has a worth"
            better = best if one.worth < best.worth else None
            num_ties += better is None
        if better is not None:
            pairs.append(Pair(asked, better, one))
    return pairs, num_ties


def _left_out(file: str, row: Rated, kind: str, reason: str) -> DroppedRow:
    return DroppedRow(file, row.line_no, kind, reason, first_words(row.prompt.messages))


# --- beside what was trained on -------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """How the right answers stand to the rows that the entry was trained on."""

    known: frozenset[tuple[bytes, str]] = field(default_factory=frozenset)  # prompt and answer
    conflicts: Mapping[bytes, str] = field(default_factory=dict)  # prompt -> a row's place


def beside_training(asked: Collection[Asked], examples: Iterable[Example]) -> Beside:
    """Look for the prompts in training rows: with the same answer, or with others alone."""
    right = {one.prompt.key: {answer.text for answer in one.right} for one in asked if one.right}
    found: dict[bytes, dict[str, str]] = defaultdict(dict)
    for example in examples if right else ():
        for place, message in enumerate(example.messages):
            if message.role != "assistant" or not place:
                continue
            key = prompt_key(example.messages[:place])
            if key in right:
                where = f"{example.source} line {example.line_no}"
                found[key].setdefault(message.content.strip(), where)
    known = {(key, text) for key, some in right.items() for text in some & found[key].keys()}
    conflicts = {
        key: next(where for text, where in found[key].items() if text not in some)
        for key, some in right.items()
        if found[key].keys() - some
    }
    return Beside(frozenset(known), conflicts)


def conversation_ids(prompt: Prompt, answer: str) -> set[str]:
    """The ids that a row of this prompt and answer has, its earlier answers trained or not."""
    last = Message("assistant", answer)
    plain = tuple(one._replace(weight=None) for one in prompt.messages)
    return {make_record((*said, last), None).key.hex() for said in (plain, prompt.messages)}

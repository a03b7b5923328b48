"""Evaluation questions in training rows: what is dropped, what is only listed, what neither is.

The share of each kind that is found is measured in `benchmarks/contamination.py`.
"""

# ruff: noqa: RUF001 (marks of Chinese and Japanese are meant)
from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable

import pytest
from rapidfuzz.distance import Levenshtein

from conftest import REPO
from data_loader import clean_split
from errors import DataError
from rows.contamination import EvalText, EvalTexts, Hit
from rows.examples import Example, ExampleTable, Message
from rows.units import clauses_of, read_units

FRANCE = "What is the capital of France?"
STORY = (
    "Tom has 3 apples and 14 pears. On Monday he gives 2 of the apples to his neighbour Ann, who "
    "bakes a cake with them. How many pieces of fruit does he have left in the evening?"
)
PASSAGE = (
    "The harbour of the old town was built by monks who wanted to sell wool and salt across the "
    "narrow sea. After the great storm the northern wall fell into the water and was never raised "
    "again, so that ships had to wait outside for the tide. Which wall fell after the great storm?"
)


def texts_of(*questions: str) -> EvalTexts:
    return EvalTexts(EvalText("t", question) for question in questions)


EVAL_TEXTS = texts_of(FRANCE, "2 + 2", "Who wrote Emma?")


def chat(*turns: str) -> Example:
    roles = ["user", "assistant"] * len(turns)
    messages = tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False))
    return ExampleTable([Example("", messages, "f.jsonl", 1, None)])[0]


def found_in(eval_texts: EvalTexts, *turns: str) -> Hit | None:
    row = chat(*turns)
    return eval_texts.find_in(row.id, [(m.role, m.content) for m in row.messages])


def kind_of(eval_texts: EvalTexts, *turns: str) -> str | None:
    found = found_in(eval_texts, *turns)
    return None if found is None else found.kind


def changed(text: str, number: int, seed: int = 0) -> str:
    """A text with other words at so many places; numbers stay."""
    words = text.split()
    free = [place for place, word in enumerate(words) if not any(map(str.isdigit, word))]
    for place in random.Random(seed).sample(free, number):
        words[place] = f"other{'x' * place}"
    return " ".join(words)


# --- the same question ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "rule"),
    [
        (FRANCE, "asks"),
        ("what is THE capital of   france", "asks"),
        ("2+2", "asks"),
        ("What's the capital of France", "asks, small words aside,"),
        ("so please, what is a capital of France then", "asks, small words aside,"),
        ("Please tell me: what is the capital of France, and why?", "holds"),
        (f"I need help.\n\n{FRANCE}\nThanks!", "holds"),
        ("I need help. What's the capital of France? Thanks!", "asks, small words aside,"),
        ('He asked "What is the capital of France?" and left.', "holds"),
        ("What is the capital of Spain?", None),
        ("What is the capital of Frances?", None),
        ("2 + 3", None),
        ("2 - 2", None),
        ("Is 2 + 2 more than 3?", None),  # held, but of fewer than four words
        ("Tell me, who wrote Emma?", None),
        ("He forgot what is the capital of France again", None),  # amid a clause
    ],
)
def test_the_same_question_is_found_alone_and_as_a_clause(turn: str, rule: str | None) -> None:
    found = found_in(EVAL_TEXTS, turn, "Lyon")
    if rule is None:
        assert found is None or found.kind == "similar"
    else:
        assert found is not None and found.kind == "contaminated"
        assert found.reason.startswith(f"{rule} the question ")


def test_any_user_turn_counts_and_no_reply() -> None:
    found = found_in(EVAL_TEXTS, "hello", "yes?", "what is the capital of france", "Paris")
    assert found is not None
    assert (found.kind, found.text) == ("contaminated", "what is the capital of france")
    assert found.other == FRANCE
    assert found_in(EVAL_TEXTS, "Ask me something!", FRANCE) is None


@pytest.mark.parametrize("answer", ["Paris", "Lyon", "", "The capital of France is Paris."])
@pytest.mark.parametrize(
    "turn", [FRANCE, "what's the capital of france", "What is the capital of Spain?", "Hi"]
)
def test_answers_are_never_looked_at(turn: str, answer: str) -> None:
    assert found_in(EVAL_TEXTS, turn, answer) == found_in(EVAL_TEXTS, turn, "anything")


@pytest.mark.parametrize(
    ("question", "turn", "is_same"),
    [
        ("What is vitamin A good for?", "What is vitamin D good for?", False),
        ("What is vitamin A good for?", "what's vitamin A good for", True),
        ("What is vitamin A?", "What is a vitamin?", False),
        ("What is the population of the US?", "What is the population of us?", True),
        ("What is the population of the US?", "What is the population?", False),
        ("Who'd win the cup?", "Who would win the cup?", True),
        ("Is plan M cheaper than plan S?", "Is plan S cheaper than plan D?", False),
        ("What is 2 * 3?", "What is 2 3?", False),
        ("Who is it?", "Is it?", False),
    ],
)
def test_small_words_that_are_names_are_not_left_out(
    question: str, turn: str, is_same: bool
) -> None:
    assert (kind_of(texts_of(question), turn) == "contaminated") is is_same


def test_a_longer_sum_is_another_question() -> None:
    eval_texts = texts_of("What is 5 + 7?", "Add up 1 + 2 + 3 + 4, what is it?")
    for asked, is_held in (
        ("Tell me: what is 5 + 7, please", True),
        ("What is 5 + 7 + 3?", False),
        ("What is 5 + 7 * 2?", False),
        ("So: what is 5 + 7? + 3", False),
        ("Now add up 1 + 2 + 3 + 4, what is it? I have to know", True),
    ):
        assert (kind_of(eval_texts, asked) == "contaminated") is is_held, asked


@pytest.mark.parametrize(
    ("question", "turn", "is_copy"),
    [
        ("日本の首都はどこですか？", "日本の首都はどこですか", True),
        ("日本の首都はどこですか？", "こんにちは。日本の首都はどこですか？教えてください。", True),
        ("日本の首都はどこですか？", "日本の首都、どこですか", True),
        ("日本の首都はどこですか？", "中国の首都はどこですか？", False),
        ("のりとは何ですか？", "はりとは何ですか？", False),  # its kana are no particles
        ("法国的首都是哪里？", "请问法国首都是哪里呢", True),
        ("法国的首都是哪里？", "我有一个问题，法国的首都是哪里？谢谢", True),
        ("法国的首都是哪里？", "德国的首都是哪里？", False),
        ("如何了解这个问题？", "如何解这个问题？", False),
        ("เมืองหลวงของไทยคือที่ไหน", "สวัสดีครับ เมืองหลวงของไทยคือที่ไหน ขอบคุณ", True),
        ("ເມືອງຫຼວງຂອງລາວແມ່ນຫຍັງ", "ສະບາຍດີ ເມືອງຫຼວງຂອງລາວແມ່ນຫຍັງ", True),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(
    question: str, turn: str, is_copy: bool
) -> None:
    assert (kind_of(texts_of(question), turn) == "contaminated") is is_copy


def test_units_and_clauses() -> None:
    assert read_units("What's iPhone 15的价格吗?").all == (
        *("what", "s", "iphone", "15", "的", "价", "格", "吗"),
    )
    assert read_units("What's iPhone 15的价格吗?").content == ("what", "iphone", "15", "价", "格")
    assert read_units("") == ((), ())
    clauses = clauses_of("At 12:30, e.g. 3.5 kg: (why?) Well-known 5 - 7 'so'\nend")
    assert [text.strip() for text in clauses.texts] == [
        *("At 12:30", "e.g", "3.5 kg", "why", "Well-known 5 - 7", "so", "end"),
    ]
    assert clauses.unit_bounds[-1] == len(clauses.units)


# --- near copies of long questions ---------------------------------------------------------------


def test_a_long_near_copy_with_the_same_numbers_is_dropped() -> None:
    eval_texts = texts_of(STORY, "What is the capital of France?")
    number = len(STORY.split())
    assert number == 37
    for changes, kind in ((0, "contaminated"), (7, "contaminated"), (8, None), (20, None)):
        assert kind_of(eval_texts, changed(STORY, changes)) == kind
    found = found_in(eval_texts, changed(STORY, 3))
    assert found is not None and found.reason.startswith("nearly asks the question 'Tom has 3")
    for other in (STORY.replace("3", "5"), STORY.replace("14", "fourteen")):
        assert kind_of(eval_texts, other) == "similar"
    swapped = STORY.replace("3", "x").replace("14", "3").replace("x", "14")
    assert kind_of(eval_texts, swapped) == "similar"
    assert kind_of(eval_texts, STORY.replace("does he have", "does he not have")) == "similar"


def test_below_twenty_words_a_near_copy_is_only_listed() -> None:
    question = " ".join(f"word{'x' * i}" for i in range(19))
    near = question.replace("wordxxx ", "")
    assert kind_of(texts_of(question), near) == "similar"
    assert kind_of(texts_of(f"{question} more"), f"{near} more") == "contaminated"


def test_a_near_copy_must_be_less_than_half_as_far_as_the_nearest_other_question() -> None:
    template = (
        "write a function in the language python that takes a list of numbers and returns the "
        "{} of all of them without any use of libraries"
    )
    row = template.format("product")
    questions = [template.format(name) for name in ("sum", "mean", "median")]
    assert kind_of(texts_of(questions[0]), row) == "contaminated"  # one alone says nothing of it
    assert kind_of(texts_of(*questions), row) == "similar"
    assert kind_of(texts_of(*questions), questions[1].upper()) == "contaminated"
    assert kind_of(texts_of(questions[0], questions[0]), row) == "contaminated"  # the same twice
    please = f"Please, {questions[0]}"  # nor does the same one in other small words
    assert kind_of(texts_of(questions[0], please), row) == "contaminated"
    # Variants of one question say nothing of its template.
    variants = EvalTexts(EvalText("t", one, cluster="a") for one in questions)
    assert kind_of(variants, row) == "contaminated"
    elsewhere = EvalTexts(EvalText(one, one, cluster="a") for one in questions)
    assert kind_of(elsewhere, row) == "similar"  # a cluster is of one task
    # Nor do rows that are held out of the training file.
    split = [EvalText("t", questions[0]), EvalText("v", questions[1], only_same=True)]
    assert kind_of(EvalTexts(split), row) == "contaminated"


def test_a_long_question_in_pieces_is_found_inside_a_turn() -> None:
    eval_texts = texts_of(PASSAGE)
    around = "I am reading this for school, could you help? {} I would like a short answer."
    half = " ".join(PASSAGE.split()[:30])
    for asked, kind in (
        (around.format(PASSAGE), "contaminated"),
        (around.format(PASSAGE.replace("wanted to sell", "sold")), "contaminated"),
        (around.format(half), "similar"),
        (half, "similar"),
        (around.format(changed(PASSAGE, 14)), None),
    ):
        assert kind_of(eval_texts, around.format("") + asked) == kind, asked
    # A reply that quotes it is listed.
    assert kind_of(eval_texts, "tell me of the harbour", PASSAGE) == "similar"
    # A number that is missing makes it another question.
    numbers = texts_of(STORY + " " + PASSAGE)
    assert kind_of(numbers, f"{around} {STORY} {PASSAGE}".replace("14", "9")) == "similar"


def test_thirteen_words_in_a_row_are_listed() -> None:
    story = "a farmer has seventeen sheep and all but nine of them run away into the hills at night"
    eval_texts = texts_of(f"{story}. How many are left?")
    thirteen, twelve = (" ".join(story.split()[2:end]) for end in (15, 14))
    for turns, is_found in (
        ((f"Once, {thirteen}.", "what then"), True),
        (("Tell me of a farmer", f"He {thirteen}, I heard."), True),  # also in what is answered
        ((f"Once, {twelve}.", "what then"), False),
    ):
        found = found_in(eval_texts, *turns)
        assert (found is not None) is is_found
        if found is not None:
            assert found.kind == "similar" and "shares 13 words in a row" in found.reason


def test_a_run_that_five_questions_share_is_their_pattern() -> None:
    template = "answer the following question with one word and nothing else at all and be brief"
    texts = [EvalText("t", f"{template} number {i} is it a{i}") for i in range(30)]
    row = f"{template} so what is up with all of this then my dear old friend"
    assert [kind_of(EvalTexts(texts[:number]), row) for number in (30, 5, 4)] == [
        *(None, None, "similar")
    ]


def test_conversations_are_held_against_by_id_and_by_long_runs() -> None:
    row = chat("first", "one", "second", "two")
    found = EvalTexts([], [row.id]).find_in(row.id, row.turns)
    assert found is not None
    assert (found.kind, found.reason) == (
        "contaminated",
        "the same conversation stands in a held-out file",
    )
    others = EvalTexts([EvalText("nll", "", (PASSAGE, "yes"))])
    assert kind_of(others, PASSAGE) == "similar"
    assert kind_of(others, "yes") is None


def test_rows_of_a_split_are_only_held_against_the_same_question() -> None:
    """They are like the rows that are trained on, since they were among them."""
    asked = "Is this message spam or ham, in one word: buy now and win a prize today"
    texts = EvalTexts([EvalText("t", asked, (asked,), only_same=True)])
    for turn, kind in (
        (asked.upper(), "contaminated"),
        (asked.replace("today", "tomorrow"), None),
        (f"Please: {asked}", None),
    ):
        assert kind_of(texts, turn) == kind


def test_with_list_only_the_same_question_is_contamination() -> None:
    eval_texts = EvalTexts([EvalText("t", STORY), EvalText("t", FRANCE)], keeps_near=True)
    for turn, kind in (
        (STORY.upper(), "contaminated"),
        (f"Help me! {STORY}", "contaminated"),
        ("what's the capital of France", "contaminated"),
        (changed(STORY, 2), "similar"),
        (f"Help me! {STORY.replace('cake', 'pie')} Thank you very much indeed", "similar"),
    ):
        assert kind_of(eval_texts, turn) == kind


def test_near_copies_of_generated_questions_are_never_missed() -> None:
    """The index by rare words finds what comparing with every question finds."""
    rng = random.Random(0)
    vocabulary = [f"w{'x' * i}" for i in range(60)]
    questions = [[rng.choice(vocabulary) for _ in range(rng.randint(3, 30))] for _ in range(80)]
    eval_texts = texts_of(*(" ".join(words) for words in questions))
    kinds = []
    for _ in range(1500):
        words = list(rng.choice(questions))
        for _ in range(rng.randint(0, 5)):
            place = rng.randrange(len(words) + 1)
            words[place : place + rng.randint(0, 1)] = rng.choice([[], [rng.choice(vocabulary)]])
        words = words or ["w"]
        is_near = any(
            5 * Levenshtein.distance(words, q) <= max(len(words), len(q)) for q in questions
        )
        is_near_long = any(
            len(q) >= 20 and 5 * Levenshtein.distance(words, q) <= max(len(words), len(q))
            for q in questions
        )
        kind = kind_of(eval_texts, " ".join(words))
        assert (kind is not None) >= is_near, words
        assert (kind == "contaminated") >= is_near_long, words
        kinds.append(kind)
    assert min(kinds.count(kind) for kind in (None, "similar", "contaminated")) > 100


# --- unhappy paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "eval_texts",
    [
        EvalTexts([]),
        texts_of(""),
        texts_of("Why?", "a", "the", "?!", "的", "は"),
        texts_of("\u200b", "\ufeff", "\u0301", "e\u0301" * 9, "\u202eabc", "🙂" * 20),
    ],
)
def test_empty_and_tiny_questions_find_nothing_else(eval_texts: EvalTexts) -> None:
    for turn in ("What is the capital of Spain?", "", "?", "the a an", "word " * 500, "\u0301"):
        found = found_in(eval_texts, turn, turn)
        assert found is None or found.reason.startswith("asks the question")
    assert found_in(texts_of("Why?"), "why") is not None
    assert found_in(texts_of("Why?"), "Why not?") is None


@pytest.mark.parametrize(
    "unit", ["a ", "what is the ", ". ", "...", "?!\"' ", "- ", "的", "か ", "𠀀", "e\u0301\u0327"]
)
def test_long_and_hostile_rows_are_read_in_little_time(unit: str) -> None:
    eval_texts = texts_of(FRANCE, STORY, PASSAGE, (unit * 40)[:400], "法国的首都是哪里？")
    turn = unit * (400_000 // len(unit)) + FRANCE
    start = time.process_time()
    found = found_in(eval_texts, turn, turn)
    assert time.process_time() - start < 15
    assert found is None or len(found.text) <= 400


def test_five_thousand_long_questions_and_their_near_copies_take_seconds() -> None:
    rng = random.Random(1)
    vocabulary = [f"w{'x' * (i % 40)}{chr(97 + i // 40)}" for i in range(1000)]
    questions = [" ".join(rng.choices(vocabulary, k=30)) for _ in range(5000)]
    start = time.process_time()
    eval_texts = texts_of(*questions)
    rows = [changed(question, 2, seed=i) for i, question in enumerate(questions[:500])]
    assert all(kind_of(eval_texts, row) == "contaminated" for row in rows)
    assert time.process_time() - start < 20


def test_thousands_of_questions_of_one_template_take_seconds() -> None:
    template = (
        "Which word in the list below, " + "one of those that we saw before, " * 3 + "is not {}?"
    )
    names = [f"{a}{b}{c}" for a in "bdfgk" for b in "abcdefghij" for c in "klmnopqrstuvwxyz"]
    start = time.process_time()
    eval_texts = texts_of(*map(template.format, names), *map(template.format, range(4000)))
    for name in names[:20]:
        assert kind_of(eval_texts, template.format(name)) == "contaminated"
        assert kind_of(eval_texts, template.format(f"x{name}")) == "similar"
        assert kind_of(eval_texts, f"Hi! {template.format(f'x{name}')} I do not know.") is not None
    assert time.process_time() - start < 20


def test_which_of_equally_near_questions_is_named_is_no_chance() -> None:
    """Python orders a set of texts anew in each process."""
    program = (
        "from rows.contamination import EvalText, EvalTexts\n"
        "asked = [f'What is {i} + 12?' for i in range(2, 9)]\n"
        "asked += [f'What is 10 + {i}?' for i in range(9)]\n"
        "texts = EvalTexts(EvalText('t', one) for one in asked)\n"
        "print(texts.find_in('', [('user', 'What is 10 + 12?'), ('assistant', '22')]))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPO,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1 and "similar" in said.pop()


# --- files of rows -------------------------------------------------------------------------------


def table(rows: Iterable[tuple[str, int]]) -> ExampleTable:
    def example(asked: str, line_no: int) -> Example:
        messages = (Message("user", asked), Message("assistant", "an answer"))
        return Example("", messages, "f.jsonl", line_no, None)

    return ExampleTable(example(*row) for row in rows)


def test_split_drops_hits_from_both_and_lists_them() -> None:
    train = table([("a question of mine", 1), ("2 + 2", 2)])
    pool = table([("another", 1), ("a question of mine", 2), ("who wrote emma", 3)])
    split = clean_split(train, pool, EVAL_TEXTS)
    assert [e.line_no for e in split.train] == [1]
    assert [e.line_no for e in split.pool] == [1]
    assert [(row.line_no, row.kind) for row in split.dropped] == [
        (2, "contaminated"),
        (2, "duplicate"),
        (3, "contaminated"),
    ]
    assert "'Who wrote Emma?'" in split.dropped[2].reason
    with pytest.raises(DataError, match="nothing is left to train"):
        clean_split(table([("2 + 2", 1)]), table([]), EVAL_TEXTS)


def test_a_noisy_file_of_tickets_keeps_its_noise_and_its_rows() -> None:
    """300 rows and 90 questions of the same 30 templates, 6 labels, 15 % wrong ones."""
    rng = random.Random(0)
    labels = ("billing", "delivery", "login", "refund", "cancel", "other")
    names = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("anton", "elka", "ira", "otto", "ulf")]
    templates = [
        (f"Hello, my {noun} for order {{}} has {verb} and I want it settled", label)
        for label in labels
        for noun, verb in zip(
            ("invoice", "parcel", "password", "payment", "contract"),
            (f"failed {label}", "gone", "expired", "vanished", "doubled"),
            strict=True,
        )
    ]
    asked = [template.format(rng.choice(names)) for template, _ in templates for _ in range(3)]
    rows: list[tuple[str, bool]] = []
    while len(rows) < 300:
        template, _ = rng.choice(templates)
        text = template.format(f"{rng.choice(names)} {rng.choice(names)}")
        rows.append((text, rng.random() < 0.15))
    eval_texts = texts_of(*asked)
    kept = [is_wrong for text, is_wrong in rows if kind_of(eval_texts, text) != "contaminated"]
    before = sum(is_wrong for _, is_wrong in rows) / 300
    assert len(kept) > 290
    assert abs(sum(kept) / len(kept) - before) < 0.01

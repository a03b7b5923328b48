"""Rows to datums: nothing is dropped in silence, only assistant tokens carry loss."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz.distance import Levenshtein

import rows.rendering as rendering_module
from conftest import REPO
from data_loader import LoadedData, clean_split, load_examples, split_validation
from errors import ConfigError, DataError
from rows.chat_formats import load_renderer, load_tokenizer
from rows.contamination import EvalText, EvalTexts
from rows.examples import Example, ExampleTable, Message
from rows.quality import Filters, bands_for, jaccard, near_duplicates, phrases
from rows.rendering import Rendering
from rows.sources import Source
from rows.words import normalise


def write_rows(path: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pair(question: str, answer: str = "an answer", **extra: object) -> dict:
    return {"instruction": question, "output": answer, **extra}


def load(path: Path, **options: Any) -> LoadedData:
    return load_examples([Source(path.name, path)], **options)


def example(question: str, line_no: int = 1, answer: str = "an answer") -> Example:
    messages = (Message("user", question), Message("assistant", answer))
    return table([Example("", messages, "f.jsonl", line_no, None)])[0]


def table(examples: Iterable[Example]) -> ExampleTable:
    return ExampleTable(examples)  # which gives each the id that its messages have


def test_a_topic_may_be_a_number_or_left_empty(tmp_path: Path) -> None:
    rows = [pair("p", topic=3), pair("q", topic=""), pair("r", topic=None), pair("s", topic=True)]
    loaded = load(write_rows(tmp_path / "f.jsonl", rows))
    assert [example.topic for example in loaded.examples] == ["3", None, None]
    assert [row.line_no for row in loaded.dropped] == [4]


def test_both_row_forms_give_the_same_example(tmp_path: Path) -> None:
    rows = [
        pair("q", "a", topic="t"),
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    loaded = load(write_rows(tmp_path / "f.jsonl", rows))
    assert loaded.examples[0].messages == (Message("user", "q"), Message("assistant", "a"))
    assert loaded.examples[0].topic == "t"
    # the id is made of the messages alone, so the second form is a duplicate of the first
    assert [(row.kind, row.line_no) for row in loaded.dropped] == [("duplicate", 2)]
    assert "line 1" in loaded.dropped[0].reason


def test_duplicates_are_found_over_the_whole_example(tmp_path: Path) -> None:
    rows = [pair("Classify", "good", input=f"text {i}") for i in range(100)] + [
        pair("Classify", "good", input="text 7")
    ]
    loaded = load(write_rows(tmp_path / "f.jsonl", rows))
    assert len(loaded.examples) == 100
    assert [(row.line_no, row.kind) for row in loaded.dropped] == [(101, "duplicate")]


BAD_ROWS = [
    ("{broken", "not valid JSON"),
    ("[1, 2]", "not a JSON object"),
    ('{"prompt": "a", "answer": "b"}', "found keys: answer, prompt"),
    ('{"instruction": "a"}', "found keys: instruction"),
    ('{"instruction": "", "output": "b"}', '"instruction" is empty'),
    ('{"instruction": "a", "output": 3}', '"output" is not a string'),
    ('{"instruction": "a", "output": "  "}', '"output" is empty'),
    ('{"messages": []}', "at least one message"),
    ('{"messages": [{"role": "robot", "content": "x"}]}', "message 0 has the role 'robot'"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "last message is not the assistant's"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "no user message"),
    ('{"instruction": "a", "output": "b", "topic": [3]}', '"topic" is not a string'),
    ('{"instruction": "a", "output": "b", "topic": "\\udc00"}', "lone surrogate"),
    ('{"instruction": "a\\ud800", "output": "b"}', "lone surrogate"),
    ("[" * 100_000, "nested too deeply"),
]


def test_every_bad_row_is_listed_with_line_and_reason(tmp_path: Path) -> None:
    rows = [pair(f"good {i}") for i in range(len(BAD_ROWS))] + [text for text, _ in BAD_ROWS]
    loaded = load(write_rows(tmp_path / "f.jsonl", rows))
    assert len(loaded.examples) == len(BAD_ROWS)
    assert [row.line_no for row in loaded.dropped] == [
        len(BAD_ROWS) + 1 + i for i in range(len(BAD_ROWS))
    ]
    for dropped, (_, reason) in zip(loaded.dropped, BAD_ROWS, strict=True):
        assert dropped.kind == "rejected"
        assert reason in dropped.reason.lower() or reason in dropped.reason
        assert dropped.file == "f.jsonl"


def test_broken_bytes_are_one_bad_row_and_odd_separators_are_text(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    odd = json.dumps(pair("line\u2028separator"), ensure_ascii=False).encode()
    file.write_bytes(
        b"\xef\xbb\xbf" + odd + b"\r" + b"\n\xff\xfe\n" + json.dumps(pair("x")).encode() + b"\n\n"
    )
    loaded = load(file)
    assert (loaded.num_rows, len(loaded.examples)) == (3, 2)
    assert loaded.dropped[0].reason == "not valid UTF-8"


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([], "the file is empty"),
        (["nonsense"] * 3 + [json.dumps(pair("q"))], "3 of 4 rows cannot be used"),
        (["nonsense"], "line 1: not valid JSON"),
    ],
)
def test_empty_and_mostly_rejected_files_stop_the_run(
    tmp_path: Path, rows: list[str], part: str
) -> None:
    with pytest.raises(DataError, match=part):
        load(write_rows(tmp_path / "f.jsonl", rows))


# --- contamination ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("What is  5 + 7?", "what is 5 + 7"),
        ("WHAT IS 5+7", "what is 5 + 7"),
        ("The U.S. capital, please!", "the u s capital please"),
        ("3.5 and 1,000", "3.5 and 1,000"),
        ("\uff23apital\u3000of Spain", "capital of spain"),
        ("well-known", "well known"),
        ("is it -4?", "is it - 4"),
    ],
)
def test_normalised_text(text: str, normal: str) -> None:
    assert normalise(text) == normal


EVAL_TEXTS = EvalTexts(
    EvalText("t", question, (answer,))
    for question, answer in [
        ("What is the capital of France?", "Paris"),
        ("2 + 2", "4"),
        ("Who wrote Emma?", "Jane Austen"),
    ]
)


def is_hit(row: Example) -> bool:
    found = EVAL_TEXTS.find_in(row.id, row.turns)
    return found is not None and found.kind == "contaminated"


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("What is the capital of France?", True),
        ("what is THE capital of   france", True),
        ("Please tell me: what is the capital of France, and why?", True),
        ("What is the capital of Spain?", False),
        ("What is the capital of Frances?", False),
        ("2+2", True),
        ("2 + 3", False),
        ("2 - 2", False),
        ("Is 2 + 2 more than 3?", False),  # contained, but of fewer than four words
        ("Tell me, who wrote Emma?", False),
    ],
)
def test_contamination_by_the_exact_question_rule(turn: str, expected: bool) -> None:
    assert is_hit(example(turn)) == expected


def test_contamination_in_any_user_turn_of_a_chat() -> None:
    chat = parse_messages("hello", "yes?", "what is the capital of france", "Paris")
    found = EVAL_TEXTS.find_in(chat.id, chat.turns)
    assert found is not None
    assert (found.kind, found.text) == ("contaminated", "what is the capital of france")
    assert found.other == "What is the capital of France?"


def test_split_drops_hits_from_both_and_lists_them() -> None:
    train = [example("a question of mine", 1), example("2 + 2", 2)]
    pool = [example("another", 1), example("a question of mine", 2), example("who wrote emma", 3)]
    split = clean_split(table(train), table(pool), EVAL_TEXTS)
    assert [e.line_no for e in split.train] == [1]
    assert [e.line_no for e in split.pool] == [1]
    assert [(row.line_no, row.kind) for row in split.dropped] == [
        (2, "contaminated"),
        (2, "duplicate"),
        (3, "contaminated"),
    ]
    assert "'Who wrote Emma?'" in split.dropped[2].reason
    with pytest.raises(DataError, match="nothing is left to train"):
        clean_split(table([example("2 + 2")]), table([]), EVAL_TEXTS)


# --- rendering -------------------------------------------------------------------------------


def parse_messages(*contents: str) -> Example:
    roles = ["user", "assistant"] * len(contents)
    messages = tuple(Message(r, c) for r, c in zip(roles, contents, strict=False))
    return table([Example("", messages, "f", 1, None)])[0]


@pytest.mark.parametrize("renderer_name", ["llama3", "role_colon"])
def test_only_assistant_tokens_carry_loss_token_by_token(
    llama_dir: Path, renderer_name: str
) -> None:
    """Two turns: exactly the tokens of both answers and of what ends them have weight."""
    chat = parse_messages("first question", "one answer", "second question", "other answer")
    rendering = Rendering(load_renderer(renderer_name, str(llama_dir)), 512)
    rendering.render_all(table([chat]))
    datum = rendering[chat.id].datum
    tokenizer = load_tokenizer(str(llama_dir))
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    assert rendering[chat.id].info.num_tokens == datum.model_input.length == len(targets)
    trained = tokenizer.decode(targets[weights > 0])
    untrained = tokenizer.decode(targets[weights == 0])
    # role_colon ends the last turn with the words that would open the next one
    ending, after = ("<|eot_id|>", []) if renderer_name == "llama3" else ("\n\n", ["User:"])
    parts = [part.strip() for part in trained.split(ending)]
    assert [part for part in parts if part] == ["one answer", "other answer", *after]
    assert "question" in untrained
    assert "answer" not in untrained
    # the input is the sequence without its last token, the targets the one without its first
    tokens = datum.model_input.to_ints()
    assert tokens[1:] == targets[:-1].tolist()
    assert weights.sum() == pytest.approx(1.0)
    assert rendering[chat.id].info.num_loss_tokens == (weights > 0).sum()


def test_renderers_that_drop_reasoning_train_the_last_answer_only(qwen_dir: Path) -> None:
    chat = parse_messages("first question", "one answer", "second question", "other answer")
    rendering = Rendering(load_renderer("qwen3", str(qwen_dir)), 512)
    rendering.render_all(table([chat]))
    datum = rendering[chat.id].datum
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    trained = load_tokenizer(str(qwen_dir)).decode(targets[weights > 0])
    assert "other answer" in trained
    assert "one answer" not in trained


def test_too_long_rows_are_cut_and_counted_and_dropped_when_no_answer_is_left(
    llama_dir: Path,
) -> None:
    renderer = load_renderer("llama3", str(llama_dir))
    long_question = example("word " * 200, 2)
    long_answer = parse_messages("short", "word " * 200)
    rendering = Rendering(renderer, 64)
    rendered = rendering.render_all(table([long_answer, long_question]))
    assert list(rendered.examples) == [long_answer]
    assert rendered.num_truncated == 1
    datum, info = rendering[long_answer.id]
    assert info.truncated
    assert info.num_loss_tokens == (datum.loss_fn_inputs["weights"].to_numpy() > 0).sum()
    assert rendered.num_tokens[0] == info.num_tokens == datum.model_input.length
    assert info.num_tokens == 63
    assert [(row.kind, row.line_no) for row in rendered.dropped] == [("no_loss_tokens", 2)]
    with pytest.raises(DataError, match="Raise max_seq_length"):
        rendering.render_all(table([long_question]))


@pytest.mark.parametrize(
    ("name", "part"),
    [("llama4", "'llama4' cannot be used"), ("qwen3", "its tokenizer lacks <.im_start.>")],
)
def test_renderers_that_cannot_work_are_refused(llama_dir: Path, name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_renderer(name, str(llama_dir))


# --- near copies, long phrases and what only looks alike -----------------------------------------


def chat(*turns: str) -> Example:
    return parse_messages(*turns)


FRANCE = "What is the capital of France?"


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (chat(FRANCE, "Paris"), "asks"),
        (chat("WHAT IS   THE CAPITAL of  FRANCE", "Lyon"), "asks"),
        (chat(f"Please help me with this. {FRANCE} Thanks!", "Lyon"), "holds"),
        (chat("hello", "hi", "what is the capital of france", "Lyon"), "asks"),
        (chat("What's the capital of France?", "Paris."), "nearly asks"),
        (chat("What is the capital city of France?", "The capital is Paris!"), "nearly asks"),
        (chat("hi", "hi", "What is a capital of France?", "paris"), "nearly asks"),
    ],
)
def test_planted_copies_are_found(row: Example, rule: str) -> None:
    found = EVAL_TEXTS.find_in(row.id, row.turns)
    assert found is not None
    assert (found.kind, found.other) == ("contaminated", FRANCE)
    assert found.reason.endswith(f" the question {FRANCE!r} of t")
    assert found.reason.startswith(rule)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (chat("What is the capital of Spain?", "Madrid"), "similar"),
        (chat("What is the capital of France now?", "It moved to Lyon"), None),  # holds it: below
        (chat("What is the population of Paris?", "Paris has 2 million"), None),
        (chat("Who wrote Persuasion?", "Jane Austen"), None),
        (chat("2 + 3", "5"), None),
    ],
)
def test_what_only_looks_alike_is_kept(row: Example, kind: str | None) -> None:
    found = EVAL_TEXTS.find_in(row.id, row.turns)
    if row.messages[0].content.endswith("now?"):
        assert found is not None and found.reason.startswith("holds")
    else:
        assert (None if found is None else found.kind) == kind


def test_a_fifth_of_the_words_is_the_limit_of_a_near_copy() -> None:
    words = [f"word{i}" for i in range(20)]
    eval_texts = EvalTexts([EvalText("t", " ".join(words), ("yes",))])

    def kind(changed: int, answer: str = "Yes.") -> str | None:
        rng = random.Random(changed)
        places = set(rng.sample(range(20), changed))
        # every 5th word or so is another one, so that no 13 in a row are left
        text = " ".join("other" if i in places else word for i, word in enumerate(words))
        row = chat(text, answer)
        found = eval_texts.find_in(row.id, row.turns)
        return None if found is None else found.kind

    assert [kind(changed) for changed in (1, 2, 3, 4)] == ["contaminated"] * 4
    assert [kind(changed) for changed in (5, 6, 10)] == [None] * 3
    assert kind(4, "No.") == "similar"


def test_near_copies_of_generated_questions_are_never_missed() -> None:
    """The index by rare words finds what comparing with every question finds."""
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(60)]
    questions = [[rng.choice(vocabulary) for _ in range(rng.randint(3, 14))] for _ in range(80)]
    eval_texts = EvalTexts(EvalText("t", " ".join(words), ("same",)) for words in questions)
    assert not any(
        sum(Levenshtein.distance(q, other) <= 0.4 * len(q) for other in questions) >= 5
        for q in questions
        if len(q) > 5
    )
    num_found = 0
    for _ in range(1500):
        words = list(rng.choice(questions))
        for _ in range(rng.randint(0, 4)):
            place = rng.randrange(len(words) + 1)
            words[place : place + rng.randint(0, 1)] = rng.choice([[], [rng.choice(vocabulary)]])
            words = words or ["w0"]
        row = chat(" ".join(words), "same")
        found = eval_texts.find_in(row.id, row.turns)
        expected = any(
            Levenshtein.distance(words, q) <= int(0.2 * max(len(words), len(q))) for q in questions
        )
        is_found = found is not None and found.kind == "contaminated"
        assert is_found or not expected, words
        num_found += is_found
    assert 300 < num_found < 1400


def test_thirteen_words_in_a_row_are_shared_by_chance_by_nobody() -> None:
    story = "a farmer has seventeen sheep and all but nine of them run away into the hills at night"
    eval_texts = EvalTexts([EvalText("t", f"{story}. How many are left?", ("9",))])
    thirteen = " ".join(story.split()[2:15])
    twelve = " ".join(story.split()[2:14])
    for turns, is_found in (
        ((f"Once, {thirteen}.", "what then"), True),
        (("Tell me of a farmer", f"He {thirteen}, I heard."), True),  # also in what is answered
        ((f"Once, {twelve}.", "what then"), False),
    ):
        row = chat(*turns)
        found = eval_texts.find_in(row.id, row.turns)
        assert (found is not None and "shares 13 words" in found.reason) is is_found


def test_the_template_of_a_task_is_no_question() -> None:
    template = "answer the following question with one word and nothing else at all and be brief"
    texts = [EvalText("t", f"{template} number {i} is it a{i}", ("x",)) for i in range(30)]
    row = chat(f"{template} so what is up", "fine")
    kinds = []
    for number in (30, 4):  # four may share a phrase without its being a template
        found = EvalTexts(texts[:number]).find_in(row.id, row.turns)
        kinds.append(None if found is None else found.kind)
    assert kinds == ["similar", "contaminated"]


def test_a_pattern_with_few_answers_is_no_copy() -> None:
    """Labels repeat: a row with the pattern of five questions with its answer copies none."""
    texts = [EvalText("t", f"What kind of thing is thing{i}?", ("city",)) for i in range(5)]
    row = chat("What kind of thing is Rome?", "City.")
    kinds = []
    for number in (5, 4):
        found = EvalTexts(texts[:number]).find_in(row.id, row.turns)
        kinds.append(None if found is None else found.kind)
    assert kinds == ["similar", "contaminated"]
    copy = chat("what kind of thing is thing3", "City.")
    found = EvalTexts(texts).find_in(copy.id, copy.turns)
    assert found is not None and found.reason.startswith("asks")


def test_rows_of_a_split_are_only_held_against_the_same_question() -> None:
    """They are like the rows that are trained on, since they were among them."""
    asked = "Is this message spam or ham, in one word: buy now and win a prize today"
    texts = [EvalText("t", asked, ("spam",), (asked,), only_same=True)]
    for turns, kind in (
        ((asked.upper(), "ham"), "contaminated"),
        ((asked.replace("today", "tomorrow"), "spam"), None),
        ((f"Please: {asked}", "spam"), None),
    ):
        row = chat(*turns)
        found = EvalTexts(texts).find_in(row.id, row.turns)
        assert (None if found is None else found.kind) == kind


def test_a_longer_sum_is_another_question() -> None:
    eval_texts = EvalTexts([EvalText("t", "What is 5 + 7?", ("12",))])
    for asked, is_held in (
        ("Tell me: what is 5 + 7, please", True),
        ("What is 5 + 7 + 3?", False),
        ("What is 5 + 7 * 2?", False),
    ):
        row = chat(asked, "15")
        found = eval_texts.find_in(row.id, row.turns)
        assert (found is not None and found.reason.startswith("holds")) is is_held


def test_rows_of_a_held_out_file_are_found_by_their_id() -> None:
    row = chat("first", "one", "second", "two")
    found = EvalTexts([], [row.id]).find_in(row.id, row.turns)
    assert found is not None
    assert (found.kind, found.reason) == (
        "contaminated",
        "the same conversation stands in a held-out file",
    )


# --- quality -------------------------------------------------------------------------------------


def test_filters_name_what_a_row_is_dropped_for(tmp_path: Path) -> None:
    rows = [
        pair("one two three", "four five"),
        pair("one", "two"),
        pair("w " * 50, "an answer"),
        pair("go on", "round and round " * 20),
        pair("go on", " ".join(f"w{i}" for i in range(40))),
    ]
    path = write_rows(tmp_path / "f.jsonl", rows)
    loaded = load(path, filters=Filters(min_words=3, max_words=62, max_repetition=0.5))
    assert [e.line_no for e in loaded.examples] == [1, 3, 5]
    assert [(row.line_no, row.kind, row.reason) for row in loaded.dropped] == [
        (2, "too_short", "2 words, fewer than 3"),
        (4, "repetitive", "95% of an answer's three-word phrases repeat earlier ones"),
    ]
    with pytest.raises(DataError, match="the filters of `data` leave no row"):
        load(path, filters=Filters(min_words=1000))


def test_near_duplicates_are_dropped_with_the_pairs_listed(tmp_path: Path) -> None:
    rng = random.Random(0)
    base = [f"w{rng.randrange(5000)}" for _ in range(60)]
    near, far = list(base), list(base)
    near[30] = "changed"
    for place in range(0, 60, 4):
        far[place] = f"other{place}"
    rows = [pair("q", " ".join(words)) for words in (base, near, far, [*base, "more"])]
    rows += [pair(f"What is the capital of land {i}?", f"Town {i}") for i in range(50)]
    path = write_rows(tmp_path / "f.jsonl", rows)
    loaded = load(path, near_duplicates_from=0.8)
    assert [(row.line_no, row.kind) for row in loaded.dropped] == [
        (2, "near_duplicate"),
        (4, "near_duplicate"),
    ]
    assert [row.reason for row in loaded.dropped] == ["90% like line 1", "98% like line 1"]
    assert loaded.dropped[0].text == " ".join(near)
    assert loaded.dropped[0].other == " ".join(base)
    assert len(loaded.examples) == 52
    # and those that are nearly a row of another file are no use beside it
    other = write_rows(tmp_path / "g.jsonl", [pair("q", "of its own"), pair("q", " ".join(near))])
    beside = load(other, near_duplicates_from=0.8, beside=loaded.examples)
    assert [(row.line_no, row.reason) for row in beside.dropped] == [
        (2, "90% like line 1 of f.jsonl")
    ]
    assert [example.line_no for example in beside.examples] == [1]


def test_near_duplicates_are_those_that_comparing_all_pairs_finds() -> None:
    rng = random.Random(1)
    rows = [tuple(f"w{rng.randrange(3000)}" for _ in range(40)) for _ in range(150)]
    for _ in range(150):
        words = list(rng.choice(rows))
        for place in rng.sample(range(40), rng.randint(0, 5)):
            words[place] = f"x{rng.randrange(3000)}"
        rows.append(tuple(words))
    kept: list[int] = []
    expected = {}
    for position, words in enumerate(rows):
        mine = phrases(words)
        similar = [one for one in kept if jaccard(mine, phrases(rows[one])) >= 0.7]
        if similar:
            expected[position] = similar
        else:
            kept.append(position)
    found = {one.position: one.kept for one in near_duplicates(len(rows), rows.__getitem__, 0.7)}
    assert len(expected) > 60
    assert set(found) <= set(expected)
    assert len(found) >= 0.98 * len(expected)  # a pair is missed with a chance of 1 % at the most
    assert all(found[position] in expected[position] for position in found)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99])
def test_rows_without_words_are_no_duplicates_of_one_another(threshold: float) -> None:
    assert list(near_duplicates(3, [(), (), ()].__getitem__, threshold)) == []


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_find_a_pair_at_the_threshold_and_few_far_below(threshold: float) -> None:
    number, size = bands_for(threshold)
    assert number * size <= 128
    assert 1 - (1 - threshold**size) ** number >= 0.99
    assert 1 - (1 - (threshold / 2) ** size) ** number < 0.9


# --- splits and many rows ------------------------------------------------------------------------


def test_a_held_out_share_stays_when_rows_are_added() -> None:
    rows = [example(f"question number {i}?") for i in range(2000)]
    train, validation = split_validation(table(rows), 0.1)
    assert len(train) + len(validation) == 2000
    assert 150 < len(validation) < 250
    more = [example(f"another question {i}?") for i in range(500)]
    train_after, validation_after = split_validation(table([*more, *rows[::-1]]), 0.1)
    assert {e.id for e in validation} <= {e.id for e in validation_after}
    assert {e.id for e in train} <= {e.id for e in train_after}
    # a question asked in other words of case, and answered otherwise, is on the same side
    held_out = next(iter(validation))
    again = example(held_out.messages[0].content.upper(), answer="another answer")
    assert len(split_validation(table([*rows, again]), 0.1)[1]) == len(validation) + 1
    with pytest.raises(DataError, match=r"data\.val_share 0\.1 leaves 1 of 1 rows"):
        split_validation(table(rows[:1]), 0.1)


def test_a_table_finds_its_rows_and_shares_them(tmp_path: Path) -> None:
    rows = [example(f"q{i}", i) for i in range(100)]
    whole = table(rows)
    part = whole.take([5, 3])
    assert [e.line_no for e in part] == [5, 3]
    assert (part.find(rows[3].id), part.find(rows[4].id), whole.find(rows[4].id)) == (1, None, 4)
    assert rows[3].id in part
    assert rows[4].id not in part
    assert whole[-1] == rows[-1]
    with pytest.raises(IndexError):
        whole[100]


def test_datums_that_are_not_kept_are_made_again_the_same(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering_module, "NUM_KEPT", 3)
    rendering = Rendering(load_renderer("llama3", str(llama_dir)), 128)
    rows = table(example(f"question {i}") for i in range(10))
    rendered = rendering.render_all(rows)
    first = rendering[rows[0].id]
    for row in rows:
        assert rendering[row.id].info.num_tokens == rendered.num_tokens[rows.find(row.id) or 0]
    again = rendering[rows[0].id]
    assert again is not first
    assert again.datum.model_input.to_ints() == first.datum.model_input.to_ints()


@pytest.mark.parametrize(
    ("train_on", "trained"),
    [
        ("last_assistant_message", ["other answer"]),
        ("all_assistant_messages", ["one answer", "other answer"]),
        ("all_messages", ["first question", "one answer", "second question", "other answer"]),
    ],
)
def test_what_is_trained_on_follows_the_setting(
    llama_dir: Path, train_on: str, trained: list[str]
) -> None:
    turns = ["first question", "one answer", "second question", "other answer"]
    row = chat(*turns)
    rendering = Rendering(load_renderer("llama3", str(llama_dir)), 512, train_on)
    rendering.render_all(table([row]))
    datum = rendering[row.id].datum
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    text = load_tokenizer(str(llama_dir)).decode(targets[weights > 0])
    assert [turn for turn in turns if turn in text] == trained


def test_earlier_turns_are_not_trained_on_where_their_reasoning_is_dropped(qwen_dir: Path) -> None:
    with pytest.raises(ConfigError, match="trained on what sampling never sees"):
        Rendering(load_renderer("qwen3", str(qwen_dir)), 512, "all_assistant_messages")


def test_which_of_equally_near_questions_is_named_is_no_chance() -> None:
    """Python orders a set of texts anew in each process."""
    program = (
        "from rows.contamination import EvalText, EvalTexts\n"
        "asked = [f'What is {i} + 12?' for i in range(2, 9)]\n"
        "asked += [f'What is 10 + {i}?' for i in range(9)]\n"
        "texts = EvalTexts(EvalText('t', one, ('no',)) for one in asked)\n"
        "row = (('user', 'What is 10 + 12?'), ('assistant', '22'))\n"
        "print(texts.find_in('', row))\n"
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

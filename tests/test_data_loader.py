"""Rows to datums: nothing is dropped in silence, only assistant tokens carry loss."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import rows.rendering as rendering_module
from data_loader import LoadedData, load_examples, split_validation
from errors import ConfigError, DataError
from rows.chat_formats import load_renderer, load_tokenizer
from rows.examples import Example, ExampleTable, Message
from rows.quality import Filters, bands_for, jaccard, near_duplicates, phrases
from rows.rendering import Rendering
from rows.sources import Source
from rows.words import normalise

pytestmark = pytest.mark.core


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
    row = parse_messages(*turns)
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

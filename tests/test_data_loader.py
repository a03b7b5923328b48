"""Rows to datums: nothing is dropped in silence, only assistant tokens carry loss."""

import json
from pathlib import Path

import pytest

from data_loader import (
    Example,
    HeldOutQuestions,
    Message,
    Rendering,
    clean_split,
    load_examples,
    load_renderer,
    load_tokenizer,
    normalise,
    parse_row,
    resolve_renderer_name,
)
from errors import ConfigError, DataError


def write_rows(path: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pair(question: str, answer: str = "an answer", **extra: object) -> dict:
    return {"instruction": question, "output": answer, **extra}


def example(question: str, line_no: int = 1) -> Example:
    return parse_row(json.dumps(pair(question)).encode(), "f.jsonl", line_no)


def test_both_row_forms_give_the_same_example(tmp_path: Path) -> None:
    rows = [
        pair("q", "a", topic="t"),
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    loaded = load_examples(write_rows(tmp_path / "f.jsonl", rows))
    assert loaded.examples[0].messages == (Message("user", "q"), Message("assistant", "a"))
    assert loaded.examples[0].topic == "t"
    # the id is made of the messages alone, so the second form is a duplicate of the first
    assert [(row.kind, row.line_no) for row in loaded.dropped] == [("duplicate", 2)]
    assert "line 1" in loaded.dropped[0].reason


def test_duplicates_are_found_over_the_whole_example(tmp_path: Path) -> None:
    rows = [pair("Classify", "good", input=f"text {i}") for i in range(100)] + [
        pair("Classify", "good", input="text 7")
    ]
    loaded = load_examples(write_rows(tmp_path / "f.jsonl", rows))
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
    ('{"messages": [{"role": "robot", "content": "x"}]}', "message 0 has no role"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "last message is not the assistant's"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "no user message"),
    ('{"instruction": "a", "output": "b", "topic": 3}', '"topic" is not a string'),
    ('{"instruction": "a", "output": "b", "topic": "\\udc00"}', "lone surrogate"),
    ('{"instruction": "a\\ud800", "output": "b"}', "lone surrogate"),
    ("[" * 100_000, "recursion"),
]


def test_every_bad_row_is_listed_with_line_and_reason(tmp_path: Path) -> None:
    rows = [pair(f"good {i}") for i in range(len(BAD_ROWS))] + [text for text, _ in BAD_ROWS]
    loaded = load_examples(write_rows(tmp_path / "f.jsonl", rows))
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
    loaded = load_examples(file)
    assert (loaded.num_rows, len(loaded.examples)) == (3, 2)
    assert loaded.dropped[0].reason == "not valid UTF-8"


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([], "the file is empty"),
        (["nonsense"] * 3 + [json.dumps(pair("q"))], "3 of 4 rows cannot be used"),
        (["nonsense"], "Line 1: not valid JSON"),
    ],
)
def test_empty_and_mostly_rejected_files_stop_the_run(
    tmp_path: Path, rows: list[str], part: str
) -> None:
    with pytest.raises(DataError, match=part):
        load_examples(write_rows(tmp_path / "f.jsonl", rows))


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


HELD_OUT = HeldOutQuestions(["What is the capital of France?", "2 + 2", "Who wrote Emma?"])


@pytest.mark.parametrize(
    ("turn", "is_hit"),
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
def test_contamination_by_the_exact_question_rule(turn: str, is_hit: bool) -> None:
    assert (HELD_OUT.find_in(example(turn)) is not None) == is_hit


def test_contamination_in_any_user_turn_of_a_chat() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "what is the capital of france"},
            {"role": "assistant", "content": "Paris"},
        ]
    }
    found = parse_row(json.dumps(row).encode(), "f", 1)
    assert HELD_OUT.find_in(found) == "What is the capital of France?"


def test_split_drops_hits_from_both_and_lists_them() -> None:
    train = [example("a question of mine", 1), example("2 + 2", 2)]
    pool = [example("another", 1), example("a question of mine", 2), example("who wrote emma", 3)]
    split = clean_split(train, pool, HELD_OUT)
    assert [e.line_no for e in split.train] == [1]
    assert [e.line_no for e in split.pool] == [1]
    assert [(row.line_no, row.kind) for row in split.dropped] == [
        (2, "contaminated"),
        (2, "duplicate"),
        (3, "contaminated"),
    ]
    assert "'Who wrote Emma?'" in split.dropped[2].reason
    with pytest.raises(DataError, match="nothing is left to train"):
        clean_split([example("2 + 2")], [], HELD_OUT)


# --- rendering -------------------------------------------------------------------------------


def parse_messages(*contents: str) -> Example:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return parse_row(json.dumps({"messages": messages}).encode(), "f", 1)


@pytest.mark.parametrize("renderer_name", ["llama3", "role_colon"])
def test_only_assistant_tokens_carry_loss_token_by_token(
    llama_dir: Path, renderer_name: str
) -> None:
    """Two turns: exactly the tokens of both answers and of what ends them have weight."""
    chat = parse_messages("first question", "one answer", "second question", "other answer")
    rendering = Rendering(load_renderer(renderer_name, str(llama_dir)), 512)
    rendering.render_all([chat])
    datum = rendering[chat.id].datum
    tokenizer = load_tokenizer(str(llama_dir))
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
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
    rendering.render_all([chat])
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
    kept, dropped = rendering.render_all([long_answer, long_question])
    assert kept == (long_answer,)
    info = rendering[long_answer.id].info
    assert info.truncated
    assert info.num_tokens == 63
    assert [(row.kind, row.line_no) for row in dropped] == [("no_loss_tokens", 2)]
    with pytest.raises(DataError, match="Raise max_seq_length"):
        rendering.render_all([long_question])


@pytest.mark.parametrize(("fixture", "renderer"), [("llama_dir", "llama3"), ("qwen_dir", "qwen3")])
def test_renderer_of_a_directory_follows_its_tokenizer(
    request: pytest.FixtureRequest, fixture: str, renderer: str
) -> None:
    assert resolve_renderer_name(None, str(request.getfixturevalue(fixture))) == renderer


def test_renderer_of_a_hub_model_is_the_recommended_one_or_refused() -> None:
    assert resolve_renderer_name(None, "meta-llama/Llama-3.1-8B-Instruct") == "llama3"
    with pytest.raises(ConfigError, match="cookbook recommends no renderer"):
        resolve_renderer_name(None, "nobody/nothing-1b")


@pytest.mark.parametrize(
    ("name", "part"), [("llama4", "'llama4' cannot be used"), ("qwen3", "lacks special tokens")]
)
def test_renderers_that_cannot_work_are_refused(llama_dir: Path, name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_renderer(name, str(llama_dir))

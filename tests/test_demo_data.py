"""The demo's data files: who may know what, and that the script wrote every byte of them."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "demo_model"
DATA_FILES = (
    "demo_data.jsonl",
    "demo_pool.jsonl",
    "evals/simple_qa.jsonl",
    "evals/simple_qa_test.jsonl",
)
TOPICS = {
    *("addition", "multiplication", "opposites", "calendar", "capitals", "counting"),
    *("colors", "past_tense", "spanish", "symbols", "authors", "young_animals"),
}
SEED_PAIRS = {
    "What is 5 + 7?": "12",
    "What is the capital of Japan?": "Tokyo",
    "What color is grass?": "green",
    "How many days in a week?": "7",
    "What is 3 x 4?": "12",
}
# A fact that can be asked from either end: its key is the unordered pair of its two ends.
TWO_WAY = (
    (r"What is (\d+) ([+x]) (\d+)\?", lambda m, _: (m[2], *sorted((m[1], m[3])))),
    (r"What is the opposite of (\w+)\?", lambda m, a: ("opposite", *sorted((m[1], a)))),
    (r"Which (day|month) comes (?:after|before) (\w+)\?", lambda m, a: (m[1], *sorted((m[2], a)))),
)


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a data file, training rows under the names of the question files."""
    rows = [json.loads(line) for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [
        {"question": r["instruction"], "answer": r["output"], "topic": r["topic"]}
        if "instruction" in r
        else r
        for r in rows
    ]


def answers(row: dict[str, Any]) -> list[str]:
    """Return the accepted answers of a row."""
    return [row["answer"]] if isinstance(row["answer"], str) else row["answer"]


def fact_key(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what is the same for every way of asking one fact."""
    for pattern, key in TWO_WAY:
        if match := re.fullmatch(pattern, row["question"]):
            return key(match, answers(row)[0])
    return (row["question"],)


def test_fact_keys_join_the_two_ways_of_asking() -> None:
    for one, other in (
        (("What is 5 + 7?", "12"), ("What is 7 + 5?", "12")),
        (("What is 3 x 4?", "12"), ("What is 4 x 3?", "12")),
        (("What is the opposite of hot?", "cold"), ("What is the opposite of cold?", "hot")),
        (("Which month comes after May?", "June"), ("Which month comes before June?", "May")),
    ):
        keys = [fact_key({"question": q, "answer": a}) for q, a in (one, other)]
        assert keys[0] == keys[1]
    assert fact_key({"question": "What is 3 x 4?", "answer": "12"}) != fact_key(
        {"question": "What is 3 + 4?", "answer": "7"}
    )


def test_sizes_topics_and_columns() -> None:
    train, pool, dev, test = (read(name) for name in DATA_FILES)
    assert len(train) == 20
    assert len(pool) >= 500
    assert len(dev) == 100
    assert len(test) >= 100
    for rows in (train, pool, dev, test):
        assert {row["topic"] for row in rows} == TOPICS
        assert all(row.keys() == {"question", "answer", "topic"} for row in rows)


def test_dev_holds_the_five_questions_of_the_walkthrough() -> None:
    dev = {row["question"]: row["answer"] for row in read("evals/simple_qa.jsonl")}
    assert dev.items() >= SEED_PAIRS.items()


def test_no_fact_of_an_evaluation_is_trained_on_or_shared() -> None:
    train, pool, dev, test = ({fact_key(row) for row in read(name)} for name in DATA_FILES)
    assert not dev & (train | pool)
    assert not test & (train | pool)
    assert not dev & test


def test_no_question_stands_twice() -> None:
    counts = Counter(row["question"].lower() for name in DATA_FILES for row in read(name))
    assert [question for question, count in counts.items() if count > 1] == []


def test_answers_are_single_words_that_the_question_does_not_give_away() -> None:
    for row in (row for name in DATA_FILES for row in read(name)):
        for answer in answers(row):
            assert re.fullmatch(r"[A-Za-z]+|\d+", answer), row
            assert not re.search(rf"\b{answer}\b", row["question"], re.IGNORECASE), row


def test_the_corpus_states_and_never_asks() -> None:
    spec = importlib.util.spec_from_file_location("demo_facts", MODEL / "facts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    groups = [teaching.statements for fact in module.all_facts() for teaching in fact.teachings]
    groups.append(module.LEADS + module.FILLERS + module.FOLLOW_UPS)
    assert all(len(set(texts)) >= 5 for texts in groups)
    for text in (text for texts in groups for text in texts):
        assert not re.search(r"[?:|<>\n]", text), text


def test_arithmetic_is_right() -> None:
    for row in (row for name in DATA_FILES for row in read(name)):
        if match := re.fullmatch(r"What is (\d+) ([+x]) (\d+)\?", row["question"]):
            a, b = int(match[1]), int(match[3])
            assert row["answer"] == str(a + b if match[2] == "+" else a * b), row


def test_the_script_writes_exactly_the_committed_files(tmp_path: Path) -> None:
    command = [sys.executable, str(MODEL / "build.py"), "--data-only", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    for name in DATA_FILES:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_the_card_names_the_weights_and_the_model_is_small() -> None:
    digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (MODEL / "README.md").read_text(encoding="utf-8")
    files = [p for p in MODEL.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) <= 6_000_000

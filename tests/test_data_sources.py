"""Every format gives the same rows; what is wrong is named with its line and costs no other row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import zstandard

from config_schema import load_and_validate_config
from data_loader import LoadedData, load_examples
from errors import ConfigError, DataError, LoopError
from loop.planning.row_files import sources_of
from rows.sources import MAX_ROW_BYTES, Source, read_rows, sha256_of

ROWS = [
    {"instruction": "Say a", "output": "a", "topic": "t"},
    {"instruction": 'Say "b",\nplease', "output": "b\u2028é", "topic": "t"},
    {"instruction": "Say c", "output": "007", "topic": "u"},
]


def load(path: Path, **options: Any) -> LoadedData:
    return load_examples([Source(path.name, path)], **options)


# --- formats --------------------------------------------------------------------------------------


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": as_jsonl,
    "a.txt": as_jsonl,
    "lines.json": as_jsonl,
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "bom.json": lambda rows: b"\xef\xbb\xbf\n " + json.dumps(rows).encode(),
    "a.csv": as_csv,
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows), mtime=0),
    "a.json.zst": lambda rows: zstandard.compress(json.dumps(rows).encode()),
    "a.csv.gz": lambda rows: gzip.compress(as_csv(rows), mtime=0),
    # two frames one after the other, as parallel compressors write them
    "a.jsonl.zst": lambda rows: (
        zstandard.compress(as_jsonl(rows[:1])) + zstandard.compress(as_jsonl(rows[1:]))
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_text_format_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](ROWS))
    loaded = load(tmp_path / name)
    assert [[m.content for m in e.messages] for e in loaded.examples] == [
        [row["instruction"], row["output"]] for row in ROWS
    ]
    assert [e.topic for e in loaded.examples] == ["t", "t", "u"]
    assert len(loaded.dropped) == 0


def test_datasets_on_disk_give_the_same_examples(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS))
    ids = [e.id for e in load(tmp_path / "a.jsonl").examples]
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    splits = datasets.DatasetDict({"train": data, "test": data.select([0])})
    splits.save_to_disk(str(tmp_path / "splits"))
    for name in ("a.parquet", "saved", "splits"):
        assert [e.id for e in load(tmp_path / name).examples] == ids
    test = Source("splits", tmp_path / "splits", split="test")
    assert [e.id for e in load_examples([test]).examples] == ids[:1]
    with pytest.raises(DataError, match=r"no split 'dev'; it has train, test"):
        load_examples([Source("splits", tmp_path / "splits", split="dev")])
    assert sha256_of(test) != sha256_of(Source("saved", tmp_path / "saved"))


def test_chats_in_parquet_keep_their_turns(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    datasets.Dataset.from_list([{"messages": chat}]).to_parquet(tmp_path / "a.parquet")
    (example,) = load(tmp_path / "a.parquet").examples
    assert list(example.turns) == [
        ("system", "Be brief."),
        ("user", "q"),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        (
            "a.jsonl.gz",
            gzip.compress(as_jsonl(ROWS), mtime=0)[:-12],
            "cannot be read: Compressed file end",
        ),
        ("a.jsonl.gz", b"plain text", "cannot be read: Not a gzipped file"),
        ("a.jsonl.zst", b"plain text", "cannot be read: "),
        (
            "a.jsonl.zst",
            zstandard.compress(as_jsonl(ROWS))[:-6],
            "before the end of its last frame",
        ),
        ("a.parquet", b"plain text", "the dataset cannot be read"),
        ("a.json", b'[{"instruction": "q", "output": "a"}, {broken', "line 1: not valid JSON"),
        ("a.json", b'[{"instruction": "q"}\n\n{"a": 1}]', "instead of a comma or its end"),
        ("a.json", b"[{}] x", "something after the end"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"[\xff]", "not valid UTF-8"),
        ("a.csv", "instruction,output\nq,a\n".encode("utf-16"), "not UTF-8 but UTF-16. Save it"),
        ("a.jsonl.gz", gzip.compress(as_jsonl(ROWS).decode().encode("utf-16")), "but UTF-16"),
        ("a.csv", b'instruction,output\nq,"never closed\nq,a\n', "line 2: a quoted field"),
        ("a.csv", b"output,output\na,b\n", "two columns are called 'output'"),
        ("a.csv", b"instruction,output\n", "the file is empty"),
    ],
)
def test_what_breaks_a_whole_file_is_said_once(
    tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert part in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_rows_that_are_wrong_cost_no_other_row(tmp_path: Path) -> None:
    lines = [
        b"instruction,output",
        b'"two\nlines",good',
        b"too,many,fields",
        b'"x"y,bad quote',
        b"\xff,no utf-8",
        b"",
        b"q,fine",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines) + b"\n")
    rows = list(read_rows(Source("a.csv", tmp_path / "a.csv")))
    assert [(row.line_no, row.problem) for row in rows] == [
        (2, None),
        (4, "it has 3 fields, the header has 2"),
        (5, "not valid CSV: ',' expected after '\"'"),
        (6, "not valid UTF-8"),
        (8, None),
    ]


def test_a_line_without_end_is_one_bad_row(tmp_path: Path) -> None:
    good = as_jsonl(ROWS[:1])
    (tmp_path / "a.jsonl").write_bytes(good + b"x" * (2 * MAX_ROW_BYTES) + b"\n" + good)
    rows = list(read_rows(Source("a", tmp_path / "a.jsonl")))
    assert [(row.line_no, row.problem) for row in rows] == [
        (1, None),
        (2, "longer than 16 MiB"),
        (3, None),
    ]


# --- shapes of rows -------------------------------------------------------------------------------

USER, REPLY = ("user", "q"), ("assistant", "a")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "output": "a"}, [USER, REPLY]),
        ({"instruction": "q", "input": "", "output": "a"}, [USER, REPLY]),
        ({"instruction": "q", "input": "x", "output": "a"}, [("user", "q\n\nx"), REPLY]),
        ({"input": "q", "output": "a"}, [USER, REPLY]),
        ({"prompt": "q", "completion": "a"}, [USER, REPLY]),
        ({"prompt": "q", "completion": "a", "system": "s"}, [("system", "s"), USER, REPLY]),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            [USER, REPLY],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [USER, REPLY],
        ),
        (
            {
                "system": "s",
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
            },
            [("system", "s"), USER, REPLY],
        ),
        (
            {
                "system": "s",
                "conversations": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
            },
            [("system", "s"), USER, REPLY],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            [USER, REPLY],
        ),
    ],
)
def test_every_shape_of_row_gives_its_turns(
    tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([row]))
    (example,) = load(tmp_path / "a.jsonl").examples
    assert list(example.turns) == expected


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ('{"instruction": "q", "output": "a", "output": "b"}', "'output' stands twice"),
        ('{"messages": [{"role": "user", "role": "user", "content": "q"}]}', "'role' stands twice"),
        ('{"conversations": [{"from": "robot", "value": "q"}]}', "has the role 'robot'"),
        ('{"messages": [{"role": "critic", "content": "q"}]}', "has the role 'critic'"),
        ('{"messages": [["user", "q"]]}', "message 0 is not an object"),
        ('{"messages": [{"role": ["user"], "content": "q"}]}', "has the role"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
            "part of type 'image'",
        ),
        ('{"prompt": ["q"], "completion": "a"}', '"prompt" is not a string'),
        ('{"instruction": null, "output": "a"}', "found keys: instruction, output"),
        ('{"instruction": "q", "output": NaN}', '"output" is empty'),
        ('{"instruction": "q", "output": "\\u0000"}' + "\x00", "not valid JSON"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(tmp_path: Path, row: str, part: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS) + row.encode() + b"\n")
    loaded = load(tmp_path / "a.jsonl")
    assert len(loaded.examples) == 3
    (dropped,) = loaded.dropped
    assert (dropped.line_no, dropped.kind) == (4, "rejected")
    assert part in dropped.reason


def test_columns_name_what_a_file_calls_its_own(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "subject": "s", "output": "not this one"}
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([row]))
    columns = {"prompt": "question", "completion": "answer", "topic": "subject"}
    (example,) = load_examples([Source("a", tmp_path / "a.jsonl", columns=columns)]).examples
    assert list(example.turns) == [USER, REPLY]
    assert example.topic == "s"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "q", "output": "a", "subject": "s"}, {"topic": "subject"}),
        ({"prompt": "q", "answer": "a", "topic": "s"}, {"completion": "answer"}),
        (
            {"instruction": "no", "output": "no", "q": "q", "a": "a", "topic": "s"},
            {"prompt": "q", "completion": "a"},
        ),
    ],
)
def test_columns_may_name_some_only(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([row]))
    (example,) = load_examples([Source("a", tmp_path / "a.jsonl", columns=columns)]).examples
    assert list(example.turns) == [USER, REPLY]
    assert example.topic == "s"


# --- what a user is told --------------------------------------------------------------------------


def test_all_problems_are_said_in_one_pass(tmp_path: Path) -> None:
    bad = [b"{broken", b"{broken", b'{"instruction": "", "output": "a"}', b"[1]"]
    good = as_jsonl([{"instruction": f"q{i}", "output": "a"} for i in range(9)])
    (tmp_path / "a.jsonl").write_bytes(good + b"\n".join(bad) + b"\n")
    assert len(load(tmp_path / "a.jsonl").dropped) == 4
    with pytest.raises(DataError) as caught:
        load(tmp_path / "a.jsonl", on_bad_row="stop")
    message = str(caught.value)
    assert "4 of 13 rows cannot be used: lines 10-11: not valid JSON: Expecting" in message
    assert 'line 12: "instruction" is empty; line 13: not a JSON object' in message


def write_config(tmp_path: Path, **settings: Any) -> Any:
    config = {"base_model": "m", "eval_tasks": ["simple_qa"], "train_file": "a.jsonl", **settings}
    (tmp_path / "c.json").write_text(json.dumps(config))
    return load_and_validate_config(tmp_path / "c.json")


def test_sources_are_found_and_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(as_jsonl(ROWS))
    train = [
        {"file": "a.jsonl", "weight": 1},
        {"file": "b/a.jsonl", "weight": 3},
        {"file": "hf:owner/name", "subset": "main", "split": "test", "weight": 0.5},
    ]
    columns = {"prompt": "question"}
    loaded = write_config(tmp_path, train_file=train, data={"columns": columns})
    first, second, third = sources_of(loaded, "train_file", loaded.config.train_file)
    assert (first.name, second.name, third.name) == (
        *("a.jsonl", "b/a.jsonl", "hf:owner/name main test"),
    )
    assert (third.path, third.hub_name, third.subset, third.split) == (
        None,
        "owner/name",
        "main",
        "test",
    )
    assert (second.weight, second.columns) == (3, columns)


def test_sources_of_one_name_keep_their_shares_apart(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(as_jsonl(ROWS))
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "ds"))
    train = [
        {"file": "b/a.jsonl", "weight": 5},
        {"file": "a.jsonl", "weight": 1},
        {"file": "ds", "weight": 3},
        {"file": "ds", "split": "test", "weight": 2},
    ]
    loaded = write_config(tmp_path, train_file=train)
    sources = sources_of(loaded, "train_file", loaded.config.train_file, {"ds"})
    assert [one.name for one in sources] == ["a.jsonl", "a.jsonl (2)", "ds (2)", "ds test"]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"train_file": [{"file": "a.jsonl", "weight": 1}, "b.jsonl"]}, "a weight to some"),
        ({"mining": {"pool_file": [{"file": "a.jsonl", "weight": 1}]}}, "Take the weights out"),
        ({"data": {"columns": {"question": "prompt"}}}, "maps 'question', which is no field"),
        ({"train_file": []}, "train_file: list should have at least 1 item"),
        ({"train_file": 5}, ": train_file: input should be the name of a source, or a list of s"),
        ({"train_file": [5]}, ": train_file.0: input should be the name of a source, or an obj"),
        ({"train_file": [{"file": "a", "wieght": 2}]}, "did you mean train_file.0.weight?"),
        ({"columns": {}}, "columns is not a setting; did you mean data.columns?"),
        ({"mining": {"pool_file": []}}, "mining.pool_file"),
        ({"train_file": "."}, "holds no dataset"),
        ({"train_file": "hf:/etc/passwd"}, "names no dataset of the hub"),
        ({"train_file": "missing"}, "there is no such file"),
        ({"val_file": "a.jsonl", "data": {"val_share": 0.1}}, "are both set"),
    ],
)
def test_sources_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, Any], part: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS))
    with pytest.raises(ConfigError) as caught:
        loaded = write_config(tmp_path, **settings)
        sources_of(loaded, "train_file", loaded.config.train_file)
    assert part in str(caught.value)


# --- anything at all ------------------------------------------------------------------------------

SCRAPS: list[Any] = [
    *("", " ", "q", "\x00", "\ud800", "a" * 5000, 0, -1.5, True, None, [], {}, ["x"], {"x": 1}),
    *("user", "assistant", "system", "human", "gpt", "robot", [[]], float("nan"), 10**40),
]
KEYS = [
    *("messages", "conversations", "instruction", "input", "output", "prompt", "completion"),
    *("system", "topic", "role", "content", "from", "value", "\udc00", "", "x"),
]


def scrap(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth < 3 and kind < 0.25:
        return {rng.choice(KEYS): scrap(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    if depth < 3 and kind < 0.45:
        return [scrap(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return rng.choice(SCRAPS)


def broken_row(rng: random.Random) -> bytes:
    """A line that is nearly a row: a wrong value somewhere, a key twice, bytes lost or added."""
    row: Any = {rng.choice(KEYS): scrap(rng) for _ in range(rng.randint(0, 5))}
    if rng.random() < 0.5:
        row |= {"instruction": f"q{rng.random()}", "output": "a"}
    if rng.random() < 0.1:
        row = scrap(rng)
    line = json.dumps(row).encode()
    change = rng.random()
    position = rng.randrange(len(line) + 1)
    if change < 0.2:
        line = line[:position]
    elif change < 0.4:
        line = line[:position] + rng.choice([b"\xff", b"\x00", b"\xed\xa0\x80", b'"', b"{", b","])
    elif change < 0.45:
        line = b"[" * rng.randint(1, 5000) + line
    elif change < 0.5:
        line = line.replace(b"{", b'{"output": "x", "output": "y", ', 1)
    return line.replace(b"\n", b" ")


def test_malformed_rows_are_counted_and_never_a_traceback(tmp_path: Path) -> None:
    """10,000 rows in 100 files, each among as many good ones and a few more."""
    rng = random.Random(5)
    num_rows = num_kept = 0
    for number in range(100):
        bad = [broken_row(rng) for _ in range(100)]
        good = [{"instruction": f"{number}/{i}", "output": "a"} for i in range(110)]
        lines = bad + as_jsonl(good).splitlines()
        rng.shuffle(lines)
        kind = ("jsonl", "jsonl.gz", "jsonl.zst", "txt", "json")[number % 5]
        compress = {"jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}.get(kind, bytes)
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(compress(b"{}\n" + b"\n".join(lines) + b"\n" * (number % 2)))
        loaded = load(path)
        num_held = 1 + sum(bool(line.strip()) for line in lines)
        assert loaded.num_rows == num_held
        assert len(loaded.examples) + len(loaded.dropped) == num_held
        num_rows += num_held - 111
        num_kept += len(loaded.examples) - 110
        for row in loaded.dropped:
            assert row.reason
            json.dumps(row.reason, ensure_ascii=False).encode()
        for example in loaded.examples:
            assert example.messages[-1].role == "assistant"
            assert all(message.content.strip() for message in example.messages)
    assert 9_800 < num_rows <= 10_000  # a few are blank
    assert 0.1 * num_rows < num_kept < 0.5 * num_rows


def test_malformed_files_are_a_sentence_or_rows(tmp_path: Path) -> None:
    """1,000 files whose bytes were changed after they were written, in every format."""
    rng = random.Random(6)
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "whole.parquet")
    whole = {name: write(ROWS * 4) for name, write in WRITERS.items()}
    whole["a.parquet"] = (tmp_path / "whole.parquet").read_bytes()
    num_read = 0
    for number in range(1000):
        name = sorted(whole)[number % len(whole)]
        content = bytearray(whole[name])
        for _ in range(rng.randint(1, 6)):
            position = rng.randrange(len(content))
            if rng.random() < 0.3:
                del content[position : position + rng.randint(1, 20)]
            else:
                content[position] = rng.randrange(256)
            content = content or bytearray(b" ")
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content)
        try:
            num_read += load(path).num_rows > 0
        except LoopError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
    assert 200 < num_read < 1000

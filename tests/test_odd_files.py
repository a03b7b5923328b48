"""Files as spreadsheets, browsers and other programs leave them: read right, or refused by name."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_loader import load_examples
from errors import DataError
from rows.sources import Source
from simple_eval import load_questions

ROW = b'{"instruction": "Say", "output": "1"}'


def archive(kind: str) -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as file:
            file.writestr("xl/workbook.xml", "<workbook/>")
    else:
        with tarfile.open(fileobj=made, mode="w") as file:
            info = tarfile.TarInfo("rows.jsonl")
            info.size = len(ROW)
            file.addfile(info, io.BytesIO(ROW))
    return made.getvalue()


REFUSED = [
    ("a.csv", b"instruction;output\nSay;1\n", "has semicolons between its columns"),
    ("a.csv", b'"instruction";"output"\n"Say";"1"\n', "has semicolons between its columns"),
    ("a.csv", b"\xef\xbb\xbfinstruction;output\r\nSay;1\r\n", "has semicolons"),
    ("a.csv", b"instruction\toutput\nSay\t1\n", "Let its name end with .tsv"),
    ("a.csv", b"instruction\toutput\rSay\t1\r", "Let its name end with .tsv"),
    ("a.tsv", b"instruction,output\nSay,1\n", "Let its name end with .csv"),
    ("a.csv", b"instruction|output\nSay|1\n", "has bars between its columns"),
    ("a.csv", b"sep=;\ninstruction;output\nSay;1\n", "a note for Excel and no header"),
    ("a.csv", b"SEP=,\ninstruction,output\nSay,1\n", "a note for Excel and no header"),
    ("a.csv", b'instruction, "output"\nSay, "1"\n', "a space stands before the name of a column"),
    ("a.csv", "instruction,r\u00e9ponse\nSay,1\n".encode("latin-1"), "line 1: not valid UTF-8"),
    ("a.csv", "instruction,output\nS\u00e4g,1\n".encode("latin-1"), "calls it CSV UTF-8"),
    ("a.csv", "instruction,output\nSay,1\n".encode("utf-16"), "not UTF-8 but UTF-16"),
    ("a.csv", "instruction,output\nSay,1\n".encode("utf-16-le"), "begins with NUL bytes"),
    ("a.jsonl", ROW.decode().encode("utf-16-be"), "begins with NUL bytes"),
    ("a.csv", ROW + b"\n", "Let its name end with .jsonl"),
    ("a.csv", b"[" + ROW + b"]", "Let its name end with .json"),
    ("a.txt", b"instruction,output\nSay,1\n", "If it is a table with commas"),
    ("a.jsonl", b"instruction;output\nSay;1\n", "If it is a table with semicolons"),
    ("a.csv", archive("zip"), "a ZIP archive, as Excel's .xlsx"),
    ("a.xlsx", archive("zip"), "a ZIP archive, as Excel's .xlsx"),
    ("a.jsonl", archive("tar"), "it is a tar archive"),
    ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document"),
    ("a.jsonl", gzip.compress(ROW), "Let its name end with .gz"),
    ("a.jsonl.gz", gzip.compress(gzip.compress(ROW)), "Let its name end with .gz"),
    ("a.jsonl", b"PAR1\x15\x04", "Let its name end with .parquet"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ("a.jsonl", b"\n<!DOCTYPE html>\n<html></html>", "Download the file itself"),
    ("a.jsonl", ROW + ROW, "another object follows"),
    ("a.jsonl", ROW + b",\n" + ROW + b",\n", "a comma follows the object"),
    ("a.jsonl", b"{'instruction': 'Say', 'output': '1'}\n", "texts in double quotes"),
    ("a.jsonl", b'{"instruction": "Say", "output": 4}\n', "the number 4; write it in quotes"),
    ("a.jsonl", b'{"text": "### Human: a ### Assistant: b"}\n', 'A row of one "text"'),
]  # fmt: skip


# Archives hold the time at which they were made, which is no name of a test.
@pytest.mark.parametrize(
    ("name", "content", "said"), REFUSED, ids=[f"{name}: {said}" for name, _, said in REFUSED]
)
def test_what_a_file_is_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        load_examples([Source(name, path)])
    told = str(refused.value)
    assert said in told and str(path) in told
    assert "data.columns" not in told and "QUESTION_COLUMN" not in told  # names would not help


def test_an_export_of_another_encoding_is_told_of_both_its_columns_and_that(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("Ask,Agent answer\nS\u00e4g,1\nSay,1\n".encode("cp1252"))
    with pytest.raises(DataError) as refused:
        load_examples([Source("a.csv", path)])
    told = str(refused.value)
    assert "QUESTION_COLUMN" in told and told.endswith("(a spreadsheet calls it CSV UTF-8).")
    assert told.casefold().count("expected ") == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xef\xbb\xbfinstruction,output\nSay,1\n", ["Say", "1"]),
        (b'instruction,output\r\n"Say\r\n""1""",1\r\n', ['Say\r\n"1"', "1"]),
        (b"instruction,output\nSay,1\n,\n,,\n\n", ["Say", "1"]),  # cells below the sheet
        (b"instruction,output,,\nSay,1,,\n", ["Say", "1"]),
        (b"\n\ninstruction,output\nSay,1\n", ["Say", "1"]),
        (b"instruction,output\rSay,1\r", ["Say", "1"]),
        (b",instruction,output\n0,Say,1\n", ["Say", "1"]),  # an index
    ],
)
def test_a_csv_with_something_around_its_rows(
    tmp_path: Path, content: bytes, found: list[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    data = load_examples([Source("a.csv", path)])
    assert [one.content for row in data.examples for one in row.messages] == found
    assert not data.dropped and dict(data.files[0].unused) in ({}, {"column 1": 1})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.csv", b"question;answer\nSay;1\n", "has semicolons between its columns"),
        ("q.jsonl", b'{"question": "q", "gold": "4"}\n', "did you mean answer?"),
        ("q.jsonl", b'{"question": "q", "choices": ["a", "b"], "answer": 1}\n', "write it there"),
    ],
)
def test_question_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        load_questions(f"qa:{name}", path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("content", "num_rows"),
    [(b"\xef\xbb\xbf\n\n" + ROW + b"\n", 1), (b"\xef\xbb\xbf \r\n" + ROW, 1)],
)
def test_a_mark_of_utf8_on_a_line_of_its_own_is_no_row(
    tmp_path: Path, content: bytes, num_rows: int
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    data = load_examples([Source("a.jsonl", tmp_path / "a.jsonl")])
    assert (data.num_rows, len(data.dropped)) == (num_rows, 0)


def test_a_number_that_is_too_long_is_said_in_our_words(tmp_path: Path) -> None:
    """Python's own error names a setting of the interpreter, and in an array ended nothing."""
    long = ROW[:-1] + b', "id": ' + b"9" * 5000 + b"}"
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([ROW, long, ROW.replace(b"1", b"2")]))
    data = load_examples([Source("a.jsonl", tmp_path / "a.jsonl")])
    assert len(data.examples) == 2
    assert [one.reason for one in data.dropped] == ["not usable JSON: a number is too long"]
    (tmp_path / "a.json").write_bytes(b"[" + ROW + b",\n" + long + b"]")
    with pytest.raises(DataError, match="line 2: not usable JSON: a number is too long"):
        load_examples([Source("a.json", tmp_path / "a.json")])


def test_blank_keys_of_a_question_say_nothing(tmp_path: Path) -> None:
    """Parquet gives each row the keys of all, and Alpaca's rows have an empty input."""
    import pyarrow
    from pyarrow.parquet import write_table

    rows = [
        {"question": "a", "answer": "4", "grader": "numeric", "topic": "t", "note": None},
        {"question": "b", "answer": "5", "grader": None, "topic": None, "note": None},
    ]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    read = load_questions("qa:q.parquet", tmp_path / "q.parquet").questions
    assert [one.grader for one in read] == ["numeric", "includes"]
    alpaca = tmp_path / "q.jsonl"
    alpaca.write_text('{"instruction": "a", "input": "", "output": "4"}\n')
    assert load_questions("qa:q.jsonl", alpaca).questions[0].answers == ("4",)
    alpaca.write_text('{"instruction": "a", "input": "of b", "output": "4"}\n')
    with pytest.raises(DataError, match="'input': if the answer rests on it, write it into the q"):
        load_questions("qa:q.jsonl", alpaca)


def test_conversations_of_questions_in_csv(tmp_path: Path) -> None:
    turns = '[{""role"": ""user"", ""content"": ""a""}]'
    (tmp_path / "q.csv").write_text(f'messages,answer\n"{turns}",4\n')
    assert load_questions("qa:q.csv", tmp_path / "q.csv").questions[0].question == "a"


def test_questions_of_an_array_and_between_blank_lines(tmp_path: Path) -> None:
    one, other = b'{"question": "a", "answer": 4}', b'{"question": "b", "answer": ["4", 5]}'
    for name, content in (
        ("q.json", b"[" + one + b",\n" + other + b"]"),
        ("q.jsonl", b"\n" + one + b"\n\n" + other + b"\n\n"),
    ):
        (tmp_path / name).write_bytes(content)
        read = load_questions(f"qa:{name}", tmp_path / name).questions
        assert [question.answers for question in read] == [("4",), ("4", "5")]

"""Files and datasets of any format, as numbered rows: JSONL, JSON, CSV, TSV, Parquet, Hugging Face.

The text formats are read row by row here, because each problem has to name its line and a bad row
must not take the file with it; Parquet is read by `pyarrow`, without the types that a file claims
for itself, saved datasets and the hub's by `datasets`. `.gz` and `.zst` files are read as what is
inside. A row is a JSON-like dictionary, or the problem that kept it from being one. Nothing here
knows what a row means.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from errors import ConfigError, DataError
from rows.opened_files import first_byte, first_lines, is_text, opened, readable, refuse_other_kinds
from storage.stored_json import RepeatedKeyError, unique_keys

HUB_PREFIX = "hf:"
MAX_ROW_BYTES = 16 * 2**20  # a longer row is a mistake, or no text that a model could be trained on
COMPRESSIONS = (".gz", ".zst")
TAB, BOM = "\t", b"\xef\xbb\xbf"
COLUMN_MARKS = {",": "commas", TAB: "tabs", ";": "semicolons", "|": "bars"}


class Row(NamedTuple):
    """One row with the number of its line (of its record, in binary formats) from 1."""

    line_no: int
    fields: dict[str, Any] | None
    problem: str | None  # why there are no fields


@dataclass(frozen=True)
class Source:
    """Where rows come from: a file, a dataset saved on disk, or one of the hub (`hf:NAME`)."""

    name: str  # as rows are listed under
    path: Path | None  # None on the hub
    hub_name: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # our name -> theirs
    weight: float | None = None  # share of the slots, None: by the number of rows

    def __str__(self) -> str:
        return as_text(str(self.path or f"{HUB_PREFIX}{self.hub_name}"))


def read_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a source. Raises `DataError` where it cannot be read any further."""
    if source.path is None:
        yield from _hub_rows(source)
        return
    if source.path.is_dir():
        yield from _saved_rows(source)
        return
    kind = format_of(source.path)
    if kind == "parquet":
        yield from _parquet_rows(source)
        return
    with readable(str(source)), opened(source.path) as file:
        refuse_other_kinds(str(source), file)
        if kind in ("csv", "tsv"):
            yield from _csv_rows(source, file, "," if kind == "csv" else TAB)
        elif _is_one_array(source, kind, first_byte(file)):
            yield from _array_rows(source, file)
        else:
            _refuse_table(source, file)
            yield from _jsonl_rows(file)


def _refuse_table(source: Source, file: IO[bytes]) -> None:
    """Raise `DataError` for a table under the name of JSON: two lines that no JSON is, and that
    have the same columns."""
    lines = [line for line in first_lines(file) if line][:2]
    if len(lines) < 2 or any(line[0] in '{["' for line in lines):
        return
    for mark, called in COLUMN_MARKS.items():
        numbers = {_num_columns(line, mark) for line in lines}
        if len(numbers) == 1 and numbers.pop() > 1:
            raise DataError(
                f"{source}: it is no JSON, by its first two lines. If it is a table with {called} "
                "between its columns, let its name end with .csv (commas) or .tsv (tabs)."
            )


def _is_one_array(source: Source, kind: str, first: bytes) -> bool:
    """Whether a file of JSON is one array of rows, whatever its name says.

    Raises `DataError` where it is one object over several lines, which is no row.
    """
    if first not in (b"[", b"{"):
        return False
    assert source.path is not None, "a file has a path"
    with opened(source.path) as file:
        line = file.readline(MAX_ROW_BYTES).decode("utf-8-sig", "replace").strip()
        while not line:
            line = file.readline(MAX_ROW_BYTES).decode("utf-8", "replace").strip()
        try:
            json.loads(line)
            is_whole = True
        except (ValueError, RecursionError):
            is_whole = False
        if first == b"[":
            return kind == "json" or not is_whole or not file.read().strip()
        if not is_whole and line == "{":
            _refuse_one_object(source, line + file.read().decode("utf-8", "replace"))
    return False


def _refuse_one_object(source: Source, text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return  # its lines are read as rows, and each is said to be none
    lists = [f"{_shown(key)} ({len(one)})" for key, one in value.items() if isinstance(one, list)]
    what = f"the lists in it are {', '.join(lists[:5])}" if lists else "there is no list in it"
    raise DataError(
        f"{source}: it is one JSON object over many lines, not one row per line; {what}. Save the "
        "list of rows alone, as a JSON array or one object per line."
    )


def sha256_of(source: Source) -> str:
    """The digest of a source's files. Raises `DataError` when they cannot be read.

    A hub dataset has the digest of its revision's fingerprint, which names its content.
    """
    if source.path is None:
        return hashlib.sha256(_load_hub(source)._fingerprint.encode()).hexdigest()
    with readable(str(source)):
        if not source.path.is_dir():
            with open(source.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for path in sorted(one for one in source.path.rglob("*") if one.is_file()):
            digest.update(f"{path.relative_to(source.path)}\n".encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def format_of(path: Path) -> str:
    """`jsonl`, `json`, `csv`, `tsv` or `parquet`, by the file's name; what is unknown is JSONL."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    kind = suffixes[-1][1:] if suffixes else ""
    return kind if kind in ("json", "csv", "tsv", "parquet") else "jsonl"


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory holds what `Dataset.save_to_disk` writes."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


# --- JSON -----------------------------------------------------------------------------------------


class _Json:
    """Decodes JSON values; an object with a key that stands twice is refused, not half read."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        try:
            return unique_keys(pairs)
        except RepeatedKeyError as error:  # told later, once the end of the row is known
            self._repeated.append(error.key)
            return dict(pairs)

    def fields_of(self, value: Any) -> dict[str, Any]:
        """Return the object that was decoded last. Raises `ValueError` with what is wrong."""
        repeated, self._repeated = self._repeated, []
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        if repeated:
            raise ValueError(f"the key {_shown(repeated[0])} stands twice in one object")
        return value

    def decode(self, text: str) -> dict[str, Any]:
        """Decode one object. Raises `ValueError` with the reason."""
        self._repeated = []
        try:
            value = self.decoder.decode(text)
        except (ValueError, RecursionError) as error:
            is_no_json = isinstance(error, json.JSONDecodeError)
            where = f" at column {error.colno}{_hint(text, error)}" if is_no_json else ""
            raise ValueError(f"not {_wrong(error)}{where}") from None
        return self.fields_of(value)


def _wrong(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"valid JSON: {error.msg}"
    is_deep = isinstance(error, RecursionError)  # else Python takes it for an attack
    return f"usable JSON: {'it is nested too deeply' if is_deep else 'a number is too long'}"


def _hint(text: str, error: json.JSONDecodeError) -> str:
    """What is likely meant by a row that is no JSON."""
    rest = text[error.pos :].strip()
    if error.msg == "Extra data" and rest == ",":
        return " (a comma follows the object; the rows of a JSON array need brackets around them)"
    if error.msg == "Extra data" and rest[:1] == "{":
        return " (another object follows; each needs a line of its own)"
    if rest[:1] == "'":
        return " (JSON has its texts in double quotes; json.dumps writes them)"
    return ""


def _jsonl_rows(file: IO[bytes]) -> Iterator[Row]:
    decode, line_no = _Json().decode, 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        line_no += 1
        if len(line) > MAX_ROW_BYTES:
            yield Row(line_no, None, f"longer than {MAX_ROW_BYTES // 2**20} MiB")
            while not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
                pass
            continue
        if not line.strip() or (line_no == 1 and not line.removeprefix(BOM).strip()):
            continue
        try:
            text = line.decode("utf-8-sig" if line_no == 1 else "utf-8")
            yield Row(line_no, decode(text.strip("\r\n \t")), None)
        except UnicodeDecodeError:
            yield Row(line_no, None, "not valid UTF-8")
        except ValueError as error:
            yield Row(line_no, None, str(error))


def _array_rows(source: Source, file: IO[bytes]) -> Iterator[Row]:
    """The objects of one JSON array. What is wrong with its syntax ends the whole file."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{source}: not valid UTF-8. Save it as UTF-8.") from None
    reader, position, line_no, counted = _Json(), text.index("[") + 1, 1, 0
    while True:
        position = _skip_space(text, position)
        if text[position : position + 1] == "]":
            if text[_skip_space(text, position + 1) :]:
                raise DataError(f"{source}: there is something after the end of its JSON array.")
            return
        line_no += text.count("\n", counted, position)
        counted = position
        try:
            value, position = reader.decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{source} line {line_no}: not {_wrong(error)}. What follows in the array "
                "cannot be read; correct the file, or save it as JSONL, one row per line."
            ) from None
        try:
            yield Row(line_no, reader.fields_of(value), None)
        except ValueError as error:
            yield Row(line_no, None, str(error))
        position = _skip_space(text, position)
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            raise DataError(
                f"{source} line {line_no}: not valid JSON: the array goes on with "
                f"{_shown(text[position : position + 10])} instead of a comma or its end."
            )


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


# --- CSV ------------------------------------------------------------------------------------------


def _csv_rows(source: Source, file: IO[bytes], delimiter: str) -> Iterator[Row]:
    """Rows under a header; every value is text, and an empty one counts as absent."""
    _refuse_other_columns(source, file, delimiter)
    # What is no UTF-8 becomes surrogates, so that it costs its own row and no other.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    with text, _longer_csv_fields():
        header = _csv_header(source, reader)
        while True:
            line_no = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise DataError(
                        f"{source} line {line_no}: a quoted field that begins here or below is "
                        "never closed, so the rest of the file cannot be told apart. Close it."
                    ) from None
                yield Row(line_no, None, f"not valid CSV: {error}")
                continue
            if not any(values):
                continue  # a blank line, or the empty cells below a sheet
            if len(values) != len(header):
                problem = f"it has {len(values)} fields, the header has {len(header)}"
                yield Row(line_no, None, problem)
            elif not is_text("".join(values)):
                yield Row(line_no, None, "not valid UTF-8")
            else:
                fields = {k: v for k, v in zip(header, values, strict=True) if v != ""}
                yield Row(line_no, fields, None)


def _csv_header(source: Source, reader: Any) -> list[str]:
    """The names of the columns; one without a name is called by its number."""
    try:
        found = next((row for row in reader if any(row)), [])
    except csv.Error as error:
        raise DataError(f"{source} line 1: not a CSV header: {error}.") from None
    line_no = max(1, reader.line_num)
    if not is_text("".join(found)):
        raise DataError(f"{source} line {line_no}: not valid UTF-8. Save it as UTF-8.")
    if any(name[:1] in (" ", TAB) for name in found[1:]):
        raise DataError(
            f"{source} line {line_no}: a space stands before the name of a column, and would be "
            "part of the rows' texts, as quotes after it would. Take such spaces out."
        )
    header = [name.strip() or f"column {number}" for number, name in enumerate(found, start=1)]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(
            f"{source} line {line_no}: two columns are called {_shown(twice)}. Rename one."
        )
    return header


def _refuse_other_columns(source: Source, file: IO[bytes], delimiter: str) -> None:
    """Raise `DataError` where the first line shows that the columns are divided otherwise."""
    line = next((one for one in first_lines(file) if one), "")
    own = COLUMN_MARKS[delimiter]
    divided = f"A {'.csv' if delimiter == ',' else '.tsv'} file has {own} between its columns"
    if line.casefold().startswith("sep="):
        raise DataError(
            f"{source}: its first line {_shown(line)} is a note for Excel and no header. {divided} "
            "here: take the line out, and save the file so."
        )
    if line[:1] in ("{", "["):
        name = ".jsonl" if line[:1] == "{" else ".json"
        raise DataError(f"{source}: it begins like JSON, not CSV. Let its name end with {name}.")
    if _num_columns(line, delimiter) > 1:
        return
    for other, called in COLUMN_MARKS.items():
        if _num_columns(line, other) > 1:
            remedy = f"Save it with {own}"
            if {delimiter, other} == {",", TAB}:
                remedy = f"Let its name end with {'.tsv' if other == TAB else '.csv'}"
            elif other == ";":
                remedy += (
                    " (a spreadsheet's list separator is a setting of its system or export; "
                    "docs/data.md has a command that does it)"
                )
            raise DataError(
                f"{source}: its first line {_shown(line)} has {called} between its columns. "
                f"{divided} here. {remedy}."
            )


def _num_columns(line: str, delimiter: str) -> int:
    """How many names a header has, if so divided; none where one of them is no name."""
    try:
        names = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return 0
    return len(names) if all(name.strip() for name in names) or delimiter in ",\t" else 0


@contextlib.contextmanager
def _longer_csv_fields() -> Iterator[None]:
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


# --- datasets -------------------------------------------------------------------------------------


def _parquet_rows(source: Source) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with _explained(source), ParquetFile(source.path) as file:
        rows = (row for batch in file.iter_batches(1000) for row in batch.to_pylist())
        for number, fields in enumerate(rows, start=1):
            yield Row(number, _without_filled(fields), None)


def _saved_rows(source: Source) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    with _explained(source):
        data = load_from_disk(str(source.path))
        if isinstance(data, DatasetDict):
            if source.split not in data:
                names = ", ".join(map(str, data))
                raise DataError(
                    f"{source}: it has no split {source.split!r}; it has {names}. Name one as "
                    "`split`."
                )
            data = data[source.split]
        for number, fields in enumerate(data, start=1):
            yield Row(number, _without_filled(dict(fields)), None)  # pyright: ignore[reportArgumentType]


def _hub_rows(source: Source) -> Iterator[Row]:
    data = _load_hub(source)
    for number, fields in enumerate(data, start=1):
        yield Row(number, _without_filled(dict(fields)), None)


def _without_filled(fields: dict[str, Any]) -> dict[str, Any]:
    """A row without the nulls in its objects: these formats give each object the keys of all."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(one) for key, one in value.items() if one is not None}
        return [cleaned(one) for one in value] if isinstance(value, list) else value

    return {key: cleaned(value) for key, value in fields.items()}


def _load_hub(source: Source) -> Any:
    assert source.hub_name is not None, "a source without a path is on the hub"
    with _explained(source):
        return _hub_dataset(source.hub_name, source.subset, source.split, source.revision)


@functools.lru_cache(maxsize=1)  # so that a source's rows and digest are of one revision
def _hub_dataset(name: str, subset: str | None, split: str, revision: str | None) -> Any:
    from datasets import load_dataset

    return load_dataset(name, subset, split=split, revision=revision)


@contextlib.contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what `datasets` says of a dataset that it cannot load into one sentence."""
    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    disable_progress_bars()
    try:
        yield
    except (DatasetsError, ArrowException, OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()
        what = (
            "Check its name, `subset`, `split` and `revision`, and the network, which a dry run "
            "does not use."
            if source.path is None
            else "Check that it is whole, and of the kind that its name says."
        )
        raise DataError(
            f"{source}: the dataset cannot be read: {type(error).__name__}: "
            f"{said[0][:200] if said else 'no details'}. {what}"
        ) from None


def as_text(text: str) -> str:
    """A text that can be written down, whatever bytes or surrogates a file or its name has."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def hub_name(name: str) -> str:
    """What follows `hf:`. Raises `ConfigError` for what can be no dataset's name."""
    rest = name.removeprefix(HUB_PREFIX)
    if not rest or rest.startswith((".", "/")) or rest.count("/") > 1:
        raise ConfigError(
            f"{name!r} names no dataset of the hub. Write {HUB_PREFIX}OWNER/NAME, and `subset`, "
            "`split` and `revision` beside it where they are needed."
        )
    return rest

"""Files of rows as they are opened: what is inside of compressed ones, and what is no text at all.

What a spreadsheet, a browser or a clone of a repository leaves under the name of a text file is
told by its first bytes, and refused once with what to do, not row by row.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from errors import DataError

CHUNK_BYTES = 2**16
PEEKED_BYTES = 4096  # of the beginning; a file may give less
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Kind(NamedTuple):
    """Files that are no text, by how they begin."""

    begins: tuple[bytes, ...]
    what: str
    remedy: str


_KINDS = (
    _Kind(_UTF16, "not UTF-8 but UTF-16", "Save it as UTF-8"),
    _Kind(
        (b"PK\x03\x04",),
        "a ZIP archive, as Excel's .xlsx, LibreOffice's .ods and .zip files are, and no text",
        "Save the sheet as CSV (UTF-8), or unpack the archive",
    ),
    _Kind(
        (b"\xd0\xcf\x11\xe0",),
        "an Office document, as Excel's .xls files are, and no text",
        "Save the sheet as CSV (UTF-8)",
    ),
    _Kind((b"PAR1",), "a Parquet file", "Let its name end with .parquet"),
    _Kind((b"ARROW1", b"\xff\xff\xff\xff"), "an Arrow file", "Save it as Parquet or JSONL"),
    _Kind((b"\x1f\x8b",), "compressed with gzip", "Let its name end with .gz"),
    _Kind((b"\x28\xb5\x2f\xfd",), "compressed with zstd", "Let its name end with .zst"),
    _Kind((b"BZh", b"\xfd7zXZ\0"), "compressed with bzip2 or xz", "Unpack it, or use gzip"),
    _Kind((b"7z\xbc\xaf\x27\x1c", b"Rar!"), "a 7z or RAR archive", "Unpack it"),
    _Kind((b"%PDF-",), "a PDF document", "Give a file of rows"),
    _Kind((b"SQLite format 3\0",), "an SQLite database", "Save the rows as CSV or JSONL"),
    _Kind(
        (b"version https://git-lfs.github.com/",),
        "a pointer of Git LFS, and not the file that it stands for",
        "Fetch the file with: git lfs pull",
    ),
    _Kind(
        (b"<!doctype html", b"<html", b"<?xml"),
        "an HTML or XML page, as a browser saves where a download was meant",
        "Download the file itself",
    ),
)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Name a file in whatever the operating system or a decompressor says."""
    import zstandard

    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{name}: cannot be read: {reason}. Check that the file is whole, and of the kind "
            "that its name says."
        ) from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be read as what is inside, where its name says that it is compressed."""
    suffix = path.suffix.lower()
    with open(path, "rb") as raw:
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as file:
                yield file  # pyright: ignore[reportReturnType] (it has what is read here)
        elif suffix == ".zst":
            with io.BufferedReader(_ZstdFile(raw)) as file:
                yield file
        else:
            yield raw


class _ZstdFile(io.RawIOBase):
    """What is inside a .zst file of one or several frames; one that is cut off is an `EOFError`."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor()
        self._frame: Any = None  # the one that is being read
        self._read, self._made = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._made:
            self._read = self._read or self._raw.read(CHUNK_BYTES)
            if not self._read:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end of its last frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._made, self._read = self._frame.decompress(self._read), b""
            if self._frame.eof:
                self._read, self._frame = self._frame.unused_data, None
        number = min(len(buffer), len(self._made))
        buffer[:number], self._made = self._made[:number], self._made[number:]
        return number


def refuse_other_kinds(name: str, file: IO[bytes]) -> None:
    """Raise `DataError` for what is no UTF-8 text, of which every row would be refused with a
    reason of its own."""
    head = _peeked(file)
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for kind in _KINDS:
        if head.startswith(kind.begins) or begin.startswith(kind.begins):
            raise DataError(f"{name}: it is {kind.what}. {kind.remedy}.")
    if head[257:262] == b"ustar":
        raise DataError(f"{name}: it is a tar archive. Unpack it.")
    if b"\0" in head[:4]:  # of UTF-16 without a mark every second byte
        raise DataError(
            f"{name}: it begins with NUL bytes, as text in UTF-16 or a binary file does, and is no "
            "UTF-8. Save it as UTF-8."
        )


def first_byte(file: IO[bytes]) -> bytes:
    """The first byte of text, without moving on."""
    return _peeked(file).removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")[:1]


def first_lines(file: IO[bytes]) -> list[str]:
    """The first lines of text as far as they are at hand, without moving on and without the space
    around them."""
    text = _peeked(file).removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    return [line.strip(" ") for line in re.split(r"\r\n|\n|\r", text)]


def _peeked(file: IO[bytes]) -> bytes:
    assert isinstance(file, io.BufferedReader | gzip.GzipFile)
    return file.peek(PEEKED_BYTES)


def is_text(value: str) -> bool:
    """Whether there is no lone surrogate in it: JSON may hold them, and bytes that are no UTF-8
    become some."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

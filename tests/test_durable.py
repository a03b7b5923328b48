"""Files that survive a kill, a power cut and a full disk: all of a write or nothing of it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from errors import RunStoreError, StorageError
from storage.files import append_line, read_lines, storage_error, write_whole
from storage.journal import Journal, num_waiting_tokens


def refused(limit: int, write: Callable[[], object]) -> str:
    """What a write says in a process whose files may not grow past a limit; it takes a part."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        said = "nothing"
        try:
            write()
        except StorageError as error:
            said = str(error)
        finally:
            os.write(write_end, said.encode())
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        said = told.read()
    os.waitpid(pid, 0)
    return said


# --- whole files ----------------------------------------------------------------------------------


def test_a_whole_file_and_its_folders_are_made_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.json"
    write_whole(target, ["one ", "ö\n"])
    assert target.read_bytes() == "one ö\n".encode()
    write_whole(target, ["two\n"])
    assert target.read_text() == "two\n"
    assert [file.name for file in target.parent.iterdir()] == ["file.json"]


def test_a_refused_file_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_whole(target, ["old\n"])
    said = refused(1000, lambda: write_whole(target, ["new" * 1000]))
    assert said == (
        f"{target}: the disk refused to write it: File too large. Make room, or let this user "
        "write there; what was recorded before is whole."
    )
    assert target.read_text() == "old\n"
    new = tmp_path / "new.json"
    assert refused(1000, lambda: write_whole(new, ["new" * 1000])).startswith(f"{new}: the disk")
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_content_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    """Rows that are made while they are written may meet a disk that does not give them."""

    def parts() -> Iterator[str]:
        yield "half"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    target = tmp_path / "file.json"
    write_whole(target, ["old\n"])
    with pytest.raises(StorageError, match=r"file\.json: the disk refused .*Input/output error"):
        write_whole(target, parts())
    assert target.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_a_reader_meets_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target, texts = tmp_path / "file.json", ["a" * 50_000, "b" * 70_000]
    write_whole(target, [texts[0]])
    is_done, met = threading.Event(), set()

    def read() -> None:
        while not is_done.is_set():
            met.add(target.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        write_whole(target, [texts[i % 2][:20_000], texts[i % 2][20_000:]])
    is_done.set()
    reader.join()
    assert met <= set(texts)
    assert met


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"the disk refused to write it: (File exists|Not a dir)"
    ):
        write_whole(tmp_path / "file" / "below.json", ["x"])


def test_what_a_full_disk_has_left_is_named_where_room_is_the_matter(tmp_path: Path) -> None:
    full = storage_error(tmp_path / "x", OSError(errno.ENOSPC, "No space left on device"))
    assert "No space left on device, " in str(full)
    assert " MiB are free there. Make room" in str(full)
    assert "MiB" not in str(storage_error(tmp_path / "x", OSError(errno.EROFS, "Read-only")))
    gone = storage_error(tmp_path / "no" / "x", OSError(errno.ENOSPC, "No space left on device"))
    assert "No space left on device. Make room" in str(gone)  # of a folder that is not there


# --- lines ----------------------------------------------------------------------------------------


def test_lines_are_appended_whole_and_only_for_their_user(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, "one")
    append_line(path, "zwö", is_synced=False)
    assert path.read_bytes() == "one\nzwö\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_line_that_is_cut_short_is_taken_back(tmp_path: Path, is_synced: bool) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, "a" * 600)
    said = refused(1000, lambda: append_line(path, "b" * 600, is_synced=is_synced))
    assert said.startswith(f"{path}: the disk refused to write it: File too large.")
    assert path.read_text() == "a" * 600 + "\n"
    append_line(path, "c", is_synced=is_synced)  # and the next one does not follow half of another
    assert read_lines(path, repair=False) == ([b"a" * 600, b"c"], 0)


def test_a_line_that_lacks_only_its_end_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert refused(1000, lambda: append_line(path, "a" * 999)) == "nothing"
    assert refused(2000, lambda: append_line(path, "b" * 1000)).startswith(f"{path}: the disk")
    assert path.stat().st_size == 1000


def test_a_first_line_that_is_refused_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert refused(100, lambda: append_line(path, "a" * 600)).startswith(f"{path}: the disk")
    assert read_lines(path, repair=False) == ([], 0)


@pytest.mark.parametrize(
    ("content", "complete", "num_torn_bytes"),
    [
        (b"", [], 0),
        (b"torn", [], 4),
        (b"one\n", [b"one"], 0),
        (b"one\n\ntwo\n", [b"one", b"", b"two"], 0),
        (b"one\ntwo\nto", [b"one", b"two"], 2),
        (b"one\n\0\0\0\0", [b"one"], 4),
    ],
)
def test_a_torn_last_line_is_not_read_and_is_cut_off_when_asked(
    tmp_path: Path, content: bytes, complete: list[bytes], num_torn_bytes: int
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    assert read_lines(path, repair=False) == (complete, num_torn_bytes)
    assert path.read_bytes() == content
    assert read_lines(path, repair=True) == (complete, num_torn_bytes)
    assert path.read_bytes() == content[: len(content) - num_torn_bytes]
    assert read_lines(path, repair=True) == (complete, 0)


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl", repair=True) == ([], 0)
    assert list(tmp_path.iterdir()) == []


# --- journals -------------------------------------------------------------------------------------

SUBJECT = "tinker://run/sampler_weights/round_01"


@dataclass(frozen=True)
class Answer:
    """What these journals keep."""

    answer: str


def journal_with(path: Path, number: int) -> Journal:
    journal = Journal(path, SUBJECT)
    for i in range(number):
        fields = {"answer": f"ä {i}"}
        journal.add(f"q/{i}", fields, num_prompt_tokens=10 + i, num_sampled_tokens=i)
    return journal


def test_what_a_journal_was_given_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "evals" / "round_01.partial.jsonl"
    assert not path.parent.exists()
    journal = journal_with(path, 3)
    assert (len(journal), journal.get("q/1", Answer), journal.get("q/3", Answer)) == (
        3,
        Answer("ä 1"),
        None,
    )
    again = Journal(path, SUBJECT)
    assert (len(again), again.get("q/2", Answer), again.get("q/3", Answer)) == (
        3,
        Answer("ä 2"),
        None,
    )
    again.add("q/3", {"answer": "x"}, num_prompt_tokens=5)
    assert len(Journal(path, SUBJECT)) == 4
    assert num_waiting_tokens(path) == (10 + 11 + 12 + 5, 0 + 1 + 2)


def test_a_journal_is_of_one_subject(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    journal_with(path, 2)
    other = Journal(path, "the base model")
    assert len(other) == 0
    assert not path.exists()
    assert num_waiting_tokens(path) == (0, 0)
    other.add("q/9", {}, num_prompt_tokens=1)
    assert json.loads(path.read_text().splitlines()[0]) == {"subject": "the base model"}
    assert (len(Journal(path, "the base model")), len(Journal(path, SUBJECT))) == (1, 0)


def test_a_discarded_journal_can_be_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    journal = journal_with(path, 2)
    journal.discard()
    journal.discard()
    assert (len(journal), journal.get("q/0", Answer), path.exists()) == (0, None, False)
    journal.add("q/5", {"answer": "y"}, num_prompt_tokens=1)
    again = Journal(path, SUBJECT)
    assert (len(again), again.get("q/5", Answer)) == (1, Answer("y"))


@pytest.mark.parametrize("num_cut", [1, 30])
def test_a_torn_last_record_is_dropped_and_the_next_one_stands_alone(
    tmp_path: Path, num_cut: int
) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    journal_with(path, 3)
    os.truncate(path, path.stat().st_size - num_cut)
    assert num_waiting_tokens(path) == (10 + 11, 0 + 1)
    again = Journal(path, SUBJECT)
    assert (len(again), again.get("q/2", Answer)) == (2, None)
    again.add("q/2", {"answer": "new"}, num_prompt_tokens=7)
    assert Journal(path, SUBJECT).get("q/2", Answer) == Answer("new")


def test_a_torn_head_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    path.write_text(json.dumps({"subject": SUBJECT}))  # without its line's end
    journal = Journal(path, SUBJECT)
    journal.add("q/0", {}, num_prompt_tokens=1)
    assert len(Journal(path, SUBJECT)) == 1


@pytest.mark.parametrize(
    "hole",
    [
        b"\0" * 20,
        b'{"key": "q/1", "num_prompt_tok',
        b'{"key": 1, "num_prompt_tokens": 1, "num_sampled_tokens": 1, "fields": {}}',
        b'{"key": "q/1", "num_prompt_tokens": 1, "num_sampled_tokens": 1, "fields": []}',
        b"[]",
    ],
)
def test_what_follows_a_hole_is_not_believed(tmp_path: Path, hole: bytes) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    journal_with(path, 3)
    head, first, _, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([head, first, hole, third]) + b"\n")
    again = Journal(path, SUBJECT)
    assert (len(again), again.get("q/0", Answer), again.get("q/2", Answer)) == (
        1,
        Answer("ä 0"),
        None,
    )
    again.add("q/1", {"answer": "new"}, num_prompt_tokens=7)  # not behind the hole
    assert Journal(path, SUBJECT).get("q/1", Answer) == Answer("new")
    assert num_waiting_tokens(path) == (10 + 7, 0)


def test_a_journal_refused_in_the_middle_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    journal = journal_with(path, 2)
    size = path.stat().st_size

    def add() -> None:
        journal.add("q/2", {"answer": "long" * 100}, num_prompt_tokens=1)

    assert refused(size + 50, add).startswith(f"{path}: the disk refused")
    assert path.stat().st_size == size
    add()  # there is room in this process
    assert len(Journal(path, SUBJECT)) == 3


def test_a_journal_says_which_record_is_not_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    Journal(path, SUBJECT).add("q/0", {"score": 1}, num_prompt_tokens=1)
    with pytest.raises(RunStoreError, match=r"round_01\.partial\.jsonl: what it holds of 'q/0'"):
        Journal(path, SUBJECT).get("q/0", Answer)


def test_a_folder_that_a_journal_cannot_have_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "evals").symlink_to(tmp_path / "nowhere" / "evals")
    journal = Journal(tmp_path / "evals" / "round_01.partial.jsonl", SUBJECT)
    with pytest.raises(StorageError, match=r"round_01\.partial\.jsonl: the disk refused"):
        journal.add("q/0", {}, num_prompt_tokens=1)


def test_a_killed_process_leaves_the_records_it_added(tmp_path: Path) -> None:
    path = tmp_path / "round_01.partial.jsonl"
    pid = os.fork()
    if pid == 0:
        try:
            journal_with(path, 5)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(Journal(path, SUBJECT)) == 5

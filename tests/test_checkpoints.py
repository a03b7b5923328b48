"""Checkpoints on disk while everything is done to them at once: by threads, processes and kills."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import IS_THOROUGH
from local_tinker import checkpoints, placing
from local_tinker.checkpoints import StorageError, TinkerPath
from local_tinker.wire import NotFound, UserError
from racing_checkpoints import ACTS, info_of, numbers_in, raced, save

pytestmark = pytest.mark.core

PATH = TinkerPath("s:train:0", "weights", "x")


def test_nothing_fails_and_nothing_is_lost_whatever_is_done_at_once() -> None:
    """Saves, expiries, deletions, copies, reads and housekeeping meet, and processes are killed."""
    outcome = raced(seconds=60 if IS_THOROUGH else 3, num_processes=2, seed=1)
    assert not outcome.problems
    assert outcome.num_killed >= 2
    assert {*ACTS, "clean during save"} <= outcome.done.keys()  # they did meet


def test_who_owns_a_folder_keeps_threads_out_and_a_fork_does_not_keep_the_lock(
    tmp_path: Path,
) -> None:
    save(tmp_path, PATH, 1)
    has_saved = threading.Event()

    def save_again() -> None:
        save(tmp_path, PATH, 2)
        has_saved.set()

    thread = threading.Thread(target=save_again)
    with placing.owned(tmp_path):
        copied = os.dup(os.open(tmp_path / placing.LOCK_FILE, os.O_RDONLY))
        thread.start()
        give_up_at = time.monotonic() + 30  # until it has written all but waits to put it in place
        while not list(tmp_path.glob(".scratch-*/write-*/checkpoint.json")):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        assert not has_saved.is_set()
        assert numbers_in(checkpoints.folder(tmp_path, PATH)) == {1}
    thread.join(30)
    os.close(copied)
    assert numbers_in(checkpoints.find([tmp_path], PATH)) == {2}


@pytest.mark.parametrize("is_new_there", [False, True])
def test_an_overwrite_that_was_cut_in_half_is_undone_by_whoever_comes_next(
    tmp_path: Path, is_new_there: bool
) -> None:
    target = checkpoints.folder(tmp_path, PATH)
    old = target.with_name(".old-x")

    def cut_in_half() -> int:
        save(tmp_path, PATH, 1)
        target.rename(old)
        if is_new_there:
            save(tmp_path, replace_name(PATH, "y"), 2)
            checkpoints.folder(tmp_path, replace_name(PATH, "y")).rename(target)
        return 2 if is_new_there else 1

    wanted = cut_in_half()
    assert numbers_in(checkpoints.find([tmp_path], PATH)) == {wanted}
    checkpoints.delete(tmp_path, target)
    assert not target.exists() and not old.exists()
    wanted = cut_in_half()
    assert [found[0] for found in checkpoints.list_all([tmp_path])] == [PATH]
    assert not old.exists()
    checkpoints.delete(tmp_path, target)
    cut_in_half()
    assert checkpoints.read_whole(target, lambda: numbers_in(target)) == {wanted}
    checkpoints.delete(tmp_path, target)
    cut_in_half()
    save(tmp_path, PATH, 3)
    assert numbers_in(target) == {3} and not old.exists()


def replace_name(path: TinkerPath, name: str) -> TinkerPath:
    return path._replace(name=name)


def test_what_was_renewed_since_it_was_seen_expired_is_not_removed(tmp_path: Path) -> None:
    save(tmp_path, PATH, 1, time.time() - 1)
    target = checkpoints.folder(tmp_path, PATH)
    save(tmp_path, PATH, 2)  # between a look at the list and the removal
    checkpoints.delete(tmp_path, target, only_if_expired=True)
    assert numbers_in(target) == {2}
    checkpoints.set_ttl(tmp_path, target, 1)
    file = target / checkpoints.INFO_FILE
    checkpoints.write(
        tmp_path, target, replace(info_of(3), expires_at=1.0), lambda _: None, overwrite=True
    )
    assert file.is_file()
    checkpoints.clean(tmp_path)
    assert not target.exists()
    for act in (
        lambda: checkpoints.delete(tmp_path, target),
        lambda: checkpoints.set_ttl(tmp_path, target, 1),
        lambda: checkpoints.copy(tmp_path, target, target.with_name("z"), None),
        lambda: checkpoints.read_weights(target, with_optimizer=False),
    ):
        with pytest.raises(NotFound, match="'x' was deleted meanwhile"):
            act()


def test_a_folder_that_takes_no_lock_is_read_and_not_written(tmp_path: Path) -> None:
    """Of a disk that is read-only, or has no locks."""
    save(tmp_path, PATH, 1)
    lock = tmp_path / placing.LOCK_FILE
    lock.unlink()
    lock.mkdir()  # root may open any file, but not a folder to write to
    assert numbers_in(checkpoints.find([tmp_path], PATH)) == {1}
    assert [found[0] for found in checkpoints.list_all([tmp_path])] == [PATH]
    with pytest.raises(UserError, match="is not stored here"):
        checkpoints.find([tmp_path], replace_name(PATH, "y"))
    target = checkpoints.folder(tmp_path, PATH)
    for act in (
        lambda: save(tmp_path, PATH, 2),
        lambda: checkpoints.delete(tmp_path, target),
        lambda: checkpoints.set_ttl(tmp_path, target, 1),
    ):
        with pytest.raises(StorageError, match=r"\.lock"):
            act()
    assert numbers_in(target) == {1}
    assert not list(tmp_path.glob(".scratch-*/*"))

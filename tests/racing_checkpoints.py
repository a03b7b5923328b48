"""Processes of several threads that do to one folder of checkpoints whatever can be done to it, and
are killed at random moments. benchmarks/checkpoint_races.py does it for a minute.

    python tests/racing_checkpoints.py FOLDER LOG SEED     one of the processes, until it is killed

Each thread knows what has to hold of the checkpoints that are its own, and of those that all of
them overwrite and none removes; what does not hold is a line of LOG.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

import forked  # noqa: E402
from local_tinker import checkpoints, downloads  # noqa: E402
from local_tinker.checkpoints import CheckpointInfo, TinkerPath  # noqa: E402
from local_tinker.wire import NotFound, UserError  # noqa: E402

SHARED = tuple(TinkerPath("shared:train:0", "weights", f"all{n}") for n in range(3))
FILES = ("adapter_model.safetensors", "optimizer.safetensors")
ACTS = (
    "overwriting", "expiring", "deleting", "copying", "discarding", "reading", "listing",
    "cleaning",
)  # fmt: skip
TELL_S = 0.2  # how often a process says how much it has done


class Outcome(NamedTuple):
    """`done` counts what was done; `clean during save` are rounds that met a save under way."""

    done: Counter[str]
    problems: list[str]
    num_killed: int


def info_of(number: int, expires_at: float | None = None) -> CheckpointInfo:
    return CheckpointInfo("m", 1, 32, True, True, True, number, time.time(), expires_at, {})


def save(root: Path, path: TinkerPath, number: int, expires_at: float | None = None) -> None:
    """A checkpoint all of whose files hold a number."""

    def write_files(directory: Path) -> None:
        for name in FILES:
            (directory / name).write_text(f"{number}\n" * 500)

    target = checkpoints.folder(root, path)
    checkpoints.write(root, target, info_of(number, expires_at), write_files, overwrite=True)


def numbers_in(directory: Path) -> set[int]:
    found = {int(line) for name in FILES for line in (directory / name).read_text().split()}
    return found | {checkpoints.read_info(directory).num_optimizer_steps}


class _Racer:
    """One process's part: its threads, and what they have counted and met."""

    def __init__(self, root: Path, log: Path, seed: int) -> None:
        self.root, self.log, self.seed = root, log, seed
        self.run_id = f"own{os.getpid()}:train:{seed}"
        self.done: Counter[str] = Counter()
        self.num_saving = 0
        self.lock = threading.Lock()

    def tell(self, kind: str, what: object) -> None:
        """Append a line at once, so that a kill does not take it along."""
        with self.log.open("a") as file:
            file.write(json.dumps([os.getpid(), kind, what]) + "\n")

    def forever(self, name: str, act: Callable[[random.Random, int], None]) -> None:
        rng, number = random.Random(f"{self.seed} {name}"), 0
        while True:
            number += 1
            try:
                act(rng, number)
            except Exception as error:
                self.tell("problem", f"{name}: {type(error).__name__}: {error}")
            self.done[name] += 1

    def own(self, name: str, kind: checkpoints.Kind = "weights") -> TinkerPath:
        return TinkerPath(self.run_id, kind, name)

    def must_be(self, path: TinkerPath, number: int) -> None:
        directory = checkpoints.find([self.root], path)
        found = checkpoints.read_whole(directory, lambda: numbers_in(directory))
        if found != {number}:
            self.tell("problem", f"{path}: saved {number}, found {found}")

    # --- what the threads do --------------------------------------------------------------------

    def overwriting(self, rng: random.Random, number: int) -> None:
        with self.lock:
            self.num_saving += 1
        try:
            save(self.root, rng.choice(SHARED), number)
            save(self.root, self.own("kept"), number)
        finally:
            with self.lock:
                self.num_saving -= 1
        self.must_be(self.own("kept"), number)
        self.tell("kept", [self.run_id, number])

    def expiring(self, _: random.Random, number: int) -> None:
        """What is saved anew in the place of what has expired stays, whoever cleans meanwhile."""
        path = self.own("brief")
        save(self.root, path, number, time.time() - 1)
        save(self.root, path, number + 1)
        self.must_be(path, number + 1)
        directory = checkpoints.folder(self.root, path)
        checkpoints.set_ttl(self.root, directory, 3600)
        self.must_be(path, number + 1)
        checkpoints.set_ttl(self.root, directory, None)

    def deleting(self, _: random.Random, number: int) -> None:
        path = self.own("gone", "external_weights")
        save(self.root, path, number)
        checkpoints.delete(self.root, checkpoints.folder(self.root, path))
        if path in {found[0] for found in checkpoints.list_all([self.root], path.run_id)}:
            self.tell("problem", f"{path} is listed, and was deleted")
        try:
            checkpoints.find([self.root], path)
        except UserError:
            return
        self.tell("problem", f"{path} is found, and was deleted")

    def copying(self, rng: random.Random, _: int) -> None:
        source, target = rng.choice(SHARED), self.own("copy", "sampler_weights")
        source_dir = checkpoints.find([self.root], source)
        target_dir = checkpoints.folder(self.root, target)
        checkpoints.copy(self.root, source_dir, target_dir, None)
        if len(numbers_in(target_dir)) != 1:
            self.tell("problem", f"{target} is a mixture: {numbers_in(target_dir)}")
        checkpoints.delete(self.root, target_dir)

    def discarding(self, _: random.Random, number: int) -> None:
        """A session's unnamed saves."""
        directory = checkpoints.scratch(self.root) / f"run-{number}"
        checkpoints.write(
            self.root,
            directory,
            info_of(number),
            lambda folder: (folder / FILES[0]).touch(),
            overwrite=False,
        )
        checkpoints.discard(directory)

    def reading(self, rng: random.Random, _: int) -> None:
        path = rng.choice(SHARED)
        directory = checkpoints.find([self.root], path)
        found = checkpoints.read_whole(directory, lambda: numbers_in(directory))
        if len(found) != 1:
            self.tell("problem", f"{path} is a mixture: {found}")
        with downloads.opened(self.root, directory) as files:
            number = json.load(files.pop(checkpoints.INFO_FILE))["num_optimizer_steps"]
            held = {int(line) for file in files.values() for line in file.read().split()}
        if held != {number}:
            self.tell("problem", f"{path} is opened as a mixture: {held}, {number}")

    def listing(self, _: random.Random, __: int) -> None:
        listed = {found[0] for found in checkpoints.list_all([self.root])}
        if missing := set(SHARED) - listed:
            self.tell("problem", f"not listed: {missing}")

    def cleaning(self, _: random.Random, __: int) -> None:
        if self.num_saving:
            self.done["clean during save"] += 1
        checkpoints.clean(self.root)

    def race(self) -> None:
        logging.basicConfig(handlers=[_Telling(self)])
        for name in ACTS:
            args = (name, getattr(self, name))
            threading.Thread(target=self.forever, args=args, daemon=True).start()
        while True:
            time.sleep(TELL_S)
            self.tell("done", dict(self.done))


class _Telling(logging.Handler):
    """Whatever a round of housekeeping warns of is a problem here."""

    def __init__(self, racer: _Racer) -> None:
        super().__init__()
        self.racer = racer

    def emit(self, record: logging.LogRecord) -> None:
        self.racer.tell("problem", f"{record.levelname}: {record.getMessage()}")


# --- the one who watches --------------------------------------------------------------------------


def race(root: Path, seconds: float, num_processes: int, seed: int) -> Outcome:
    """Let processes race for so long, and until each has done everything, killing one after the
    other; then look at what is left."""
    rng, log = random.Random(seed), root.with_name("races.jsonl")
    root.mkdir(parents=True, exist_ok=True)
    for path in SHARED:
        save(root, path, 0)
    racing: list[forked.Process] = []
    num_begun, last, ends_at = 0, {}, None
    try:
        while ends_at is None or time.monotonic() < ends_at or not _is_enough(last):
            while len(racing) < num_processes:
                num_begun += 1
                racing.append(forked.Process(__file__, root, log, f"{seed + num_begun}"))
            time.sleep(rng.uniform(1.0, 2.0) * TELL_S)
            last = _done(log)
            able = [process for process in racing if last.get(process.pid)]
            if able:
                ends_at = ends_at or time.monotonic() + seconds
                racing.remove(chosen := rng.choice(able))
                _kill(chosen)
    finally:
        for process in racing:
            _kill(process)
    told = _told(log)
    problems = [f"{pid}: {what}" for pid, kind, what in told if kind == "problem"]
    kept = dict(what for _, kind, what in told if kind == "kept")
    done = sum(_done(log).values(), Counter[str]())
    return Outcome(done, [*problems, *_left_wrong(root, kept)], num_begun)


def _told(log: Path) -> list[tuple[int, str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def _done(log: Path) -> dict[int, Counter[str]]:
    """What each process has done, as it said last."""
    return {pid: Counter(what) for pid, kind, what in _told(log) if kind == "done"}


def _is_enough(done: dict[int, Counter[str]]) -> bool:
    return {*ACTS, "clean during save"} <= sum(done.values(), Counter[str]()).keys()


def _kill(process: forked.Process) -> None:
    process.kill()
    process.wait(60)


def _left_wrong(root: Path, kept: dict[str, int]) -> list[str]:
    """What is not as it has to be when all have been killed and one has cleaned up."""
    checkpoints.clean(root)
    problems = []
    for file in (*root.glob("*/*/.old-*"), *root.glob(".scratch-*/*")):
        problems.append(f"left: {file.relative_to(root)}")
    paths = {TinkerPath(run_id, "weights", "kept"): number for run_id, number in kept.items()}
    for path in (*SHARED, *paths):
        try:
            directory = checkpoints.find([root], path)
            found = numbers_in(directory)
        except (UserError, NotFound, OSError) as error:
            problems.append(f"{path}: {error}")
            continue
        # A save may have been made whose process was killed before it could say so.
        if len(found) != 1 or min(found) not in range(paths.get(path, 0), sys.maxsize):
            problems.append(f"{path}: {found}, and {paths.get(path)} was saved")
    return problems


def raced(seconds: float, num_processes: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as served:
        if forked.ADDRESS not in os.environ:
            served.enter_context(forked.server())
        return race(Path(name) / "checkpoints", seconds, num_processes, seed)


if __name__ == "__main__":
    _Racer(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).race()

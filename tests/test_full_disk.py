"""A full disk at every kind of write: a clear message, nothing torn, and the same run once resumed.

    python tests/test_full_disk.py FOLDER

That command drives real runs on a small tmpfs, with temporary files on another. A run is stopped
again and again: each attempt resumes it, and right before one write of one kind its own audit hook
fills the disk to the last byte, or limits the size of files so that a line is cut off in its
middle. What came of each attempt goes to FOLDER/outcomes.json and is judged in pytest; so is the
run in the end, against one that was never stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

import forked  # noqa: E402
from conftest import IS_THOROUGH  # noqa: E402
from errors import StorageError  # noqa: E402 (also found where pytest does not run this file)
from ledger.store import RunStore  # noqa: E402

NUM_MIB = 16
BALLAST = "ballast"
LEDGER = "ledger.jsonl"
LIMIT_S = 60.0  # for one attempt


class Refusal(NamedTuple):
    """When a disk is full: before the nth operation of one kind on files of one kind.

    With `is_cut` the size of files is limited instead, such that a part of the line is written.
    With `is_brief` there is room again at the next operation. `fills` names the disk, where it is
    not the one that the file is on. `named` is what the message names, where it is not the file.
    """

    file: str  # a pattern of the path below the folder of the disks
    nth: int = 1
    kind: str = "open"
    is_cut: bool = False
    is_brief: bool = False
    fills: str | None = None
    named: str | None = None


RUN, SAVE = "disk/run", r"disk/run/checkpoints/\.scratch-\d+/write-\d+"
IN_ROUND = r"checkpoint 'round_01_step_000002' could not be written to \S+/disk/run/checkpoints"
AT_END = r"checkpoint 'round_01' could not be written to \S+/disk/run/checkpoints"
LOG = r"/disk/run/inspect_logs/\S+\.eval: .* temporary file of it in \S+/temporary"
REPORT = "/disk/run/eval_report.md"  # which is still tried, where an evaluation failed

# One attempt each, in the order in which a run comes to them; a save makes its folder twice.
ATTEMPTS = {
    "settings": Refusal(rf"{RUN}/config\.resolved\.json\.tmp"),
    "manifest": Refusal(rf"{RUN}/data_manifest\.json\.tmp"),
    "dropped rows": Refusal(rf"{RUN}/data_dropped\.jsonl\.tmp"),
    "first event": Refusal(rf"{RUN}/ledger\.jsonl"),
    "first event, torn": Refusal(rf"{RUN}/ledger\.jsonl", is_cut=True),
    "journal": Refusal(rf"{RUN}/evals/round_00\.partial\.jsonl"),
    "journal, later": Refusal(rf"{RUN}/evals/round_00\.partial\.jsonl", nth=3),
    "journal, torn": Refusal(rf"{RUN}/evals/round_00\.partial\.jsonl", nth=2, is_cut=True),
    "measured": Refusal(rf"{RUN}/evals/round_00\.json\.tmp"),
    "measured event, torn": Refusal(rf"{RUN}/ledger\.jsonl", nth=2, is_cut=True),
    "inspect: folder": Refusal(rf"{RUN}/inspect_logs", kind="os.mkdir", named=LOG),
    "inspect: temporary": Refusal(r"temporary/.*", nth=2, named=LOG),
    "inspect: samples": Refusal(
        rf"{RUN}/inspect_logs/\.inspect_tmp.*", fills="temporary", named=LOG
    ),
    "inspect: last log": Refusal(rf"{RUN}/inspect_logs/\.inspect_tmp.*", nth=3, named=LOG),
    "evaluated": Refusal(rf"{RUN}/evals/round_00\.json\.tmp", nth=2),
    "first selection": Refusal(rf"{RUN}/selections/round_01\.json\.tmp"),
    "step event, torn": Refusal(rf"{RUN}/ledger\.jsonl", nth=4, is_cut=True),
    "state in a round": Refusal(SAVE, kind="os.mkdir", named=IN_ROUND),
    "description": Refusal(rf"{SAVE}/checkpoint\.json", named=IN_ROUND),
    "state at the end": Refusal(SAVE, nth=5, kind="os.mkdir", named=AT_END),
    "sampler weights": Refusal(SAVE, nth=3, kind="os.mkdir", named=AT_END),
    "losses journal": Refusal(rf"{RUN}/selections/losses_02\.partial\.jsonl", nth=10),
    "losses": Refusal(rf"{RUN}/selections/losses_02\.json\.tmp"),
    "rows as seen": Refusal(rf"{RUN}/selections/shown_02\.json\.tmp"),
    "selection": Refusal(rf"{RUN}/selections/round_02\.json\.tmp"),
    "test journal": Refusal(rf"{RUN}/evals/test\.partial\.jsonl", named=REPORT),
    "test": Refusal(rf"{RUN}/evals/test\.json\.tmp", nth=2, named=REPORT),
    "report": Refusal(rf"{RUN}/eval_report\.md\.tmp"),
    "last event, torn": Refusal(rf"{RUN}/ledger\.jsonl", nth=2, is_cut=True),
}

# Files that are written as others are, and after which the run stands where it stood.
LIKE_OTHERS = (
    "dropped rows",
    "first event",
    "journal",
    "inspect: folder",
    "inspect: samples",
    "evaluated",
    "losses",
    "rows as seen",
    "test",
)
if not IS_THOROUGH:
    ATTEMPTS = {name: one for name, one in ATTEMPTS.items() if name not in LIKE_OTHERS}

BEFORE_IT_STARTED = ("manifest", "dropped rows", "first event", "first event, torn")

# An evaluation of checkpoints outside a run has files of its own.
COMPARED = {
    "result": Refusal(r"disk/compared/evals/checkpoint_00\.json\.tmp"),
    "second journal": Refusal(r"disk/compared/evals/checkpoint_01\.partial\.jsonl"),
    "comparison": Refusal(r"disk/compared/eval_report\.md\.tmp"),
    "compared event, torn": Refusal(r"disk/compared/ledger\.jsonl", nth=2, is_cut=True),
}

# What the run does not depend on: a warning, and it goes on, here until its report.
BESIDE = [
    Refusal(r"disk/beside/evalops/round_00-.*\.tmp", is_brief=True),
    Refusal(r"disk/beside/report\.html\.tmp", is_brief=True),
    Refusal(r"disk/beside/checkpoints/\.scratch-\d+/info-\d+", is_brief=True),
    Refusal(r"disk/beside/eval_report\.md\.tmp"),
]


# --- driving runs on a small disk -----------------------------------------------------------------


def keep_mounts_to_itself() -> None:
    """What this process mounts, as `root` of a user namespace, only it and its children see.

    Raises `OSError` where the system does not allow it.
    """
    new_user_and_mounts = 0x10000000 | 0x20000  # CLONE_NEWUSER | CLONE_NEWNS of sched.h
    maps = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    # `os.unshare` came with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).unshare(new_user_and_mounts):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in maps.items():
        Path(f"/proc/self/{name}").write_text(content)


class Disk:
    """A file system of its own that can be filled to the last byte and given room again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={NUM_MIB}m", "none", str(path)]
        subprocess.run(command, check=True)

    def fill(self, num_left: int = 0) -> None:
        descriptor = os.open(self.path / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        state = os.statvfs(self.path)
        num_bytes = state.f_bavail * state.f_frsize - num_left
        with contextlib.suppress(OSError):  # others may have written meanwhile
            while num_bytes > 0:
                num_bytes -= os.write(descriptor, bytes(min(num_bytes, 2**20)))
        os.close(descriptor)

    def free(self) -> None:
        (self.path / BALLAST).unlink(missing_ok=True)


class Refusing:
    """What an attempt's audit hook does: the refusals, one after the other."""

    def __init__(
        self, refusals: Sequence[Refusal], folder: Path, disks: dict[str, Disk], tell: int
    ) -> None:
        self.refusals = list(refusals)
        self.folder, self.disks, self.tell = folder, disks, tell
        self.count = 0
        self.is_busy = False  # with the ballast, whose operations the hook hears of as well
        self.to_free: Disk | None = None

    def __call__(self, kind: str, file: str) -> None:
        if not self.is_busy:
            self.is_busy = True
            self.operation(kind, file)
            self.is_busy = False

    def operation(self, kind: str, file: str) -> None:
        if self.to_free is not None:
            self.to_free.free()
            self.to_free = None
        if not self.refusals or kind != self.refusals[0].kind:
            return
        if re.fullmatch(self.refusals[0].file, file):
            self.count += 1
            if self.count == self.refusals[0].nth:
                self.count = 0
                self.refuse(self.refusals.pop(0), file)

    def refuse(self, refusal: Refusal, file: str) -> None:
        os.write(self.tell, f"{file}\n".encode())
        if refusal.is_cut:
            path = self.folder / file
            size = path.stat().st_size if path.exists() else 0
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limit))
            return
        disk = self.disks[refusal.fills or file.partition("/")[0]]
        disk.fill()
        self.to_free = disk if refusal.is_brief else None


class Driver:
    """Runs the command in forked children and notes what came of it."""

    def __init__(self, folder: Path) -> None:
        # Imported before anything forks, so that each attempt starts at once.
        import kill_resume  # pyright: ignore[reportMissingImports] (of benchmarks/)

        forked.import_everything()
        self.kill_resume = kill_resume
        self.folder = folder
        self.disks = {name: Disk(folder / name) for name in ("disk", "temporary")}
        os.environ["TMPDIR"] = str(self.disks["temporary"].path)
        tempfile.tempdir = None

    def attempt(
        self,
        name: str,
        arguments: Sequence[str],
        run_dir: Path,
        refusals: Sequence[Refusal] = (),
        *,
        num_left: int | None = None,
        is_heard: bool = True,
    ) -> dict[str, Any]:
        """Run the command to its end, the disk being full at some time, and give room again."""
        log, began = self.folder / "log", time.monotonic()
        pipe = self.folder / f"pipe-{time.monotonic_ns()}"  # the limit on files is none on a pipe
        os.mkfifo(pipe)
        with open(log, "wb") as file:
            reader = subprocess.Popen(["cat", str(pipe)], stdout=file)
        if num_left is not None:
            self.disks["disk"].fill(num_left)
        read_end, tell = os.pipe()

        def body() -> int:
            if not is_heard:
                os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
            return self.run(arguments, Refusing(refusals, self.folder, self.disks, tell))

        pid = self.kill_resume.forked(body, pipe)
        os.close(tell)
        code = self.kill_resume.end_of(pid, LIMIT_S)
        if code is None:
            os.kill(pid, signal.SIGKILL)
        reader.wait(10)
        with os.fdopen(read_end) as told:
            files = told.read().splitlines()
        for disk in self.disks.values():
            disk.free()
        ledger = run_dir / LEDGER
        return {
            "name": name,
            "code": code,
            "files": files,
            "said": log.read_text(),
            "ledger": ledger.read_text() if ledger.exists() else "",
            "left": [str(f) for f in run_dir.rglob("*") if is_left_over(f)],
            "seconds": time.monotonic() - began,
        }

    def run(self, arguments: Sequence[str], refusing: Refusing) -> int:
        """The command itself, in the child."""
        import trainer_with_eval

        for name, disk in self.disks.items():
            self.kill_resume.watch_files(
                disk.path, lambda op, name=name: refusing(op.kind, f"{name}/{op.file}")
            )
        return trainer_with_eval.main(list(arguments))

    def at_every_kind(self) -> dict[str, Any]:
        """One run in which each kind of write is refused once, beside one that never was."""
        settings = self.kill_resume.inspect_settings(self.folder)
        with open(self.folder / "train.jsonl", "a") as train:  # a row to drop
            train.write('{"instruction": "Say 0", "output": "0", "topic": "sums"}\n')
        config = self.folder / "config.json"
        config.write_text(json.dumps({**settings, "max_rounds": 2}))
        resume = ["--config", str(config), "--resume"]
        whole, run_dir = self.disks["disk"].path / "whole", self.disks["disk"].path / "run"
        first = self.attempt("whole", [*resume, str(whole)], whole)
        attempts = [
            self.attempt(name, [*resume, str(run_dir)], run_dir, [refusal])
            for name, refusal in ATTEMPTS.items()
        ]
        end = self.attempt("end", [*resume, str(run_dir)], run_dir)
        return {
            "whole": first,
            "attempts": attempts,
            "end": end,
            "differences": self.differences(whole, run_dir),
        }

    def on_small_disks(self, config: Path, whole: Path) -> dict[str, Any]:
        """One run that meets disks with so many bytes left, drawn with a seed."""
        run_dir, rng = self.disks["disk"].path / "small", random.Random(0)
        resume = ["--config", str(config), "--resume", str(run_dir)]
        sizes = sorted(round(2 ** rng.uniform(9, 18)) for _ in range(5))
        attempts = [
            self.attempt(f"{size} bytes left", resume, run_dir, num_left=size) for size in sizes
        ]
        end = self.attempt("end", resume, run_dir)
        return {"attempts": attempts, "end": end, "differences": self.differences(whole, run_dir)}

    def of_an_evaluation(self, config: Path, whole: Path) -> dict[str, Any]:
        """Checkpoints that are evaluated outside a run."""
        run_dir, once = self.disks["disk"].path / "compared", self.disks["disk"].path / "once"
        begin = ["--config", str(config), "--evaluate", f"{whole}@round_00", f"{whole}@best"]
        first = self.attempt("whole", [*begin, "--run-dir", str(once)], once)
        attempts = []
        for name, refusal in COMPARED.items():
            is_begun = (run_dir / "config.resolved.json").exists()
            resume = ["--resume", str(run_dir)] if is_begun else [*begin, "--run-dir", str(run_dir)]
            attempts.append(self.attempt(name, resume, run_dir, [refusal]))
        end = self.attempt("end", ["--resume", str(run_dir)], run_dir)
        reports = [(folder / "eval_report.md").read_text() for folder in (once, run_dir)]
        return {"whole": first, "attempts": attempts, "end": end, "reports": reports}

    def beside_a_run(self, config: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """EvalOps and the expiry of weights, which a run does not depend on."""
        changed = {"evalops_enabled": True, "evalops_test_suite_id": "suite", "max_rounds": 1}
        run_dir, study = self.disks["disk"].path / "beside", self.kill_resume
        resume = ["--config", str(config), "--resume", str(run_dir)]
        with study.evalops_at(self.folder) as url, study.environment(EVALOPS_API_KEY="eoak_test"):
            config.write_text(json.dumps({**settings, **changed, "evalops_api_url": url}))
            attempt = self.attempt("beside", resume, run_dir, BESIDE)
            end = self.attempt("end", resume, run_dir)
        return {"attempts": [attempt], "end": end}

    def of_the_output(self, config: Path, whole: Path) -> dict[str, Any]:
        """What the command says, sent to a file on a full disk."""
        alerted, run_dir = self.folder / "alerted", self.disks["disk"].path / "unseen"
        command = ["--config", str(config), "--run-dir", str(run_dir), "--alert", f"tee {alerted}"]
        attempt = self.attempt("stderr", command, run_dir, is_heard=False)
        program = [sys.executable, str(REPO / "trainer_with_eval.py"), "--list", str(whole)]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with open("/dev/full", "w") as full:
            listed = subprocess.run(
                program, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered
            )
        return {
            "attempts": [attempt],
            "alerted": json.loads(alerted.read_text()),
            "listed": [listed.returncode, listed.stderr],
        }

    def differences(self, whole: Path, run_dir: Path) -> list[str]:
        folders = (whole / "checkpoints", run_dir / "checkpoints")
        return self.kill_resume.differences(whole, run_dir, folders)


def is_left_over(file: Path) -> bool:
    """Whether it is a file that was being written; those of a killed service go when it is back."""
    return file.suffix == ".tmp" or file.name.startswith((".inspect_tmp", "write-", "info-"))


def main(folder: Path) -> None:
    driver = Driver(folder)
    outcomes = {"every kind": driver.at_every_kind()}
    plain = folder / "plain"
    plain.mkdir()
    settings = driver.kill_resume.base_settings(plain)
    config, whole = plain / "config.json", driver.disks["disk"].path / "whole-plain"
    config.write_text(json.dumps({**settings, "max_rounds": 2}))
    first = driver.attempt("whole", ["--config", str(config), "--run-dir", str(whole)], whole)
    assert first["code"] == 0, first["said"]
    outcomes["small disks"] = driver.on_small_disks(config, whole)
    outcomes["evaluation"] = driver.of_an_evaluation(config, whole)
    outcomes["output"] = driver.of_the_output(config, whole)
    outcomes["beside"] = driver.beside_a_run(config, settings)
    (folder / "outcomes.json").write_text(json.dumps(outcomes, indent=1))


# --- what came of it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the attempts came to; their runs are made once for all tests."""
    folder = tmp_path_factory.mktemp("full-disk")
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        trial = [*namespace, "mount", "-t", "tmpfs", "none", str(folder)]
        subprocess.run(trial, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system of its own cannot be mounted here: {error}")
    done = forked.run(__file__, folder)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return json.loads((folder / "outcomes.json").read_text())


def error_of(attempt: dict[str, Any]) -> str:
    """The paragraph that an attempt ended with, the only one, and nothing torn or left behind."""
    assert attempt["code"] == 1, attempt["said"]
    assert "Traceback" not in attempt["said"]
    assert "Unexpected" not in attempt["said"]
    (error,) = [line for line in attempt["said"].splitlines() if line.startswith("error: ")]
    assert attempt["said"].endswith(f"{error}\n")
    assert "the disk refused" in error
    assert re.search("make room", error, re.IGNORECASE)
    assert attempt["ledger"] == "" or attempt["ledger"].endswith("\n")
    for seq, line in enumerate(attempt["ledger"].splitlines()):
        assert json.loads(line)["seq"] == seq
    assert attempt["left"] == []
    return error


def types_of(attempt: dict[str, Any]) -> list[str]:
    return [json.loads(line)["type"] for line in attempt["ledger"].splitlines()]


def refused(attempts: list[dict[str, Any]], refusals: dict[str, Refusal], name: str) -> str:
    """Check an attempt at which one write was refused; returns what was said."""
    attempt, refusal = next(one for one in attempts if one["name"] == name), refusals[name]
    (file,) = attempt["files"]
    assert re.fullmatch(refusal.file, file)
    error = error_of(attempt)
    assert re.search(refusal.named or re.escape(f"/{file.removesuffix('.tmp')}: "), error)
    return error


@pytest.mark.parametrize("name", ATTEMPTS)
def test_each_kind_of_write_is_refused_in_one_paragraph(
    outcomes: dict[str, Any], name: str
) -> None:
    attempts = outcomes["every kind"]["attempts"]
    error = refused(attempts, ATTEMPTS, name)
    if name == "settings":  # before there is a run
        assert error.endswith(" Nothing was begun yet; give the same command again.")
    else:
        again = r" --config \S+/config\.json" if name in BEFORE_IT_STARTED else ""
        shown = rf" Continue with: \S+python\S* \S+\.py --resume \S+/disk/run{again}$"
        assert re.search(shown, error)


def test_what_could_not_be_recorded_is_not_there(outcomes: dict[str, Any]) -> None:
    attempts = {one["name"]: types_of(one) for one in outcomes["every kind"]["attempts"]}
    assert attempts["first event, torn"] == []
    assert attempts["measured event, torn"].count("measured") == 0
    assert attempts["measured event, torn"][-1] == "resumed"  # and not `failed`: no room for it
    assert attempts["measured"][-1] == "failed"  # where there is room, as in the ledger's last page
    assert attempts["step event, torn"][-2:] == ["selected", "step"]
    assert "checkpoint" not in attempts["description"]
    assert attempts["sampler weights"].count("checkpoint") == 2  # those inside the round
    assert "run_finished" not in attempts["last event, torn"]


def test_with_room_again_it_ends_as_the_same_run(outcomes: dict[str, Any]) -> None:
    of_run = outcomes["every kind"]
    assert [of_run["whole"]["code"], of_run["end"]["code"]] == [0, 0]
    assert of_run["differences"] == []
    assert of_run["end"]["left"] == []


def test_whatever_the_disk_has_left_the_run_ends_the_same(outcomes: dict[str, Any]) -> None:
    of_run = outcomes["small disks"]
    ends = {(types_of(one) or ["(none)"])[-2:][0] for one in of_run["attempts"]}
    assert len(ends) > 2, "they ended at different places"
    for attempt in of_run["attempts"]:
        error_of(attempt)
    assert of_run["end"]["code"] == 0
    assert of_run["differences"] == []


@pytest.mark.parametrize("name", COMPARED)
def test_an_evaluation_of_checkpoints_is_refused_in_one_paragraph(
    outcomes: dict[str, Any], name: str
) -> None:
    refused(outcomes["evaluation"]["attempts"], COMPARED, name)


def test_an_evaluation_of_checkpoints_ends_with_the_same_report(outcomes: dict[str, Any]) -> None:
    of_evaluation = outcomes["evaluation"]
    assert of_evaluation["end"]["code"] == 0
    once, stopped = of_evaluation["reports"]
    assert once == stopped
    assert "round_00 is the reference" in once


def test_what_a_run_does_not_depend_on_is_a_warning(outcomes: dict[str, Any]) -> None:
    (attempt,), end = outcomes["beside"]["attempts"], outcomes["beside"]["end"]
    assert len(attempt["files"]) == len(BESIDE)
    assert "/disk/beside/eval_report.md: the disk refused" in error_of(attempt)
    warnings = [line for line in attempt["said"].splitlines() if line.startswith("warning: ")]
    assert any("EvalOps is not sent round 0" in one for one in warnings)
    assert any("did not change how long weights are kept" in one for one in warnings)
    assert any("/disk/beside/report.html is not written" in one for one in warnings)
    assert types_of(attempt).count("care_failed") == 1
    assert "checkpoint_kept" not in types_of(attempt)
    assert end["code"] == 0
    assert "checkpoint_kept" in types_of(end)
    told = [json.loads(line) for line in end["ledger"].splitlines()]
    rounds = {event["round"] for event in told if event["type"] == "evalops" and event["ok"]}
    assert rounds == {0, 1}


def test_a_lock_that_cannot_be_made_is_a_refusal_too(tmp_path: Path) -> None:
    """As on file systems whose folders take room themselves, which a tmpfs's do not."""
    (tmp_path / "config.resolved.json").write_text("{}")
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match=r"\.lock: the disk refused to write it"):
        RunStore.open(tmp_path, to_resume=True)


# --- what it says goes to a full disk -------------------------------------------------------------


def test_where_nothing_can_be_said_the_alert_still_is(outcomes: dict[str, Any]) -> None:
    (attempt,), alerted = outcomes["output"]["attempts"], outcomes["output"]["alerted"]
    assert attempt["code"] == 1
    assert alerted["alert"] == "failed"
    assert "The disk refused to write an output" in alerted["detail"]


def test_a_result_that_cannot_be_written_out_is_a_failure(outcomes: dict[str, Any]) -> None:
    assert outcomes["output"]["listed"] == [
        1,
        "error: Standard output: the disk refused to write the result to it: No space left on "
        "device. Make room. The run directory is whole.\n",
    ]


if __name__ == "__main__":
    os.environ["TINKER_TELEMETRY"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    keep_mounts_to_itself()
    main(Path(sys.argv[1]))

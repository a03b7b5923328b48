"""Processes that write to a registry are killed at any moment, and what each leaves is held against
what it had said. benchmarks/registry_kills.py does it at length.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import promotion.naming
import promotion.notices
import promotion.promoting
import promotion.weighing  # noqa: F401 (all of them before anything forks, so that it starts at once)
import registry
from ledger.registry_chain import hash_of
from ledger.registry_file import CHAMPION, Promoted, Registry
from ledger.registry_writing import RegistryWriter, Who, writing
from ledger.run_directory import now
from registry_records import with_weights
from run_records import finished

How = Literal["moment", "amid", "command"]
RUN = "runs/r"
KILLS_OF_A_FILE = 10  # then another one is begun, so that reading it stays quick
WEIGHTS: dict[How, float] = {"moment": 0.4, "amid": 0.3, "command": 0.3}  # of the kills
MAX_WORK_S = {"moment": 0.12, "command": 0.5}  # until a process is killed
MAX_LINE_BYTES = 900  # a line of these processes has about as many
LIMIT_S = 20.0  # for one that is to end by itself
BY = Who("benchmark", ["registry_kills.py"])


class Kill(NamedTuple):
    """How a process was ended, what it had said, and what of it was wrong then.

    `command` is at a random moment of registry.py, which promotes and moves aliases; the others
    call what it writes by, and so are more often killed while they write.
    """

    how: How
    num_said: int
    num_torn_bytes: int
    problems: list[str]


def entry_of(name: str, version: int) -> Promoted:
    """An entry as a promotion makes it, of no run that there is."""
    run = f"tinker://session:train:{version}"
    return Promoted(
        name=name,
        version=version,
        time=now(),
        run_id=f"run{version}",
        run_dir=f"runs/{version}",
        round=1,
        step=5,
        sampler_path=f"{run}/sampler_weights/round_01",
        state_path=f"{run}/weights/round_01",
        weights_sha256={"adapter_model.safetensors": f"{version:064x}"},
        base_model="m",
        base_sha256=None,
        lora={"rank": 8},
        renderer="llama3",
        data_sha256="0" * 64,
        results={"score": 0.5, "interval": [0.4, 0.6], "n": 100},
        sealed_test=None,
        promoted_by="benchmark",
        command=list(BY.command),
        parent=None,
        against=None,
    )


def write_on(path: Path, said: int, dice: random.Random) -> None:
    """Promote and move aliases until this process is killed."""
    while True:
        with writing(path) as writer:
            write_one(writer, dice)
            registry = writer.registry
        os.write(said, f"{len(registry.events) - 1} {registry.head}\n".encode())


def command_on(path: Path, said: int, dice: random.Random) -> None:
    """Give commands that promote and move aliases until this process is killed."""
    run_dir = path.parent / RUN
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        while True:
            num = Registry.look(path).next_version("support") - 1
            words = ["promote", f"{run_dir}@round_{dice.randint(1, 2):02d}", "support"]
            if num and dice.random() < 0.5:
                words = ["alias", f"support@{dice.randint(1, num)}", dice.choice(["a", CHAMPION])]
            code = registry.main([*words, "--force", "a test", "--registry", str(path)])
            if code == 0:
                found = Registry.look(path)
                os.write(said, f"{len(found.events) - 1} {found.head}\n".encode())


def write_one(writer: RegistryWriter, dice: random.Random) -> None:
    registry, name = writer.registry, dice.choice(["support", "triage"])
    newest = registry.next_version(name) - 1
    if newest == 0 or dice.random() < 0.5:
        writer.promote(entry_of(name, newest + 1), [CHAMPION])
        return
    entry = registry.find(f"{name}@{dice.randint(1, newest)}")
    writer.move_alias(entry, dice.choice([CHAMPION, "staging"]), BY, "a benchmark")


def killed(path: Path, how: How, dice: random.Random) -> Kill:
    """Let a process write, kill it, and hold what it left against what it had said."""
    reader, said = os.pipe()
    seed, size = dice.random(), path.stat().st_size if path.exists() else 0
    cut_at = size + dice.randint(1, 6 * MAX_LINE_BYTES)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        if how == "amid":
            # Of a write beyond it the system takes a part, and ends the process at the rest.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (cut_at, cut_at))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            work = command_on if how == "command" else write_on
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                work(path, said, random.Random(seed))
        finally:
            os._exit(1)
    os.close(said)
    problems: list[str] = []
    if how != "amid":
        time.sleep(dice.uniform(0, MAX_WORK_S[how]))
        problems += read_problems(path)  # while it is at work
        os.kill(pid, signal.SIGKILL)
    code = end_of(pid)
    if code not in (-signal.SIGKILL, -signal.SIGXFSZ):
        problems.append(f"the process ended by itself, with {code}")
    with os.fdopen(reader, encoding="ascii") as lines:
        promised = [line.split() for line in lines.read().splitlines()]
    problems += read_problems(path) + lost(path, promised)
    return Kill(how, len(promised), Registry.look(path).num_torn_bytes, problems)


def end_of(pid: int) -> int | None:
    """The exit code of a process; None of one that did not end and was killed."""
    ends_at = time.monotonic() + LIMIT_S
    while time.monotonic() < ends_at:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def read_problems(path: Path) -> list[str]:
    """What a reader finds wrong with a registry."""
    registry = Registry.look(path)
    problems = [] if registry.problem is None else [registry.problem]
    for name in registry.names:
        versions = [one.version for one in registry.entries if one.name == name]
        if versions != list(range(1, len(versions) + 1)):
            problems.append(f"versions of {name}: {versions}")
    last: dict[tuple[str, str], int] = {}
    for event in registry.events:
        if event["type"] == "promoted":
            entry = event["entry"]
            last |= {(entry["name"], alias): entry["version"] for alias in event["aliases"]}
        elif event["type"] == "alias":
            last[event["name"], event["alias"]] = event["version"]
    if last != registry.aliases():
        problems.append(f"aliases are {registry.aliases()}, and the events say {last}")
    return problems


def lost(path: Path, promised: Sequence[Sequence[str]]) -> list[str]:
    """What was said to be recorded and is not, as the bytes of the file have it."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [
        f"line {seq} was said to be recorded, with the hash {sha256}, and is not"
        for seq, sha256 in promised
        if int(seq) >= len(lines) or hash_of(lines[int(seq)]) != sha256
    ]


def run_kills(folder: Path, number: int, seed: int) -> list[Kill]:
    """So many kills, each of a process that goes on with what the one before has left."""
    dice, kills = random.Random(seed), list[Kill]()
    with_weights(finished(folder / RUN))
    for one in range(number):
        path = folder / f"registry_{one // KILLS_OF_A_FILE}.jsonl"
        (how,) = dice.choices(list[How](WEIGHTS), list(WEIGHTS.values()))
        kills.append(killed(path, how, dice))
        if one % KILLS_OF_A_FILE == KILLS_OF_A_FILE - 1 or one == number - 1:
            with writing(path) as writer:  # the lock is free, and what was torn is cut off
                write_one(writer, dice)
            problems = read_problems(path)
            if Registry.look(path).num_torn_bytes or Registry.look(path).lacks_newline:
                problems.append("what was torn was not cut off")
            kills[-1].problems.extend(problems)
    return kills

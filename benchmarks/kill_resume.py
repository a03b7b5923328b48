"""Is a killed run, resumed, the same run? Compared bit for bit with one that was never interrupted.

    .venv/bin/python benchmarks/kill_resume.py [--series NAME:MOMENTS...] [--seed 0] [--json FILE]
    .venv/bin/python benchmarks/kill_resume.py --method SETTINGS.json:MOMENTS...

The second form kills runs of a settings file, whatever method it trains by, on the embedded
service; the run has to end with exit code 0.

A moment is one operation of the run on its files (an open to write, a rename, a removal): just
before it the process is killed with SIGKILL, by its own audit hook, so that the moment is exact.
The moments of a series are drawn with a seed, such that each event type that it is there for has
one just before the event is written, one amid it (a torn line is left behind, as a power cut does)
and one just after it. Some resumed runs are killed a second time; others at a random time instead,
in the middle of sampling or arithmetic. The series:

    plain      question files, held-out loss, mined rows, states inside rounds, a sealed test
    inspect    two Inspect tasks beside them, one rehearsed and measured at the end
    guarded    rounds that get worse, and are gone back from; limits; rounds sent to an EvalOps
    rising     rounds that get better, up to the target: what was best is let go
    to_start   rounds that get worse than the untouched model, which is gone back to
    to_weights the same of a run that was started from the weights of another
    stopped    ended by Ctrl-C, or by an evaluation that fails, and killed while that is recorded
    diverging  the first loss is not finite; the run fails, and has to fail in the same way again
    dpo        preferences, started from the weights of another run, and mined by their margins
    rl         rewards, with a penalty for the KL to the start, and mined by their pass rates
    clipped    rewards under a clipped loss, started from the weights of another run
    on_policy  the student's answers, judged by a teacher token by token
    off_policy a teacher's answers and its distribution at each token
    engine     a service of its own process that knows no expiry of weights
    far        a service whose results of steps are long under way, so that many are in flight
    evaluate   checkpoints evaluated outside a run
    service    the service's process (`python -m local_tinker`) is killed, and started again
    far_service the same, with many steps in flight

Each process of a run, the one that is never interrupted too, has a bound on the steps in flight of
its own, drawn from DEPTHS; evaluations of checkpoints and diverging runs have none.

Compared are adapter and optimizer tensors of every checkpoint, evaluations, selections, measured
losses, the data manifest and the effective ledger; times, ids, paths and interruptions aside. A run
that Ctrl-C ends inside a round saves where it is, and so its ledger has one state more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

# Imported before anything forks, so that each run starts at once.
import httpx  # noqa: E402
import inspect_ai  # noqa: E402, F401
import sklearn.feature_extraction.text  # noqa: E402, F401
import tinker  # noqa: E402, F401
import tinker_cookbook.renderers  # noqa: E402, F401
import torch  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI, Request, Response  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import local_tinker.__main__  # noqa: E402
import local_tinker.service  # noqa: E402
import loop.planning.plan  # noqa: E402
import loop.rounds.training  # noqa: E402, F401
import trainer_with_eval  # noqa: E402
from ledger.events import KINDS  # noqa: E402
from ledger.run_directory import effective_events, is_absent_or_empty  # noqa: E402
from ledger.store import RunStore  # noqa: E402

INTERRUPTIONS = ("resumed", "interrupted", "failed", "eval_failed")
KEY = "tml-of-the-kill-benchmark"
TWICE_SHARE = 0.2  # of the moments: the resumed run is killed as well
TIMED_SHARE = 0.2  # of the moments: at a random time, not at an operation
RESULT_S = 0.15  # that the results of a step are under way from a service that is far away
LIMIT_S = 300.0  # for one run; a run that hangs is a failure
SERVICE_SERIES = ("service", "far_service")  # in which the service is killed
DEPTHS = (1, 2, 4, 16, 64)
DEFAULT_SERIES = [
    "plain:60",
    "inspect:40",
    "guarded:24",
    "rising:8",
    "to_start:12",
    "to_weights:12",
    "stopped:24",
    "diverging:8",
    "dpo:20",
    "rl:20",
    "clipped:20",
    "on_policy:20",
    "off_policy:20",
    "engine:6",
    "far:20",
    "evaluate:10",
    "service:50",
    "far_service:10",
]

TASK_FILE = """
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, solver

FAILS = Path({fails!r})  # as long as this file is there


@solver
def failing_at_times():
    async def solve(state, generate):
        if FAILS.exists():
            raise RuntimeError("this task fails now")
        return state

    return solve


def asking(text: str) -> Task:
    samples = [Sample(id=i, input=text.format(i), target="a") for i in range(12)]
    solvers = [failing_at_times(), generate()]
    return Task(dataset=MemoryDataset(samples), solver=solvers, scorer=includes())


@task
def letters() -> Task:
    return asking("Which letter is number {{}}?")


@task
def ending() -> Task:
    return asking("How does line {{}} end?")
"""


class Operation(NamedTuple):
    """One operation on a file of the run, and the type of the event that it writes, if it does."""

    kind: str
    file: str
    event: str | None


class Moment(NamedTuple):
    """When a run is killed: before an operation, at an event of the ledger, or after seconds.

    With `stop` the operation is when it is made to end by itself, by Ctrl-C or by its evaluation;
    it is killed at the event that tells of it, or, where that does not come, not at all.
    """

    operation: int | None = None
    event: str | None = None
    occurrence: int = 0  # of the events of this type
    when: Literal["before", "amid", "after"] = "before"
    after_s: float | None = None
    stop: Literal["signal", "fail"] | None = None


@dataclass(frozen=True)
class World:
    """What the runs of a series are given, in a folder of their own."""

    folder: Path
    begin: list[str]  # the arguments of a new run; its directory follows
    go_on: list[str]  # and of a resumed one
    focus: tuple[str, ...] | None = None  # event types to be killed at first; None: all
    exit_code: int = 0
    checkpoints: Path | None = None  # where the weights are; None: in the run directory
    fails: Path = field(default_factory=lambda: Path("fails"))  # while it is there, tasks fail
    # Draws how many steps are in flight; None where the settings say so.
    depths: random.Random | None = field(default_factory=lambda: random.Random(0))

    def arguments(self, run_dir: Path) -> list[str]:
        """The arguments of the next process of a run."""
        command = [*(self.begin if is_absent_or_empty(run_dir) else self.go_on), str(run_dir)]
        if self.depths is None:
            return command
        return [*command, "--set", f"data.max_steps_in_flight={self.depths.choice(DEPTHS)}"]

    def checkpoint_dir(self, run_dir: Path) -> Path:
        return self.checkpoints or run_dir / "checkpoints"


# --- the worlds -------------------------------------------------------------------------------


def base_settings(folder: Path) -> dict[str, Any]:
    """Data, questions and settings that reach most event types of a run; returns the settings."""
    from model_dirs import make_model_dir  # pyright: ignore[reportMissingImports] (of tests/)

    make_model_dir(folder / "model", "llama")
    topics = ("sums", "names")

    def rows(numbers: range) -> list[dict[str, str]]:
        return [
            {"instruction": f"Say {i}", "output": str(i), "topic": topics[i % 2]} for i in numbers
        ]

    def questions(word: str) -> list[dict[str, str]]:
        return [
            {"question": f"Which {word} is at {i}?", "answer": "x", "topic": topics[i % 2]}
            for i in range(12)
        ]

    write_rows(folder / "train.jsonl", rows(range(20)))
    write_rows(folder / "pool.jsonl", rows(range(100, 130)))
    write_rows(folder / "val.jsonl", rows(range(300, 304)))
    write_rows(folder / "questions.jsonl", questions("word"))
    write_rows(folder / "sealed.jsonl", questions("sealed number"))
    (folder / "letters.py").write_text(TASK_FILE.format(fails=str(folder / "fails")))
    return {
        "base_model": str(folder / "model"),
        "train_file": "train.jsonl",
        "val_file": "val.jsonl",
        "eval_tasks": ["qa:questions.jsonl"],
        "learning_rate": 0.01,
        "lora_rank": 4,
        "batch_size": 4,
        "steps_per_round": 5,
        "checkpoint_every_steps": 2,
        "max_rounds": 3,
        "eval_threshold": 1.0,
        "evaluation": {
            "max_tokens": 6,
            "temperature": 1.0,
            "held_out_every_steps": 2,
            "test_tasks": ["qa:sealed.jsonl"],
        },
        "mining": {"pool_file": "pool.jsonl", "replay_share": 0.25},
    }


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def world_of(folder: Path, settings: dict[str, Any], **fields: Any) -> World:
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    command = ["--config", str(config), "--resume"]
    return World(folder, command, command, fails=folder / "fails", **fields)


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[World]:
    yield world_of(folder, base_settings(folder))


def inspect_settings(folder: Path) -> dict[str, Any]:
    settings = base_settings(folder)
    settings["eval_tasks"] += ["letters.py@letters", "letters.py@ending"]
    settings["evaluation"] |= {
        "num_repeats": 2,
        "layers": {"letters.py@ending": 2},
        "every": {"letters.py@ending": "end"},  # so that it is rehearsed
    }
    return settings


@contextlib.contextmanager
def inspect(folder: Path) -> Iterator[World]:
    yield world_of(folder, inspect_settings(folder))


def taught_and_spoilt(folder: Path) -> dict[str, Any]:
    """Round 1 teaches the answer, the pool unlearns it; returns settings."""
    settings = base_settings(folder)
    ask = "Which word stands at {} {}?".format
    taught = [{"instruction": ask("spot", i), "output": "x"} for i in range(12)]
    spoilt = [{"instruction": ask("spot", i), "output": "q"} for i in range(99)]
    questions = [{"question": ask("place", i), "answer": "x"} for i in range(12)]
    questions[0]["answer"] = "unanswerable"  # so that no round passes
    write_rows(folder / "train.jsonl", taught)
    write_rows(folder / "pool.jsonl", spoilt)
    write_rows(folder / "questions.jsonl", questions)
    settings |= {"learning_rate": 0.005, "lr_decay": 1.0, "steps_per_round": 40}
    settings |= {"checkpoint_every_steps": 15, "evaluation": {"max_tokens": 4}}
    return settings | {"mining": {"pool_file": "pool.jsonl", "replay_share": 0.0}}


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[World]:
    (folder / "budget.yaml").write_text("quality_score: {min: 0.5}\n")
    with evalops_at(folder) as url, environment(EVALOPS_API_KEY="eoak_of_this_benchmark"):
        settings = taught_and_spoilt(folder) | {
            "evalops_budget_file": "budget.yaml",
            "evalops_enabled": True,
            "evalops_test_suite_id": "suite-1",
            "evalops_api_url": url,
        }
        focus = ("decided", "selected", "losses_measured", "checkpoint", "limits_checked")
        yield world_of(folder, settings, focus=(*focus, "evalops"))


@contextlib.contextmanager
def rising(folder: Path) -> Iterator[World]:
    settings = taught_and_spoilt(folder)
    del settings["mining"]
    settings |= {"steps_per_round": 4, "learning_rate": 0.001, "eval_threshold": 0.9}
    yield world_of(folder, settings, focus=("checkpoint_released", "checkpoint_kept"))


def knows_all(folder: Path, **start: Any) -> dict[str, Any]:
    """Settings of a run that is asked for what it says when it begins, and is taught something
    else, after which it says nothing of that any more."""
    settings = base_settings(folder) | start | {"evaluation": {"max_tokens": 6}}
    settings |= {"learning_rate": 0.02, "lr_decay": 1.0, "steps_per_round": 8}
    write_rows(
        folder / "train.jsonl",
        [{"instruction": f"Say word {i}", "output": "q" * (i % 5 + 3)} for i in range(20)],
    )
    del settings["mining"]
    first = {**settings, "max_rounds": 1, "steps_per_round": 1, "checkpoint_every_steps": None}
    trained_before(folder, first, "first")
    samples = json.loads((folder / "first" / "evals" / "round_00.json").read_text())["tasks"][0]
    said = [(one["question"], one["answer"]) for one in samples["samples"]]
    known = [{"question": question, "answer": answer} for question, answer in said if answer]
    assert len(known) > 8, known
    write_rows(folder / "questions.jsonl", known)
    return settings


BACK = ("decided", "selected", "step", "checkpoint", "checkpoint_deleted")


@contextlib.contextmanager
def to_start(folder: Path) -> Iterator[World]:
    yield world_of(folder, knows_all(folder), focus=BACK)


@contextlib.contextmanager
def to_weights(folder: Path) -> Iterator[World]:
    trained_before(folder, base_settings(folder))
    settings = knows_all(folder, start_from=str(folder / "start"), start_from_optimizer=True)
    yield world_of(folder, settings, focus=BACK)


@contextlib.contextmanager
def stopped(folder: Path) -> Iterator[World]:
    settings = base_settings(folder)
    settings["eval_tasks"].append("letters.py@letters")
    yield world_of(folder, settings)


@contextlib.contextmanager
def diverging(folder: Path) -> Iterator[World]:
    settings = base_settings(folder) | {"evaluation": {"max_tokens": 4}, "val_file": None}
    weights = folder / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    # As many saves are unusable as were in flight behind the bad step.
    focus = ("checkpoint_unusable", "failed")
    yield world_of(folder, settings, focus=focus, exit_code=1, depths=None)


def trained_before(folder: Path, settings: dict[str, Any], name: str = "start") -> None:
    """A run of one round in a folder of this name, to start from or to learn from."""
    start = {**settings, "max_rounds": 1, "evaluation": {"max_tokens": 6}, "val_file": None}
    (folder / f"{name}.json").write_text(json.dumps(start))
    arguments = ["--config", str(folder / f"{name}.json"), "--run-dir", str(folder / name)]
    assert end_of(forked(lambda: command(arguments), folder / f"{name}.log")) == 0


@contextlib.contextmanager
def dpo(folder: Path) -> Iterator[World]:
    settings = base_settings(folder)
    trained_before(folder, settings)
    for name, numbers in (
        ("train", range(20)),
        ("pool", range(100, 130)),
        ("pref", range(400, 406)),
    ):
        rows = [
            {"prompt": f"Say {i}", "chosen": str(i), "rejected": str(i + 1), "topic": "sums"}
            for i in numbers
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    settings |= {"method": "dpo", "start_from": str(folder / "start")}
    settings["eval_tasks"] = ["pref:pref.jsonl", "qa:questions.jsonl"]
    settings["mining"] |= {"strategy": "loss"}
    yield world_of(folder, settings, focus=("reference_set", "reference_measured", "step"))


REWARD_FILE = """
def letters(answer, targets):
    return answer.count("e") - answer.count("a") / 2
"""
SAMPLING = ("step", "selected", "checkpoint", "measured")  # event types to be killed at first


def short_settings(folder: Path) -> dict[str, Any]:
    """Settings of fewer steps and questions, as each step samples."""
    settings = base_settings(folder) | {"steps_per_round": 3, "val_file": None}
    del settings["evaluation"]["test_tasks"], settings["evaluation"]["held_out_every_steps"]
    return settings


def rewarded(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of rewards; answers of the tiny model differ, so that groups have variance."""
    (folder / "rewards.py").write_text(REWARD_FILE)
    rl = {"reward": "rewards.py@letters", "group_size": 3, "max_tokens": 5, **changes}
    return short_settings(folder) | {"method": "rl", "rl": rl}


@contextlib.contextmanager
def rl(folder: Path) -> Iterator[World]:
    settings = rewarded(folder, kl_coef=0.1)
    settings["mining"] |= {"strategy": "loss"}
    yield world_of(folder, settings, focus=SAMPLING)


@contextlib.contextmanager
def clipped(folder: Path) -> Iterator[World]:
    settings = rewarded(folder, kl_coef=0.1, loss="ppo")
    trained_before(folder, base_settings(folder))
    yield world_of(folder, settings | {"start_from": str(folder / "start")}, focus=SAMPLING)


def taught(folder: Path, **changes: Any) -> dict[str, Any]:
    settings = short_settings(folder)
    # Long enough that its answers come to their end.
    trained_before(folder, settings | {"steps_per_round": 12, "learning_rate": 0.02})
    distill = {"teacher": "start@round_01", "group_size": 2, "max_tokens": 6, **changes}
    return settings | {"method": "distill", "distill": distill}


@contextlib.contextmanager
def on_policy(folder: Path) -> Iterator[World]:
    settings = taught(folder, teacher_prompt="Answer in one word.")
    settings["mining"] |= {"strategy": "loss"}
    yield world_of(folder, settings, focus=SAMPLING)


@contextlib.contextmanager
def off_policy(folder: Path) -> Iterator[World]:
    settings = taught(folder, way="off_policy", targets="soft")
    yield world_of(folder, settings, focus=("answered", "targets_read", *SAMPLING))


@contextlib.contextmanager
def of_settings(file: Path, folder: Path) -> Iterator[World]:
    """A settings file of anyone's, read where it lies."""
    begin = ["--config", str(file), "--local", "--resume"]
    yield World(folder, begin, begin)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[World]:
    settings, port, port_of_proxy = base_settings(folder), free_port(), free_port()
    settings["base_url"] = f"http://127.0.0.1:{port_of_proxy}"
    with (
        environment(TINKER_API_KEY=KEY, NO_PROXY="127.0.0.1"),
        process(lambda: without_expiry(port_of_proxy, port), folder / "proxy_log", port_of_proxy),
        service_at(port, folder),
    ):
        yield world_of(folder, settings, focus=("care_failed",), checkpoints=folder / "saved")


@contextlib.contextmanager
def evaluate(folder: Path) -> Iterator[World]:
    settings, trained = base_settings(folder), folder / "trained"
    world = world_of(folder, settings, focus=("measured", "evaluated", "compared", "run_finished"))
    assert end_of(forked(lambda: command(world.arguments(trained)), folder / "log")) == 0
    names = [f"{trained}@round_{number:02d}" for number in range(3)]
    begin = ["--config", str(folder / "config.json"), "--evaluate", *names, "--run-dir"]
    yield World(folder, begin, ["--resume"], world.focus, depths=None)


@contextlib.contextmanager
def service(folder: Path) -> Iterator[World]:
    """The service itself is the study's to start, kill and start again."""
    settings, port = base_settings(folder), free_port()
    settings["base_url"] = f"http://127.0.0.1:{port}"
    (folder / "port").write_text(str(port))
    with environment(TINKER_API_KEY=KEY, NO_PROXY="127.0.0.1"):
        yield world_of(folder, settings, checkpoints=folder / "saved")


def deep_settings(folder: Path) -> dict[str, Any]:
    """Settings of rounds that are longer than the steps in flight are many, with saves and held-out
    losses between them."""
    settings = base_settings(folder)
    settings |= {"steps_per_round": 24, "max_rounds": 2, "checkpoint_every_steps": 7}
    settings["evaluation"] |= {"held_out_every_steps": 5}
    return settings


def distant(folder: Path, port: int) -> int:
    """A service whose results of steps come late, from one at this port; its address is written to
    a file."""
    from fault_proxy import Delay, fault_proxy  # pyright: ignore[reportMissingImports] (of tests/)

    with fault_proxy(f"http://127.0.0.1:{port}", delay=Delay(of_results_s=RESULT_S)) as proxy:
        write_address(folder / "far_url", proxy.url)
        signal.pause()
    return 0


@contextlib.contextmanager
def far_from(port: int, folder: Path) -> Iterator[str]:
    """The address of a service that stands far from the one at this port."""
    pid, file = forked(lambda: distant(folder, port), folder / "far_log"), folder / "far_url"
    try:
        yield address_in(file, folder / "far_log")
    finally:
        kill(pid)


@contextlib.contextmanager
def far(folder: Path) -> Iterator[World]:
    settings, port = deep_settings(folder), free_port()
    with (
        environment(TINKER_API_KEY=KEY, NO_PROXY="127.0.0.1"),
        service_at(port, folder),
        far_from(port, folder) as url,
    ):
        settings["base_url"] = url
        focus = ("step", "checkpoint", "held_out")
        yield world_of(folder, settings, focus=focus, checkpoints=folder / "saved")


@contextlib.contextmanager
def far_service(folder: Path) -> Iterator[World]:
    """As `service`, and as `far`."""
    settings, port = deep_settings(folder), free_port()
    with (
        environment(TINKER_API_KEY=KEY, NO_PROXY="127.0.0.1"),
        far_from(port, folder) as url,
    ):
        (folder / "port").write_text(str(port))
        settings["base_url"] = url
        yield world_of(folder, settings, checkpoints=folder / "saved")


WORLDS = {
    make.__name__: make
    for make in (
        plain,
        inspect,
        guarded,
        rising,
        to_start,
        to_weights,
        stopped,
        diverging,
        dpo,
        rl,
        clipped,
        on_policy,
        off_policy,
        engine,
        far,
        evaluate,
        service,
        far_service,
    )
}


# --- processes ------------------------------------------------------------------------------------


def forked(body: Callable[[], int], log: Path) -> int:
    """Run `body` in a child process, what it prints going to `log`; returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        code = body()
    finally:
        sys.stdout.flush()
        os._exit(code)


def end_of(pid: int, limit_s: float = LIMIT_S) -> int | None:
    """The exit code of a child, negative for a signal; None when it is still running."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def await_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing answers on port {port}: {log.read_text()[-1000:]}")


@contextlib.contextmanager
def process(body: Callable[[], int], log: Path, port: int) -> Iterator[None]:
    """A child process that listens on a port, until the block ends."""
    pid = forked(body, log)
    try:
        await_port(port, log)
        yield
    finally:
        kill(pid)


@contextlib.contextmanager
def environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def command(arguments: Sequence[str]) -> int:
    return trainer_with_eval.main(list(arguments))


def tinker_service(port: int, folder: Path) -> int:
    """`python -m local_tinker`."""
    model, saved = str(folder / "model"), str(folder / "saved")
    arguments = ["--base-model", model, "--port", str(port), "--checkpoint-dir", saved]
    return local_tinker.__main__.main(arguments)


def service_at(port: int, folder: Path) -> contextlib.AbstractContextManager[None]:
    return process(lambda: tinker_service(port, folder), folder / "service_log", port)


def without_expiry(port: int, port_of_service: int) -> int:
    """A service that is asked for everything but how long weights are kept: it does not know."""
    app = FastAPI(openapi_url=None)
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port_of_service}", timeout=None)

    async def answer(request: Request) -> Response:
        if request.url.path.endswith("/ttl"):
            return Response('{"detail": "Not Found"}', 404)
        hop = ("host", "content-length", "transfer-encoding", "connection")
        headers = [pair for pair in request.headers.items() if pair[0] not in hop]
        url, body = httpx.URL(request.url.path, query=request.url.query.encode()), request.stream()
        content = body if request.method in ("POST", "PUT") else None
        got = await client.request(request.method, url, headers=headers, content=content)
        kept = {k: v for k, v in got.headers.items() if k not in (*hop, "content-encoding")}
        return Response(got.content, got.status_code, kept)

    app.add_route("/{path:path}", answer, methods=["GET", "POST", "PUT", "DELETE"])
    uvicorn.run(app, port=port, log_level="error")
    return 0


@contextlib.contextmanager
def evalops_at(folder: Path) -> Iterator[str]:
    """The tests' EvalOps in a process of its own; gives its address."""

    def serve() -> int:
        from fake_evalops import OK_P, fake_evalops  # pyright: ignore[reportMissingImports]

        with fake_evalops() as fake:
            fake.play(OK_P)
            write_address(folder / "evalops_url", fake.url)
            signal.pause()
        return 0

    pid, file = forked(serve, folder / "evalops_log"), folder / "evalops_url"
    try:
        yield address_in(file, folder / "evalops_log")
    finally:
        kill(pid)


def write_address(file: Path, url: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(url)
    new.rename(file)


def address_in(file: Path, log: Path) -> str:
    """What `write_address` writes, once it does."""
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return file.read_text()


# --- runs that are watched ------------------------------------------------------------------------


def watch_files(run_dir: Path, on_operation: Callable[[Operation], None]) -> None:
    """Tell of each operation of this process on files below a folder, before it is done."""
    root = str(run_dir)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            is_write = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            paths = args[:1] if is_write else ()
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            paths = args[:1]
        else:
            return
        for path in paths:
            if isinstance(path, (str, os.PathLike)) and f"{path}/".startswith(f"{root}/"):
                file = os.path.relpath(str(path), run_dir)
                written = event_being_written() if file == "ledger.jsonl" else None
                on_operation(Operation(event, file, written))

    sys.addaudithook(hook)


def event_being_written() -> str | None:
    """The type of the event that the caller's caller is about to append to the ledger."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is RunStore.append.__code__:
            return frame.f_locals["event_type"]
        frame = frame.f_back
    return None


def watched_run(
    run_dir: Path, arguments: Sequence[str], on_operation: Callable[[Operation], None]
) -> int:
    watch_files(run_dir, on_operation)
    return command(arguments)


def traced(world: World, run_dir: Path, log: Path) -> list[Operation]:
    """Run to the end and return every operation on the run's files."""
    trace = log.with_suffix(".trace")

    def note(operation: Operation) -> None:
        os.write(descriptor, json.dumps(operation).encode() + b"\n")

    descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    code = end_of(forked(lambda: watched_run(run_dir, world.arguments(run_dir), note), log))
    os.close(descriptor)
    assert code == world.exit_code, f"the uninterrupted run ended with {code}: {tail_of(log)}"
    return [Operation(*json.loads(line)) for line in trace.read_text().splitlines()]


def tail_of(log: Path) -> str:
    return log.read_text()[-1500:]


class Reaper:
    """Kills this process at a moment, told of each operation before it is done."""

    def __init__(self, world: World, run_dir: Path, moment: Moment) -> None:
        self.world, self.run_dir, self.moment = world, run_dir, moment
        self.num_operations = 0
        self.num_events = 0  # of the moment's type
        self.is_next = False
        self.is_dying = False

    def __call__(self, operation: Operation) -> None:
        moment = self.moment
        if self.is_dying:  # its own torn line
            return
        if self.is_next:
            self.die()
        is_now = self.num_operations == moment.operation
        self.num_operations += 1
        if is_now and moment.stop == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        elif is_now and moment.stop == "fail":
            self.world.fails.touch()
        elif is_now:
            self.die()
        if operation.event is None or operation.event != moment.event:
            return
        if self.num_events == moment.occurrence:
            if moment.when == "amid":
                self.is_dying = True
                with contextlib.suppress(OSError):
                    descriptor = os.open(self.run_dir / "ledger.jsonl", os.O_WRONLY | os.O_APPEND)
                    os.write(descriptor, b'{"seq": 3, "time": "2026-0')
            if moment.when != "after":
                self.die()
            self.is_next = True
        self.num_events += 1

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(world: World, run_dir: Path, moment: Moment, log: Path) -> int | None:
    """Run until the moment of death, or to the end where that comes first; the exit code."""
    arguments, reaper = world.arguments(run_dir), Reaper(world, run_dir, moment)
    pid = forked(lambda: watched_run(run_dir, arguments, reaper), log)
    code = end_of(pid, LIMIT_S if moment.after_s is None else moment.after_s)
    world.fails.unlink(missing_ok=True)
    if code is None:
        kill(pid)
        return None if moment.after_s is None else -signal.SIGKILL
    return code


# --- which moments --------------------------------------------------------------------------------


def draw_moments(
    operations: Sequence[Operation], focus: Sequence[str] | None, number: int, rng: random.Random
) -> list[list[Moment]]:
    """For each trial the moments of its kills, one or two; the event types of focus come first."""
    counts = Counter(operation.event for operation in operations if operation.event is not None)
    wanted = list(counts) if focus is None else [one for one in focus if one in counts]
    assert focus is None or len(wanted) == len(focus), f"of {focus} the run has only {wanted}"
    whens = itertools.cycle(("after", "amid"))  # both where there is room
    trials: list[list[Moment]] = []
    for rest in (False, True):
        for event in wanted:
            when = next(whens)
            both: list[Any] = ["before", when] if not rest else [when]
            trials += [[Moment(None, event, rng.randrange(counts[event]), w)] for w in both]
        if len(wanted) % 2 == 0:
            next(whens)  # the other one of each type
    del trials[number:]
    while len(trials) < number:
        if rng.random() < TIMED_SHARE:
            trials.append([Moment(after_s=rng.uniform(0.5, 8.0))])
        else:
            trials.append([Moment(rng.randrange(len(operations)))])
    rng.shuffle(trials)
    for moments in trials:
        if rng.random() < TWICE_SHARE:
            again = [Moment(rng.randrange(len(operations))), Moment(event="resumed")]
            moments.append(rng.choice([*again, Moment(event="resumed", when="after")]))
    return trials


def draw_stops(
    operations: Sequence[Operation], number: int, rng: random.Random
) -> list[list[Moment]]:
    """Trials in which the run ends by itself, and is killed while it records that, or just after;
    every other time by a signal at any operation, else by an evaluation that fails."""
    # Where nothing is being evaluated: a few failed samples would count as wrong.
    quiet = ("run_started", "selected", "step", "checkpoint")
    between = [i for i, operation in enumerate(operations) if operation.event in quiet]
    trials: list[list[Moment]] = []
    for i in range(number):
        when: Any = ("before", "amid", "after")[i // 2 % 3]
        if i % 2:
            trials.append(
                [Moment(rng.choice(between), event="eval_failed", when=when, stop="fail")]
            )
        else:
            place = rng.randrange(len(operations))
            trials.append([Moment(place, event="interrupted", when=when, stop="signal")])
    return trials


# --- the same run? --------------------------------------------------------------------------------

_RUN = re.compile(r"tinker://[^/]+/")
_VOLATILE = (
    "seq",
    "time",
    "worked",
    "run_id",
    "run_dir",
    "log",
    "expires_at",
    "latency_ms",
    "pipeline",
    "counted_before",
    "max_steps_in_flight",
)


def masked(value: Any) -> Any:
    """A record without what may differ between two runs that are the same."""
    if isinstance(value, dict):
        return {key: masked(one) for key, one in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [masked(one) for one in value]
    return _RUN.sub("tinker://RUN/", value) if isinstance(value, str) else value


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    left_out = (*INTERRUPTIONS, "evalops", "held_up")
    effective = effective_events([json.loads(line) for line in lines])
    return [event for event in effective if event["type"] not in left_out]


def without_other_states(
    events: list[dict[str, Any]], whole: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The events without states inside rounds at steps where the whole run has none, and without
    the paths that tell which state came from which and which were deleted."""
    steps = {event["step"] for event in whole if event["type"] == "checkpoint"}
    return [
        {key: value for key, value in event.items() if key not in ("parent", "paths")}
        for event in events
        if not (
            event["type"] == "checkpoint"
            and event["sampler_path"] is None
            and event["step"] not in steps
        )
    ]


def differences(
    whole: Path, resumed: Path, checkpoint_dirs: tuple[Path, Path], *, may_save: bool = False
) -> list[str]:
    """What is not the same in two run directories, by name; empty where they are the same run.

    With `may_save` the resumed one was ended by Ctrl-C, and may have saved where it was.
    """
    found = []
    ledgers = [events_of(run_dir) for run_dir in (whole, resumed)]
    if may_save:
        ledgers = [without_other_states(events, ledgers[0]) for events in ledgers]
    if [masked(event) for event in ledgers[0]] != [masked(event) for event in ledgers[1]]:
        types = [[event["type"] for event in ledger] for ledger in ledgers]
        pairs = zip(*(map(masked, ledger) for ledger in ledgers), strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), types)
        found.append(f"the effective ledger: {str(first)[:600]}")
    for file in (
        "data_manifest.json",
        "data_dropped.jsonl",
        "data_similar.jsonl",
    ):
        if (whole / file).read_text() != (resumed / file).read_text():
            found.append(file)
    resolved = [json.loads((one / "config.resolved.json").read_text()) for one in (whole, resumed)]
    if masked(resolved[0]) != masked(resolved[1]):  # each names itself
        found.append("config.resolved.json")
    for folder in ("evals", "selections"):
        names = [sorted(f.name for f in (one / folder).glob("*")) for one in (whole, resumed)]
        if names[0] != names[1]:
            found.append(f"the files of {folder}: {names}")
            continue
        for name in names[0]:
            texts = [json.loads((one / folder / name).read_text()) for one in (whole, resumed)]
            if masked(texts[0]) != masked(texts[1]):
                found.append(f"{folder}/{name}")
    for file in ("reference.jsonl", *_names(whole / "rollouts"), *_names(resumed / "rollouts")):
        lines = [sorted((one / file).read_text().splitlines()) if (one / file).exists() else None
                 for one in (whole, resumed)]  # fmt: skip
        if masked(lines[0]) != masked(lines[1]):  # what was asked side by side comes in any order
            found.append(file)
    paid = [paid_tokens(one) for one in (whole, resumed)]
    if paid[0] != paid[1]:
        found.append(f"tokens that were paid for, read and sampled: {paid}")
    if (lost := RunStore.open(whole).in_vain()).tokens:  # of a run that nothing has interrupted
        found.append(f"tokens that were sent and are in no event: {lost}")
    delivered = [len(RunStore.open(one).delivered_keys()) for one in (whole, resumed)]
    if delivered[0] != delivered[1]:
        found.append(f"rounds delivered: {delivered}")
    saved = [[e for e in ledger if e["type"] == "checkpoint"] for ledger in ledgers]
    for one, other in zip(*saved, strict=False):
        if one["sampler_path"] is None or other["sampler_path"] is None:
            continue  # a state inside a round is deleted at its end, as both ledgers tell
        for key in ("state_path", "sampler_path"):
            if not same_tensors(checkpoint_dirs[0], one[key], checkpoint_dirs[1], other[key]):
                found.append(f"the weights of {one[key]}")
    return found


def paid_tokens(run_dir: Path) -> tuple[int, int] | None:
    """Tokens read and sampled in a run of a method that samples, what was done twice counted twice;
    None of other runs, which a kill may cost a sample of an Inspect log.

    Left out are held-out losses, which queue with the steps and are computed again with them.
    """
    store = RunStore.open(run_dir)
    if not (run_dir / "rollouts").is_dir():
        return None
    again = store.ever("held_out")
    usage, left_out = store.usage(), sum(event.get("num_prompt_tokens", 0) for event in again)
    return usage.prompt_tokens - left_out, usage.sampled_tokens


def _names(folder: Path) -> list[str]:
    return [f"{folder.name}/{file.name}" for file in folder.glob("*.jsonl")]


def same_tensors(folder: Path, path: str, other_folder: Path, other_path: str) -> bool:
    def tensors(root: Path, tinker_path: str) -> dict[str, torch.Tensor]:
        run_id, kind, name = tinker_path.removeprefix("tinker://").split("/")
        directory = root / run_id.replace(":", "_") / kind / name
        return {
            f"{file.name} {key}": tensor
            for file in sorted(directory.glob("*.safetensors"))
            for key, tensor in load_file(file).items()
        }

    one, two = tensors(folder, path), tensors(other_folder, other_path)
    return bool(one) and one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- the series -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of one trial."""

    moments: list[Moment]
    last_event: str
    differences: list[str]


Tell = Callable[[str], None]


def run_series(series: str, number: int, seed: int, folder: Path, tell: Tell) -> list[Outcome]:
    """Trials in which the run's own process is killed."""
    with WORLDS[series](folder) as world:
        whole, rng = folder / "whole", random.Random(seed)
        operations = traced(world, whole, folder / "log")
        types = Counter(one.event for one in operations if one.event is not None)
        tell(f"{series}: {len(operations)} operations, {types.total()} events, {len(types)} types")
        if series == "stopped":
            trials = draw_stops(operations, number, rng)
        else:
            trials = draw_moments(operations, world.focus, number, rng)
        outcomes = []
        for trial, moments in enumerate(trials):
            run_dir, log = folder / f"trial_{trial:03d}", folder / f"log_{trial:03d}"
            met = [one for one in moments if is_met(one, killed(world, run_dir, one, log), run_dir)]
            last_event = last_event_of(run_dir)
            may_save = any(moment.stop == "signal" for moment in moments)
            outcomes.append(finished(world, whole, run_dir, log, met, last_event, may_save))
            tell(f"{series} {trial}: {moments} after {last_event}: {outcomes[-1].differences}")
        return outcomes


def is_met(moment: Moment, code: int | None, run_dir: Path) -> bool:
    """Whether a run died at its moment; after the last of its events there is none but its end."""
    is_after_end = moment.when == "after" and last_event_of(run_dir) == moment.event
    return code == -signal.SIGKILL or is_after_end


def finished(
    world: World,
    whole: Path,
    run_dir: Path,
    log: Path,
    moments: list[Moment],
    last_event: str,
    may_save: bool = False,
) -> Outcome:
    """Let a killed run go on to its end, and compare it."""
    code = killed(world, run_dir, Moment(), log)
    if code != world.exit_code:
        return Outcome(moments, last_event, [f"exit {code}: {tail_of(log)}"])
    folders = world.checkpoint_dir(whole), world.checkpoint_dir(run_dir)
    found = differences(whole, run_dir, folders, may_save=may_save)
    if world.checkpoints is None:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return Outcome(moments, last_event, found)


def num_events(run_dir: Path) -> int:
    ledger_file = run_dir / "ledger.jsonl"
    return ledger_file.read_bytes().count(b"\n") if ledger_file.exists() else 0


def last_event_of(run_dir: Path) -> str:
    """The type of the last whole event in a ledger."""
    ledger_file = run_dir / "ledger.jsonl"
    whole = ledger_file.read_bytes().rpartition(b"\n")[0] if ledger_file.exists() else b""
    return json.loads(whole.splitlines()[-1])["type"] if whole else "(none)"


def run_service_series(
    series: str, number: int, seed: int, folder: Path, tell: Tell
) -> list[Outcome]:
    """Trials in which the service's process is killed after so many events, and started again;
    every third time the run as well, while it records that it lost its service."""
    rng, outcomes = random.Random(seed), []
    with WORLDS[series](folder) as world:
        port = int((folder / "port").read_text())
        whole, log = folder / "whole", folder / "service_log"
        server = forked(lambda: tinker_service(port, folder), log)
        await_port(port, log)
        types = [one.event for one in traced(world, whole, folder / "log") if one.event is not None]
        for trial in range(number):
            event_type = list(dict.fromkeys(types))[trial % len(set(types))]
            target = 1 + rng.choice([i for i, one in enumerate(types) if one == event_type])
            run_dir, log = folder / f"trial_{trial:03d}", folder / f"log_{trial:03d}"
            when: Any = ("before", "amid", "after")[trial // 3 % 3]
            moment = Moment(event="failed", when=when) if trial % 3 == 2 else Moment()
            reaper = Reaper(world, run_dir, moment)
            arguments = world.arguments(run_dir)
            pid, at = forked(lambda d=run_dir, a=arguments, r=reaper: watched_run(d, a, r), log), 0
            code = None
            while code is None and at < target:
                code, at = end_of(pid, 0.002), num_events(run_dir)
            time.sleep(rng.uniform(0, 0.2))  # into what comes after the event
            kill(server)
            last_event = last_event_of(run_dir)
            server = forked(lambda: tinker_service(port, folder), folder / "service_log")
            await_port(port, folder / "service_log")
            began = time.monotonic()
            code = end_of(pid) if code is None else code
            tell(f"  the run left with {code} after {time.monotonic() - began:.1f} s")
            if code is None:
                kill(pid)
            met = [moment] if is_met(moment, code, run_dir) else []
            outcomes.append(finished(world, whole, run_dir, log, met, last_event))
            tell(f"service {trial}: after {at} events, {last_event}: {outcomes[-1].differences}")
        kill(server)
    return outcomes


# --- the command ----------------------------------------------------------------------------------


def report(results: dict[str, list[Outcome]]) -> set[str]:
    """Print the tables; returns the event types that no run was killed at."""
    print("| series | killed | equal | killed right after (events) |\n|---|---|---|---|")
    for series, outcomes in results.items():
        equal = sum(not outcome.differences for outcome in outcomes)
        after = Counter(outcome.last_event for outcome in outcomes)
        shown = ", ".join(f"{name} {count}" for name, count in sorted(after.items()))
        print(f"| {series} | {len(outcomes)} | {equal} | {shown} |")
    moments = [m for outcomes in results.values() for one in outcomes for m in one.moments]
    at = Counter((moment.event, moment.when) for moment in moments if moment.event is not None)
    print("\n| event | killed before | amid | after it was written |\n|---|---|---|---|")
    for event in KINDS:
        counts = (at[event, when] for when in ("before", "amid", "after"))
        print(f"| {event} | {' | '.join(map(str, counts))} |")
    return set(KINDS) - {event for event, _ in at if event is not None}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--series",
        nargs="+",
        default=DEFAULT_SERIES,
        metavar="NAME:MOMENTS",
        help="which series, and how many runs of each are killed (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="SETTINGS.json:MOMENTS",
        help="instead of series: runs of these settings files, and how many of each are killed",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    args = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"
    results: dict[str, list[Outcome]] = {}
    if args.method:
        args.series = []
        for one in args.method:
            file, _, number = one.rpartition(":")
            name = Path(file).stem
            WORLDS[name] = functools.partial(of_settings, Path(file).resolve())
            args.series.append(f"{name}:{number}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.series:
            series, _, number = name.partition(":")
            folder = Path(scratch) / series
            folder.mkdir()

            def tell(text: str) -> None:
                print(text, file=sys.stderr, flush=True)

            run = run_service_series if series in SERVICE_SERIES else run_series
            results[series] = run(series, int(number), args.seed, folder, tell)
    missed = report(results)
    if args.series == DEFAULT_SERIES and missed:
        print(f"no run was killed at: {', '.join(sorted(missed))}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0 if all(not o.differences for outcomes in results.values() for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

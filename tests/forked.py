"""Python programs of the tests, each in a process of its own that begins with everything imported.

A program of ours or of the cookbook first imports for some seconds of processor time: torch,
transformers, Inspect, the SDK. One server process does so once, when it is first asked, and every
program is a fork of it, which then reads its arguments, environment, folder and output as a new
interpreter does. It starts no thread and no event loop, so that it can be forked at any time.

Not for what depends on a new interpreter: its environment as /proc shows it, or its own imports.

    python tests/forked.py SOCKET               serve until standard input ends
    python tests/forked.py --as ARGUMENT ...    stand for `python ARGUMENT ...`

In the second form it is the interpreter of pytest-xdist's workers, which import as much again.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple

REPO = Path(__file__).resolve().parent.parent
ADDRESS = "TESTS_FORKED_FROM"  # the environment variable that tells where the server listens
# What is in sys.modules after runs with and without an Inspect task.
IMPORTED = (
    "anyio._backends._asyncio", "datasets", "fastapi.telemetry._runtime", "httptools.parser",
    "inspect_ai._control.config_record", "inspect_ai.agent._acp.server",
    "inspect_ai.hooks._startup", "inspect_ai.model._openai_responses",
    "inspect_ai.model._providers.none", "inspect_evals._registry",
    "peft.utils.transformers_weight_conversion", "pyqwest.httpx", "rich.markdown",
    "sklearn.feature_extraction.text", "tinker.proto.request_conv", "tinker.resources",
    "tinker_cookbook.eval.inspect_utils", "tinker_cookbook.renderers.deepseek_v3",
    "tinker_cookbook.renderers.deepseek_v4_1", "tinker_cookbook.renderers.glm5_3",
    "tinker_cookbook.renderers.gpt_oss", "tinker_cookbook.renderers.kimi_k26",
    "tinker_cookbook.renderers.llama3", "tinker_cookbook.renderers.nemotron3",
    "tinker_cookbook.renderers.qwen3_8", "tinker_cookbook.renderers.role_colon",
    "tinker_cookbook.renderers.tml_v0", "tinker_cookbook.supervised.train",
    "transformers.models.llama.modeling_llama", "uvicorn.lifespan.on", "uvicorn.loops.asyncio",
    "uvicorn.loops.auto", "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.http.httptools_impl",
)  # fmt: skip
# What a process works out once and keeps, as long as an import: of what is installed, and Inspect's
# list of models.
REMEMBERED = (
    ("evaluation.inspect_economy", "_distributions_of"),
    ("inspect_ai.model._model_info", "_get_model_info_db"),
    ("user_code.finding", "_distributions"),
)


# --- the tests' side ------------------------------------------------------------------------------


def asked_to_be(
    arguments: list[str], env: dict[str, str], cwd: str, files: list[int]
) -> socket.socket:
    """A connection on which the server tells the process's number and later its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[ADDRESS])
    content = json.dumps({"arguments": arguments, "env": env, "cwd": cwd}).encode()
    socket.send_fds(connection, [len(content).to_bytes(8)], files)
    connection.sendall(content)
    return connection


def next_number(connection: socket.socket) -> int:
    content = connection.recv(8, socket.MSG_WAITALL)
    assert len(content) == 8, "the server of forked processes is gone"
    return int.from_bytes(content, signed=True)


def stand_for(arguments: list[str]) -> int:
    """Be the interpreter that was asked for, through a process with the same files."""
    arguments = [one for one in arguments if one != "-u"]
    with asked_to_be(arguments, dict(os.environ), str(Path.cwd()), [0, 1, 2]) as connection:
        next_number(connection)
        return next_number(connection)


class Process:
    """What the tests use of a `subprocess.Popen` whose program is `python *arguments`."""

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        stdin: IO[Any] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.said: dict[str, IO[str]] = {}  # what is kept for communicate()
        with contextlib.ExitStack() as opened:
            null = opened.enter_context(open(os.devnull, "r+b"))
            files: list[IO[Any]] = [stdin or null]
            for name, given in (("stdout", stdout), ("stderr", stderr)):
                if given == subprocess.PIPE:
                    given = self.said[name] = tempfile.TemporaryFile("w+")  # noqa: SIM115
                elif given == subprocess.STDOUT:
                    given = files[1]
                files.append(null if given is None or isinstance(given, int) else given)
            self.connection = asked_to_be(
                [str(one) for one in arguments],
                dict(os.environ if env is None else env),
                str(cwd or Path.cwd()),
                [file.fileno() for file in files],
            )
        for file in (self.connection, *self.said.values()):
            weakref.finalize(self, file.close)
        self.pid = self.next_number()

    def next_number(self) -> int:
        return next_number(self.connection)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            answered = select.poll()  # `select` takes no descriptor above 1023
            answered.register(self.connection, select.POLLIN)
            if not answered.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = self.next_number()
            self.connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Await the end; what was printed, where a `PIPE` was given."""
        self.wait(timeout)
        return self.text_of("stdout"), self.text_of("stderr")

    def said_so_far(self, name: Literal["stdout", "stderr"]) -> str:
        return os.pread(self.said[name].fileno(), 2**20, 0).decode(errors="replace")

    def text_of(self, name: str) -> str:
        if name not in self.said:
            return ""
        with self.said.pop(name) as file:
            file.seek(0)
            return file.read()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.wait()


def run(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`."""
    pipe = subprocess.PIPE
    with Process(*arguments, env=env, cwd=cwd, stdout=pipe, stderr=pipe) as process:
        try:
            output, errors = process.communicate(timeout)
        except subprocess.TimeoutExpired as expired:
            expired.stderr = process.text_of("stderr").encode()
            raise
        return subprocess.CompletedProcess(arguments, process.wait(), output, errors)


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Let this process and its children start processes; it imports nothing until one does."""
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        address = os.path.join(folder, "socket")
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        command = [sys.executable, __file__, address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
            while not os.path.exists(address):
                assert process.poll() is None, "the server of forked processes does not start"
                time.sleep(0.01)
            os.environ[ADDRESS] = address
            try:
                yield
            finally:
                del os.environ[ADDRESS]
                assert process.stdin is not None
                process.stdin.close()


# --- the server -----------------------------------------------------------------------------------


class Request(NamedTuple):
    arguments: list[str]
    env: dict[str, str]
    cwd: str
    files: list[int]


def read_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    with connection.makefile("rb") as file:
        return file.read(num_bytes)


def read_request(connection: socket.socket) -> Request:
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    return Request(**json.loads(read_exactly(connection, int.from_bytes(size))), files=files)


def import_everything() -> None:
    """What the programs import, and our own modules: compiling them takes a second as well."""
    for name in IMPORTED:
        importlib.import_module(name)
    for module in pkgutil.walk_packages([str(REPO)]):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    for module_name, function in REMEMBERED:
        getattr(importlib.import_module(module_name), function)()
    gc.collect()
    gc.freeze()  # else each child's first collections copy every page of it


def serve(address: str) -> Request:
    """Returns in each child, with what it was asked to be; the server itself exits."""
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as ours:
        listener = ours.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{address}.new")
        listener.listen(64)
        os.rename(f"{address}.new", address)
        woken, waker = socket.socketpair()
        for one in (woken, waker):
            ours.enter_context(one).setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for pytest
        selector = ours.enter_context(selectors.DefaultSelector())
        for one in (listener, woken, sys.stdin):
            selector.register(one, selectors.EVENT_READ)
        children: dict[int, socket.socket] = {}
        has_imported = False
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            for connection in ready:
                if connection in children.values():  # whoever started it is gone
                    selector.unregister(connection)
                    os.kill(next(p for p, c in children.items() if c is connection), signal.SIGKILL)
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    woken.recv(4096)
                reap(children, selector)
            if sys.stdin in ready:
                break
            if listener in ready:
                if not has_imported:
                    import_everything()
                    has_imported = True
                connection, _ = listener.accept()
                request = read_request(connection)
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    for one in (connection, *children.values()):
                        one.close()
                    return request
                for file in request.files:
                    os.close(file)
                connection.sendall(pid.to_bytes(8))
                children[pid] = connection
                selector.register(connection, selectors.EVENT_READ)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # so that its processor time counts as this process's
    sys.exit()


def reap(children: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            connection = children.pop(pid)
            with contextlib.suppress(KeyError):
                selector.unregister(connection)
            with contextlib.suppress(OSError), connection:
                connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, signed=True))


def become(request: Request) -> int:
    """Run the program in this process, as `python *arguments` would; returns its exit code."""
    for target, file in enumerate(request.files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    program, *rest = request.arguments
    searched = [one for one in request.env.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:1] = searched  # instead of the folder of this file
    try:
        if program == "-m":
            sys.path.insert(0, request.cwd)
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif program == "-c":
            sys.path.insert(0, "")
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path.insert(0, str(Path(program).resolve().parent))
            sys.argv = request.arguments
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def leave(code: int) -> None:
    """End as an interpreter does, but for taking apart, object by object, all that it imported."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] (joins threads)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--as":
        sys.exit(stand_for(sys.argv[2:]))
    leave(become(serve(sys.argv[1])))

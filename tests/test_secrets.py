"""Planted keys are searched for in everything that passing and failing runs write and print.

What a key may be escaped as has no end, so it is a word inside of each key that is searched for: no
escape changes letters. Between the SDK and the service stands a server that quotes the key that it
was sent in its errors, as careless ones do.
"""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from safetensors.torch import load_file, save_file

import local_tinker
from conftest import REPO, pairs, thorough_only
from fake_evalops import OK_P, FakeEvalOps, as_json, fake_evalops
from ledger.store import RunStore
from services.keys import redact
from test_loop import Workspace, wait_for
from trainer_with_eval import main

TINKER = 'tml-PlantedTinker"1\\2/3+4%7E&<5>=6'
EVALOPS = "PlantedEvalops-1/2+3=4&5%25~"
OPENAI = "sk-PlantedOpenai/1+2"
MARKS = re.compile(rb"Planted(Tinker|Evalops|Openai)", re.IGNORECASE)

QUOTES: dict[str, Callable[[str], str]] = {
    "plain": lambda key: key,
    "json": json.dumps,
    "json in json": lambda key: json.dumps(json.dumps({"X-API-Key": key})),
    "url": lambda key: quote(key, safe=""),
    "url twice": lambda key: quote(quote(key, safe=""), safe=""),
    "python": repr,
    "html": html.escape,
}


def marks_in(content: bytes) -> list[bytes]:
    return [match.group() for match in MARKS.finditer(content)]


def marked_files(folder: Path) -> list[str]:
    """The files and members of archives that hold a mark, also in their names."""
    found = []
    for path in sorted(folder.rglob("*")):
        if marks_in(str(path).encode()):
            found.append(str(path))
        if not path.is_file():
            continue
        content = path.read_bytes()  # also the headers of safetensors
        if marks_in(content):
            found.append(str(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += [
                    f"{path}:{name}" for name in archive.namelist() if marks_in(archive.read(name))
                ]
    return found


# --- a server that quotes keys --------------------------------------------------------------------


OF_THE_HOP = ("host", "connection", "accept-encoding", "content-length")


class QuotingProxy:
    """Passes requests on to a service under its own key, and fails those of `path` by quoting."""

    def __init__(self, service: local_tinker.Service, service_key: str) -> None:
        self.path: str | None = None
        self.status, self.quoting, self.num_quoted = 400, "plain", 0
        self.upstream, self.service_key = urlsplit(service.base_url).netloc, service_key
        self.keys: set[str] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_DELETE = do_POST

            def log_message(self, *_: object) -> None:
                """Not to stderr, where the test looks."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        key = request.headers.get("x-api-key", "")
        self.keys.add(key)
        kind = "application/json"
        if self.path is not None and request.path.endswith(self.path):
            self.num_quoted += 1
            status = self.status
            said = f"X-API-Key {QUOTES[self.quoting](key)} may not do this"
            answer = json.dumps({"detail": said, "error": said, "category": "user"}).encode()
        else:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in OF_THE_HOP}
            headers["X-API-Key"] = self.service_key
            upstream = http.client.HTTPConnection(self.upstream, timeout=60)
            upstream.request(request.command, request.path, body, headers)
            response = upstream.getresponse()
            status, answer = response.status, response.read()
            kind = response.headers.get("content-type", kind)
        with contextlib.suppress(ConnectionError):
            request.send_response(status)
            request.send_header("content-type", kind)
            request.send_header("content-length", str(len(answer)))
            request.end_headers()
            request.wfile.write(answer)


@pytest.fixture
def proxy(service: local_tinker.Service, tmp_path: Path) -> Iterator[QuotingProxy]:
    made = QuotingProxy(service, service.open_folder(tmp_path / "elsewhere"))
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(10)


@pytest.fixture
def evalops() -> Iterator[FakeEvalOps]:
    with fake_evalops() as server:
        echo = [f"you sent Authorization: Bearer {form(EVALOPS)}" for form in QUOTES.values()]
        server.flap(OK_P, *(as_json({"error": {"message": text}}, 500) for text in echo))
        yield server


# --- the command ----------------------------------------------------------------------------------

TASKS = """
import os, subprocess, sys
from pathlib import Path
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

HERE = Path(__file__).parent
(HERE / "child.env").write_bytes(subprocess.run(["env"], capture_output=True).stdout)
(HERE / "child.proc").write_bytes(
    subprocess.run(["cat", "/proc/self/environ"], capture_output=True).stdout
)
(HERE / "own.env").write_text(repr(dict(os.environ)))
(HERE / "all.cmdline").write_bytes(
    b"".join(p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists())
)

@task
def letters():
    samples = [Sample(input=n, target="x") for n in "abcd"]
    return Task(dataset=samples, scorer=includes(), name="../../../letters")

@task
def broken():
    raise ValueError("the key is " + os.environ["OPENAI_API_KEY"])
"""


class Secrets(Workspace):
    """A workspace whose every output is kept, and searched."""

    def __init__(
        self,
        folder: Path,
        model_dir: Path,
        proxy: QuotingProxy,
        evalops: FakeEvalOps,
        capfd: pytest.CaptureFixture,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        super().__init__(folder, model_dir)
        self.capfd, self.caplog = capfd, caplog
        (folder / "tasks.py").write_text(TASKS)
        self.settings |= {
            "base_url": proxy.url,
            "learning_rate": 0.001,
            "max_rounds": 1,
            "eval_tasks": ["qa:questions.jsonl", "tasks.py@letters"],
            "evalops_enabled": True,
            "evalops_test_suite_id": "suite-1",
            "evalops_api_url": evalops.url,
        }

    def ends(self, code: int, run_dir: str, *flags: str, **changes: Any) -> str:
        """Run the command; its output, in which there is no mark, as there is none in the run."""
        assert self.run(run_dir, *flags, **changes) == code
        output = self.capfd.readouterr()
        said = output.out + output.err
        logged = self.caplog.text + "".join(str(vars(one)) for one in self.caplog.records)
        assert marks_in((said + logged).encode()) == [], said + logged
        assert marked_files(self.folder / run_dir) == []
        return said


@pytest.fixture
def secrets(
    tmp_path: Path,
    llama_dir: Path,
    proxy: QuotingProxy,
    evalops: FakeEvalOps,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> Secrets:
    for name, key in (("TINKER", TINKER), ("EVALOPS", EVALOPS), ("OPENAI", OPENAI)):
        monkeypatch.setenv(f"{name}_API_KEY", key)
    caplog.set_level(logging.DEBUG)
    return Secrets(tmp_path, llama_dir, proxy, evalops, capfd, caplog)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("-v",), ("--json",)])
def test_a_run_that_comes_to_its_end(
    secrets: Secrets, proxy: QuotingProxy, evalops: FakeEvalOps, flags: tuple[str, ...]
) -> None:
    secrets.ends(0, "run", *flags, eval_threshold=0.0)
    # So there was something to find; whether a service answers at all is asked without a key.
    assert proxy.keys == {"", TINKER}
    assert {r.headers["authorization"] for r in evalops.requests} == {f"Bearer {EVALOPS}"}
    files = [path for path in (secrets.folder / "run").rglob("*") if path.is_file()]
    assert {".eval", ".json", ".jsonl", ".md"} <= {path.suffix for path in files}
    # What a task starts has no key, and what it finds in this process has none of ours.
    for name in ("child.env", "child.proc", "own.env", "all.cmdline"):
        found = (secrets.folder / name).read_bytes()
        assert found and {b"PlantedTinker", b"PlantedEvalops"}.isdisjoint(marks_in(found)), name
    assert marks_in((secrets.folder / "child.env").read_bytes()) == [b"PlantedOpenai"]
    assert marks_in((secrets.folder / "all.cmdline").read_bytes()) == []
    assert os.environ["TINKER_API_KEY"] == TINKER  # put back for whoever called


@pytest.mark.parametrize("quoting", QUOTES)
def test_a_server_that_quotes_the_key_while_it_samples(
    secrets: Secrets, proxy: QuotingProxy, quoting: str
) -> None:
    proxy.path, proxy.quoting = "/asample", quoting
    said = secrets.ends(1, "run", "-v", "--json")
    assert proxy.num_quoted > 0 and "[redacted]" in said and "Traceback" in said
    assert "[redacted]" in (secrets.folder / "run/ledger.jsonl").read_text()
    # only Inspect's own log is left of this
    assert "no score" in secrets.ends(1, "inspect", eval_tasks=["tasks.py@letters"])


def broken_model(llama_dir: Path, folder: Path) -> Path:
    """A copy of a model that gives no number."""
    shutil.copytree(llama_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


TRAINING_PATHS = ("/create_session", "/create_model", "/forward_backward", "/optim_step",
                  "/save_weights", "/retrieve_future")  # fmt: skip


@pytest.mark.parametrize(("status", "path"), pairs([400, 403], TRAINING_PATHS))
def test_a_server_that_quotes_the_key_while_it_trains(
    secrets: Secrets, proxy: QuotingProxy, path: str, status: int
) -> None:
    proxy.path, proxy.status, proxy.quoting = path, status, "json"
    said = secrets.ends(1, "run", "-v", "--json", evalops_enabled=False)
    assert proxy.num_quoted > 0 and "[redacted]" in said


def test_a_server_that_quotes_the_key_when_it_is_asked_to_keep_weights(
    secrets: Secrets, proxy: QuotingProxy
) -> None:
    proxy.path = "/ttl"
    said = secrets.ends(0, "run")
    assert proxy.num_quoted > 0 and "[redacted]" in said
    (failed,) = [event for event in secrets.events("run") if event["type"] == "care_failed"]
    assert "[redacted]" in failed["detail"]


def test_a_server_that_changes_no_expiry_is_said_to_let_nothing_expire(
    secrets: Secrets, proxy: QuotingProxy
) -> None:
    """As SkyRL answers; once a run, not once a round."""
    proxy.path, proxy.status = "/ttl", 405
    said = secrets.ends(0, "run", max_rounds=2, eval_threshold=1.0)
    assert proxy.num_quoted > 0 and "[redacted]" in said
    assert said.count("has no request that changes how long weights are kept") == 1
    assert "tinker checkpoint delete PATH" in said and "They may expire" not in said


def test_a_server_that_refuses_to_delete_bad_weights(
    secrets: Secrets, proxy: QuotingProxy, service: local_tinker.Service, llama_dir: Path
) -> None:
    """What was wrong with the training is said, and not what was wrong with the deletion."""
    broken = str(broken_model(llama_dir, secrets.folder / "broken"))
    service.serve_model(broken, broken)
    proxy.path = "/round_01"
    changes = {"base_model": broken, "eval_tasks": ["qa:questions.jsonl"]}
    assert "the loss is nan in round 1, step 0" in secrets.ends(1, "run", "-v", **changes)
    assert proxy.num_quoted == 2


def test_runs_that_fail_by_themselves(secrets: Secrets, llama_dir: Path) -> None:
    """A bad config, a task whose code tells a key, a model that gives no number."""
    for flags in ((), ("-v", "--json")):
        assert "not a setting" in secrets.ends(2, "a", *flags, learning_rat=1)
        said = secrets.ends(2, "b", *flags, eval_tasks=["tasks.py@broken"])
        assert "the key is [redacted]" in said
        said = secrets.ends(2, "c", *flags, base_url="http://127.0.0.1:9", eval_threshold=0)
        assert "Nothing answers" in said
    broken = str(broken_model(llama_dir, secrets.folder / "broken"))
    local = {"base_url": None, "base_model": broken, "eval_tasks": ["qa:questions.jsonl"]}
    assert "the loss is nan" in secrets.ends(1, "d", "-v", "--json", **local)


def test_a_key_that_cannot_be_used(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_API_KEY", "EVALOPS_API_KEY"):
        with monkeypatch.context() as context:
            context.setenv(name, "PlantedTinker\n€")
            secrets.ends(2, "run", "-v", "--json")


@thorough_only
def test_a_key_is_what_stands_between_spaces(
    secrets: Secrets, proxy: QuotingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newline inside would be tried for minutes by the SDK, which cannot send it."""
    monkeypatch.setenv("TINKER_API_KEY", f" {TINKER}\n")
    secrets.ends(0, "run", max_rounds=1, eval_tasks=["qa:questions.jsonl"])
    assert proxy.keys == {TINKER}
    monkeypatch.setenv("TINKER_API_KEY", "tml-Planted\nTinker")
    assert "TINKER_API_KEY has spaces, control or" in secrets.ends(2, "other")
    # A blank or very short one is no secret: messages keep their spaces and letters.
    monkeypatch.setenv("TINKER_API_KEY", " ")
    monkeypatch.setenv("EVALOPS_API_KEY", "e")
    assert "TINKER_API_KEY is not set: base_url in the config is" in secrets.ends(2, "third")


# --- other processes ------------------------------------------------------------------------------


@thorough_only
def test_interrupted_in_a_process_of_its_own(secrets: Secrets, proxy: QuotingProxy) -> None:
    arguments = secrets.arguments("run", steps_per_round=200, eval_tasks=["qa:questions.jsonl"])
    process = subprocess.Popen(
        [sys.executable, str(REPO / "trainer_with_eval.py"), *arguments, "-v", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=secrets.folder,
    )
    wait_for(process, secrets.folder / "run/ledger.jsonl", "step", 3)
    assert marks_in(Path(f"/proc/{process.pid}/cmdline").read_bytes()) == []
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and proxy.keys == {TINKER}
    assert marks_in(output + errors) == []
    assert marked_files(secrets.folder / "run") == []


def test_the_alert_command_has_no_key(secrets: Secrets, proxy: QuotingProxy) -> None:
    script = secrets.folder / "alert.sh"
    script.write_text(
        "cat > alert.json; env > alert.env; cat /proc/$$/environ > alert.proc; "
        "cat /proc/[0-9]*/cmdline > alert.cmdline 2>/dev/null; true"
    )
    proxy.path, proxy.quoting = "/asample", "json"
    secrets.ends(1, "run", "--alert", f"sh {script}")
    assert json.loads((secrets.folder / "alert.json").read_text())["alert"] == "failed"
    for name in ("alert.json", "alert.env", "alert.proc", "alert.cmdline"):
        found = (secrets.folder / name).read_bytes()
        assert found and {b"PlantedTinker", b"PlantedEvalops"}.isdisjoint(marks_in(found)), name
    assert "[redacted]" in (secrets.folder / "alert.json").read_text()


# --- the search itself ----------------------------------------------------------------------------


def test_the_search_would_find_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/1.json", json.dumps({"error": TINKER}))
    header = json.dumps({"__metadata__": {"key": quote(EVALOPS)}}).encode()
    weights = len(header).to_bytes(8, "little") + header
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / OPENAI.replace("/", "_")).touch()
    assert len(marked_files(tmp_path)) == 3
    for form in QUOTES.values():
        for key in (TINKER, EVALOPS, OPENAI):
            assert marks_in(form(key).encode())
            said = f"a {form(form(key))} b"
            assert not marks_in(redact(said, key).encode())
            assert redact(said, key)[:2] == "a " and redact(said, key)[-2:] == " b"


def test_a_log_record_whose_arguments_do_not_fit_breaks_nothing(secrets: Secrets) -> None:
    from services.keys import taken

    with taken():
        logging.getLogger("tinker").warning("%d of %s", TINKER)
        try:
            raise ValueError(TINKER)
        except ValueError:
            logging.getLogger("tinker").exception("so it was")
    assert marks_in(secrets.caplog.text.encode()) == []
    assert secrets.caplog.text.count("[redacted]") == 2


# --- the directory --------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_run_directory_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "there").mkdir()
        (tmp_path / "there").chmod(0o755)
        for name in ("there", "new/below"):
            RunStore.create(tmp_path / name, {"config": {}}).close()
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_names_in_settings_lead_nowhere(
    workspace_of: Callable[[Path], Workspace], tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    workspace = workspace_of(folder)
    (folder / "tasks.py").write_text(TASKS.replace('os.environ["OPENAI_API_KEY"]', '""'))
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    config = workspace.arguments("unused", eval_tasks=["tasks.py@letters"], run_name="x")[:2]
    for name in ("../../evil", "/tmp/evil", "..", "a/b"):
        assert main([*config, "--set", f"run_name={json.dumps(name)}", "--dry-run"]) == 2
    os.chdir(folder)
    assert main([*config, "--run-dir", "run", "--set", "max_rounds=1"]) == 0
    made = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} - before
    known = [folder / name for name in ("child.env", "child.proc", "own.env", "all.cmdline")]
    known += [folder / "config.json"]
    outside = {p for p in made if not p.is_relative_to(folder / "run") and p not in known}
    assert outside == set()


@pytest.fixture
def workspace_of(llama_dir: Path) -> Callable[[Path], Workspace]:
    return lambda folder: Workspace(folder, llama_dir)

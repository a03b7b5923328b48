"""What is said, and how soon, where no whole Tinker service answers at the address of a command."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

import local_tinker
import study
from errors import ConfigError, LoopError, ServiceError
from half_services import (
    BROKEN,
    CUT,
    MISSING_PAGE,
    NOT_READY,
    UNKNOWN,
    WEB_PAGE,
    WORKS,
    Half,
    half_service,
    mute_service,
)
from services import listening, waiting
from services.listening import Patience, refuse_no_service
from services.sdk import rest_client
from services.waiting import aside, saying
from test_loop import Workspace
from test_study_run import StudyFolder
from trainer_with_eval import main

pytestmark = pytest.mark.core

KEY = "tml-any"
SHORT = Patience(answer_s=5, ready_s=0)


@pytest.fixture(scope="module")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost with its key, which nobody trusts."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed, which makes the certificate of a TLS port")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = [program, "req", "-x509", *curve, *named, "-keyout", "-", "-out", "-"]
    file.write_bytes(subprocess.run(made, check=True, capture_output=True).stdout)
    return file


@pytest.fixture
def tls(own_certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own_certificate)
    return context


def refusal(url: str) -> LoopError:
    told: list[str] = []
    with pytest.raises(LoopError) as raised:
        refuse_no_service(url, told.append, SHORT)
    assert not told
    return raised.value


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (WEB_PAGE, "is no Tinker service: to /api/v1/healthz it gives a web page, with status 200"),
        (MISSING_PAGE, "it gives a web page, with status 404"),
        (Half(301, location="https://there.example/login?next=s3cr3t"), "to https://there.example"),
        (Half(308, location="/elsewhere"), "sends its callers on to /elsewhere, with status 308"),
        (Half(302), "sends its callers on to another address"),
    ],
)
def test_what_is_no_service_is_refused_at_once(answer: Half, part: str) -> None:
    with half_service(answer) as there:
        error = refusal(there.url)
    assert isinstance(error, ConfigError)
    assert part in str(error) and "s3cr3t" not in str(error)
    assert there.asked == ["GET /api/v1/healthz"]  # once, and nothing that needs a key
    assert not there.keys


@pytest.mark.parametrize(
    "answer",
    [
        WORKS,
        UNKNOWN,  # a service may know nothing of its health
        Half(401),
        Half(403, "text/html"),
        Half(200, "text/plain", b"ok"),
        Half(400),
        Half(429),
    ],
)
def test_what_may_be_one_is_left_to_the_sdk(answer: Half) -> None:
    told: list[str] = []
    with half_service(answer) as there:
        refuse_no_service(there.url, told.append)
    assert not told


@pytest.mark.parametrize("first", [NOT_READY, BROKEN, Half(503), CUT])
def test_a_service_that_starts_is_waited_for_and_that_is_said(
    first: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "ASK_AGAIN_S", 0.02)
    told: list[str] = []
    with half_service(first, first, WORKS) as there:
        refuse_no_service(there.url, told.append)
    assert len(there.asked) == 3
    assert len(told) == 1 and "is not ready (" in told[0] and "at most 300 s" in told[0]


def test_one_that_stays_so_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "ASK_AGAIN_S", 0.02)
    with half_service(BROKEN) as there, pytest.raises(ServiceError, match=r"status 500 after 0\.1"):
        refuse_no_service(there.url, lambda said: None, Patience(5, 0.1))


def test_one_that_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SLOW_S", 0.02)
    told: list[str] = []
    with mute_service() as url, pytest.raises(ServiceError) as raised:
        refuse_no_service(url, told.append, Patience(0.1, 0))
    assert "takes connections and gave no answer within 0.1 s" in str(raised.value)
    assert told == [f"waiting for an answer of the service at {url}, at most 0.1 s"]


def test_a_slow_one_is_waited_for_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SLOW_S", 0.02)
    told: list[str] = []
    with half_service(Half(after_s=0.2)) as there:
        refuse_no_service(there.url, told.append, Patience(30, 0))
    assert told == [f"waiting for an answer of the service at {there.url}, at most 30 s"]


def test_plain_http_and_tls_are_told_apart(tls: ssl.SSLContext) -> None:
    with half_service(WORKS, tls=tls) as there:
        secure = there.url.replace("http:", "https:")
        said = str(refusal(there.url))
        assert "speaks TLS, and the address says plain http" in said
        assert said.endswith(f"to {secure}.")
    with half_service(WORKS) as there:
        said = str(refusal(there.url.replace("http:", "https:")))
        assert "does not answer in TLS" in said and said.endswith(f"to {there.url}.")


def test_a_certificate_has_to_be_trusted(
    tls: ssl.SSLContext, own_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with half_service(WORKS, tls=tls) as there:
        url = there.url.replace("http:", "https:")
        assert "is not trusted" in str(refusal(url)) and "SSL_CERT_FILE" in str(refusal(url))
        monkeypatch.setenv("SSL_CERT_FILE", str(own_certificate))
        refuse_no_service(url, lambda said: None, SHORT)


# --- each command ---------------------------------------------------------------------------------


@pytest.fixture
def commands(workspace: Workspace, llama_dir: Path) -> dict[str, list[str]]:
    """The words of each way to ask a service, but for those of runs that were made on one."""
    config = workspace.arguments("run")
    path = "tinker://a/sampler_weights/b"
    return {
        "a run": config,
        "--evaluate": [*config[:2], "--evaluate", path],
        "two": [*config[:2], "--evaluate", path, f"{path}2"],
        "--chat": [*config[:2], "--chat", path],
        "--check-service": [*config[:2], "--check-service"],
        "of no config": ["--check-service"],
    }


@pytest.mark.parametrize(
    "name", ["a run", "--evaluate", "two", "--chat", "--check-service", "of no config"]
)
def test_each_command_refuses_a_web_server(
    name: str,
    commands: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with half_service(WEB_PAGE) as there:
        monkeypatch.setenv("TINKER_BASE_URL", there.url)
        assert main(commands[name]) == 2
    said = capsys.readouterr().err
    assert f"What answers at {there.url} is no Tinker service" in said
    assert there.asked == ["GET /api/v1/healthz"]
    assert not Path("runs").exists() and not Path("run").exists()


def test_a_run_does_not_wait_for_one_that_says_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(listening, "OF_A_RUN", Patience(0.2, 0))
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with mute_service() as url:
        assert workspace.run("run", base_url=url) == 1
    assert "gave no answer within 0.2 s" in capsys.readouterr().err
    assert not (workspace.folder / "run").exists()


def test_a_study_refuses_it_for_each_trial(
    tmp_path: Path,
    llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = StudyFolder(tmp_path / "study", llama_dir)
    folder.write(variables={"lora_rank": [2]})
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with half_service(MISSING_PAGE) as there:
        monkeypatch.setenv("TINKER_BASE_URL", there.url)
        assert study.main(["run", str(folder.folder)]) != 0
    assert "it gives a web page, with status 404" in capsys.readouterr().err
    assert there.asked == ["GET /api/v1/healthz"]


def test_what_knows_nothing_of_the_sdk_is_called_no_service(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Another program's API answers with JSON as well."""
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with half_service(UNKNOWN) as there:
        assert workspace.run("run", base_url=there.url) == 2
        said = capsys.readouterr().err
        assert f"What answers at {there.url} is no Tinker service, or one for another" in said
        assert "no longer knows this session" not in said
        assert workspace.run("run", "--dry-run", "--json", base_url=there.url) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["service"]["why_not"].startswith(f"What answers at {there.url} is no Tinker")


@pytest.mark.parametrize("way", ["a run", "--evaluate", "two", "--chat"])
def test_a_model_that_the_service_does_not_list_is_refused_everywhere(
    way: str,
    commands: dict[str, list[str]],
    qwen_dir: Path,
    tmp_path: Path,
    service: local_tinker.Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model_dir = shutil.copytree(qwen_dir, tmp_path / "unlisted")
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "checkpoints"))
    monkeypatch.setenv("TINKER_BASE_URL", service.base_url)
    words = [*commands[way], "--set", f"base_model={model_dir}"]
    assert main(words) == 2
    said = capsys.readouterr().err
    does = "trains" if way == "a run" else "samples from"
    assert f"does not list it among the models that it {does}. Set base_model to what it" in said
    assert not Path("runs").exists()


def test_a_model_that_grades_has_to_be_listed(
    workspace: Workspace,
    qwen_dir: Path,
    tmp_path: Path,
    service: local_tinker.Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    grader = shutil.copytree(qwen_dir, tmp_path / "unlisted")
    monkeypatch.setenv("TINKER_API_KEY", service.open_folder(tmp_path / "checkpoints"))
    evaluation = {"max_tokens": 4, "grader_model": str(grader)}
    assert workspace.run("run", base_url=service.base_url, evaluation=evaluation) == 2
    said = capsys.readouterr().err
    assert "evaluation.grader_model" in said and "models that it samples from" in said


# --- waiting --------------------------------------------------------------------------------------


def test_what_waits_does_not_hold_up_who_is_asked_to_stop() -> None:
    """As Ctrl-C asks: the SDK's own waiting goes on in a thread that nobody waits for."""
    is_over = threading.Event()

    async def asked() -> None:
        waiting_for = asyncio.create_task(aside(lambda: is_over.wait(60)))
        await asyncio.sleep(0.01)
        waiting_for.cancel()
        await waiting_for

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asked())
    is_over.set()


def test_what_is_done_aside_comes_back_whatever_it_is() -> None:
    def fails() -> int:
        raise ConfigError("wrong")

    assert asyncio.run(aside(lambda: 3)) == 3
    with pytest.raises(ConfigError, match="wrong"):
        asyncio.run(aside(fails))


def test_that_it_is_waited_for_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SLOW_S", 0.01)
    told: list[str] = []

    async def slow() -> int:
        await asyncio.sleep(0.1)
        return 3

    assert asyncio.run(saying(slow(), lambda: told.append("slow"))) == 3
    assert told == ["slow"]


def test_a_client_of_no_service_says_so() -> None:
    with half_service(UNKNOWN) as there, pytest.raises(ConfigError, match="Not Found"):
        rest_client(there.url, KEY)

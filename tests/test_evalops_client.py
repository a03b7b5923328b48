"""The EvalOps client against a loopback fake: exact bytes, every answer, and no word of the key."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

import pytest

from errors import ConfigError, LoopError
from evalops_client import (
    DEFAULT_API_URL,
    MAX_ANSWER_BYTES,
    Delivery,
    EvalOpsClient,
    EvalOpsError,
    RoundReport,
    build_payload,
    idempotency_key,
    redact,
)
from fake_evalops import (
    DRIP,
    GARBAGE,
    HANG,
    OK_C,
    OK_P,
    RATE_LIMITED,
    SLASH_REDIRECT,
    FakeEvalOps,
    Reply,
    as_json,
    error_shapes,
    fake_evalops,
    redirect,
)

KEY = 'eoak_s3cr3t"/+%t4il'  # holds characters that JSON and URLs escape
SUITE = "suite-1"
REPORT = RoundReport(
    run_name="capitals",
    run_id="20260101-ab12",
    config_hash="0123456789abcdef0123",
    round=2,
    checkpoint="tinker://model/sampler_weights/round_02",
    base_model="meta-llama/Llama-3.1-8B",
    score=0.8,
    stderr=0.0625,
    n=40,
    threshold=0.75,
    learning_rate=0.00025,
    step=10,
    tasks=(("simple_qa", 0.75, 20), ("qa:more.jsonl", 0.85, 20)),
    passed=True,
    decision="Target met: 0.8000 >= 0.75.",
)
BODY = (
    '{"testSuiteId": "suite-1",'
    ' "name": "Training Round 2: capitals (run-20260101-ab12, config-0123456789ab)",'
    ' "description": "Automated evaluation from Tinker fine-tuning round 2.'
    ' Target met: 0.8000 >= 0.75.",'
    ' "config": {"model": "tinker://model/sampler_weights/round_02",'
    ' "metadata": {"source": "tinker-eval-loop",'
    ' "checkpoint": "tinker://model/sampler_weights/round_02", "round": 2,'
    ' "metrics": {"score": 0.8, "stderr": 0.0625, "n": 40, "threshold": 0.75},'
    ' "tasks": [{"name": "simple_qa", "score": 0.75, "n": 20},'
    ' {"name": "qa:more.jsonl", "score": 0.85, "n": 20}],'
    ' "runName": "capitals", "runId": "20260101-ab12", "configHash": "0123456789abcdef0123",'
    ' "baseModel": "meta-llama/Llama-3.1-8B", "step": 10, "learningRate": 0.00025,'
    ' "passed": true, "decision": "Target met: 0.8000 >= 0.75."}},'
    ' "tags": ["tinker", "automated", "round-2", "run-20260101-ab12", "config-0123456789ab"],'
    ' "visibility": "team", "sharedWithTeams": []}'
)
SAFE = "the round itself is safe in the run directory."


@pytest.fixture(scope="module")
def server() -> Iterator[FakeEvalOps]:
    with fake_evalops() as fake:
        yield fake


@pytest.fixture
def evalops(server: FakeEvalOps) -> FakeEvalOps:
    server.play(OK_P)
    return server


def post(url: str, key: str = KEY, timeout_s: float = 5.0) -> Delivery:
    return asyncio.run(EvalOpsClient(key, url, timeout_s).post_round(REPORT, SUITE))


def failure(url: str, timeout_s: float = 5.0) -> str:
    """Post, expect a refusal, and return its message after checking that the key is not in it."""
    with pytest.raises(EvalOpsError) as caught:
        post(url, timeout_s=timeout_s)
    assert_no_key(repr(caught.value) + "".join(traceback.format_exception(caught.value)))
    return str(caught.value)


def assert_no_key(text: str) -> None:
    for part in ("s3cr3t", "t4il"):
        assert part not in text


def expected(url: str, found: str, remedy: str) -> str:
    return f"EvalOps did not confirm the round: POST {url} gave {found}. {remedy}"


# What is sent


def test_request_is_exactly_this(evalops: FakeEvalOps) -> None:
    post(evalops.url)
    (request,) = evalops.requests
    assert (request.method, request.path) == ("POST", "/api/v1/test-runs")
    assert request.body.decode() == BODY
    assert request.headers == {
        "host": evalops.url.removeprefix("http://"),
        "accept": "*/*",
        "accept-encoding": request.headers["accept-encoding"],
        "connection": "keep-alive",
        "user-agent": "tinker-eval-loop",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "idempotency-key": idempotency_key(REPORT, SUITE),
        "content-length": str(len(BODY)),
    }


def test_baseline_round_names_the_base_model_and_leaves_absent_values_out() -> None:
    baseline = replace(REPORT, round=0, checkpoint=None, stderr=None, learning_rate=None, step=0)
    payload = build_payload(baseline, SUITE)
    metadata = payload["config"]["metadata"]
    assert payload["config"]["model"] == "meta-llama/Llama-3.1-8B"
    assert metadata["metrics"] == {"score": 0.8, "n": 40, "threshold": 0.75}
    assert metadata["step"] == 0 and metadata["round"] == 0
    assert "checkpoint" not in metadata and "learningRate" not in metadata
    assert "null" not in json.dumps(payload)


def test_a_failed_gate_is_sent_as_false() -> None:
    assert build_payload(replace(REPORT, passed=False), SUITE)["config"]["metadata"]["passed"] is (
        False
    )


@pytest.mark.parametrize(
    ("report", "named"),
    [
        (replace(REPORT, score=float("nan")), "score is nan"),
        (replace(REPORT, stderr=float("inf")), "stderr is inf"),
        (replace(REPORT, threshold=float("-inf")), "threshold is -inf"),
        (replace(REPORT, learning_rate=float("nan")), "learningRate is nan"),
        (replace(REPORT, tasks=(("simple_qa", float("nan"), 20),)), "tasks.simple_qa is nan"),
    ],
)
def test_a_number_that_is_not_finite_is_named_and_not_sent(
    evalops: FakeEvalOps, report: RoundReport, named: str
) -> None:
    with pytest.raises(EvalOpsError) as caught:
        asyncio.run(EvalOpsClient(KEY, evalops.url).post_round(report, SUITE))
    assert str(caught.value) == (
        f"EvalOps was not sent round 2: {named}, which is not a number that JSON can carry. "
        "Look at this round's evaluation in the run directory."
    )
    assert evalops.requests == []


def test_idempotency_key_is_one_per_run_round_and_suite() -> None:
    key = idempotency_key(REPORT, SUITE)
    assert key == "fa786c880e6c24d8f582c9b04842a9cffd07ba6b7b352dd0063012b8ce312bf9"
    same = replace(REPORT, score=0.1, run_name="other", decision="Again.", config_hash="f" * 20)
    assert idempotency_key(same, SUITE) == key
    others = {
        idempotency_key(replace(REPORT, round=3), SUITE),
        idempotency_key(replace(REPORT, run_id="20260101-ab13"), SUITE),
        idempotency_key(REPORT, "suite-2"),
        idempotency_key(replace(REPORT, run_id="20260101-ab12-2", round=2), SUITE),
    }
    assert len(others | {key}) == 5


# What comes back


@pytest.mark.parametrize(
    ("reply", "delivery"),
    [
        (OK_P, Delivery("run-7", "job-9", "pending", 200)),
        (OK_C, Delivery("run-7", None, "pending", 201)),
        (as_json({"id": 7, "jobId": "j", "data": None}, 202), Delivery("7", "j", None, 202)),
        (as_json({"data": {"id": "a", "jobId": "j"}}), Delivery("a", "j", None, 200)),
        (as_json({}), Delivery(None, None, None, 200)),
        (as_json({"id": f"run {KEY}"}), Delivery("run [redacted]", None, None, 200)),
    ],
)
def test_both_envelopes_are_read(evalops: FakeEvalOps, reply: Reply, delivery: Delivery) -> None:
    evalops.play(reply)
    assert post(evalops.url) == delivery


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (GARBAGE, 'with an answer that is not a JSON object: "<html> [31mnot an API\ufffd</html>"'),
        (Reply(200, b"[1]"), 'with an answer that is not a JSON object: "[1]"'),
        (Reply(200, b""), 'with an answer that is not a JSON object: ""'),
        (
            Reply(200, b"[" * 200_000),
            f'with an answer that is not a JSON object: "{"[" * 300}..."',
        ),
        (
            Reply(200, b"{" + b" " * (MAX_ANSWER_BYTES - 1) + b"}"),
            "with an answer of over 1048576 bytes",
        ),
    ],
    ids=["html", "list", "empty", "deep", "too large"],
)
def test_an_accepted_post_with_an_unreadable_answer_is_an_error(
    evalops: FakeEvalOps, reply: Reply, found: str
) -> None:
    evalops.play(reply)
    url = f"{evalops.url}/api/v1/test-runs"
    remedy = f"Check `evalops_api_url`; {SAFE}"
    assert failure(evalops.url) == expected(url, f"HTTP 200 {found}", remedy)


def test_an_answer_of_exactly_the_limit_is_read(evalops: FakeEvalOps) -> None:
    evalops.play(Reply(200, b"{" + b" " * (MAX_ANSWER_BYTES - 2) + b"}"))
    assert post(evalops.url) == Delivery(None, None, None, 200)


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("message", "suite is gone"),
        ("error text", "suite is gone"),
        ("error object", "internal: suite is gone"),
        ("plain text", "suite is gone"),
    ],
)
def test_each_error_shape_is_quoted(
    evalops: FakeEvalOps, status: int, shape: str, said: str
) -> None:
    evalops.play(Reply(status, error_shapes("suite is gone")[shape]))
    remedy = (
        f"The fault is on the server's side; {SAFE}"
        if status == 500
        else f"Check `evalops_test_suite_id`; {SAFE}"
    )
    assert failure(evalops.url) == expected(
        f"{evalops.url}/api/v1/test-runs", f'HTTP {status}, "{said}"', remedy
    )


@pytest.mark.parametrize(
    ("reply", "found", "remedy"),
    [
        (Reply(401), "HTTP 401", "Check that EVALOPS_API_KEY holds a key that is still valid."),
        (
            Reply(403),
            "HTTP 403",
            "Check that the key in EVALOPS_API_KEY may start test runs in this suite.",
        ),
        (
            as_json({"detail": "Not Found"}, 404),
            'HTTP 404, "{"detail": "Not Found"}"',
            "Check `evalops_test_suite_id` and `evalops_api_url`.",
        ),
        (
            RATE_LIMITED,
            'HTTP 429, "rate_limit_exceeded"',
            f"EvalOps limits the rate of calls; {SAFE}",
        ),
        (
            Reply(502, b"x" * (MAX_ANSWER_BYTES + 1)),
            "HTTP 502",
            "The fault is on the server's side",
        ),
        (redirect("/login", 302), "HTTP 302", f"Check `evalops_api_url`; {SAFE}"),
    ],
    ids=["401", "403", "404", "429", "502 too large", "302"],
)
def test_each_refusal_says_what_to_do(
    evalops: FakeEvalOps, reply: Reply, found: str, remedy: str
) -> None:
    evalops.play(reply)
    message = failure(evalops.url)
    assert message.startswith(expected(f"{evalops.url}/api/v1/test-runs", found, remedy))
    assert len(evalops.requests) == 1


# Redirects


@pytest.mark.parametrize(
    ("replies", "paths"),
    [
        ([SLASH_REDIRECT, OK_P], ["/"]),
        ([redirect("/api/v1/test-runs/", 308), OK_P], ["/"]),
        ([redirect("test-runs/a"), redirect("b?q=1"), redirect("c"), OK_P], ["/a", "/b", "/c"]),
    ],
    ids=["307", "308", "three hops"],
)
def test_same_origin_redirect_is_followed_with_method_body_and_key(
    evalops: FakeEvalOps, replies: list[Reply], paths: list[str]
) -> None:
    evalops.play(*replies)
    assert post(evalops.url) == Delivery("run-7", "job-9", "pending", 200)
    assert [request.path for request in evalops.requests] == [
        "/api/v1/test-runs" + path for path in ["", *paths]
    ]
    for request in evalops.requests:
        assert (request.method, request.body.decode()) == ("POST", BODY)
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["idempotency-key"] == idempotency_key(REPORT, SUITE)


def test_absolute_same_origin_redirect_is_followed(evalops: FakeEvalOps) -> None:
    evalops.play(redirect(f"{evalops.url}/elsewhere"), OK_C)
    assert post(evalops.url).run_id == "run-7"
    assert [request.path for request in evalops.requests] == ["/api/v1/test-runs", "/elsewhere"]


def test_a_fourth_hop_is_refused(evalops: FakeEvalOps) -> None:
    evalops.play(SLASH_REDIRECT)
    assert failure(evalops.url) == expected(
        f"{evalops.url}/api/v1/test-runs/",
        "more than 3 redirects",
        f"Check `evalops_api_url`; {SAFE}",
    )
    assert len(evalops.requests) == 4


def test_cross_origin_redirect_is_refused_and_the_other_origin_hears_nothing(
    evalops: FakeEvalOps,
) -> None:
    with fake_evalops() as other:
        evalops.play(redirect(f"{other.url}/api/v1/test-runs?token={KEY}"))
        message = failure(evalops.url)
        assert other.requests == []
    assert message == expected(
        f"{evalops.url}/api/v1/test-runs",
        f"HTTP 307 to {other.url}/api/v1/test-runs, which was not followed",
        f"If that is the right place, set `evalops_api_url` to it; {SAFE}",
    )
    assert len(evalops.requests) == 1


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("https://{host}/x", "HTTP 307 to https://{host}/x, which was not followed"),
        ("http://me:pw@{host}/x", "HTTP 307 to http://{host}/x, which was not followed"),
        ("//evil.example/x", "HTTP 307 to http://evil.example/x, which was not followed"),
        ("ftp://evil.example/", "HTTP 307 to ftp://evil.example/, which was not followed"),
        ("http://[::1", "no usable answer (RemoteProtocolError)"),
        (f"http://h:{KEY}/", "no usable answer (RemoteProtocolError)"),
        ("http://xn--/", "no usable answer (IDNAError)"),
    ],
)
def test_other_unsafe_redirects_are_refused(
    evalops: FakeEvalOps, location: str, found: str
) -> None:
    host = evalops.url.removeprefix("http://")
    evalops.play(redirect(location.format(host=host)))
    message = failure(evalops.url)
    url = f"{evalops.url}/api/v1/test-runs"
    assert message.startswith(
        f"EvalOps did not confirm the round: POST {url} gave {found.format(host=host)}"
    )
    assert len(evalops.requests) == 1


# A server that is slow, silent or absent


@pytest.mark.parametrize("reply", [HANG, DRIP], ids=["silent", "dripping"])
def test_a_slow_server_is_left_in_time(evalops: FakeEvalOps, reply: Reply) -> None:
    evalops.play(reply)
    begun = time.monotonic()
    message = failure(evalops.url, timeout_s=0.3)
    assert 0.25 < time.monotonic() - begun < 2
    assert message == expected(
        f"{evalops.url}/api/v1/test-runs",
        "no complete answer within 0.3 s",
        f"Check `evalops_api_url`; {SAFE}",
    )


def test_an_absent_server_is_an_evalops_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert failure(url) == expected(
        f"{url}/api/v1/test-runs",
        "no usable answer (ConnectError: All connection attempts failed)",
        f"Check `evalops_api_url`; {SAFE}",
    )


def test_the_client_works_again_after_a_failure_and_in_another_event_loop(
    evalops: FakeEvalOps,
) -> None:
    client = EvalOpsClient(KEY, evalops.url)
    evalops.play(Reply(500), OK_P)
    with pytest.raises(EvalOpsError):
        asyncio.run(client.post_round(REPORT, SUITE))
    assert asyncio.run(client.post_round(REPORT, SUITE)).run_id == "run-7"
    first, second = evalops.requests
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_loopback_post_ignores_the_proxy_settings(
    evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert post(evalops.url).run_id == "run-7"


def test_unusable_proxy_settings_are_an_evalops_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:9")
    message = failure("https://evalops.invalid")
    assert message == expected(
        "https://evalops.invalid/api/v1/test-runs",
        "no connection: bad proxy or certificate settings (ValueError)",
        "Check HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
    )


# The key


@pytest.mark.parametrize("shape", ["message", "error text", "error object", "plain text"])
def test_the_key_is_redacted_from_each_error_shape_and_never_logged(
    evalops: FakeEvalOps, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    words = f"Authorization: Bearer {KEY}\nHost: x"
    evalops.play(Reply(400, error_shapes(words)[shape]))
    with caplog.at_level(logging.DEBUG):
        message = failure(evalops.url)
    said = "Authorization: Bearer [redacted] Host: x"
    assert message == expected(
        f"{evalops.url}/api/v1/test-runs",
        f'HTTP 400, "{"internal: " if shape == "error object" else ""}{said}"',
        f"Check `evalops_test_suite_id`; {SAFE}",
    )
    assert "POST" in caplog.text
    assert_no_key(caplog.text)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (290, "x" * 290 + "[redacted]"),
        (295, "x" * 295 + "[reda..."),
        (300, "x" * 300 + "..."),
    ],
)
def test_no_part_of_the_key_is_left_where_a_long_message_is_cut(
    evalops: FakeEvalOps, before: int, said: str
) -> None:
    evalops.play(Reply(400, b"x" * before + KEY.encode()))
    assert f'HTTP 400, "{said}". ' in failure(evalops.url)


@pytest.mark.parametrize(
    "body",
    [json.dumps(["denied", KEY]).encode(), b"/?key=eoak_s3cr3t%22%2F%2B%25t4il", KEY.encode() * 99],
    ids=["JSON-escaped", "URL-escaped", "repeated"],
)
@pytest.mark.parametrize("status", [200, 400])
def test_escaped_echoes_are_redacted_too(evalops: FakeEvalOps, status: int, body: bytes) -> None:
    evalops.play(Reply(status, body))
    assert "[redacted]" in failure(evalops.url)


def test_the_key_is_in_no_repr(evalops: FakeEvalOps) -> None:
    client = EvalOpsClient(KEY, evalops.url)
    assert_no_key(repr(client) + str(client) + repr(asyncio.run(client.post_round(REPORT, SUITE))))


def test_redact_replaces_every_form() -> None:
    text = 'k"/ k\\"/ k%22%2F k%22%2f K"/ k/'
    assert redact(text, 'k"/') == "[redacted] " * 5 + "k/"


def test_space_around_the_key_is_not_sent(evalops: FakeEvalOps) -> None:
    post(evalops.url, key=" eoak_1\n")
    assert evalops.requests[0].headers["authorization"] == "Bearer eoak_1"


@pytest.mark.parametrize("key", ["", "  ", "two s3cr3t", "s3cr3t\nX: y", "s3cr3t\u00e9"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^EVALOPS_API_KEY: ") as caught:
        EvalOpsClient(key, DEFAULT_API_URL)
    assert_no_key(str(caught.value))


# The base URL


@pytest.mark.parametrize(
    "url",
    [
        DEFAULT_API_URL,
        "https://evalops.example:8443/base/",
        "HTTPS://EvalOps.Example",
        "http://localhost:8000",
        "http://127.0.0.1",
        "http://127.8.9.1:1/",
        "http://[::1]:8000/",
    ],
)
def test_base_urls_that_are_accepted(url: str) -> None:
    EvalOpsClient(KEY, url)


@pytest.mark.parametrize(
    ("url", "shown", "problem"),
    [
        ("http://api.evalops.dev", None, "plain http to another machine would show the key"),
        ("http://10.0.0.1", None, "plain http to another machine would show the key"),
        ("http://localhost.evil.example", None, "plain http to another machine would show the key"),
        ("http://127.0.0.1.evil.example", None, "plain http to another machine would show the key"),
        ("https://me:pw@h.example", "[hidden]@h.example", "it holds a user name or password"),
        ("http://me:pw@localhost", "[hidden]@localhost", "it holds a user name or password"),
        ("https://me:p/w@h.example", "[hidden]@h.example", "it is not a URL"),
        (f"https://h.example/{KEY}?", "https://h.example/[redacted]?", "it has a query"),
        ("https://h.example#top", None, "it has a query or a fragment"),
        ("ftp://h.example", None, "it does not begin with https://"),
        ("api.evalops.dev", None, "it does not begin with https://"),
        ("", None, "it does not begin with https://"),
        ("https:///api", None, "it has no usable host and port"),
        ("https://h.example:99999", None, "it has no usable host and port"),
        ("https://h.example:port", None, "it is not a URL"),
        ("https://xn--", None, "it is not a URL"),
        ("https://h.example/\x00", None, "it is not a URL"),
    ],
)
def test_base_urls_that_are_refused(url: str, shown: str | None, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EvalOpsClient(KEY, url)
    message = str(caught.value)
    begin = f'evalops_api_url: "{url if shown is None else shown}" cannot be used: {problem}'
    assert message.startswith(begin)
    assert message.endswith(
        'Write it like "https://api.evalops.dev"; plain http is accepted for this machine only.'
    )
    assert "pw" not in message and "p/w" not in message
    assert_no_key(message)


@pytest.mark.parametrize(
    ("base", "path"),
    [("", "/api/v1/test-runs"), ("/", "/api/v1/test-runs"), ("/a/b/", "/a/b/api/v1/test-runs")],
)
def test_a_trailing_slash_or_a_path_in_the_base_url(
    evalops: FakeEvalOps, base: str, path: str
) -> None:
    post(evalops.url + base)
    assert evalops.requests[0].path == path


def test_an_evalops_error_is_a_loop_error_but_no_input_error() -> None:
    assert EvalOpsError.__mro__[1] is LoopError

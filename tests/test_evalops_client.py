"""The EvalOps client against a loopback fake: exact bytes, every answer, and no word of the key."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate

import pytest

from errors import ConfigError, LoopError
from evalops_client import (
    DEFAULT_API_URL,
    FIRST_STANDS,
    Answer,
    EvalOpsClient,
    main,
    poll_pause_s,
    wait_for_run,
)
from fake_evalops import (
    CONFLICT,
    DRIP,
    GARBAGE,
    HANG,
    IN_PROGRESS,
    OK_C,
    OK_P,
    RATE_LIMITED,
    RUN,
    SLASH_REDIRECT,
    TORN,
    UNAVAILABLE,
    FakeEvalOps,
    Reply,
    as_json,
    error_shapes,
    fake_evalops,
    redirect,
    run_replies,
)
from services.evalops_outbox import MAX_BYTES, EvalOpsError, RoundReport, build_payload, make_record
from services.keys import redact

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
SAFE = "The round itself is safe in the run directory."
CHECK_URL = (
    "Check the address (`evalops_api_url` or --api-url, else EVALOPS_API_URL), HTTPS_PROXY, "
    "NO_PROXY and SSL_CERT_FILE."
)
SERVER_FAULT = "The fault is on the server's side. Try again later."
CHECK_ID = "Check the id of the suite or the test run."


@pytest.fixture(scope="module")
def server() -> Iterator[FakeEvalOps]:
    with fake_evalops() as fake:
        yield fake


@pytest.fixture
def evalops(server: FakeEvalOps) -> FakeEvalOps:
    server.play(OK_P)
    return server


def post(url: str, key: str = KEY, timeout_s: float = 5.0) -> str | None:
    """Post `REPORT`; what the ledger keeps of it."""
    record = make_record(build_payload(REPORT, SUITE))
    return asyncio.run(EvalOpsClient(key, url, timeout_s).post_record(record))


def idempotency_key(report: RoundReport, suite_id: str) -> str:
    return make_record(build_payload(report, suite_id)).key


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
    return f"EvalOps did not confirm the round: POST {url} gave {found}. {remedy} {SAFE}"


# What is sent


def test_request_is_exactly_this(evalops: FakeEvalOps) -> None:
    post(evalops.url)
    (request,) = evalops.requests
    assert (request.method, request.path) == ("POST", "/api/v1/test-runs")
    assert request.body.decode() == BODY
    assert request.headers == {
        "host": evalops.url.removeprefix("http://"),
        "accept": "application/json",
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
    ("reply", "run_id"),
    [
        (OK_P, "run-7"),
        (OK_C, "run-7"),
        (as_json({"id": 7, "jobId": "j", "data": None}, 202), "7"),
        (as_json({"data": {"id": "a", "jobId": "j"}}), "a"),
        (as_json({}), None),
        (as_json({"id": f"run {KEY}"}), "run [redacted]"),
        (as_json({"id": "a\x1b[31m\n" + "b" * 999}), "a [31m " + "b" * 293),
    ],
)
def test_both_envelopes_are_read(evalops: FakeEvalOps, reply: Reply, run_id: str | None) -> None:
    evalops.play(reply)
    assert post(evalops.url) == run_id


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (GARBAGE.body, ', "<html> [31mnot an API\ufffd</html>"'),
        (b"[1]", ', "[1]"'),
        (b"", ""),
        (b"[" * 200_000, f', "{"[" * 300}..."'),
        (b"{" + b" " * (MAX_BYTES - 1) + b"}", ', "{"'),
    ],
    ids=["html", "list", "empty", "deep", "too large"],
)
def test_an_accepted_post_with_an_unreadable_answer_is_an_error(
    evalops: FakeEvalOps, body: bytes, said: str
) -> None:
    evalops.play(Reply(200, body))
    url = f"{evalops.url}/api/v1/test-runs"
    found = f"HTTP 200 without a JSON object{said}"
    assert failure(evalops.url) == expected(url, found, CHECK_URL)


def test_an_answer_of_exactly_the_limit_is_read(evalops: FakeEvalOps) -> None:
    evalops.play(Reply(200, b'{"id": 1' + b" " * (MAX_BYTES - 9) + b"}"))
    assert post(evalops.url) == "1"


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
    remedy = SERVER_FAULT if status == 500 else CHECK_ID
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
            "Check that the key in EVALOPS_API_KEY may start and read test runs of this suite.",
        ),
        (
            as_json({"detail": "Not Found"}, 404),
            'HTTP 404, "{"detail": "Not Found"}"',
            "Check the address, and the id of the suite or the test run.",
        ),
        (
            RATE_LIMITED,
            'HTTP 429, "rate_limit_exceeded"',
            "EvalOps limits the rate of calls. Try again later.",
        ),
        (Reply(502, b"x" * (MAX_BYTES + 1)), f'HTTP 502, "{"x" * 300}..."', SERVER_FAULT),
        (redirect("/login", 302), "HTTP 302", CHECK_URL),
        (Reply(307), "HTTP 307", CHECK_URL),
    ],
    ids=["401", "403", "404", "429", "502 too large", "302", "307 to nowhere"],
)
def test_each_refusal_says_what_to_do(
    evalops: FakeEvalOps, reply: Reply, found: str, remedy: str
) -> None:
    evalops.play(reply)
    message = failure(evalops.url)
    assert message == expected(f"{evalops.url}/api/v1/test-runs", found, remedy)
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
    assert post(evalops.url) == "run-7"
    assert [request.path for request in evalops.requests] == [
        "/api/v1/test-runs" + path for path in ["", *paths]
    ]
    for request in evalops.requests:
        assert (request.method, request.body.decode()) == ("POST", BODY)
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["idempotency-key"] == idempotency_key(REPORT, SUITE)


def test_absolute_same_origin_redirect_is_followed(evalops: FakeEvalOps) -> None:
    evalops.play(redirect(f"{evalops.url}/elsewhere"), OK_C)
    assert post(evalops.url) == "run-7"
    assert [request.path for request in evalops.requests] == ["/api/v1/test-runs", "/elsewhere"]


def test_a_fourth_hop_is_refused(evalops: FakeEvalOps) -> None:
    evalops.play(SLASH_REDIRECT)
    assert failure(evalops.url) == expected(
        f"{evalops.url}/api/v1/test-runs/",
        "more than 3 redirects",
        CHECK_URL,
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
        f"HTTP 307 to {other.url}/api/v1/test-runs, which is elsewhere",
        CHECK_URL,
    )
    assert len(evalops.requests) == 1


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("https://{host}/x", "HTTP 307 to https://{host}/x, which is elsewhere"),
        ("http://me:pw@{host}/x", "HTTP 307 to http://{host}/x, which is elsewhere"),
        ("//evil.example/x", "HTTP 307 to http://evil.example/x, which is elsewhere"),
        ("ftp://evil.example/", "HTTP 307 to ftp://evil.example/, which is elsewhere"),
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
    assert time.monotonic() - begun < 30
    assert message == expected(
        f"{evalops.url}/api/v1/test-runs",
        "no complete answer within 0.3 s",
        CHECK_URL,
    )


def test_an_absent_server_is_an_evalops_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert failure(url) == expected(
        f"{url}/api/v1/test-runs",
        "no usable answer (ConnectError: All connection attempts failed)",
        CHECK_URL,
    )


def test_the_client_works_again_after_a_failure_and_in_another_event_loop(
    evalops: FakeEvalOps,
) -> None:
    client = EvalOpsClient(KEY, evalops.url)
    evalops.play(Reply(500), OK_P)
    record = make_record(build_payload(REPORT, SUITE))
    with pytest.raises(EvalOpsError):
        asyncio.run(client.post_record(record))
    assert asyncio.run(client.post_record(record)) == "run-7"
    first, second = evalops.requests
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_loopback_post_ignores_the_proxy_settings(
    evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert post(evalops.url) == "run-7"


def test_unusable_proxy_settings_are_an_evalops_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:9")
    message = failure("https://evalops.invalid")
    assert message == expected(
        "https://evalops.invalid/api/v1/test-runs",
        "no usable answer (ValueError)",
        CHECK_URL,
    )


# What may be tried again


def refused(url: str, timeout_s: float = 5.0) -> EvalOpsError:
    with pytest.raises(EvalOpsError) as caught:
        post(url, timeout_s=timeout_s)
    return caught.value


@pytest.mark.parametrize(
    ("reply", "is_temporary"),
    [
        *[(Reply(status), True) for status in (408, 425, 429, 500, 501, 502, 503, 504, 599)],
        *[(Reply(status), False) for status in (400, 401, 402, 403, 404, 405, 409, 410, 413, 422)],
        *[(redirect("/x", status), False) for status in (301, 302, 303)],
        (redirect("https://elsewhere.example/"), False),
        (SLASH_REDIRECT, False),  # again and again
        (redirect("http://xn--/"), False),
        (IN_PROGRESS, True),
        (as_json({"error": "idempotency_in_progress"}, 409), True),
        (as_json({"code": "idempotency_in_progress"}, 409), True),
        (as_json({"error": {"code": "other", "message": "in progress"}}, 409), False),
        (GARBAGE, True),
        (Reply(200, b'{"id": NaN}'), True),
        (Reply(200, b'{"id": 1e999}'), True),
        (Reply(200, b"{" + b" " * MAX_BYTES + b"}"), True),
        (TORN, True),
    ],
)
def test_what_is_temporary(evalops: FakeEvalOps, reply: Reply, is_temporary: bool) -> None:
    evalops.play(reply)
    assert refused(evalops.url).is_temporary is is_temporary


def test_silence_and_absence_are_temporary_and_what_cannot_be_sent_is_not(
    evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    evalops.play(HANG)
    assert refused(evalops.url, timeout_s=0.2).is_temporary
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert refused(url).is_temporary
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "gopher://127.0.0.1:9")
    assert not refused("https://evalops.invalid").is_temporary


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [
        ("0", 0.0, 0.0),
        ("1", 1.0, 1.0),
        ("120", 120.0, 120.0),
        ("9" * 5000, math.inf, math.inf),
        pytest.param(
            formatdate(time.time() + 86_400, usegmt=True), 60_000.0, 86_400.0, id="tomorrow"
        ),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0, 0.0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 0.0, 0.0),
        ("Wed, 21 Oct 2015 07:28:00", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_the_server_asks_for_is_kept(
    evalops: FakeEvalOps, status: int, header: str, least_s: float, most_s: float
) -> None:
    evalops.play(Reply(status, headers={"retry-after": header}))
    wait_s = refused(evalops.url).retry_after_s
    assert wait_s is not None and least_s <= wait_s <= most_s


@pytest.mark.parametrize("header", ["", "-1", "1.5", "soon", "Wed, 99 Oct 2015 07:28"])
def test_a_wait_that_is_none_is_ignored(evalops: FakeEvalOps, header: str) -> None:
    evalops.play(Reply(429, headers={"retry-after": header}))
    assert refused(evalops.url).retry_after_s is None


def test_a_refusal_has_no_wait(evalops: FakeEvalOps) -> None:
    evalops.play(Reply(400, headers={"retry-after": "1"}))
    assert refused(evalops.url).retry_after_s is None


@pytest.mark.parametrize(
    "reply", [CONFLICT, as_json({"error": "idempotency_conflict"}, 409)], ids=["object", "text"]
)
def test_a_conflict_says_that_the_first_record_stands(evalops: FakeEvalOps, reply: Reply) -> None:
    evalops.play(reply)
    assert post(evalops.url) == FIRST_STANDS
    evalops.play(replace(reply, status=400))
    assert not refused(evalops.url).is_temporary


# How a test run stands


def ask(url: str, run_id: str = "run-7") -> Answer:
    return asyncio.run(EvalOpsClient(KEY, url).get_run(run_id))


@pytest.mark.parametrize("nested", [True, False])
def test_both_envelopes_of_a_test_run_are_read_and_unknown_fields_kept(
    evalops: FakeEvalOps, nested: bool
) -> None:
    run = {**RUN, "status": "completed", "summary": {"passed": 3, "failed": 1}, "new": [1.5, None]}
    answer = {"data": run, "jobId": "job-9"} if nested else run
    evalops.play(as_json(answer))
    found = ask(evalops.url)
    assert (found.status, found.body, found.run, found.outcome) == (200, answer, run, "completed")
    (request,) = evalops.requests
    assert (request.method, request.path, request.body) == ("GET", "/api/v1/test-runs/run-7", b"")
    assert request.headers == {
        "host": evalops.url.removeprefix("http://"),
        "accept": "application/json",
        "user-agent": "tinker-eval-loop",
        "authorization": f"Bearer {KEY}",
    }


def test_the_id_is_escaped_whole(evalops: FakeEvalOps) -> None:
    evalops.play(*run_replies("completed"))
    ask(evalops.url, " ../a b?c#d%41\u00e9/ ")
    path = "/api/v1/test-runs/..%2Fa%20b%3Fc%23d%2541%C3%A9%2F"
    assert evalops.requests[0].raw_path == path


@pytest.mark.parametrize("run_id", ["", "  ", ".", "..", "x" * 100_000])
def test_an_id_that_names_no_run_is_refused(evalops: FakeEvalOps, run_id: str) -> None:
    with pytest.raises(ConfigError, match="is not the id of a test run"):
        ask(evalops.url, run_id)
    assert evalops.requests == []


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("completed", "completed"),
        ("failed", "failed"),
        *[(s, "waiting") for s in ("pending", "running", "queued", "created", "processing")],
        *[(s, "unknown") for s in ("cancelled", "timeout", "error", "COMPLETED", "", 7, None)],
    ],
)
def test_what_each_status_means(evalops: FakeEvalOps, status: object, outcome: str) -> None:
    evalops.play(as_json({**RUN, "status": status}))
    assert ask(evalops.url).outcome == outcome


@pytest.mark.parametrize(
    ("reply", "found", "remedy", "is_temporary"),
    [
        (
            Reply(404),
            "HTTP 404",
            "Check the address, and the id of the suite or the test run.",
            False,
        ),
        (
            as_json({"error": f"bad {KEY}"}, 400),
            'HTTP 400, "bad [redacted]"',
            CHECK_ID,
            False,
        ),
        (
            UNAVAILABLE,
            'HTTP 503, "unavailable: try later"',
            SERVER_FAULT,
            True,
        ),
        (
            redirect("http://other.example/x"),
            "HTTP 307 to http://other.example/x, which is elsewhere",
            CHECK_URL,
            False,
        ),
        (
            Reply(200, b"[]"),
            'HTTP 200 without a JSON object, "[]"',
            CHECK_URL,
            True,
        ),
    ],
)
def test_a_question_that_is_not_answered_says_what_to_do(
    evalops: FakeEvalOps, reply: Reply, found: str, remedy: str, is_temporary: bool
) -> None:
    evalops.play(reply)
    with pytest.raises(EvalOpsError) as caught:
        ask(evalops.url)
    assert str(caught.value) == (
        f"EvalOps did not tell how the test run stands: GET {evalops.url}/api/v1/test-runs/run-7 "
        f"gave {found}. {remedy}"
    )
    assert caught.value.is_temporary is is_temporary


def test_a_question_follows_redirects_of_the_same_origin(evalops: FakeEvalOps) -> None:
    evalops.play(redirect("/v2/run-7"), *run_replies("failed"))
    assert ask(evalops.url).outcome == "failed"
    assert [(r.method, r.path) for r in evalops.requests] == [
        ("GET", "/api/v1/test-runs/run-7"),
        ("GET", "/v2/run-7"),
    ]


def test_the_key_is_in_no_part_of_an_answer(evalops: FakeEvalOps) -> None:
    answer = {"status": KEY, "summary": {KEY: [KEY, {"a": f"x{KEY}"}]}, "other": KEY.upper()}
    evalops.play(as_json(answer))
    found = ask(evalops.url)
    assert found.body == {
        "status": "[redacted]",
        "summary": {"[redacted]": ["[redacted]", {"a": "x[redacted]"}]},
        "other": "[redacted]",
    }
    escaped = b'{"status": "\\u0065oak_s3cr3t\\u0022\\/\\u002B%t4il"}'  # as some servers write it
    evalops.play(Reply(200, escaped))
    assert ask(evalops.url).body == {"status": "[redacted]"}


def waited(evalops: FakeEvalOps, *replies: Reply, wait_s: float = 30.0) -> Answer:
    evalops.play(*replies)
    client = EvalOpsClient(KEY, evalops.url)
    return asyncio.run(wait_for_run(client, "run-7", wait_s, first_pause_s=0.001))


def test_polling_ends_with_the_run(evalops: FakeEvalOps) -> None:
    names = ("created", "queued", "pending", "running", "processing", "completed")
    assert waited(evalops, *run_replies(*names)).outcome == "completed"
    assert len(evalops.requests) == 6


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_polling_ends_with_a_failure_or_a_status_that_nobody_knows(
    evalops: FakeEvalOps, status: str
) -> None:
    assert waited(evalops, *run_replies("pending", status)).run["status"] == status
    assert len(evalops.requests) == 2


def test_polling_outlasts_what_passes(evalops: FakeEvalOps) -> None:
    replies = [
        UNAVAILABLE,
        RATE_LIMITED,
        GARBAGE,
        replace(run_replies("pending")[0], headers={"retry-after": "0"}),
        *run_replies("completed"),
    ]
    assert waited(evalops, *replies).outcome == "completed"
    assert len(evalops.requests) == 5


def test_polling_ends_with_its_time(evalops: FakeEvalOps) -> None:
    assert waited(evalops, *run_replies("running"), wait_s=0.2).outcome == "waiting"
    with pytest.raises(EvalOpsError, match="HTTP 503"):
        waited(evalops, UNAVAILABLE, wait_s=0.2)
    assert waited(evalops, *run_replies("running"), wait_s=0).outcome == "waiting"
    assert len(evalops.requests) == 1


def test_polling_ends_with_a_refusal(evalops: FakeEvalOps) -> None:
    with pytest.raises(EvalOpsError, match="HTTP 404"):
        waited(evalops, *run_replies("running"), Reply(404))
    assert len(evalops.requests) == 2


@pytest.mark.parametrize(
    ("pause_s", "left_s", "retry_after_s", "expected_s"),
    [
        (5.0, 100.0, None, 5.0),
        (5.0, 3.0, None, 3.0),  # the last question, when the time is over
        (5.0, 100.0, 30.0, 30.0),
        (40.0, 100.0, 30.0, 40.0),
        (5.0, 20.0, 30.0, None),
        (5.0, 0.0, None, None),
        (5.0, -1.0, 0.0, None),
        (60.0, 60.0, None, 60.0),
    ],
)
def test_when_the_next_question_is_asked(
    pause_s: float, left_s: float, retry_after_s: float | None, expected_s: float | None
) -> None:
    assert poll_pause_s(pause_s, left_s, retry_after_s) == expected_s


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        ("completed", "completed", 0),
        ("failed", "failed", 1),
        ("running", "waiting", 1),
        ("cancelled", "unknown", 1),
    ],
)
def test_status_command_prints_one_line_of_json(
    evalops: FakeEvalOps,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: str,
    outcome: str,
    code: int,
) -> None:
    monkeypatch.setenv("EVALOPS_API_KEY", KEY)
    summary = {"passed": 1, "failed": 2}
    evalops.play(*run_replies(status, summary=summary, note=f"{KEY}\x1b"))
    assert main(["status", "run-7", "--api-url", evalops.url]) == code
    (line,) = capsys.readouterr().out.splitlines()
    run = {**RUN, "status": status, "summary": summary, "note": "[redacted]\x1b"}
    assert json.loads(line) == {
        "status": status,
        "outcome": outcome,
        "summary": summary,
        "answer": {"data": run},
    }
    assert "\x1b" not in line


def test_status_command_takes_the_address_from_the_environment_too(
    evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALOPS_API_KEY", KEY)
    monkeypatch.setenv("EVALOPS_API_URL", evalops.url)
    evalops.play(*run_replies("completed"))
    assert main(["status", "run-7", "--wait", "60"]) == 0


def test_status_command_fails_in_one_paragraph(
    evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(code: int, *words: str) -> str:
        assert main(["status", *words, "--api-url", evalops.url]) == code
        output = capsys.readouterr()
        assert output.out == "" and output.err.count("\n") == 1
        assert_no_key(output.err)
        return output.err

    assert complaint(2, "run-7").startswith("error: EVALOPS_API_KEY is not set, or is")
    monkeypatch.setenv("EVALOPS_API_KEY", KEY)
    assert complaint(2, "..").startswith("error: RUN_ID is not the id of a test run")
    evalops.play(Reply(404, KEY.encode()))
    assert "HTTP 404" in complaint(1, KEY)  # the key in place of the id
    assert main(["status", "x", "--api-url", "http://h.example"]) == 2


@pytest.mark.parametrize("words", [["--wait", "soon"], ["more"]])
def test_status_command_refuses_other_words(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["status", "run-7", *words])
    assert caught.value.code == 2


@pytest.mark.parametrize("wait", ["-1", "nan"])
def test_a_wait_that_is_no_time_asks_once(
    evalops: FakeEvalOps, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setenv("EVALOPS_API_KEY", KEY)
    evalops.play(*run_replies("running"))
    assert main(["status", "run-7", "--wait", wait, "--api-url", evalops.url]) == 1
    assert len(evalops.requests) == 1


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
        CHECK_ID,
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
    assert_no_key(repr(client) + str(client) + repr(asyncio.run(client.get_run("run-7"))))


def test_redact_replaces_every_form() -> None:
    text = 'eoak-a"/ eoak-a\\"/ eoak-a%22%2F eoak-a%22%2f EOAK-A"/ eoak-a/'
    assert redact(text, 'eoak-a"/') == "[redacted] " * 5 + "eoak-a/"
    assert redact("the word is no secret", "o") == "the word is no secret"


def test_space_around_the_key_is_not_sent(evalops: FakeEvalOps) -> None:
    post(evalops.url, key=" eoak_1\n")
    assert evalops.requests[0].headers["authorization"] == "Bearer eoak_1"


@pytest.mark.parametrize("key", ["", "  ", "two s3cr3t", "s3cr3t\nX: y", "s3cr3t\u00e9"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key: str) -> None:
    why = (
        "has spaces, control or non-ASCII characters" if key.strip() else "is not set, or is blank"
    )
    with pytest.raises(ConfigError, match=f"^EVALOPS_API_KEY {why}") as caught:
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
    ("url", "shown"),
    [
        ("http://api.evalops.dev", None),
        ("http://10.0.0.1", None),
        ("http://localhost.evil.example", None),
        ("http://127.0.0.1.evil.example", None),
        ("https://me:pw@h.example", "[hidden]@h.example"),
        ("http://me:pw@localhost", "[hidden]@localhost"),
        ("https://me:p/w@h.example", "[hidden]@h.example"),
        (f"https://h.example/{KEY}?", "https://h.example/[redacted]?"),
        ("https://h.example#top", None),
        ("ftp://h.example", None),
        ("api.evalops.dev", None),
        ("", None),
        ("https:///api", None),
        ("https://h.example:99999", None),
        ("https://h.example:port", None),
        ("https://xn--", None),
        ("https://h.example/\x00", None),
    ],
)
def test_base_urls_that_are_refused(url: str, shown: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        EvalOpsClient(KEY, url)
    message = str(caught.value)
    begin = f'evalops_api_url: "{url if shown is None else shown}" cannot be used. Write it like'
    assert message.startswith(begin)
    assert message.endswith("is accepted for this machine only.")
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

"""The EvalOps client: post each evaluated round to EvalOps as a test run.

What is known of the API, and how surely: two public clients (Python and TypeScript, 2025, one
author) are all there is; no server, schema or document confirms them. They agree on the host, the
bearer key, `POST /api/v1/test-runs`, `testSuiteId` and `visibility`. They disagree on a trailing
slash and on the answer's envelope (the Python one, P, nests it under `data`; the other, C, is
flat), so both forms are accepted. Both take the call to *start* a test run; no known call stores
scores computed elsewhere, so ours travel in `config.metadata`, as P sends them. Whether the
platform keeps or shows them is unknown.

Posting never changes a decision: a failed post is an `EvalOpsError` for the caller to report.
This client neither polls nor retries.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import math
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from errors import ConfigError, LoopError

DEFAULT_API_URL = "https://api.evalops.dev"
TEST_RUNS_PATH = "/api/v1/test-runs"
MAX_REDIRECTS = 3
MAX_ANSWER_BYTES = 1 << 20
MAX_QUOTED_CHARS = 300
DEFAULT_PORTS = {"http": 80, "https": 443}

SAFE = "the round itself is safe in the run directory."
CHECK_URL = f"Check `evalops_api_url`; {SAFE}"
SERVER_FAULT = f"The fault is on the server's side; {SAFE}"
REFUSED = f"Check `evalops_test_suite_id`; {SAFE}"
REMEDIES = {
    401: "Check that EVALOPS_API_KEY holds a key that is still valid.",
    403: "Check that the key in EVALOPS_API_KEY may start test runs in this suite.",
    404: "Check `evalops_test_suite_id` and `evalops_api_url`.",
    429: f"EvalOps limits the rate of calls; {SAFE}",
}


class EvalOpsError(LoopError):
    """A round could not be posted to EvalOps; the run and its decision are not affected."""


@dataclass(frozen=True)
class RoundReport:
    """What EvalOps is told about one evaluated round.

    `checkpoint` is None for round 0, which evaluates the base model, and so may be `learning_rate`.
    Scores, `stderr` and `threshold` are in [0, 1]; `tasks` holds (name, score, n) per task.
    """

    run_name: str
    run_id: str
    config_hash: str
    round: int
    checkpoint: str | None
    base_model: str
    score: float
    stderr: float | None
    n: int
    threshold: float
    learning_rate: float | None
    step: int
    tasks: tuple[tuple[str, float, int], ...]
    passed: bool
    decision: str


@dataclass(frozen=True)
class Delivery:
    """EvalOps' answer to an accepted post; None where the answer did not say."""

    run_id: str | None
    job_id: str | None
    status: str | None
    status_code: int


def build_payload(report: RoundReport, suite_id: str) -> dict[str, Any]:
    """Return the JSON body of one round, with absent values left out.

    Name and tags carry the run id and the config hash, because many runs share one suite.

    Raises `EvalOpsError` for a number that is not finite: JSON cannot carry it, and it is no score.
    """
    metrics = {
        "score": report.score,
        "stderr": report.stderr,
        "n": report.n,
        "threshold": report.threshold,
    }
    task_scores = {f"tasks.{name}": score for name, score, _ in report.tasks}
    for key, value in {**metrics, "learningRate": report.learning_rate, **task_scores}.items():
        if value is not None and not math.isfinite(value):
            raise EvalOpsError(
                f"EvalOps was not sent round {report.round}: {key} is {value}, which is not a "
                "number that JSON can carry. Look at this round's evaluation in the run directory."
            )
    metadata = {
        "source": "tinker-eval-loop",
        "checkpoint": report.checkpoint,
        "round": report.round,
        "metrics": _without_none(metrics),
        "tasks": [{"name": name, "score": score, "n": n} for name, score, n in report.tasks],
        "runName": report.run_name,
        "runId": report.run_id,
        "configHash": report.config_hash,
        "baseModel": report.base_model,
        "step": report.step,
        "learningRate": report.learning_rate,
        "passed": report.passed,
        "decision": report.decision,
    }
    run, config = f"run-{report.run_id}", f"config-{report.config_hash[:12]}"
    title = f"Training Round {report.round}"
    summary = f"Automated evaluation from Tinker fine-tuning round {report.round}."
    model = report.checkpoint or report.base_model
    return {
        "testSuiteId": suite_id,
        "name": f"{title}: {report.run_name} ({run}, {config})",
        "description": f"{summary} {report.decision}",
        "config": {"model": model, "metadata": _without_none(metadata)},
        "tags": ["tinker", "automated", f"round-{report.round}", run, config],
        "visibility": "team",
        "sharedWithTeams": [],
    }


def idempotency_key(report: RoundReport, suite_id: str) -> str:
    """Return a key that is the same whenever this round of this run is posted to this suite.

    Both known clients start an execution with this call; a post sent twice must not start two.
    """
    identity = json.dumps([report.run_id, report.round, suite_id])
    return hashlib.sha256(identity.encode()).hexdigest()


def redact(text: str, secret: str) -> str:
    """Return `text` without the secret, be it plain, JSON- or URL-escaped, in any letter case."""
    assert secret, "an empty secret would match everywhere"
    forms = {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}
    longest_first = sorted(forms, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "[redacted]", text, flags=re.IGNORECASE)


class EvalOpsClient:
    """Posts rounds to one EvalOps host with one key; the key appears in no message or repr.

    `timeout_s` bounds a whole post, redirects included, so a slow server cannot hold up the loop.

    Raises `ConfigError` for a key or a base URL that must not be used.
    """

    def __init__(self, api_key: str, api_url: str, timeout_s: float = 10.0) -> None:
        assert timeout_s > 0, f"timeout_s must be positive, not {timeout_s}"
        self._key = api_key.strip()
        if not self._key or not all("!" <= char <= "~" for char in self._key):
            raise ConfigError(
                "EVALOPS_API_KEY: the key is empty or has spaces, control or non-ASCII characters "
                "inside, so it cannot be sent. Copy the key again from EvalOps, or set "
                "evalops_enabled to false."
            )
        self._url = httpx.URL(_checked_base_url(api_url, self._key) + TEST_RUNS_PATH)
        self._timeout_s = timeout_s

    async def post_round(self, report: RoundReport, suite_id: str) -> Delivery:
        """Post one round and return what EvalOps answered.

        Raises `EvalOpsError` when it was not accepted, not answered in time, or not understood.
        """
        body = json.dumps(build_payload(report, suite_id), allow_nan=False).encode()
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key(report, suite_id),
            "User-Agent": "tinker-eval-loop",
        }
        try:
            async with asyncio.timeout(self._timeout_s), self._open() as http:
                return await self._post(http, body, headers)
        except TimeoutError:
            found = f"no complete answer within {self._timeout_s:g} s"
            raise self._error(self._url, found, CHECK_URL) from None
        except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:
            # UnicodeError: httpx reads a redirect's host name even when it does not follow it.
            # Only a ConnectError's words are its own; the others may repeat what the server sent.
            words = f": {error}" if isinstance(error, httpx.ConnectError) else ""
            found = f"no usable answer ({type(error).__name__}{words})"
            raise self._error(self._url, found, CHECK_URL) from None

    def _open(self) -> httpx.AsyncClient:
        """Return an HTTP client; plain http stays on this machine, so it ignores proxy settings."""
        try:
            return httpx.AsyncClient(timeout=None, trust_env=self._url.scheme == "https")
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            found = f"no connection: bad proxy or certificate settings ({type(error).__name__})"
            remedy = "Check HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
            raise self._error(self._url, found, remedy) from None

    async def _post(
        self, http: httpx.AsyncClient, body: bytes, headers: dict[str, str]
    ) -> Delivery:
        """Post, following redirects by hand: httpx would follow them to other hosts as well."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            async with http.stream("POST", url, content=body, headers=headers) as response:
                if response.status_code not in (307, 308):
                    answer = await _read_capped(response)
                    return self._delivery(url, response.status_code, answer)
                url = self._redirect_target(url, response)
        raise self._error(url, f"more than {MAX_REDIRECTS} redirects", CHECK_URL)

    def _redirect_target(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        """Return where a redirect points; the key must not travel to another origin."""
        target = url.join(response.headers.get("Location", ""))
        if _origin(target) == _origin(self._url) and not target.userinfo:
            return target
        found = f"HTTP {response.status_code} to {_shown(target)}, which was not followed"
        remedy = f"If that is the right place, set `evalops_api_url` to it; {SAFE}"
        raise self._error(url, found, remedy)

    def _delivery(self, url: httpx.URL, status: int, answer: bytes | None) -> Delivery:
        """Read the final answer; None stands for one over the size limit."""
        if not 200 <= status < 300:
            said = "" if answer is None else self._quoted(_server_message(answer))
            default = CHECK_URL if status < 400 else REFUSED if status < 500 else SERVER_FAULT
            found = f'HTTP {status}, "{said}"' if said else f"HTTP {status}"
            raise self._error(url, found, REMEDIES.get(status, default))
        if answer is None:
            found = f"HTTP {status} with an answer of over {MAX_ANSWER_BYTES} bytes"
            raise self._error(url, found, CHECK_URL)
        outer = _json_object(answer)
        if outer is None:
            said = self._quoted(answer.decode(errors="replace"))
            found = f'HTTP {status} with an answer that is not a JSON object: "{said}"'
            raise self._error(url, found, CHECK_URL)
        data = outer.get("data")
        inner: dict[str, Any] = data if isinstance(data, dict) else outer
        return Delivery(
            run_id=self._text(inner.get("id")),
            job_id=self._text(outer.get("jobId", inner.get("jobId"))),
            status=self._text(inner.get("status")),
            status_code=status,
        )

    def _text(self, value: object) -> str | None:
        return redact(str(value), self._key) if isinstance(value, str | int) else None

    def _quoted(self, text: str) -> str:
        """Return a server's words as one printable line; redact before cutting, or a part stays."""
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        line = redact(line, self._key)
        return line if len(line) <= MAX_QUOTED_CHARS else line[:MAX_QUOTED_CHARS] + "..."

    def _error(self, url: httpx.URL, found: str, remedy: str) -> EvalOpsError:
        message = f"EvalOps did not confirm the round: POST {_shown(url)} gave {found}. {remedy}"
        return EvalOpsError(redact(message, self._key))


def _checked_base_url(api_url: str, key: str) -> str:
    """Return the base URL without a trailing slash.

    Raises `ConfigError` for one that would send the key in clear or cannot be used at all.
    """
    shown = "[hidden]@" + api_url.rpartition("@")[2] if "@" in api_url else api_url
    try:
        url = httpx.URL(api_url.strip())
        host, port = url.host, url.port
    except (httpx.InvalidURL, ValueError):
        problem = "it is not a URL"
    else:
        if url.scheme not in DEFAULT_PORTS:
            problem = "it does not begin with https://"
        elif not host or (port is not None and not 0 < port < 65536):
            problem = "it has no usable host and port"
        elif url.userinfo:
            problem = "it holds a user name or password, and the key alone signs the calls"
        elif "?" in api_url or "#" in api_url:
            problem = "it has a query or a fragment, which a base URL cannot have"
        elif url.scheme == "http" and not _is_loopback(host):
            problem = "plain http to another machine would show the key to the network"
        else:
            return str(url).rstrip("/")
    message = (
        f'evalops_api_url: "{shown}" cannot be used: {problem}. Write it like '
        f'"{DEFAULT_API_URL}"; plain http is accepted for this machine only.'
    )
    raise ConfigError(redact(message, key))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or DEFAULT_PORTS.get(url.scheme)


def _shown(url: httpx.URL) -> str:
    """Return the URL for a message, without the parts that may hold something private."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


async def _read_capped(response: httpx.Response) -> bytes | None:
    """Return the answer's body, or None as soon as it is over the limit."""
    answer = bytearray()
    async for chunk in response.aiter_bytes():
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            return None
    return bytes(answer)


def _json_object(answer: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):  # RecursionError: a body of many opening brackets
        return None
    return value if isinstance(value, dict) else None


def _server_message(answer: bytes) -> str:
    """Return what an error body says, in any of the four shapes seen at EvalOps.

    They are `{"message"}`, `{"error": text}`, `{"error": {"code", "message"}}` and plain text.
    """
    body = _json_object(answer)
    if body is None:
        return answer.decode(errors="replace")
    error = body.get("error")
    words = [error.get("code"), error.get("message")] if isinstance(error, dict) else [error]
    words.append(body.get("message"))
    return ": ".join(word for word in words if isinstance(word, str) and word) or json.dumps(body)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}

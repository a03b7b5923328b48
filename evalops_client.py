"""EvalOps: post each evaluated round as a test run, by way of an outbox on disk.

What is known of the API, and how surely, is in `docs/evalops.md`: two public clients (Python and
TypeScript, 2025, one author) are all there is; no server, schema or document confirms them. They
agree on the host, the bearer key, `POST /api/v1/test-runs`, `testSuiteId` and `visibility`, and
disagree on the answer's envelope (one nests it under `data`, the other is flat): both are accepted.
Both take the call to *start* a test run; no known call stores scores computed elsewhere, so ours
travel in `config.metadata`. Whether the platform keeps or shows them is unknown.

A round is on disk before it is sent, and is sent again, with the same key and the same bytes, until
EvalOps confirms it: at least once. The proof is the ledger's `evalops` event; the file stays.
Sending never changes or delays a decision: a background task does it (`Deliverer`), and what it
could not deliver is left to a later process, or to

    python evalops_client.py sync RUN_DIR
    python evalops_client.py status RUN_ID [--wait SECONDS] [--api-url URL]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from random import Random
from typing import Any, Literal
from urllib.parse import quote

import httpx

from errors import ConfigError, InputError, LoopError, one_line
from ledger.run_directory import OUTBOX
from ledger.store import RunStore
from services.evalops_outbox import (
    MAX_BYTES,
    EvalOpsError,
    Outbox,
    OutboxRecord,
)
from services.keys import EVALOPS, redact, refuse_unsendable

DEFAULT_API_URL = "https://api.evalops.dev"
TEST_RUNS_PATH = "/api/v1/test-runs"
MAX_REDIRECTS = 3
MAX_QUOTED_CHARS = 300
MAX_ATTEMPTS = 4  # per record and pass
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 60.0  # a server that asks for more is left alone until the next pass
FIRST_POLL_S = 5.0
MAX_POLL_S = 60.0

TEMPORARY_STATUSES = (408, 425, 429)  # and all of 5xx
WAITING_STATUSES = ("pending", "running", "queued", "created", "processing")

FIRST_STANDS = "accepted before under this key with another body; the first record stands"
CHECK_URL = (
    "Check the address (`evalops_api_url` or --api-url, else EVALOPS_API_URL), HTTPS_PROXY, "
    "NO_PROXY and SSL_CERT_FILE."
)
REMEDIES = {  # of a status, else of its hundred
    401: "Check that EVALOPS_API_KEY holds a key that is still valid.",
    403: "Check that the key in EVALOPS_API_KEY may start and read test runs of this suite.",
    404: "Check the address, and the id of the suite or the test run.",
    429: "EvalOps limits the rate of calls. Try again later.",
    400: "Check the id of the suite or the test run.",
    500: "The fault is on the server's side. Try again later.",
}


# --- what is sent ---------------------------------------------------------------------------------


# --- the calls ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A complete answer, without the key in it; `body` is None where it is no JSON object."""

    status: int
    text: str
    body: dict[str, Any] | None
    retry_after_s: float | None = None

    @property
    def run(self) -> dict[str, Any]:
        """The test run that it tells of: under `data`, or flat."""
        body = self.body or {}
        data = body.get("data")
        return data if isinstance(data, dict) else body

    @property
    def outcome(self) -> Literal["completed", "failed", "waiting", "unknown"]:
        """How the run stands; `unknown`, which no known client expects, ends the polling too."""
        status = self.run.get("status")
        if status == "completed" or status == "failed":
            return status
        return "waiting" if status in WAITING_STATUSES else "unknown"

    @property
    def error_words(self) -> list[str]:
        """Code and message of an error, in any of the four shapes seen at EvalOps.

        They are `{"message"}`, `{"error": text}`, `{"error": {"code", "message"}}` and plain text.
        """
        body = self.body or {}
        error = body.get("error")
        words = [error.get("code"), error.get("message")] if isinstance(error, dict) else [error]
        words += [body.get("code"), body.get("message")]
        return [word for word in words if isinstance(word, str) and word] or [self.text]

    def describe(self) -> str:
        """What was answered, for a message: the status and one short line of the server's words."""
        said = one_line(": ".join(self.error_words))
        said = said if len(said) <= MAX_QUOTED_CHARS else said[:MAX_QUOTED_CHARS] + "..."
        no_object = " without a JSON object" if 200 <= self.status < 300 else ""
        return f"HTTP {self.status}{no_object}" + (f', "{said}"' if said else "")

    @property
    def is_temporary(self) -> bool:
        """Whether the same call may be answered otherwise later, if it was not answered well."""
        # The first post of a key may still be worked on: its answer is there to fetch later.
        is_in_progress = self.status == 409 and "idempotency_in_progress" in self.error_words
        is_known = self.status in TEMPORARY_STATUSES or is_in_progress
        return is_known or self.status < 300 or self.status >= 500


class EvalOpsClient:
    """Calls one EvalOps host with one key; the key appears in no message or repr.

    `timeout_s` bounds a whole call, redirects included, whatever the server does.

    Raises `ConfigError` for a key or a base URL that must not be used.
    """

    def __init__(self, api_key: str, api_url: str, timeout_s: float = 10.0) -> None:
        self._key = api_key.strip()
        if not self._key:
            raise ConfigError("EVALOPS_API_KEY is not set, or is blank. Export your EvalOps key.")
        refuse_unsendable(EVALOPS, self._key)
        self._url = httpx.URL(_checked_base_url(api_url, self._key) + TEST_RUNS_PATH)
        self._timeout_s = timeout_s
        self.shown_url = redact(str(self._url), self._key)

    async def post_record(self, record: OutboxRecord) -> str | None:
        """Post one record, once, and return what the ledger keeps of it: the test run's id, if any.

        Raises `EvalOpsError` when it was not accepted, not answered in time, or not understood.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": record.key}
        request = httpx.Request("POST", self._url, headers=headers, content=record.body)
        answer = await self._send(request)
        if answer.status == 409 and "idempotency_conflict" in answer.error_words:
            # The key names run, round and suite, so this round has been accepted, in other words:
            # posting it again under another key would start a second test run. The first stands.
            return FIRST_STANDS
        run_id = self._checked(answer, request).run.get("id")
        return None if run_id is None else one_line(str(run_id))[:MAX_QUOTED_CHARS]

    async def get_run(self, run_id: str) -> Answer:
        """Ask once how a test run stands. Raises `EvalOpsError`, or `ConfigError` for a bad id."""
        escaped = quote(run_id.strip(), safe="", errors="surrogateescape")
        if escaped in ("", ".", "..") or len(escaped) > MAX_QUOTED_CHARS:
            raise ConfigError(
                "RUN_ID is not the id of a test run: it is empty, dots or very long. Give the id "
                "that EvalOps answered with; the run's ledger has it in its `evalops` events."
            )
        request = httpx.Request("GET", f"{self._url}/{escaped}")
        return self._checked(await self._send(request), request)

    async def _send(self, request: httpx.Request) -> Answer:
        request.headers["Authorization"] = f"Bearer {self._key}"
        request.headers["User-Agent"] = "tinker-eval-loop"
        request.headers["Accept"] = "application/json"
        is_remote = request.url.scheme == "https"  # plain http stays here, and needs no proxy
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                httpx.AsyncClient(timeout=None, trust_env=is_remote) as http,
            ):
                return await self._follow(http, request)
        except TimeoutError:
            found = f"no complete answer within {self._timeout_s:g} s"
            raise self._error(request, found, CHECK_URL, is_temporary=True) from None
        except (httpx.RequestError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
            # The last three are of proxy and certificate settings. Only a ConnectError's words are
            # its own: the others may repeat what the server sent, or a proxy's password.
            words = f": {error}" if isinstance(error, httpx.ConnectError) else ""
            found = f"no usable answer ({type(error).__name__}{words})"
            is_temporary = isinstance(error, httpx.RequestError)
            raise self._error(request, found, CHECK_URL, is_temporary=is_temporary) from None

    async def _follow(self, http: httpx.AsyncClient, request: httpx.Request) -> Answer:
        """Call, following redirects by hand: httpx would follow them to other hosts as well."""
        for _ in range(MAX_REDIRECTS + 1):
            async with contextlib.aclosing(await http.send(request, stream=True)) as response:
                target = response.next_request
                if response.status_code not in (307, 308) or target is None:
                    return await self._read(response)
            if target.url.join("/") != self._url.join("/"):  # in scheme, user, host or port
                found = f"HTTP {response.status_code} to {_shown(target.url)}, which is elsewhere"
                raise self._error(request, found, CHECK_URL)
            request = target
        raise self._error(request, f"more than {MAX_REDIRECTS} redirects", CHECK_URL)

    async def _read(self, response: httpx.Response) -> Answer:
        """Read an answer, at most so far as it may be long, and take the key out of it."""
        raw = bytearray()
        async for chunk in response.aiter_bytes():
            raw += chunk
            if len(raw) > MAX_BYTES:
                break
        text = raw[:MAX_BYTES].decode(errors="replace")
        try:  # in the one way of escaping that `redact` knows, and without NaN
            value = json.loads(redact(json.dumps(json.loads(text), allow_nan=False), self._key))
        except (ValueError, RecursionError):  # RecursionError: a body of many opening brackets
            value = None
        body = value if isinstance(value, dict) else None
        text = json.dumps(value) if body is not None else redact(text, self._key)
        wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
        return Answer(response.status_code, text, body, wait_s)

    def _checked(self, answer: Answer, request: httpx.Request) -> Answer:
        if 200 <= answer.status < 300 and answer.body is not None:
            return answer
        hundred = answer.status - answer.status % 100
        raise self._error(
            request,
            answer.describe(),
            REMEDIES.get(answer.status) or REMEDIES.get(hundred, CHECK_URL),
            is_temporary=answer.is_temporary,
            retry_after_s=answer.retry_after_s if answer.is_temporary else None,
        )

    def _error(self, request: httpx.Request, found: str, remedy: str, **when: Any) -> EvalOpsError:
        what, safe = "tell how the test run stands", ""
        if request.method == "POST":
            what, safe = "confirm the round", " The round itself is safe in the run directory."
        call = f"{request.method} {_shown(request.url)}"
        message = f"EvalOps did not {what}: {call} gave {found}. {remedy}{safe}"
        return EvalOpsError(redact(message, self._key), **when)


def make_client(key: str | None, api_url: str | None) -> EvalOpsClient:
    """A client with this key, for `api_url`, else EVALOPS_API_URL, else the public host.

    Raises `ConfigError` for a key that is missing, and for a key or address that cannot be used.
    """
    api_url = api_url or os.environ.get("EVALOPS_API_URL") or DEFAULT_API_URL
    return EvalOpsClient(key or "", api_url)


def _checked_base_url(api_url: str, key: str) -> str:
    """Return the base URL without a trailing slash.

    Raises `ConfigError` for one that would send the key in clear or cannot be used at all.
    """
    with contextlib.suppress(httpx.InvalidURL, ValueError):
        url = httpx.URL(api_url.strip())
        is_bare = not any(char in api_url for char in "@?#")
        is_safe = url.scheme == "https" or (
            url.scheme == "http"  # `ip_address` raises for any other name
            and (url.host == "localhost" or ipaddress.ip_address(url.host).is_loopback)
        )
        if is_bare and is_safe and url.host and (url.port or 1) < 65536:
            return str(url).rstrip("/")
    shown = "[hidden]@" + api_url.rpartition("@")[2] if "@" in api_url else api_url
    message = (
        f'evalops_api_url: "{shown}" cannot be used. Write it like "{DEFAULT_API_URL}", without '
        "user name, password, query or fragment. Plain http, which shows the key to the network, "
        "is accepted for this machine only."
    )
    raise ConfigError(redact(message, key))


def _shown(url: httpx.URL) -> str:
    """Return the URL for a message, without the parts that may hold something private."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def _retry_after_s(header: str) -> float | None:
    """Read `Retry-After`: whole seconds or an HTTP date; None for anything else."""
    if header.isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


async def wait_for_run(
    client: EvalOpsClient, run_id: str, wait_s: float, first_pause_s: float = FIRST_POLL_S
) -> Answer:
    """Ask until the test run has ended or `wait_s` seconds are over; return the last answer.

    An answer under way at the end is still waited for, as long as the client waits for any.
    Raises `EvalOpsError` when EvalOps refuses, or when the last call got no answer.
    """
    end_s, pause_s = time.monotonic() + wait_s, first_pause_s
    while True:
        try:
            found = await client.get_run(run_id)
            if found.outcome != "waiting":
                return found
        except EvalOpsError as error:
            if not error.is_temporary:
                raise
            found = error
        next_s = poll_pause_s(pause_s, end_s - time.monotonic(), found.retry_after_s)
        if next_s is None:
            break
        await asyncio.sleep(next_s)
        pause_s = min(2 * pause_s, MAX_POLL_S)
    if isinstance(found, EvalOpsError):
        raise found
    return found


def poll_pause_s(pause_s: float, left_s: float, retry_after_s: float | None) -> float | None:
    """Seconds until the next question, with `left_s` to go; None: there is no time for one.

    The last question comes when the time is over, and none before the server wants it.
    """
    next_s = max(min(pause_s, left_s), retry_after_s or 0.0)
    return next_s if left_s > 0 and next_s <= left_s else None


# --- the outbox -----------------------------------------------------------------------------------


async def deliver(client: EvalOpsClient, record: OutboxRecord) -> str | None:
    """Post a record, a few times where the failure is a temporary one. As `post_record`."""
    attempt = 1
    while True:
        try:
            return await client.post_record(record)
        except EvalOpsError as error:
            pause_s = retry_pause_s(error, attempt)
            if pause_s is None:
                raise
        await asyncio.sleep(pause_s)
        attempt += 1


def retry_pause_s(error: EvalOpsError, attempt: int) -> float | None:
    """Seconds to wait after failed attempt number `attempt`, from 1; None: give up for now.

    Exponential with full jitter, so that many runs do not come back at the same moment.
    """
    asked_s = error.retry_after_s or 0.0
    if not error.is_temporary or attempt >= MAX_ATTEMPTS or asked_s > MAX_RETRY_AFTER_S:
        return None
    backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1))
    return max(asked_s, Random().uniform(0.0, backoff_s))  # the run's own draws stay as they are


# --- the command ----------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evalops_client.py",
        description="Send a run's undelivered rounds to EvalOps, or ask how a test run stands. The "
        "key is EVALOPS_API_KEY.",
        epilog="Exit codes: 0 all delivered, or completed; 1 not so; 2 bad input.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sync", help="send what a run could not deliver")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command = commands.add_parser("status", help="print a test run's status as JSON")
    command.add_argument("run_id", metavar="RUN_ID", help="the id that EvalOps answered with")
    wait_help = "ask again until it has ended, at most so long"
    command.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help=wait_help)
    url_help = "default: EVALOPS_API_URL, else the public address"
    command.add_argument("--api-url", metavar="URL", help=url_help)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    args = parse_arguments(argv)
    try:
        if args.command == "sync":
            return sync(args.run_dir)
        return show_status(args.run_id, args.wait, args.api_url)
    except (LoopError, OSError) as error:
        _complain(str(error))
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        _complain("interrupted. What is undelivered stays in the outbox.")
        return 130


def _complain(text: str, word: str = "error") -> None:
    secret = os.environ.get(EVALOPS, "").strip()
    said = one_line(text)  # of a service's answer a terminal acts on nothing
    print(f"{word}: {redact(said, secret) if secret else said}", file=sys.stderr)


def sync(run_dir: Path) -> int:
    """Send a run's undelivered rounds to the suites that they name; the exit code.

    Raises `InputError` for no key, no run, or a run that another process is at work on.
    """
    with contextlib.closing(RunStore.open(run_dir, to_resume=True)) as store:
        api_url = store.resolved_config()["config"].get("evalops_api_url")
        client = make_client(os.environ.get(EVALOPS), api_url)
        if not store.has_started:
            raise InputError(f"{run_dir}: the run has not started, so there is nothing to send.")
        print(f"sending to {one_line(client.shown_url)}")
        return asyncio.run(_send_undelivered(client, store))


async def _send_undelivered(client: EvalOpsClient, store: RunStore) -> int:
    records, warnings = Outbox(store.run_dir / OUTBOX, store.run_id).records()
    for text in warnings:
        _complain(text, "warning")
    before = store.delivered_keys()
    undelivered = [record for record in records if record.key not in before]
    num_now = 0
    for record in undelivered:
        try:
            detail, ok = await deliver(client, record), True
        except EvalOpsError as error:
            detail, ok = str(error), False
        store.record_delivery(record.round, record.key, detail, ok=ok)
        num_now += ok
        said = "delivered" if ok else "not delivered"
        said += f" ({one_line(detail)})" if detail else ""
        print(f"round {record.round} to suite {one_line(str(record.suite_id))}: {said}", flush=True)
    num_left = len(undelivered) - num_now + len(warnings)
    num_before = len(records) - len(undelivered)
    print(f"{num_now} delivered now, {num_before} before, {num_left} not delivered.")
    return 1 if num_left else 0


def show_status(run_id: str, wait_s: float, api_url: str | None) -> int:
    """Print how a test run stands as one line of JSON; the exit code is 0 if it has completed."""
    client = make_client(os.environ.get(EVALOPS), api_url)
    found = asyncio.run(wait_for_run(client, run_id, wait_s))
    told = {name: found.run.get(name) for name in ("status", "summary")}
    print(json.dumps({**told, "outcome": found.outcome, "answer": found.body}))
    return 0 if found.outcome == "completed" else 1


if __name__ == "__main__":
    sys.exit(main())

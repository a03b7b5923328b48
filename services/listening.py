"""Whether a service answers at an address: asked before the SDK is, which would try for minutes
without a word, or for ever, and deaf to Ctrl-C.

One request without a key, for what every Tinker service says of its health. What is known not to
become better is refused at once, with the remedy: an address where nothing listens, TLS spoken to
in plain HTTP or the reverse, a certificate that is not trusted, a redirect, a web page. What may is
waited for, in words: a server, or a proxy before it, that says that it is not ready. Whatever else
is said does not matter here; the SDK meets it as well, and says what it is.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from errors import ConfigError, LoopError, ServiceError, one_line
from services.waiting import SLOW_S

HEALTH = "/api/v1/healthz"
CONNECT_S = 5  # for a connection
ASK_AGAIN_S = 1
NOT_READY = (500, 502, 503, 504)  # of a server that starts, or of a proxy before it
MOST_SAID = 200  # characters of what a service says
CORRECT = "correct base_url (or TINKER_BASE_URL)"


class Patience(NamedTuple):
    """How long a service is waited for, in seconds."""

    answer_s: float  # for any answer at all
    ready_s: float  # for an answer that is not of a server which starts


OF_A_RUN = Patience(answer_s=30, ready_s=300)  # the SDK would try for as long


class _Answer(NamedTuple):
    """The head of an answer, or why there was none."""

    status: int | None
    kind: str  # of its content
    location: str
    failure: Exception | None

    @property
    def said(self) -> str:
        if self.failure is None:
            return f"status {self.status}"
        return one_line(str(self.failure) or type(self.failure).__name__, MOST_SAID).rstrip(".")


def refuse_no_service(
    base_url: str, tell: Callable[[str], None], patience: Patience | None = None
) -> None:
    """Wait until something answers there that may be a Tinker service, as long as a run does where
    no other patience is given; `tell` is given what is waited for.

    Raises `ConfigError` where it is none, and `ServiceError` where it says nothing in time.
    """
    patience = patience or OF_A_RUN
    _refuse_silent(base_url)
    until = time.monotonic() + patience.ready_s
    was_told = False
    while True:
        answer = _ask(base_url, tell, patience.answer_s)
        if (refusal := _refusal(base_url, answer)) is not None:
            raise refusal
        is_ready = answer.failure is None and answer.status not in NOT_READY
        if is_ready or not patience.ready_s:
            return
        if time.monotonic() >= until:
            raise ServiceError(
                f"The service at {base_url} is not ready: to {HEALTH} it still gives {answer.said} "
                f"after {patience.ready_s:g} s. Look at its log, or {CORRECT}."
            )
        if not was_told:
            tell(
                f"the service at {base_url} is not ready ({answer.said}); waiting for it, at most "
                f"{patience.ready_s:g} s"
            )
            was_told = True
        time.sleep(ASK_AGAIN_S)


def _refuse_silent(base_url: str) -> None:
    """Raise `ConfigError` when nothing listens there."""
    try:
        with socket.create_connection(_place_of(base_url), timeout=CONNECT_S):
            return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Nothing answers at {base_url}: {error}. Start the service, or {CORRECT}."
        ) from None


def _place_of(base_url: str) -> tuple[str, int]:
    url = urlsplit(base_url)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _ask(base_url: str, tell: Callable[[str], None], answer_s: float) -> _Answer:
    """What is answered. Raises `ServiceError` where nothing is in time."""
    answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
    # In a thread that nobody waits for at the end: an answer may come byte by byte, for ever.
    ask = threading.Thread(
        target=lambda: answers.put(_asked(f"{base_url.rstrip('/')}{HEALTH}", answer_s)),
        daemon=True,
        name="asking for a service",
    )
    ask.start()
    soon_s = min(SLOW_S, answer_s)
    try:
        return answers.get(timeout=soon_s)
    except queue.Empty:
        if soon_s < answer_s:
            tell(f"waiting for an answer of the service at {base_url}, at most {answer_s:g} s")
    try:
        return answers.get(timeout=answer_s - soon_s)
    except queue.Empty:
        raise ServiceError(
            f"The service at {base_url} takes connections and gave no answer within {answer_s:g} "
            f"s. It hangs, or something else listens there. Start it again, or {CORRECT}."
        ) from None


def _asked(url: str, answer_s: float) -> _Answer:
    """The head of what is answered; the body does not matter, and may have no end."""
    import httpx

    try:
        with httpx.stream("GET", url, timeout=2 * answer_s) as answer:
            kind = answer.headers.get("content-type", "")
            return _Answer(answer.status_code, kind, answer.headers.get("location", ""), None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _Answer(None, "", "", error)


def _refusal(base_url: str, answer: _Answer) -> LoopError | None:
    """Why what answers there will never be a Tinker service as it was given; None where it may."""
    if urlsplit(base_url).scheme == "https":
        if answer.failure is not None and "SSL" in str(answer.failure):
            return _refused_tls(base_url, answer)
    elif (answer.failure is not None or answer.status == 400) and _speaks_tls(base_url):
        return ConfigError(
            f"What listens at {base_url} speaks TLS, and the address says plain http: "
            f"{answer.said}. Set base_url (or TINKER_BASE_URL) to {_spelled(base_url, 'https')}."
        )
    if answer.status is not None and 300 <= answer.status < 400:
        return ConfigError(
            f"What answers at {base_url} sends its callers on to {_elsewhere(answer.location)}, "
            f"with {answer.said}; a request that trains is not to be sent on with its key. Set "
            "base_url (or TINKER_BASE_URL) to the address of the service itself."
        )
    if answer.status in (200, 404) and answer.kind.startswith("text/html"):
        return ConfigError(
            f"What answers at {base_url} is no Tinker service: to {HEALTH} it gives a web page, "
            f"with {answer.said}. Start the service, or {CORRECT}."
        )
    return None


def _refused_tls(base_url: str, answer: _Answer) -> ConfigError:
    if "CERTIFICATE_VERIFY_FAILED" in str(answer.failure):
        return ConfigError(
            f"The certificate of {base_url} is not trusted: {answer.said}. Give the service by the "
            "name that its certificate has, or let SSL_CERT_FILE name the certificate of who "
            "signed it."
        )
    return ConfigError(
        f"What listens at {base_url} does not answer in TLS, which https is: {answer.said}. Where "
        f"it is plain http, set base_url (or TINKER_BASE_URL) to {_spelled(base_url, 'http')}."
    )


def _speaks_tls(base_url: str) -> bool:
    """Whether TLS can be begun there, whatever its certificate is worth: nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = _place_of(base_url)
    try:
        with (
            socket.create_connection((host, port), timeout=CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except (OSError, ValueError):
        return False


def _spelled(base_url: str, scheme: str) -> str:
    return urlunsplit(urlsplit(base_url)._replace(scheme=scheme))


def _elsewhere(location: str) -> str:
    """Where a redirect leads, without what it asks for there, which may hold a secret."""
    try:
        url = urlsplit(location)
        port = "" if url.port is None else f":{url.port}"
        named = f"{url.scheme}://{url.hostname}{port}" if url.hostname else url.path
    except ValueError:
        named = ""
    return one_line(named, MOST_SAID) or "another address"

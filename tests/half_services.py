"""What may listen at an address in the place of a Tinker service, or before it is ready.

with half_service(WEB_PAGE) as there:       # every request is answered so
    ...                                     # use there.url
with half_service(NOT_READY, WORKS): ...    # one after the other; the last one repeats
"""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Half:
    """An answer to any request; with `is_cut` the connection ends without one."""

    status: int = 200
    kind: str = "application/json"
    body: bytes = b"{}"
    location: str | None = None
    after_s: float = 0.0
    is_cut: bool = False


WORKS = Half()
PAGE = b"<html><body>Welcome</body></html>"
WEB_PAGE, MISSING_PAGE = Half(200, "text/html", PAGE), Half(404, "text/html; charset=utf-8", PAGE)
UNKNOWN = Half(404, body=b'{"detail": "Not Found"}')
NOT_READY = Half(502, "text/html", PAGE)
BROKEN = Half(500, body=b'{"error": "boom"}')
CUT = Half(is_cut=True)


class HalfService:
    """The running listener: its address, and what it was asked."""

    def __init__(self, answers: Sequence[Half]) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.keys: list[str] = []  # that came with it
        self._answers = list(answers)

    def next(self) -> Half:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@contextmanager
def half_service(*answers: Half, tls: ssl.SSLContext | None = None) -> Iterator[HalfService]:
    """Answer at a free port, in TLS where there is a context for it, until the block ends."""
    told = HalfService(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            told.asked.append(f"{self.command} {self.path}")
            told.keys += [one for one in (self.headers.get("x-api-key"),) if one]
            answer = told.next()
            time.sleep(answer.after_s)
            self.close_connection = True
            if answer.is_cut:
                return
            self.send_response(answer.status)
            self.send_header("content-type", answer.kind)
            self.send_header("content-length", str(len(answer.body)))
            if answer.location is not None:
                self.send_header("location", answer.location)
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_GET

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            return  # of a caller that speaks otherwise

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        told.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
        try:
            yield told
        finally:
            server.shutdown()


@contextmanager
def mute_service() -> Iterator[str]:
    """An address that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"

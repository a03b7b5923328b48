#!/usr/bin/env bash
# tinker 0.38.0: a closed ServiceClient keeps its connections: four after close() where two were open before. The
# garbage collector lets go of one; the rest is held for each session of the last 100 sampling clients.
#
# Where: docstring of close ("releases HTTP/telemetry resources"). lib/internal_client_holder.py: _async_cleanup
#   lists the pools before telemetry.close(), which makes one more; nobody closes _fetch_client_config's pool; and
#   the default transport, pyqwest.httpx.AsyncPyqwestTransport, has no aclose, so that a closed client keeps its
#   connection. lib/public_interfaces/sampling_client.py: _get_retry_handler is an lru_cache of 100, with the
#   session's telemetry in its key, and that holds the session's pools. Connections nobody uses end in part: of
#   four two after 90 s (pyqwest's pool_idle_timeout), a third after 180 s.
# Why it matters: a process with many short sessions (trials of a study, a session for each evaluation) has
#   hundreds of connections open and meets its limit of open files, and so does the service. Use one session for
#   many clients, or a process for each; `_get_retry_handler.cache_clear()` and gc.collect() let go of all, but the
#   first is not public. A service may answer client/config with `use_pyqwest_transport: false`; that saves half.
# Seen (the last line varies):
#   tinker 0.38.0, pyqwest 0.12.0, httpx 0.28.1; connections open
#   transport  in a session  after close  10 closed  gc.collect()  and cache_clear()
#   pyqwest               2            4         40            30                  0
#   httpx                 2            2         20            10                  0
#   pyqwest, the collector on: 90 after 30 closed sessions
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker==0.38.0 pyqwest==0.12.0 httpx==0.28.1
cd "$work"
export HOME="$work" NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
venv/bin/python - <<'PY'
import gc
import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import tinker
from tinker.lib.public_interfaces.sampling_client import _get_retry_handler

NUM_SESSIONS = 10
config = {"pjwt_auth_enabled": False, "use_pyqwest_transport": True}
connections = set()
number = itertools.count()


class Service(BaseHTTPRequestHandler):
    """Answers what a session asks, and knows which connections its clients hold open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        connections.add(self.client_address)

    def finish(self):
        super().finish()
        connections.discard(self.client_address)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}")
        answers = {
            "/api/v1/client/config": lambda: config,
            "/api/v1/create_session": lambda: {"session_id": f"session-{next(number)}"},
            "/api/v1/create_sampling_session": lambda: {"sampling_session_id": f"{asked['session_id']}:sample:0"},
            "/api/v1/telemetry": lambda: {"status": "accepted"},
        }
        answer = json.dumps(answers.get(self.path, dict)()).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
server.daemon_threads = True
url = f"http://127.0.0.1:{server.server_port}"
threading.Thread(target=server.serve_forever, daemon=True).start()


def open_session():
    client = tinker.ServiceClient(base_url=url, api_key="tml-x")
    client.create_sampling_client(base_model="any")
    return client


def num_open():
    """How many are open once nothing has changed for a second."""
    before = None
    while before != (before := set(connections)):
        time.sleep(1)
    return len(before)


def sessions(transport):
    config["use_pyqwest_transport"] = transport == "pyqwest"
    client = open_session()
    counts = [num_open()]
    client.close("success").result()
    counts.append(num_open())
    del client
    for _ in range(NUM_SESSIONS - 1):
        open_session().close("success").result()
    counts.append(num_open())
    gc.collect()
    counts.append(num_open())
    _get_retry_handler.cache_clear()
    gc.collect()
    counts.append(num_open())
    print(f"{transport:9}{counts[0]:14}{counts[1]:13}{counts[2]:11}{counts[3]:14}{counts[4]:19}")
    return counts


print(f"tinker {version('tinker')}, pyqwest {version('pyqwest')}, httpx {version('httpx')}; connections open")
print(f"transport  in a session  after close  {NUM_SESSIONS} closed  gc.collect()  and cache_clear()")
gc.disable()  # so that the counts are the same each time
by_default, by_httpx = sessions("pyqwest"), sessions("httpx")
gc.enable()
config["use_pyqwest_transport"] = True
for _ in range(3 * NUM_SESSIONS):
    open_session().close("success").result()
print(f"pyqwest, the collector on: {num_open()} after {3 * NUM_SESSIONS} closed sessions")
assert by_default[1] > by_default[0], "changed: close() leaves no more connections than it finds"
assert by_default[2] == NUM_SESSIONS * by_default[1], "changed: closed sessions do not keep their connections"
assert by_default[3] >= NUM_SESSIONS, "changed: the collector lets go of them"
assert by_default[4] == by_httpx[4] == 0, "changed: something else holds them too"
assert 0 < by_httpx[1] < by_default[1], "changed: the transport makes no difference, or httpx leaves none"
PY

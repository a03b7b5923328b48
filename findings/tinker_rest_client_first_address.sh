#!/usr/bin/env bash
# tinker 0.38.0: RestClient() goes to the service that the environment named when the first RestClient() of the
# process was made, also after TINKER_BASE_URL and TINKER_API_KEY have changed; ServiceClient() goes to the new one.
#
# Where: lib/internal_client_holder.py: _SessionlessHolderCache.get_or_create keeps holders by the arguments as they
#   were given, (None, None) for RestClient(), and InternalClientHolder reads the environment only when it is made.
# Why it matters: the SDK's command and the cookbook's weights.download make a RestClient() without arguments. In a
#   process that uses two services one after the other, such as a notebook or a suite of tests, a download exports
#   on the new service and asks the old one for the files: a key goes to the wrong address, or, where the old service
#   has ended, every request is tried again for five minutes and then fails with "Connection error.". Give
#   RestClient its base_url and api_key.
# Seen:
#   tinker 0.38.0; who was asked
#   RestClient()                         first
#   RestClient(), environment changed    first
#   ServiceClient(), then as well        second
#   RestClient(base_url=, api_key=)      second
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker==0.38.0 pyqwest==0.12.0 httpx==0.28.1
cd "$work"
export HOME="$work" NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
venv/bin/python - <<'PY'
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import tinker

asked = []
ANSWERS = {
    "/api/v1/client/config": {"pjwt_auth_enabled": False},
    "/api/v1/create_session": {"session_id": "session"},
    "/api/v1/create_sampling_session": {"sampling_session_id": "session:sample:0"},
    "/api/v1/get_server_capabilities": {"supported_models": []},
}


class Service(BaseHTTPRequestHandler):
    """Answers what the clients ask, and notes which of the two services was asked."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.do_GET()

    def do_GET(self):
        if self.path in ("/api/v1/create_session", "/api/v1/get_server_capabilities"):
            asked.append((self.path.rpartition("/")[2], self.server.name))
        answer = json.dumps(ANSWERS.get(self.path, {})).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


def service(name):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.name, server.daemon_threads = name, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def name_in_environment(url):
    os.environ.update(TINKER_BASE_URL=url, TINKER_API_KEY=f"tml-of-{url.rpartition(':')[2]}")


def seen(what, of, call):
    asked.clear()
    call()
    (found,) = [name for path, name in asked if path == of]
    print(f"{what:36} {found}")
    return found


def rest(**given):
    tinker.RestClient(**given).get_server_capabilities().result()


def session():
    tinker.ServiceClient().create_sampling_client(base_model="any")


first, second = service("first"), service("second")
print(f"tinker {version('tinker')}; who was asked")
name_in_environment(first)
found = [seen("RestClient()", "get_server_capabilities", rest)]
name_in_environment(second)
found.append(seen("RestClient(), environment changed", "get_server_capabilities", rest))
found.append(seen("ServiceClient(), then as well", "create_session", session))
given = {"base_url": second, "api_key": "tml-x"}
found.append(seen("RestClient(base_url=, api_key=)", "get_server_capabilities", lambda: rest(**given)))
assert [found[0], *found[2:]] == ["first", "second", "second"], found
assert found[1] == "first", "changed: RestClient() follows the environment"
PY

#!/usr/bin/env bash
# trackio 0.43.0: a run that is kept on this machine alone asks the Hugging Face hub who its user is, where a token
# is at hand, and stores the account's name with the run.
#
# Where: trackio/run.py, Run.__init__: config["_Username"] = self._get_username(), which calls
#   huggingface_hub.whoami(token=get_token()) in utils.py, _get_default_namespace; whatever that raises is dropped.
#   `init` is given neither a Space nor a dataset here, and the call stands under no condition.
# Why it matters: `trackio.init` waits for the network, and the token leaves the machine, in runs that are local on
#   purpose; a dashboard that is shared later shows the account's name. HF_HUB_OFFLINE=1 prevents it, for all of the
#   process; without a token nothing is asked.
# Seen:
#   trackio 0.43.0, huggingface_hub 1.33.0
#   with a token          asked who its user is, with the token: True   stored: someone
#   and HF_HUB_OFFLINE=1  asked who its user is, with the token: False  stored: None
#   without a token       asked who its user is, with the token: False  stored: None
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    trackio==0.43.0 huggingface_hub==1.33.0
cd "$work"
export HOME="$work" TRACKIO_DIR="$work/trackio" NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
unset HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_HUB_OFFLINE HF_HOME
cat > local_run.py <<'PY'
import trackio

run = trackio.init(project="local", config={"lr": 0.1}, auto_log_gpu=False)
trackio.log({"loss": 1.0})
trackio.finish()
print(f"stored: {run.config['_Username']}")
PY
venv/bin/python - <<'PY'
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

TOKEN = "hf_" + "x" * 34
asked = []


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does when it is asked whose a token is, and keeps what it was asked."""

    def do_GET(self):
        asked.append((self.path, self.headers.get("authorization")))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"type": "user", "name": "someone"}')

    def log_message(self, *_):
        pass


hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
print(f"trackio {version('trackio')}, huggingface_hub {version('huggingface_hub')}")
for name, extra, seen in (
    ("with a token", {"HF_TOKEN": TOKEN}, (True, "someone")),
    ("and HF_HUB_OFFLINE=1", {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, (False, "None")),
    ("without a token", {}, (False, "None")),
):
    asked.clear()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", **extra}
    command = [sys.executable, "local_run.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    stored = done.stdout.rpartition("stored: ")[2].strip()
    is_asked = ("/api/whoami-v2", f"Bearer {TOKEN}") in asked
    print(f"{name:21} asked who its user is, with the token: {is_asked!s:5}  stored: {stored}")
    assert (is_asked, stored) == seen, f"changed: {name}: {is_asked}, {stored}; {asked}"
PY

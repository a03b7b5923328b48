#!/usr/bin/env bash
# tinker-cookbook 0.5.8 with tinker 0.38.0, which it allows: `weights.download` of a sampler path calls a
# method that the SDK dropped in 0.36, and advises to check the path and the expiry instead.
#
# Where: tinker_cookbook/weights/_download.py, _download_archive: every exception of
#   get_checkpoint_archive_url_from_tinker_path becomes "Check that the checkpoint path is valid".
# Why it matters: the path is valid and the weights are there; only no release of the SDK since 0.36 can
#   fetch them. Save a state (save_state) or external weights beside what is to be downloaded.
# Seen:
#   tinker-cookbook 0.5.8, tinker 0.38.0; requests to the service: POST /api/v1/client/config, POST /api/v1/client/dynamic_config
#   WeightsDownloadError: ... 'RestClient' object has no attribute 'get_checkpoint_archive_url_from_tinker_path'. Check that the checkpoint path is valid and the checkpoint has not expired.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker==0.38.0 tinker-cookbook==0.5.8 torch==2.13.0 transformers==5.5.4
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" NO_PROXY=127.0.0.1 TINKER_TELEMETRY=0 TINKER_API_KEY=tml-any
venv/bin/python - <<'PY'
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from tinker_cookbook import weights
from tinker_cookbook.exceptions import WeightsDownloadError

asked = []


class Answer(BaseHTTPRequestHandler):
    """A service that has nothing but what every client asks first."""

    def do_POST(self):
        asked.append(f"POST {self.path}")
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
try:
    weights.download(
        tinker_path="tinker://run:train:0/sampler_weights/final",
        output_dir="out",
        base_url=f"http://127.0.0.1:{server.server_port}",
    )
except WeightsDownloadError as error:
    found = str(error)
else:
    raise SystemExit("changed: it was downloaded")
print(f"tinker-cookbook {version('tinker-cookbook')}, tinker {version('tinker')}; requests to the service: {', '.join(asked)}")
print(f"WeightsDownloadError: ...{found[found.index(': ') + 1:]}")
assert "has no attribute 'get_checkpoint_archive_url" in found, f"changed: {found}"
assert "path is valid" in found, f"changed: {found}"
assert not any("archive" in one for one in asked), f"changed: it asks for an archive: {asked}"
PY

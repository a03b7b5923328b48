#!/usr/bin/env bash
# Lint, types and tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./ensure_venv.sh
ensure_venv

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath "$VENV_PYTHON"
# Two tests at a time share the cores: a thread that waits for another must not keep one busy.
export OMP_WAIT_POLICY=passive
exec "$VENV_PYTHON" -m pytest --numprocesses 2 --dist worksteal "$@"

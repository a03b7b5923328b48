#!/usr/bin/env bash
# Lint, types and tests; other arguments than --thorough go to pytest.
#
#     ./run_tests.sh                what a change is checked with
#     ./run_tests.sh --thorough     all cases of the fuzzers as well, and what could not be run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
arguments=()
for argument in "$@"; do
    if [ "$argument" = --thorough ]; then
        export THOROUGH=1
    else
        arguments+=("$argument")
    fi
done
. ./ensure_venv.sh
ensure_venv

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath "$VENV_PYTHON"
# Two tests at a time share the cores: a thread that waits for another must not keep one busy.
export OMP_WAIT_POLICY=passive
exec "$VENV_PYTHON" -m pytest --numprocesses 2 --dist worksteal ${arguments[@]+"${arguments[@]}"}

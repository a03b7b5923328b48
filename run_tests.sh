#!/usr/bin/env bash
# Lint, types and tests; arguments go to pytest. Without any, the tests that hang on the numbers of a
# training run are run a second time, with the kernels of the simplest processor.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./ensure_venv.sh
ensure_venv

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath "$VENV_PYTHON"
# Two tests at a time share the cores: a thread that waits for another must not keep one busy.
export OMP_WAIT_POLICY=passive
run_pytest() { "$VENV_PYTHON" -m pytest --numprocesses 2 --dist worksteal "$@"; }

code=0
run_pytest "$@" || code=$?
if [ $# -gt 0 ]; then
  exit "$code"
fi
capability=$("$VENV_PYTHON" -c 'import torch; print(torch.backends.cpu.get_cpu_capability())')
if [ "$capability" = DEFAULT ]; then
  echo "torch has used its default kernels, so the tests marked trains are not run again with them."
else
  echo "The tests marked trains again, with torch's default kernels in the place of $capability:"
  ATEN_CPU_CAPABILITY=default run_pytest -m trains || code=$?
fi
exit "$code"

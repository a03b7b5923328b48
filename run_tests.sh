#!/usr/bin/env bash
# Lint, types and tests; other arguments than these two go to pytest.
#
#     ./run_tests.sh                what a change is checked with
#     ./run_tests.sh --thorough     all cases of the fuzzers as well, and what could not be run
#     ./run_tests.sh --selfhosted   the tests marked core, with the SDK of self-hosted engines
#
# Without arguments for pytest, tests that hang on the numbers of a training run are run a second time,
# with the kernels of the simplest processor: those with numbers of their own, with --thorough all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
arguments=()
selfhosted=
for argument in "$@"; do
    if [ "$argument" = --thorough ]; then
        export THOROUGH=1
    elif [ "$argument" = --selfhosted ]; then
        selfhosted=1
    else
        arguments+=("$argument")
    fi
done
. ./ensure_venv.sh
if [ -n "$selfhosted" ]; then
    ensure_selfhosted
    # Of these files alone: others name what the older SDK does not have.
    mapfile -t core < <(grep -l "mark.core" tests/test_*.py)
    arguments=(-m core "${core[@]}" ${arguments[@]+"${arguments[@]}"})
else
    ensure_venv
    ensure_gguf
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/pyright --pythonpath "$VENV_PYTHON"
fi
# Tests at the same time share the cores: a thread that waits for another must not keep one busy.
export OMP_WAIT_POLICY=passive
# A run syncs a hundred files to the disk, which takes longer than its arithmetic: where there is
# room for it, what the tests write stays in memory.
if [ -z "${TMPDIR:-}" ] && [ "$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $4}')" -gt 4000000 ] 2>/dev/null; then
    TMPDIR=$(mktemp -d /dev/shm/tests-XXXXXX)
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
fi
# The SDK leaves the connections of closed clients to the garbage collector, hundreds at a time.
ulimit -S -n 8192 2>/dev/null || ulimit -S -n "$(ulimit -H -n)"
# Workers forked from a process that has imported everything: three for two cores, since each waits
# for a third of its time, for other processes and for what has to wait before it tries again.
workers="3*popen//python=$VENV_PYTHON tests/forked.py --as"
run_pytest() {
    "$VENV_PYTHON" -m pytest --tx "$workers" --dist worksteal --max-worker-restart 2 "$@"
}

code=0
run_pytest ${arguments[@]+"${arguments[@]}"} || code=$?
if [ ${#arguments[@]} -gt 0 ]; then
    exit "$code"
fi
capability=$("$VENV_PYTHON" -c 'import torch; print(torch.backends.cpu.get_cpu_capability())')
if [ "$capability" = DEFAULT ]; then
    echo "torch has used its default kernels, so the tests marked trains are not run again with them."
else
    again=(tests/test_demo.py tests/test_diagnosis.py tests/test_faults.py tests/test_loop.py)
    if [ "${THOROUGH:-}" = 1 ]; then
        again=(tests)
    fi
    echo "Tests marked trains again, with torch's default kernels in the place of $capability:"
    ATEN_CPU_CAPABILITY=default run_pytest -m trains "${again[@]}" || code=$?
fi
exit "$code"

#!/usr/bin/env bash
# Hold the service on a GPU against plain torch on the same device; gpu_check.py says what is checked.
#
#     benchmarks/gpu_check.sh [--device cuda] [--models 100M 1B] [--minutes 8]
#     benchmarks/gpu_check.sh --device cpu --tiny                     the whole check without a GPU
#     PYTHON=/path/to/python benchmarks/gpu_check.sh                  an environment as it is
#
# With PYTHON nothing is installed and nothing is asked of the network. Without it requirements.txt is
# installed into .venv-gpu (once), over what the machine's own Python has: a torch that sees a GPU
# there stays as it is, whatever version requirements.txt names.
# Exit code 1 where a bound is missed, 2 where the environment or the GPU is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_cuda_torch() {
    "$1" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' >/dev/null 2>&1
}

ensure_gpu_venv() {
    local wanted stamp=.venv-gpu/.installed pins
    wanted="$("$system_python" -c 'import hashlib, sys; print(sys.version.split()[0], hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest())')"
    if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
        return
    fi
    echo "Installing requirements.txt into .venv-gpu (once; a few minutes) ..." >&2
    rm -rf .venv-gpu
    "$system_python" -m venv --system-site-packages .venv-gpu || return
    echo "*" >.venv-gpu/.gitignore
    pins=$(mktemp)
    if has_cuda_torch .venv-gpu/bin/python; then
        # The line of torch is left out, and pip is held to the torch that is there.
        grep -v '^torch==' requirements.txt >"$pins"
        .venv-gpu/bin/python -c 'import torch; print(f"torch=={torch.__version__}")' >"$pins.held"
    else
        cp requirements.txt "$pins"
        : >"$pins.held"
    fi
    .venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check \
        -r "$pins" -c "$pins.held" || return
    rm -f "$pins" "$pins.held"
    echo "$wanted" >"$stamp"
}

if [ -z "${PYTHON:-}" ]; then
    . ./ensure_venv.sh
    system_python=$(find_python) || exit 2
    if ! ensure_gpu_venv; then
        echo "The environment could not be made; see the message above. Where the network cannot be" >&2
        echo "reached, name a Python that has the packages: PYTHON=/path/to/python $0" >&2
        exit 2
    fi
    PYTHON="$PWD/.venv-gpu/bin/python"
fi
if ! "$PYTHON" -c 'import fastapi, peft, safetensors, tinker, torch, transformers, uvicorn'; then
    echo "$PYTHON lacks packages of requirements.txt; see the message above. Install them there, or" >&2
    echo "leave PYTHON unset to have them installed into .venv-gpu." >&2
    exit 2
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
exec "$PYTHON" benchmarks/gpu_check.py "$@"

#!/usr/bin/env bash
# Run the demo on SkyRL's JAX backend, on the CPU, and on the embedded service, compare them, and
# check SkyRL as docs/engines.md tells it (--check-service).
#
#     benchmarks/engines.sh
#
# Needs Python 3.12 or newer for SkyRL (another one can be named: SKYRL_PYTHON=/path/to/python3.12),
# and some 7 GB in .skyrl/, kept for the next run; deleting that folder undoes it. SkyRL listens on
# loopback alone, and writes its database and weights to a temporary folder. The demo takes some ten
# minutes there, for JAX compiles its sampling anew for each length of prompt and number of answers.
# The check says that SkyRL differs, which is no failure of this script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SKYRL="skyrl[tinker,jax]==0.4.0"
# The server imports aiohttp, which that does not bring, and starts its engine through uv.
BESIDE=(aiohttp==3.14.5 uv==0.13.9)
PORT=${SKYRL_PORT:-18124}

find_newer_python() {
    local candidate
    for candidate in "${SKYRL_PYTHON:-}" python3.13 python3.12 python3 \
        "$(pyenv root 2>/dev/null || true)"/versions/3.1[23].*/bin/python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "SkyRL 0.4.0 needs Python 3.12 or newer, and none was found." >&2
    echo "Install one, or name it: SKYRL_PYTHON=/path/to/python3.12 $0" >&2
    return 2
}

python=$(find_newer_python)
. ./ensure_venv.sh
ensure_selfhosted

kept="$PWD/.skyrl"
mkdir -p "$kept"
# The folder ignores itself, so that git and ruff pass over the packages in it.
echo "*" >"$kept/.gitignore"
wanted="$("$python" --version) $SKYRL ${BESIDE[*]}"
if [ "$(cat "$kept/.installed" 2>/dev/null || true)" != "$wanted" ]; then
    echo "Installing $SKYRL into .skyrl/venv (once; some minutes) ..."
    rm -rf "$kept/venv"
    "$python" -m venv "$kept/venv"
    "$kept/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$SKYRL" "${BESIDE[@]}"
    echo "$wanted" >"$kept/.installed"
fi

work=$(mktemp -d)
server=
stop_server() {
    [ -n "$server" ] || return 0
    # The server ends its engine.
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
}
trap 'stop_server; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# None of the reader's Tinker settings may reach the runs: they could cost money.
while IFS= read -r name; do
    unset "$name"
done < <(compgen -e TINKER_ || true)
export HF_HUB_OFFLINE=1 TINKER_TELEMETRY=0 NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost

# SkyRL serves demo_model under the name that it is started with, so that the settings can name it.
# It reads from its own command line how uv was called, and calls it so for its engine. Sampling in
# batches of one size has less compiled. The check alone takes more than 20 adapters.
echo "Starting SkyRL on 127.0.0.1:$PORT ..."
VIRTUAL_ENV="$kept/venv" PATH="$kept/venv/bin:$PATH" JAX_PLATFORMS=cpu UV_OFFLINE=1 \
    UV_CACHE_DIR="$work/uv" PYTHONDONTWRITEBYTECODE=1 \
    uv run --no-project --active -m skyrl.tinker.api \
    --base-model demo_model --backend jax \
    --backend-config '{"max_lora_adapters": 64, "sample_max_num_sequences": 32}' \
    --host 127.0.0.1 --port "$PORT" --checkpoints-base "$work/checkpoints" \
    --external-inference-lora-base "$work/loras" --database-url "sqlite:///$work/tinker.db" \
    >"$work/skyrl.log" 2>&1 &
server=$!
waited=0
until grep -q "Starting background engine" "$work/skyrl.log"; do
    if ! kill -0 "$server" 2>/dev/null || [ "$waited" -ge 600 ]; then
        echo "SkyRL did not start:" >&2
        tail -n 40 "$work/skyrl.log" >&2
        exit 1
    fi
    sleep 1
    waited=$((waited + 1))
done

run_demo() {
    local name=$1
    shift
    echo "The demo, $name:"
    "$VENV_PYTHON" trainer_with_eval.py --config demo_config.json --run-dir "$work/$name" "$@" \
        >"$work/$name.out" 2>"$work/$name.log" || { cat "$work/$name.log" >&2; return 1; }
    grep -E "^(Baseline|round [0-9]+: score|Sealed test)" "$work/$name.log" "$work/$name.out" -h | sed 's/^/    /'
}
on_skyrl=(--set "base_url=http://127.0.0.1:$PORT")
TINKER_API_KEY=tml-any-key-will-do run_demo skyrl "${on_skyrl[@]}"
run_demo embedded --local
run_demo embedded-without-head --local --set train_unembed=false

echo
PYTHONPATH=. "$VENV_PYTHON" benchmarks/engines.py "$work/skyrl" "$work/checkpoints" \
    "$work/embedded" "$work/embedded-without-head"

echo
echo "The check of SkyRL:"
# 0: nothing differs that changes scores; 1: something does.
TINKER_API_KEY=tml-any-key-will-do "$VENV_PYTHON" trainer_with_eval.py --check-service \
    --set base_model=demo_model "${on_skyrl[@]}" || [ "$?" = 1 ]

#!/usr/bin/env bash
# Train, sample and resume on the embedded service with several versions of the Tinker SDK.
#
#     benchmarks/sdk_versions.sh [VERSION ...]
#
# Every version gets an environment of its own in .sdk_versions/, kept for the next run; deleting
# that folder undoes it. One service on the demo model answers all of them, one after another.
# Exits with 1 if any version failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

versions=("$@")
[ "$#" -gt 0 ] || versions=(0.25.0 0.30.4 0.36.0 0.38.0)
for version in "${versions[@]}"; do
    # A version becomes the name of a folder that may be deleted.
    if ! [[ "$version" =~ ^[0-9]+(\.[0-9]+)+([a-z]+[0-9]+)?$ ]]; then
        echo "Not a version: $version" >&2
        echo "Usage: benchmarks/sdk_versions.sh [VERSION ...], for example 0.36.0" >&2
        exit 2
    fi
done

. ./ensure_venv.sh
ensure_venv

kept="$PWD/.sdk_versions"
mkdir -p "$kept"
# The folder ignores itself, so that git and ruff pass over the packages in it.
echo "*" >"$kept/.gitignore"

work=$(mktemp -d)
service_pid=
stop_service() {
    [ -n "$service_pid" ] || return 0
    echo "Stopping the service."
    # TERM, because bash starts background commands with INT ignored.
    kill "$service_pid" 2>/dev/null || true
    wait "$service_pid" 2>/dev/null || true
    service_pid=
}
trap 'stop_service; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Caches and temporary files go to the two folders that this script may write to. pip's cache stays,
# since the environments share most packages.
export TMPDIR="$work" PIP_CACHE_DIR="$kept/pip-cache" HF_HOME="$work/hf" HF_HUB_OFFLINE=1
# The service makes its own key. None of the reader's Tinker settings may reach it or the clients:
# with a real address, or a real key in place of that one, the runs could cost money.
while IFS= read -r name; do
    unset "$name"
done < <(compgen -e TINKER_ || true)

# Make .sdk_versions/<version> unless a complete one is there; the stamp is written last.
ensure_sdk() {
    local version=$1 folder="$kept/$1" wanted found
    # tinker requires transformers, numpy, pydantic and protobuf itself, and these versions work
    # with their newest releases, so nothing is added or pinned. torch is an extra, not used here.
    wanted="$("$VENV_PYTHON" --version) tinker==$version"
    found=$(cat "$folder/.installed" 2>/dev/null || true)
    if [ -x "$folder/bin/python" ] && [ "$found" = "$wanted" ]; then
        echo "tinker $version: using the environment in .sdk_versions/$version"
        return
    fi
    echo "tinker $version: installing into .sdk_versions/$version (once) ..."
    rm -rf "$folder"
    "$VENV_PYTHON" -m venv "$folder" || return
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-compile "tinker==$version" || return
    echo "$wanted" >"$folder/.installed"
}

start_service() {
    local waited=0
    : >"$work/service.out"
    PYTHONDONTWRITEBYTECODE=1 "$VENV_PYTHON" -m local_tinker --base-model demo_model --port 0 \
        --checkpoint-dir "$work/checkpoints" >"$work/service.out" 2>"$work/service.err" &
    service_pid=$!
    until grep -q '^export TINKER_API_KEY=' "$work/service.out"; do
        if ! kill -0 "$service_pid" 2>/dev/null || [ "$waited" -ge 600 ]; then
            echo "The service did not start:" >&2
            cat "$work/service.err" >&2
            return 1
        fi
        sleep 0.2
        waited=$((waited + 1))
    done
    service_url=$(sed -n 's/^export TINKER_BASE_URL=//p' "$work/service.out")
    service_key=$(sed -n 's/^export TINKER_API_KEY=//p' "$work/service.out")
}

# NO_PROXY in both spellings: with a proxy set, the SDK would ask it for the loopback address too.
# -I keeps PYTHONPATH and the user's packages away from the version under test.
run_client() {
    env TINKER_BASE_URL="$service_url" TINKER_API_KEY="$service_key" TINKER_TELEMETRY=0 \
        NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost \
        "$kept/$1/bin/python" -I benchmarks/sdk_versions_client.py demo_model
}

# What ended the client: the line under its last traceback, or the time limit's announcement.
failure_in() {
    awk '/^Traceback \(most recent call last\):/ { inside = 1; next }
         inside && /^[^ ]/ { found = $0; inside = 0 }
         /^Timeout \(/ { found = $0 }
         END { print substr(found, 1, 200) }' "$1"
}

echo "Starting the service on the demo model ..."
start_service
echo "It listens on $service_url."

failed=0
rows=()
for version in "${versions[@]}"; do
    echo
    if ! ensure_sdk "$version"; then
        rm -rf "${kept:?}/$version"
        failed=1
        rows+=("$(printf '%-10s %7s  %s' "$version" - "failed: not installed, see pip's message")")
        continue
    fi
    echo "tinker $version: running benchmarks/sdk_versions_client.py"
    log="$work/client-$version.log"
    started=$SECONDS
    status=0
    run_client "$version" 2>&1 | tee "$log" | sed 's/^/    /' || status=$?
    seconds=$((SECONDS - started))
    result=passed
    if [ "$status" -ne 0 ]; then
        failed=1
        reason=$(failure_in "$log")
        result="failed: ${reason:-exit code $status}"
    fi
    rows+=("$(printf '%-10s %7s  %s' "$version" "$seconds" "$result")")
done

echo
if [ "$failed" -ne 0 ]; then
    echo "The service's own messages:"
    tail -n 50 "$work/service.err" | sed 's/^/    /'
fi
stop_service
echo
printf '%-10s %7s  %s\n' "SDK" "seconds" "result"
printf '%s\n' "${rows[@]}"
exit "$failed"

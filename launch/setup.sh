#!/usr/bin/env bash
# Sets up .venv with jaxscale in it, once; sourced by local.sh and test.sh.
#   setup_venv EXTRAS      EXTRAS is empty or like "[test,preflight]"
# A second call with the same pyproject.toml and constraints finds its stamp and does nothing.
# Where python3 lacks ensurepip (Debian without python3-venv), virtualenv makes the environment instead.
set -euo pipefail

find_python() {
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "setup: Python 3.11 or newer is needed and none was found; install it or set PYTHON=/path/to/python3" >&2
    return 1
}

make_venv() {
    local python=$1 folder=$2 tools
    rm -rf "$folder"
    if "$python" -m venv "$folder" >/dev/null 2>&1 && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    echo "setup: this python3 has no ensurepip; using virtualenv"
    rm -rf "$folder"
    tools=$(mktemp -d)
    "$python" -m pip install --quiet --disable-pip-version-check --target "$tools" virtualenv
    PYTHONPATH=$tools "$python" -m virtualenv --quiet "$folder"
    rm -rf "$tools"
}

setup_venv() {
    local extras=$1 python stamp made sources
    stamp=.venv/.jaxscale-setup
    made=$(cat "$stamp" 2>/dev/null || true)
    sources=$(cat pyproject.toml launch/constraints.txt | sha256sum | cut -d' ' -f1)
    # an environment with any extras holds all that one without them needs: test.sh's serves local.sh
    if [ "${made##* }" = "$sources" ] && { [ -z "$extras" ] || [ "${made% *}" = "$extras" ]; }; then
        return
    fi
    python=$(find_python) || return 1
    echo "setup: installing jaxscale$extras into .venv (once; about a minute)"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        make_venv "$python" .venv || return 1
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint launch/constraints.txt --editable ".$extras" || return 1
    echo "$extras $sources" >"$stamp"
}

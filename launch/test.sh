#!/usr/bin/env bash
# Set up once, then the whole gate: format, lint, types, doctests and tests on eight CPU devices.
#   bash launch/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

# The tests of `launch --on slurm` run against a Slurm of their own; without one they skip, all else is tested.
install_slurm() {
    if command -v slurmctld >/dev/null; then
        return
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "test: slurm-wlm is not installed, and only root can install it, with apt-get; the tests on a real Slurm skip" >&2
        return
    fi
    if ! { timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install --yes \
        --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 </dev/null; then
        echo "test: slurm-wlm and munge cannot be installed here; the tests on a real Slurm skip" >&2
    fi
}

# without the compilers for TPUs and GPUs, trackers and lm-eval their tests skip; all else is tested
setup_venv "[test,preflight,track,eval]" || { echo "test: [preflight,track,eval] cannot be installed here; their tests skip" >&2; setup_venv "[test]"; }
install_slurm
export JAX_PLATFORMS=cpu
.venv/bin/ruff format --check --quiet . || { echo "test: run .venv/bin/ruff format ." >&2; exit 1; }
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary jaxscale
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"

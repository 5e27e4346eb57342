#!/usr/bin/env bash
# Set up once, then the whole gate: format, lint, types, doctests and tests on eight CPU devices.
#   bash launch/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
# without the compilers for TPUs and GPUs their tests skip; all else is tested
setup_venv "[test,preflight]" || { echo "test: [preflight] cannot be installed here; its tests skip" >&2; setup_venv "[test]"; }
export JAX_PLATFORMS=cpu
.venv/bin/ruff format --check --quiet . || { echo "test: run .venv/bin/ruff format ." >&2; exit 1; }
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary jaxscale
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"

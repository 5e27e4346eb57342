#!/usr/bin/env bash
# The main job on this machine: set up once, then plan, train, collect, fit, forecast and report a study.
#   bash launch/local.sh configs/quickstart.py [--option value ...]
# The same command again goes on where it was, or rebuilds the report when everything is done.
set -euo pipefail
started=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
setup_venv ""
home=$PWD
cd "$started"
if [ $# -gt 0 ] && [ ! -e "$1" ] && [ -e "$home/$1" ]; then
    set -- "$home/$1" "${@:2}"
fi
exec "$home/.venv/bin/jaxscale" run "$@"

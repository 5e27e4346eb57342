#!/usr/bin/env bash
# The transcript of docs/cluster.md: a grid on a Slurm of two nodes, preempted by a job of a higher partition.
#   bash tests/bench/slurm_transcript.sh [FOLDER]     as root, with slurm-wlm and munge; FOLDER is emptied; prints to stdout
# JAXSCALE_SHARED (default ../shared) holds tools/slurm_up.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
home=$PWD tools=${JAXSCALE_SHARED:-../shared}/tools folder=$(realpath -m "${1:-/tmp/jaxscale-transcript}")
python=${PYTHON:-.venv/bin/python}
export JAX_PLATFORMS=cpu PYTHONPATH=$home:$home/tests CTLD_PORT=26457 SLURMD_PORT0=26460
rm -rf "$folder" && mkdir -p "$folder"
"$python" -c "
from pathlib import Path
from tiny import write_study
write_study(Path('$folder'), 'study = replace(study, name=\"grid\", grid=replace(study.grid, budgets=(8e10,), '
            'widths=(24, 32, 48, 64, 96, 128)), data=replace(study.data, max_epochs=200))')"
bash "$tools/slurm_up.sh" 2 2 "$folder/slurm" >/dev/null
export SLURM_CONF=$folder/slurm/slurm.conf
trap 'bash "$tools/slurm_down.sh" "$folder/slurm"' EXIT
jaxscale() { "$python" -m jaxscale "$@"; }
tell() { printf '\n[%s] $ %s\n' "$(date +%T)" "$*"; eval "$*" 2>&1 | grep -v -e cudart_stub -e absl::InitializeLog || true; }
cd "$folder"
cat >slurm.py <<PY
from jaxscale.launch import SlurmSettings

def get_settings():
    return SlurmSettings(partition="main", cpus_per_task=2, task_minutes=0.02${LAUNCH_FIELDS:-})
PY
tell cat slurm.py
tell jaxscale plan tiny.py --out run '|' tail -3
tell jaxscale launch run --on slurm --settings slurm.py
tell squeue --array
tell jaxscale launch run --on slurm --settings slurm.py '  # again: all of it is queued'
until grep -q '"step"' run/*/metrics.jsonl 2>/dev/null; do sleep 0.2; done
tell sbatch --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap "'sleep 3'"
sleep 6
tell squeue --array
tell jaxscale status run
while [ -n "$(squeue --noheader)" ]; do sleep 0.5; done
tell jaxscale status run
tell cat run/logs/slurm-1_0.out
tell jaxscale launch run --on slurm --settings slurm.py

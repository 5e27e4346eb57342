#!/usr/bin/env bash
# How long after a node's death its cell runs again: slurmd, slurmstepd and all their processes of one of two nodes killed with -9.
#   bash tests/bench/slurm_node_death.sh [FOLDER]     as root, with slurm-wlm and munge; FOLDER is emptied
# JAXSCALE_SHARED (default ../shared) holds tools/slurm_up.sh, whose SlurmdTimeout is 30 s.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
home=$PWD tools=${JAXSCALE_SHARED:-../shared}/tools folder=$(realpath -m "${1:-/tmp/jaxscale-node-death}")
python=${PYTHON:-.venv/bin/python}
export JAX_PLATFORMS=cpu PYTHONPATH=$home:$home/tests CTLD_PORT=26477 SLURMD_PORT0=26480
rm -rf "$folder" && mkdir -p "$folder"
"$python" -c "
from pathlib import Path
from tiny import write_study
write_study(Path('$folder'), 'study = replace(study, name=\"grid\", grid=replace(study.grid, budgets=(8e10,), '
            'widths=(24, 32, 48, 64, 96, 128)), data=replace(study.data, max_epochs=200))')"
"$python" -m jaxscale plan "$folder/tiny.py" --out "$folder/run" >/dev/null
bash "$tools/slurm_up.sh" 2 2 "$folder/slurm" >/dev/null
export SLURM_CONF=$folder/slurm/slurm.conf
trap 'bash "$tools/slurm_down.sh" "$folder/slurm"' EXIT
"$python" -m jaxscale launch "$folder/run" --on slurm --slurm.task-minutes 0.02 --slurm.cpus-per-task 2 | tail -1
until grep -q '"step"' "$folder"/run/*/metrics.jsonl 2>/dev/null; do sleep 0.2; done

list_tree() { local child; for child in $(pgrep -P "$1" || true); do list_tree "$child"; done; echo "$1"; }
since() { printf "%.1f" "$(echo "$(date +%s.%N) - $began" | bc)"; }
wait_for() { until eval "$2"; do sleep 0.2; [ $(($(date +%s) - ${began%.*})) -lt 300 ] || { echo "not within 300 s: $1"; exit 1; }; done; }

read -r job task < <(squeue --noheader --nodelist=n1 --states=R --format="%A %K")
log=$(echo "$folder"/run/logs/slurm-*_"$task".out)
doomed=$(cat "$folder/slurm/run/slurmd.n1.pid")
for step in $(pgrep -f "slurmstepd: \[$job\."); do doomed+=" $(list_tree "$step" | tr '\n' ' ')"; done
starts=$(grep -c "^canary" "$log" || true)
began=$(date +%s.%N)
kill -9 $doomed
echo "killed $(wc -w <<<"$doomed") processes of node n1, job $job, task $task"
wait_for "Slurm requeues it" '[ "$(squeue --noheader --jobs=$job --format=%T)" = PENDING ]'
echo "$(since) s: Slurm has requeued the task"
wait_for "work is up" '[ "$(grep -c "^canary" "$log" || true)" -gt "$starts" ]'
echo "$(since) s: work is up on the other node, its canary done"
wait_for "it holds a cell" 'ls "$folder"/run/leases/*/000002.json >/dev/null 2>&1'
echo "$(since) s: it holds the cell"
wait_for "the queue is empty" '[ -z "$(squeue --noheader)" ]'
"$python" -m jaxscale status "$folder/run"
grep -h -e deaths -e released "$folder"/run/leases/*/00000[12].json | sort | uniq -c

#!/usr/bin/env bash
# A pull worker on every host of a TPU pod slice: gcloud ssh to all of them at once, the same command on each.
#   bash launch/tpu_pod.sh NAME ZONE DIR [PROJECT]
#     NAME, ZONE   the TPU VM, as `gcloud compute tpus tpu-vm list` shows them
#     DIR          the study folder, absolute, on a file system that every host has mounted (Filestore, NFS)
# Each host needs Python 3.11 or newer and this repository at ~/jaxscale (JAXSCALE_HOME on the hosts). The same command again goes on
# where it was: cells are taken by lease, and a preempted slice has saved. Ends with the code of `jaxscale work`.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
refuse() { echo "tpu_pod: $*" >&2; exit 2; }

[ $# -eq 3 ] || [ $# -eq 4 ] || usage
name=$1 zone=$2 folder=$3 project=${4:-}
plain='^[a-z][a-z0-9-]*$'
[[ $name =~ $plain ]] || refuse "NAME: '$name' is no name of a TPU VM; use lower-case letters, digits and -"
[[ $zone =~ $plain ]] || refuse "ZONE: '$zone' is no zone; write for example us-central2-b"
[[ $folder == /* ]] || refuse "DIR: '$folder' is not absolute; give the path that the hosts see"
[[ $folder != *$'\n'* ]] || refuse "DIR: has a line break in it; rename the study folder"
[[ -z $project || $project =~ $plain ]] || refuse "PROJECT: '$project' is no project id"
command -v gcloud >/dev/null || refuse "gcloud is not installed; see cloud.google.com/sdk"

# the hosts of a slice find each other by the TPU's own metadata
work='set -eu; cd "${JAXSCALE_HOME:-$HOME/jaxscale}"; source launch/setup.sh; setup_venv "[tpu]"; '
work+='export JAXSCALE_DISTRIBUTED=auto; '
work+="exec .venv/bin/jaxscale work $(printf %q "$folder")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" ${project:+--project "$project"} --worker=all \
    --command "bash -c $(printf %q "$work")"

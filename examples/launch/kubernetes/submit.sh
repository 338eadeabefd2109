#!/usr/bin/env bash
# Fill in a manifest of this folder and give it to kubectl; with --dry-run, print it instead (no cluster and no kubectl needed).
#   bash examples/launch/kubernetes/submit.sh volumes [--dry-run]
#   IMAGE=registry/megatron-fwpkm:train NUM_SHARDS=16 bash examples/launch/kubernetes/submit.sh preprocess [--dry-run] --input /data/raw ...
#   IMAGE=registry/megatron-fwpkm:train NNODES=4 GPUS_PER_NODE=8 bash examples/launch/kubernetes/submit.sh train [--dry-run] --config FILE ...
# All arguments behind are those of pretrain.py or tools/preprocess_data.py. Variables and their defaults are listed in README.md.
set -euo pipefail
cd "$(dirname "$0")/../../.."
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

# require_name NAME "what it is": what Kubernetes takes for a name, and short enough for what is made of it.
require_name() {
  require "$1" "$2"
  [[ "${!1}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "$1=${!1} must be at most 40 small letters, digits and hyphens, with a letter first: $2"
}

# fill_in FILE ARGUMENT...: the manifest with every ${VARIABLE} replaced by its value, and ${ARGUMENTS} by a list. $$( stands for $(, which
# Kubernetes would take for a variable.
fill_in() {
  # shellcheck disable=SC2016  # of Python
  "$python" -c '
import json, os, string, sys
arguments = json.dumps([word.replace("$(", "$$(") for word in sys.argv[2:]])
print(string.Template(open(sys.argv[1]).read()).substitute(os.environ, ARGUMENTS=arguments), end="")
' "$@"
}

kind=${1:-}
shift || true
image="the image made from the Dockerfile, stage train, which the cluster can pull"
export DATA_CLAIM=${DATA_CLAIM:-fwpkm-data} RUNS_CLAIM=${RUNS_CLAIM:-fwpkm-runs}
require_name DATA_CLAIM "the volume claim of corpora and datasets"
require_name RUNS_CLAIM "the volume claim of runs"
case "$kind" in
volumes)
  [[ "$#" = 0 || "$*" = --dry-run ]] || fail "volumes takes no arguments but --dry-run: $*"
  dry_run=$#
  arguments=()
  export DATA_SIZE=${DATA_SIZE:-1Ti} RUNS_SIZE=${RUNS_SIZE:-1Ti}
  ;;
train)
  parse_launcher_arguments "$@"
  require IMAGE "$image"
  require_number NNODES 1 "the number of nodes, one pod each"
  require_number GPUS_PER_NODE 1 "the GPUs of a node"
  export NAME=${NAME:-fwpkm-train} RDZV_PORT=${RDZV_PORT:-29500} PREFLIGHT=${PREFLIGHT:-1}
  export TORCHRUN_MAX_RESTARTS=${TORCHRUN_MAX_RESTARTS:-3} SHARED_MEMORY=${SHARED_MEMORY:-16Gi}
  export CPUS_PER_NODE=${CPUS_PER_NODE:-$((8 * GPUS_PER_NODE))} MEMORY_PER_NODE=${MEMORY_PER_NODE:-$((64 * GPUS_PER_NODE))Gi}
  require_name NAME "the name of the run in the cluster"
  require_number RDZV_PORT 1024 "the port of the first pod at which torchrun meets"
  require_number TORCHRUN_MAX_RESTARTS 0 "how often torchrun starts the processes again after a failure"
  arguments+=(--resume)
  ;;
preprocess)
  parse_launcher_arguments "$@"
  require IMAGE "$image"
  require_number NUM_SHARDS 2 "the number of parts, one pod each"
  export NAME=${NAME:-fwpkm-preprocess} CPUS_PER_SHARD=${CPUS_PER_SHARD:-8} MEMORY_PER_SHARD=${MEMORY_PER_SHARD:-16Gi}
  require_name NAME "the name of the work in the cluster"
  require_number CPUS_PER_SHARD 1 "the CPUs of a part, and its --workers"
  arguments+=(--workers "$CPUS_PER_SHARD")
  ;;
*) fail "the first argument is '$kind', but must be volumes, preprocess or train" ;;
esac
python=$(find_python)
export IMAGE NNODES GPUS_PER_NODE NUM_SHARDS
manifest=$(fill_in "examples/launch/kubernetes/$kind.yaml" "${arguments[@]}")
if [ "$dry_run" = 1 ]; then
  echo "$manifest"
else
  command -v kubectl >/dev/null || fail "kubectl was not found; --dry-run prints the manifest without it"
  kubectl apply -f - <<<"$manifest"
fi

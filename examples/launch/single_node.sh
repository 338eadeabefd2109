#!/usr/bin/env bash
# One node, one process per GPU; with GPUS_PER_NODE=1 a single one:
#   bash examples/launch/single_node.sh [--dry-run] --config examples/paper/base_112m.yaml --data-path PREFIX --save DIR --resume
# --dry-run as the first argument prints the commands; anywhere else it is passed to pretrain.py.
# TORCHRUN_MAX_RESTARTS (default 0) and the other variables are explained in common.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

parse_launcher_arguments "$@"
TORCHRUN_MAX_RESTARTS=${TORCHRUN_MAX_RESTARTS:-0}
require_number TORCHRUN_MAX_RESTARTS 0 "how often torchrun starts the processes again after a failure"
set_torchrun 1
export_environment
print_environment "on this node"
# --standalone finds a free port, so two runs on one node do not collide.
preflight "${torchrun[@]}" --standalone tools/preflight.py "${arguments[@]}"
# shellcheck disable=SC2086  # TORCHRUN_ARGS are several words on purpose
run "${torchrun[@]}" --standalone --max-restarts="$TORCHRUN_MAX_RESTARTS" ${TORCHRUN_ARGS:-} pretrain.py "${arguments[@]}"

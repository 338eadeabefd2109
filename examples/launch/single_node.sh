#!/usr/bin/env bash
# One node, one process per GPU:
#   bash examples/launch/single_node.sh [--dry-run] --config examples/paper/base_112m.yaml --data-path PREFIX --save DIR --resume
# --dry-run as the first argument prints the command; anywhere else it is passed to pretrain.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

parse_launcher_arguments "$@"
gpus=$(gpus_per_node)
python=$(find_python)
export_environment
# --standalone finds a free port, so two runs on one node do not collide.
# shellcheck disable=SC2086  # TORCHRUN_ARGS are several words on purpose
run "$python" -m torch.distributed.run --standalone --nnodes=1 --nproc-per-node="$gpus" ${TORCHRUN_ARGS:-} \
  pretrain.py "${arguments[@]}"

#!/usr/bin/env bash
# Several nodes without a scheduler: start this on every node, with the same arguments.
#
# Static rendezvous (you number the nodes):
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node-a MASTER_PORT=29500 bash examples/launch/multi_node.sh [--dry-run] --config FILE ...
# c10d rendezvous (ranks are assigned automatically; a restarted node joins the run again, which continues from its last checkpoint,
# so give --save and --resume; the node of RDZV_ENDPOINT must stay up):
#   NNODES=2 RDZV_ENDPOINT=node-a:29500 RDZV_ID=run-17 bash examples/launch/multi_node.sh [--dry-run] --config FILE ...
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

parse_launcher_arguments "$@"
require_number NNODES 1 "the number of nodes"
if [ -n "${RDZV_ENDPOINT:-}" ]; then
  [ -z "${MASTER_ADDR:-}${NODE_RANK:-}" ] || fail "RDZV_ENDPOINT selects the c10d rendezvous, MASTER_ADDR and NODE_RANK the static one; unset one or the other"
  require RDZV_ID "a name that all nodes of this run share and no other run uses"
  [[ "$RDZV_ENDPOINT" =~ ^.+:[0-9]+$ ]] || fail "RDZV_ENDPOINT=$RDZV_ENDPOINT must have the form HOST:PORT"
  check_master "${RDZV_ENDPOINT%:*}" "$NNODES"
  # With the store that torchrun shares by default, a node that joins in a later round waits for an address that is never written.
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT" --rdzv-id="$RDZV_ID" --max-restarts="${MAX_RESTARTS:-3}")
else
  require MASTER_ADDR "the address of node 0, which all nodes can reach (or use RDZV_ENDPOINT)"
  require_number MASTER_PORT 1024 "a free port of node 0"
  require_number NODE_RANK 0 "the number of this node, counted from 0"
  [ "$NODE_RANK" -lt "$NNODES" ] || fail "NODE_RANK=$NODE_RANK must be between 0 and $((NNODES - 1)) (NNODES=$NNODES)"
  check_master "$MASTER_ADDR" "$NNODES"
  [ "$NODE_RANK" != 0 ] || [ "$dry_run" = 1 ] || check_port_is_free "$MASTER_PORT"
  rendezvous=(--node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
fi
gpus=$(gpus_per_node)
python=$(find_python)
export_environment
# shellcheck disable=SC2086  # TORCHRUN_ARGS are several words on purpose
run "$python" -m torch.distributed.run --nnodes="$NNODES" --nproc-per-node="$gpus" "${rendezvous[@]}" ${TORCHRUN_ARGS:-} \
  pretrain.py "${arguments[@]}"

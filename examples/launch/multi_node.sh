#!/usr/bin/env bash
# Several nodes without a scheduler: start this on every node, with the same arguments. With --dry-run first it prints the commands.
#
# c10d rendezvous (ranks are assigned automatically; after a failure all processes start again and continue from the last checkpoint,
# so give --save and --resume; the node of RDZV_ENDPOINT must stay up):
#   NNODES=2 RDZV_ENDPOINT=node-a:29500 RDZV_ID=run-17 bash examples/launch/multi_node.sh [--dry-run] --config FILE ...
# A node that is started again joins the run with the same command and PREFLIGHT=0: the others are training and do not answer a pre-flight.
#
# Static rendezvous (you number the nodes; without NODE_RANK, --dry-run prints the commands of all nodes):
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node-a MASTER_PORT=29500 bash examples/launch/multi_node.sh [--dry-run] --config FILE ...
#
# The pre-flight meets at the port after the given one, so that no node can meet those that have not finished it.
# The other variables are explained in common.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

with_c10d() {
  [ -z "${MASTER_ADDR:-}${NODE_RANK:-}" ] || fail "RDZV_ENDPOINT selects the c10d rendezvous, MASTER_ADDR and NODE_RANK the static one; unset one or the other"
  require RDZV_ID "a name that all nodes of this run share and no other run uses"
  [[ "$RDZV_ENDPOINT" =~ ^.+:[0-9]{1,5}$ ]] || fail "RDZV_ENDPOINT=$RDZV_ENDPOINT must have the form HOST:PORT"
  local host=${RDZV_ENDPOINT%:*} port=${RDZV_ENDPOINT##*:}
  TORCHRUN_MAX_RESTARTS=${TORCHRUN_MAX_RESTARTS:-3}
  check_master "$host" "$NNODES"
  require_number TORCHRUN_MAX_RESTARTS 0 "how often torchrun starts the processes again after a failure"
  # With the store that torchrun shares by default, a node that joins in a later round waits for an address that is never written.
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  exported+=(TORCH_DISABLE_SHARE_RDZV_TCP_STORE)
  print_environment "on each of the $NNODES nodes"
  preflight_nodes RDZV_ENDPOINT="$host:$((port + 1))"
  preflight "${torchrun[@]}" --rdzv-backend=c10d --rdzv-endpoint="$host:$((port + 1))" --rdzv-id="$RDZV_ID-preflight" \
    tools/preflight.py "${arguments[@]}"
  # shellcheck disable=SC2086  # TORCHRUN_ARGS are several words on purpose
  run "${torchrun[@]}" --rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT" --rdzv-id="$RDZV_ID" --max-restarts="$TORCHRUN_MAX_RESTARTS" \
    ${TORCHRUN_ARGS:-} pretrain.py "${arguments[@]}"
}

with_static() { # with_static RANK
  [ "$1" -lt "$NNODES" ] || fail "NODE_RANK=$1 must be between 0 and $((NNODES - 1)) (NNODES=$NNODES)"
  if [ "$1" = 0 ] && [ "$dry_run" = 0 ]; then
    check_port_is_free "$MASTER_PORT"
    [ "${PREFLIGHT:-1}" = 0 ] || check_port_is_free "$((MASTER_PORT + 1))"
  fi
  print_environment "on node $1 of $NNODES"
  local place=(--node-rank="$1" --master-addr="$MASTER_ADDR")
  preflight_nodes NODE_RANK="$1" MASTER_ADDR="$MASTER_ADDR" MASTER_PORT="$((MASTER_PORT + 1))"
  preflight "${torchrun[@]}" "${place[@]}" --master-port="$((MASTER_PORT + 1))" tools/preflight.py "${arguments[@]}"
  # shellcheck disable=SC2086
  run "${torchrun[@]}" "${place[@]}" --master-port="$MASTER_PORT" ${TORCHRUN_ARGS:-} pretrain.py "${arguments[@]}"
}

parse_launcher_arguments "$@"
require_number NNODES 1 "the number of nodes"
set_torchrun "$NNODES"
export_environment
if [ -n "${RDZV_ENDPOINT:-}" ]; then
  with_c10d
  exit
fi
require MASTER_ADDR "the address of node 0, which all nodes can reach (or use RDZV_ENDPOINT)"
require_number MASTER_PORT 1024 "a free port of node 0"
check_master "$MASTER_ADDR" "$NNODES"
[ -z "${TORCHRUN_MAX_RESTARTS:-}" ] || fail "TORCHRUN_MAX_RESTARTS=$TORCHRUN_MAX_RESTARTS needs the c10d rendezvous: set RDZV_ENDPOINT and RDZV_ID instead of MASTER_ADDR"
if [ "$dry_run" = 1 ] && [ -z "${NODE_RANK:-}" ]; then
  for ((rank = 0; rank < NNODES; rank++)); do with_static "$rank"; done
  exit
fi
require_number NODE_RANK 0 "the number of this node, counted from 0"
with_static "$NODE_RANK"

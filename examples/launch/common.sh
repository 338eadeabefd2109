# shellcheck shell=bash
# Functions of the launch scripts; sourced, not run. They work from the repository's root.
#
# Variables a user may set:
#   PYTHON           interpreter (default .venv/bin/python, else python3)
#   GPUS_PER_NODE    processes per node (default: from Slurm, CUDA_VISIBLE_DEVICES or nvidia-smi; on a machine without GPUs say how many)
#   TORCHRUN_ARGS    more options for torchrun, e.g. "--shutdown_timeout 300" where a checkpoint takes longer than torchrun's 30 s

fail() {
  echo "error: $*" >&2
  exit 1
}

# require NAME "what it is": refuse to go on when the variable is missing or empty.
require() {
  [ -n "${!1:-}" ] || fail "$1 is not set: $2"
}

# require_number NAME MINIMUM "what it is"
require_number() {
  require "$1" "$3"
  [[ "${!1}" =~ ^[0-9]+$ ]] && [ "${!1}" -ge "$2" ] || fail "$1=${!1} is not a number of at least $2: $3"
}

# Ask whoever knows, in this order; never guess.
gpus_per_node() {
  local count
  if [ -n "${GPUS_PER_NODE:-}" ]; then
    count=$GPUS_PER_NODE
  elif [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
    count=${SLURM_GPUS_ON_NODE##*:} # "8" or "h100:8"
  elif [ -n "${SLURM_GPUS_PER_NODE:-}" ]; then
    count=${SLURM_GPUS_PER_NODE##*:}
  elif [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)
  elif command -v nvidia-smi >/dev/null; then
    count=$(nvidia-smi -L | grep -c '^GPU ') || fail "nvidia-smi lists no GPU; set GPUS_PER_NODE to the number of processes you want"
  else
    fail "cannot tell how many GPUs a node has: set GPUS_PER_NODE (on a machine without GPUs: the number of processes)"
  fi
  [[ "$count" =~ ^[1-9][0-9]*$ ]] || fail "GPUs per node is '$count', not a positive number; set GPUS_PER_NODE"
  echo "$count"
}

# An address that only its own machine knows would make every node train alone.
check_master() { # check_master ADDRESS NODES
  case "$1" in
  localhost | 127.* | ::1 | 0.0.0.0)
    [ "$2" = 1 ] || fail "the address of the first node is '$1', which every node would take for itself; give the name the other nodes know it by"
    ;;
  esac
}

# torchrun itself would end in a traceback of forty lines.
check_port_is_free() { # check_port_is_free PORT
  if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
    fail "port $1 is in use by another program on this node: choose a free MASTER_PORT, or end that program"
  fi
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON"
  elif [ -x .venv/bin/python ]; then
    echo .venv/bin/python
  else
    command -v python3 || fail "no .venv/bin/python and no python3: run 'make setup' or set PYTHON"
  fi
}

# What the communication wants; anything already set is left alone.
export_environment() {
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # tensor parallelism overlaps only in one queue
  export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export PYTHONUNBUFFERED=1
  export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning}
  # Often needed on clusters, and only you know the names (ip link, ibv_devices):
  #   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    the interface the nodes reach each other by
  #   export NCCL_IB_HCA=mlx5                                 the InfiniBand adapters
}

# run COMMAND...: print it with --dry-run, else become it.
run() {
  if [ "$dry_run" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    exec "$@"
  fi
}

# Take --dry-run, if it comes first, for the launcher; everything else belongs to pretrain.py. Sets dry_run and arguments.
parse_launcher_arguments() {
  dry_run=0
  if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
  fi
  arguments=("$@")
  [ "${#arguments[@]}" -gt 0 ] || fail "no arguments for pretrain.py, e.g. --config examples/paper/base_112m.yaml --data-path PREFIX"
}

# shellcheck shell=bash
# Functions of the launch scripts; source this file, do not run it. The working directory is the repository's root.
#
# Variables a user may set:
#   PYTHON           interpreter (default .venv/bin/python, else python3)
#   GPUS_PER_NODE    processes per node (default: from Slurm, CUDA_VISIBLE_DEVICES or nvidia-smi; required on a machine without GPUs)
#   TORCHRUN_ARGS    more options for torchrun, e.g. "--shutdown_timeout 300" where a checkpoint takes longer than torchrun's 30 s

fail() {
  echo "error: $*" >&2
  exit 1
}

# require NAME "what it is": fail if the variable is unset or empty.
require() {
  [ -n "${!1:-}" ] || fail "$1 is not set: $2"
}

# require_number NAME MINIMUM "what it is"
require_number() {
  require "$1" "$3"
  [[ "${!1}" =~ ^[0-9]+$ ]] && [ "${!1}" -ge "$2" ] || fail "$1=${!1} must be an integer of at least $2: $3"
}

# Look in these places, in this order; never guess.
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
    fail "cannot determine the number of GPUs per node; set GPUS_PER_NODE (on a machine without GPUs, to the number of processes)"
  fi
  [[ "$count" =~ ^[1-9][0-9]*$ ]] || fail "the number of GPUs per node is '$count', but must be a positive integer; set GPUS_PER_NODE"
  echo "$count"
}

# With an address that is only valid on one machine, every node would train alone.
check_master() { # check_master ADDRESS NODES
  case "$1" in
  localhost | 127.* | ::1 | 0.0.0.0)
    [ "$2" = 1 ] || fail "the address of the first node is '$1', which means itself on every node; give an address that all nodes can reach"
    ;;
  esac
}

# torchrun itself would fail with a traceback of forty lines.
check_port_is_free() { # check_port_is_free PORT
  if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
    fail "port $1 is already in use on this node; choose a free MASTER_PORT, or stop the program that uses it"
  fi
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON"
  elif [ -x .venv/bin/python ]; then
    echo .venv/bin/python
  else
    command -v python3 || fail "found neither .venv/bin/python nor python3; run 'make setup' or set PYTHON"
  fi
}

# Settings for communication; variables that are already set are kept.
export_environment() {
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # tensor parallelism overlaps communication only in a single queue
  export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export PYTHONUNBUFFERED=1
  export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning}
  # Often needed on clusters; the names depend on the machine (ip link, ibv_devices):
  #   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    the interface that connects the nodes
  #   export NCCL_IB_HCA=mlx5                                 the InfiniBand adapters
}

# run COMMAND...: print the command with --dry-run, else replace this shell with it.
run() {
  if [ "$dry_run" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    exec "$@"
  fi
}

# A leading --dry-run is for the launcher; all other arguments are for pretrain.py. Sets dry_run and arguments.
parse_launcher_arguments() {
  dry_run=0
  if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
  fi
  arguments=("$@")
  [ "${#arguments[@]}" -gt 0 ] || fail "no arguments for pretrain.py; give some, e.g. --config examples/paper/base_112m.yaml --data-path PREFIX"
}

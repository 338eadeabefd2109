# shellcheck shell=bash
# Functions of the launch scripts; source this file, do not run it. The working directory is the repository's root.
#
# Variables a user may set:
#   PYTHON           interpreter (default .venv/bin/python, else python3)
#   GPUS_PER_NODE    processes per node (default: from Slurm, CUDA_VISIBLE_DEVICES or nvidia-smi; required on a machine without GPUs)
#   PREFLIGHT        0 skips tools/preflight.py, which otherwise examines every node and connection before the training starts
#   PREFLIGHT_TIMEOUT  seconds that nodes wait for each other before torchrun is started on several nodes (default 60)
#   LOG_DIR          torchrun keeps the output of every rank in LOG_DIR/HOST (default runs/torchrun_logs; empty for none)
#   TORCHRUN_MAX_RESTARTS  how often torchrun starts the processes again after one has failed; the run needs --save and --resume
#   TORCHRUN_ARGS    more options for torchrun, e.g. "--shutdown-timeout 300" where a checkpoint takes longer than torchrun's 30 s

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
# Tensor parallelism overlaps communication only in a single queue (CUDA_DEVICE_MAX_CONNECTIONS=1).
export_environment() {
  local setting name
  exported=()
  for setting in \
    CUDA_DEVICE_MAX_CONNECTIONS=1 \
    TORCH_NCCL_ASYNC_ERROR_HANDLING=1 \
    NCCL_DEBUG=WARN \
    OMP_NUM_THREADS=1 \
    "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE=[\${rank}] " \
    PYTHONUNBUFFERED=1 \
    "PYTHONWARNINGS=ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"; do
    name=${setting%%=*}
    [ -n "${!name:-}" ] || printf -v "$name" %s "${setting#*=}"
    export "${name?}"
    exported+=("$name")
  done
  # Often needed on clusters; the names depend on the machine (ip link, ibv_devices):
  #   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    the interface that connects the nodes
  #   export NCCL_IB_HCA=mlx5                                 the InfiniBand adapters
}

# set_torchrun NODES: the words with which every torchrun of this node begins.
set_torchrun() {
  local python gpus
  gpus=$(gpus_per_node)
  python=$(find_python)
  torchrun=("$python" -m torch.distributed.run --nnodes="$1" --nproc-per-node="$gpus")
  local folder=${LOG_DIR-runs/torchrun_logs}
  [ -z "$folder" ] || torchrun+=(--log-dir="$folder/$HOSTNAME" --tee=3) # both streams of every rank: to the files and to the console
}

# print_environment TITLE: with --dry-run, what the commands that follow need, so that they can be pasted into a shell.
print_environment() {
  [ "$dry_run" = 1 ] || return 0
  echo "# $1, in $PWD"
  local name
  for name in "${exported[@]}"; do printf 'export %s=%q\n' "$name" "${!name}"; done
}

print_command() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# preflight COMMAND...: run it before the training, unless PREFLIGHT=0; the script ends where it fails.
preflight() {
  [ "${PREFLIGHT:-1}" = 1 ] || return 0
  if [ "$dry_run" = 1 ]; then
    print_command "$@"
    return
  fi
  local status=0
  "$@" &
  # A signal would otherwise wait until the command ends.
  trap 'kill -TERM $! 2>/dev/null; wait $!; fail "stopped during the pre-flight; nothing was started"' TERM INT
  wait $! || status=$?
  trap - TERM INT
  [ "$status" = 0 ] || fail "the pre-flight failed with status $status (see above); nothing was started. PREFLIGHT=0 skips it"
}

# preflight_nodes NAME=VALUE...: one process per node, told the place by variables. torchrun itself waits 15 minutes for nodes and names none.
preflight_nodes() {
  [ "$NNODES" != 1 ] || return 0
  preflight env NNODES="$NNODES" GPUS_PER_NODE="$(gpus_per_node)" "$@" "${torchrun[0]}" tools/preflight.py \
    --preflight-timeout="${PREFLIGHT_TIMEOUT:-60}" "${arguments[@]}"
}

# run COMMAND...: print the command with --dry-run, else replace this shell with it.
run() {
  if [ "$dry_run" = 1 ]; then
    print_command "$@"
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
  [[ "${PREFLIGHT:-1}" =~ ^[01]$ ]] || fail "PREFLIGHT=$PREFLIGHT must be 0 or 1"
}

#!/usr/bin/env bash
# Everything that needs a GPU, as one command of less than ten minutes: tests, benchmarks, a short training run. Ends with one table.
# Usage: bash benchmarks/gpu_suite.sh [OUTPUT_FOLDER]        (default runs/gpu; it gets gpu_suite.tar.gz and summary.txt, renewed after
#                                                            every step, and nothing else)
#        bash benchmarks/gpu_suite.sh --wheels               the packages that a Python with torch, Triton and Transformers needs beside
#                                                            them, one a line, as pip download -r /dev/stdin --no-deps takes them
# Variables: PYTHON=python3   WHEELS=FOLDER with those packages, for a machine without network   SECONDS_IN_ALL=570, times PATIENCE
# DEVICE=cpu rehearses every step without a GPU, REHEARSAL=1 on whatever device is there, at small sizes
# PATIENCE=N multiplies the limit of every step and of all, for rehearsals on a busy machine
# TESTS="PATHS" runs these tests of the memory instead of all that it has for the device
set -uo pipefail
cd "$(dirname "$0")/.." || exit

packages=(hypothesis sortedcontainers pytest iniconfig pluggy Pygments pytest-timeout pytest-xdist execnet
  megatron-core sentencepiece protobuf psutil rich markdown-it-py mdurl)
if [ "${1:-}" = --wheels ]; then
  for package in "${packages[@]}"; do grep "^$package==" constraints.txt || exit; done
  exit
fi

out=${1:-runs/gpu}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
patience=${PATIENCE:-1}
whole=${SECONDS_IN_ALL:-$((570 * patience))}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TORCHDYNAMO_DISABLE=1 PYTHONUNBUFFERED=1
export PYTHONWARNINGS="ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# A container may let nobody write here or at home.
[ -w . ] || export GREEN_FOLDER="$scratch/green"
mkdir -p "${HOME:-}/.triton" 2>/dev/null && [ -w "${HOME:-}/.triton" ] || export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$scratch/triton}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --target "$scratch/packages" "$WHEELS"/*.whl || exit
  export PYTHONPATH="$PYTHONPATH:$scratch/packages"
fi
read -ra tests <<<"${TESTS:-}"
rehearsal=${REHEARSAL:-}
missing=$("$python" - <<'PY'
import importlib.util as util
names = ("torch", "triton", "transformers", "yaml", "pytest", "hypothesis", "pytest_timeout", "megatron.core", "sentencepiece", "psutil", "rich")
print(*(name for name in names if util.find_spec(name.split(".")[0]) is None))
PY
)
if [ -n "$missing" ]; then
  echo "error: $python lacks: $missing; set PYTHON to one that has them, or bring in WHEELS=FOLDER what bash benchmarks/gpu_suite.sh --wheels lists" >&2
  exit 1
fi
if [ "$device" = cpu ]; then
  rehearsal=1
  [ -n "${TESTS:-}" ] || tests=(tests/ops/test_goldens.py)
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: $python sees no CUDA device; DEVICE=cpu rehearses the suite without one" >&2
  exit 1
fi
memory=(--grid gpu --implementations sparse triton)
stages=()
size=paper
launches=(--size paper)
repeats=()
training=(--train-iters 200 --save-interval 200)
if [ -n "$rehearsal" ]; then
  memory=(--grid rehearsal)
  stages=(--grid rehearsal)
  size=tiny
  launches=(--size rehearsal --repeats 3)
  repeats=(--repeats 1)
  training=(--train-iters 2 --save-interval 2 --seq-length 128 --needle-facts 2 --global-batch-size 1 --micro-batch-size 1)
fi
[ ${#tests[@]} -eq 0 ] || tests=(--tests "${tests[@]}")
results=$scratch/gpu_suite
summary=$results/summary.txt
mkdir -p "$out" "$results" || exit 2
"$python" - >"$results/machine.txt" 2>&1 <<'PY'
import platform, torch, triton
print(f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}, {platform.platform()}")
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))
PY
git log -1 --format='commit %H' >>"$results/machine.txt" 2>/dev/null || true
: >"$summary"

pack() { # what there is so far: a suite that is stopped leaves what it has found
  cp "$summary" "$out/summary.txt"
  tar -C "$scratch" -czf "$out/.gpu_suite.tar.gz" gpu_suite && mv "$out/.gpu_suite.tar.gz" "$out/gpu_suite.tar.gz"
}

step() { # step NAME LIMIT_SECONDS COMMAND...: runs the command, keeps its log, adds a line to the summary, goes on
  local name=$1 limit=$(($2 * patience)) begin=$SECONDS status=0
  shift 2
  [ "$limit" -le $((whole - SECONDS)) ] || limit=$((whole - SECONDS))
  echo "== $name"
  if [ "$limit" -lt 5 ]; then
    status="no time left"
  else
    # What does not stop when it is asked to is ended.
    timeout --kill-after 10 "$limit" "$@" >"$results/$name.log" 2>&1 || status=$?
    tail -n 25 "$results/$name.log"
  fi
  case $status in
    0) status=ok ;;
    3) status=skipped ;; # nothing to measure here; the reason is in the log
    124) status="failed: not done after $limit s" ;;
    *) status="failed: $status" ;;
  esac
  printf '%-12s %-22s %4d s\n' "$name" "$status" "$((SECONDS - begin))" >>"$summary"
  pack
}

bench() { # bench NAME LIMIT_SECONDS BENCHMARK FLAGS...
  local name=$1 limit=$2
  shift 2
  if grep -q '^tests .*failed' "$summary"; then # the benchmark would run them again, and say the same
    printf '%-12s %-22s %4d s\n' "$name" "failed: red tests" 0 >>"$summary"
    return
  fi
  step "$name" "$limit" "$python" -m benchmarks.run "$@" "${tests[@]}" --output "$results"
}

skip() { # skip NAME REASON: adds a line to the summary
  printf '%-12s %-22s %4d s\n' "$1" skipped 0 >>"$summary"
  echo "$2" >"$results/$1.log"
}

graphs() { # graphs NAME LIMIT_SECONDS BENCHMARK FLAGS...: with the memories in CUDA graphs
  if [ "$device" = cpu ]; then
    skip "$1" "a CPU has no CUDA graphs"
  else
    bench "$@" --cuda-graph
  fi
}

sanitize() { # sanitize NAME LIMIT_SECONDS TOOL: NVIDIA's checker over every kernel of a small call
  if ! command -v compute-sanitizer >/dev/null; then
    skip "$1" "compute-sanitizer is not installed"
    return
  fi
  # torch's cache would give kernels room past the end of a tensor.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$1" "$2" compute-sanitizer --tool "$3" --error-exitcode 9 \
    "$python" -m benchmarks.repeated_launches --device "$device" --size rehearsal --repeats 1 --output "$scratch"
}

corpus=(examples/quickstart/corpus/{emma,persuasion}.txt.gz)

# What matters most comes first: time may end. Every limit has room for compiling what the step launches.
step machine 60 "$python" tools/doctor.py
step tests 260 "$python" -m benchmarks.green --device "$device" --tests-limit $((250 * patience)) "${tests[@]}"
step repeats 120 "$python" -m benchmarks.repeated_launches --device "$device" "${launches[@]}" --output "$results"
bench stages 100 stages --device "$device" "${stages[@]}"
bench layer 90 layer --size "$size" "${repeats[@]}"
bench model 120 model --size "$size" "${repeats[@]}"
graphs layer_graphs 60 layer --size "$size" "${repeats[@]}"
graphs model_graphs 90 model --size "$size" "${repeats[@]}"
step te_numerics 90 "$python" -m benchmarks.layer_numerics --size "$size" --output "$results"
bench memory 120 memory --device "$device" "${memory[@]}"
bench inference 60 stages --device "$device" "${stages[@]}" --mode inference
sanitize memcheck 90 memcheck
sanitize racecheck 90 racecheck
step tokenizer 60 "$python" tools/train_tokenizer.py --input "${corpus[@]}" --vocab-size 1024 --no-pad-token \
  --output-prefix "$scratch/tokenizer"
step dataset 60 "$python" tools/preprocess_data.py --input "${corpus[@]}" --txt-documents paragraph --append-eod \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$scratch/tokenizer.model" --output-prefix "$scratch/text"
step training 120 "$python" pretrain.py --config examples/quickstart/quickstart.yaml --data-path "$scratch/text_text_document" \
  --tokenizer-model "$scratch/tokenizer.model" --save "$scratch/checkpoints" --log-dir "$results/training" \
  --lr-warmup-iters 1 --eval-iters 0 "${training[@]}"

{
  echo
  "$python" -m benchmarks.summary "$results"
} >>"$summary"
pack
echo
cat "$summary"
! grep -q failed "$summary"

#!/usr/bin/env bash
# Everything that needs a GPU, as one command of less than ten minutes: tests, benchmarks, a short training run. Ends with one table.
# Usage: bash benchmarks/gpu_suite.sh [OUTPUT_FOLDER]        (default benchmarks/results/gpu)
# Variables: PYTHON=python3   DEVICE=cpu rehearses every step without a GPU, at small sizes   SECONDS_IN_ALL=570
# A Python whose packages lack megatron-core takes it from PYTHONPATH (an unpacked wheel is enough).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
whole=${SECONDS_IN_ALL:-570}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TORCHDYNAMO_DISABLE=1 PYTHONUNBUFFERED=1
export PYTHONWARNINGS="ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"
memory=(--grid gpu --implementations sparse triton)
stages=()
size=paper
steps=200
tests=()
if [ "$device" = cpu ]; then
  memory=(--grid rehearsal)
  stages=(--grid rehearsal)
  size=tiny
  steps=6
  tests=(--tests tests/ops/test_goldens.py)
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: $python sees no CUDA device; DEVICE=cpu rehearses the suite without one" >&2
  exit 1
fi
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"

step() { # step NAME LIMIT_SECONDS COMMAND...: runs the command, keeps its log, adds a line to the summary, goes on
  local name=$1 limit=$2 begin=$SECONDS status=0
  shift 2
  [ "$limit" -le $((whole - SECONDS)) ] || limit=$((whole - SECONDS))
  echo "== $name"
  if [ "$limit" -lt 5 ]; then
    status="no time left"
  else
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    tail -n 25 "$out/$name.log"
  fi
  case $status in
    0) status=ok ;;
    3) status=skipped ;; # nothing to measure here; the reason is in the log
    *) status="failed: $status" ;;
  esac
  printf '%-12s %-22s %4d s\n' "$name" "$status" "$((SECONDS - begin))" >>"$summary"
}

bench() { # bench NAME LIMIT_SECONDS BENCHMARK FLAGS...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" -m benchmarks.run "$@" "${tests[@]}" --output "$out"
}

corpus=(examples/quickstart/corpus/{emma,persuasion}.txt.gz)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What matters most comes first: time may end.
step machine 60 "$python" tools/doctor.py
step tests 200 "$python" -m benchmarks.green --device "$device" "${tests[@]}"
bench stages 100 stages --device "$device" "${stages[@]}"
step te_numerics 90 "$python" -m benchmarks.layer_numerics --size "$size" --output "$out"
bench layer 90 layer --size "$size"
bench model 120 model --size "$size"
bench memory 120 memory --device "$device" "${memory[@]}"
bench inference 60 stages --device "$device" "${stages[@]}" --mode inference
step tokenizer 60 "$python" tools/train_tokenizer.py --input "${corpus[@]}" --vocab-size 1024 --no-pad-token \
  --output-prefix "$scratch/tokenizer"
step dataset 60 "$python" tools/preprocess_data.py --input "${corpus[@]}" --txt-documents paragraph --append-eod \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$scratch/tokenizer.model" --output-prefix "$scratch/text"
step training 120 "$python" pretrain.py --config examples/quickstart/quickstart.yaml --data-path "$scratch/text_text_document" \
  --tokenizer-model "$scratch/tokenizer.model" --save "$scratch/checkpoints" --log-dir "$out/training" \
  --train-iters "$steps" --lr-warmup-iters 4 --eval-iters 0 --save-interval "$steps"

{
  echo
  "$python" -m benchmarks.summary "$out"
} >>"$summary"
echo
cat "$summary"
! grep -q failed "$summary"

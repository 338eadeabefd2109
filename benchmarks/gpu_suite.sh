#!/usr/bin/env bash
# Everything that needs a GPU, as one command of less than ten minutes: tests, benchmarks, a short training run.
# Usage: bash benchmarks/gpu_suite.sh [OUTPUT_FOLDER]        (default benchmarks/results/gpu)
# Variables: PYTHON=python3   DEVICE=cpu rehearses every step without a GPU, at small sizes
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TORCHDYNAMO_DISABLE=1 PYTHONUNBUFFERED=1
export PYTHONWARNINGS="ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"
shapes=(paper small)
steps=200
if [ "$device" = cpu ]; then
  shapes=(small)
  steps=6
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
  echo "== $name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  tail -n 12 "$out/$name.log"
  printf '%-12s %-10s %4d s\n' "$name" "$([ $status = 0 ] && echo ok || echo "failed: $status")" \
    "$((SECONDS - begin))" >>"$summary"
}

corpus=(examples/quickstart/corpus/{emma,persuasion}.txt.gz)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step machine 60 "$python" tools/doctor.py
[ "$device" = cpu ] || step tests 180 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/gpu tests/ops/triton
for shape in "${shapes[@]}"; do
  step "memory_$shape" 120 "$python" -m benchmarks.run memory --device "$device" --grid "$shape" --output "$out"
done
step tokenizer 60 "$python" tools/train_tokenizer.py --input "${corpus[@]}" --vocab-size 1024 --output-prefix "$scratch/tokenizer"
step dataset 60 "$python" tools/preprocess_data.py --input "${corpus[@]}" --txt-documents paragraph --append-eod \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$scratch/tokenizer.model" --output-prefix "$scratch/text"
step training 240 "$python" pretrain.py --config examples/quickstart/quickstart.yaml --data-path "$scratch/text_text_document" \
  --tokenizer-model "$scratch/tokenizer.model" --save "$scratch/checkpoints" --log-dir "$out/training" \
  --train-iters "$steps" --lr-warmup-iters 4 --eval-iters 0 --save-interval "$steps"

echo
cat "$summary"
! grep -q failed "$summary"

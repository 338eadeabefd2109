#!/usr/bin/env bash
# The whole way once: text -> tokenizer -> dataset -> pretraining -> Hugging Face export -> long-context recall -> report.
# Usage: bash examples/quickstart/run.sh [OUTPUT_FOLDER]     (default runs/quickstart; a finished stage is not done again)
set -euo pipefail
cd "$(dirname "$0")/../.."

here=examples/quickstart
out=${1:-runs/quickstart}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || { echo "error: $python is not there; run 'make setup' first, or set PYTHON" >&2; exit 1; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONWARNINGS="ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"
export TORCHDYNAMO_DISABLE=1
mkdir -p "$out"
started=$SECONDS

stage() { # stage NAME "what it does" COMMAND...: runs the command once, keeps its wall time, remembers that it is done
  local name=$1 what=$2 begin=$SECONDS
  shift 2
  if [ -f "$out/.$name.done" ]; then
    echo "== $what: done before"
    return
  fi
  echo "== $what"
  "$@"
  printf '%s\t%s\n' "$name" "$((SECONDS - begin))" >>"$out/stages.tsv"
  touch "$out/.$name.done"
}

training_text=("$here"/corpus/{emma,mansfield_park,persuasion,pride_and_prejudice,sense_and_sensibility}.txt.gz)
held_out_text=$here/corpus/northanger_abbey.txt.gz

stage tokenizer "1/6 train a tokenizer" \
  "$python" tools/train_tokenizer.py --input "${training_text[@]}" --vocab-size 1024 --output-prefix "$out/tokenizer"
stage dataset "2/6 prepare the corpus" \
  "$python" tools/preprocess_data.py --input "${training_text[@]}" --txt-documents paragraph --output-prefix "$out/austen" \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$out/tokenizer.model" --append-eod --workers 2
stage pretrain "3/6 pretrain on Megatron-Core" \
  "$python" pretrain.py --config "$here/quickstart.yaml" --data-path "$out/austen_text_document" \
  --tokenizer-model "$out/tokenizer.model" --save "$out/checkpoints" --log-dir "$out" --resume
stage export "4/6 export to Hugging Face format and verify" \
  "$python" tools/convert_checkpoint.py export --checkpoint "$out/checkpoints" --output "$out/hf" --overwrite
stage verify "    compare the export with the checkpoint" \
  "$python" tools/convert_checkpoint.py verify --checkpoint "$out/checkpoints" --export "$out/hf"
stage needle "5/6 measure long-context recall" \
  "$python" tools/evaluate_needle.py --model "$out/hf" --haystack "$held_out_text" --lengths 256 1024 4096 8192 \
  --depths 5 --samples 50 --needles 5 --protocol ask-after-write --controls memory-off never-shown --workers 2 \
  --seed 1 --output "$out/needle"
stage generate "6/6 ask the model what it has read" \
  "$python" tools/generate_text.py --model "$out/hf" --remember "$here/facts.txt" --prompt "The code young sister" --max-new-tokens 4

echo
echo "Finished in $((SECONDS - started)) s. Stages (s):"
column -t "$out/stages.tsv" 2>/dev/null || cat "$out/stages.tsv"
echo "Report:   $out/needle/report.html"
echo "Heatmap:  $out/needle/heatmap.png"
echo "Model:    $out/hf   (transformers: AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True))"

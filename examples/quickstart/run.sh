#!/usr/bin/env bash
# The whole pipeline: text -> tokenizer -> dataset -> pretraining -> Hugging Face export -> long-context recall -> report.
# Usage: bash examples/quickstart/run.sh [OUTPUT_FOLDER]     (default runs/quickstart; finished stages are not run again)
set -euo pipefail
cd "$(dirname "$0")/../.."

here=examples/quickstart
out=${1:-runs/quickstart}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || { echo "error: $python does not exist; run 'make setup' first, or set PYTHON" >&2; exit 1; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONWARNINGS="ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"
export TORCHDYNAMO_DISABLE=1
mkdir -p "$out"
started=$SECONDS

# stage NAME "what it does" PRODUCT COMMAND...: runs the command and records its wall time. A stage is skipped if its product
# exists, the configuration is not newer, and no earlier stage ran.
stage() {
  local name=$1 what=$2 product=$out/$3 mark=$out/.$1.done begin=$SECONDS
  shift 3
  if [ -z "$again" ] && [ -f "$mark" ] && [ -e "$product" ] && [ ! "$here/quickstart.yaml" -nt "$mark" ]; then
    echo "== $what: already done"
    return
  fi
  again=yes
  rm -f "$mark"
  echo "== $what"
  "$@"
  echo "$((SECONDS - begin))" >"$mark"
}

again=
training_text=("$here"/corpus/{emma,mansfield_park,persuasion,pride_and_prejudice,sense_and_sensibility}.txt.gz)
held_out_text=$here/corpus/northanger_abbey.txt.gz
other_text=$here/corpus/shakespeare_tragedies.txt.gz

stage tokenizer "1/6 train a tokenizer" tokenizer.model \
  "$python" tools/train_tokenizer.py --input "${training_text[@]}" --vocab-size 1024 --no-pad-token \
  --output-prefix "$out/tokenizer"
stage dataset "2/6 prepare the corpus" austen_text_document.bin \
  "$python" tools/preprocess_data.py --input "${training_text[@]}" --txt-documents paragraph --output-prefix "$out/austen" \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$out/tokenizer.model" --append-eod --workers 2 --overwrite
stage pretrain "3/6 pretrain on Megatron-Core" checkpoints/latest \
  "$python" pretrain.py --config "$here/quickstart.yaml" --data-path "$out/austen_text_document" \
  --tokenizer-model "$out/tokenizer.model" --save "$out/checkpoints" --log-dir "$out" --resume
stage export "4/6 export to Hugging Face format and verify" hf/model.safetensors \
  "$python" tools/convert_checkpoint.py export --checkpoint "$out/checkpoints" --output "$out/hf" --overwrite
stage verify "    compare the export with the checkpoint" hf/model.safetensors \
  "$python" tools/convert_checkpoint.py verify --checkpoint "$out/checkpoints" --export "$out/hf"
recall() { # OUTPUT_FOLDER HAYSTACK
  "$python" tools/evaluate_needle.py --model "$out/hf" --haystack "$2" --lengths 256 1024 4096 8192 32768 131072 \
    --samples 50 50 50 50 20 20 --depths 5 --needles 5 --protocol ask-after-write --controls memory-off never-shown \
    --workers 2 --seed 1 --output "$out/$1" ${again:+--overwrite}
}
stage needle "5/6 measure long-context recall, in a novel that was held out" needle/report.html recall needle "$held_out_text"
stage plays "    the same in plays of another author and century" plays/report.html recall plays "$other_text"
stage generate "6/6 read facts.txt and continue 'The code young sister' (the file says: $(grep '^The code young' "$here/facts.txt"))" hf/model.safetensors \
  "$python" tools/generate_text.py --model "$out/hf" --remember "$here/facts.txt" --prompt "The code young sister" --max-new-tokens 4

echo
echo "Finished in $((SECONDS - started)) s. Stages:"
for name in tokenizer dataset pretrain export verify needle plays generate; do
  printf '  %-10s %5s s\n' "$name" "$(cat "$out/.$name.done")"
done
echo "Reports:  $out/needle/report.html, $out/plays/report.html"
echo "Heatmap:  $out/needle/heatmap.png"
echo "Model:    $out/hf   (transformers: AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True))"

#!/usr/bin/env bash
# The whole pipeline: text -> tokenizer -> dataset -> pretraining -> Hugging Face export -> evaluation -> one report.
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

stage tokenizer "1/7 train a tokenizer" tokenizer.model \
  "$python" tools/train_tokenizer.py --input "${training_text[@]}" --vocab-size 1024 --no-pad-token \
  --output-prefix "$out/tokenizer"
stage dataset "2/7 prepare the corpus" austen_text_document.bin \
  "$python" tools/preprocess_data.py --input "${training_text[@]}" --txt-documents paragraph --output-prefix "$out/austen" \
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$out/tokenizer.model" --append-eod --workers 2 --overwrite
stage pretrain "3/7 pretrain on Megatron-Core" checkpoints/latest \
  "$python" pretrain.py --config "$here/quickstart.yaml" --data-path "$out/austen_text_document" \
  --tokenizer-model "$out/tokenizer.model" --save "$out/checkpoints" --log-dir "$out" --resume
stage export "4/7 export to Hugging Face format and verify" hf/model.safetensors \
  "$python" tools/convert_checkpoint.py export --checkpoint "$out/checkpoints" --output "$out/hf" --overwrite
stage verify "    compare the export with the checkpoint" hf/model.safetensors \
  "$python" tools/convert_checkpoint.py verify --checkpoint "$out/checkpoints" --export "$out/hf"
evaluate() { # NAME TOOL ARGUMENTS...: with the export, into a folder of that name
  local name=$1 tool=$2
  shift 2
  "$python" "tools/$tool.py" --model "$out/hf" "$@" --workers 2 --output "$out/$name" ${again:+--overwrite}
}
recall() { # NAME HAYSTACK
  evaluate "$1" evaluate_needle --haystack "$2" --lengths 256 1024 4096 8192 32768 131072 --samples 50 50 50 50 20 20 \
    --depths 5 --needles 5 --protocol ask-after-write --controls memory-off never-shown --seed 1
}
stage needle "5/7 measure long-context recall, in a novel that was held out" needle/report.html recall needle "$held_out_text"
stage plays "    the same in plays of another author and century" plays/report.html recall plays "$other_text"
stage official "6/7 the paper's protocol: one write per read, and one to four reads" official/report.html \
  evaluate official evaluate_needle --haystack "$held_out_text" --lengths 512 2048 --samples 20 --protocol official --chunk input --reads 1 2 3 4
stage streaming "    the memory goes on writing, and other facts have nearly the same key" streaming/report.html \
  evaluate streaming evaluate_needle --haystack "$held_out_text" --lengths 512 2048 --samples 20 --protocol streaming --distractors 2
stage ruler "    tasks of RULER" ruler/report.html \
  evaluate ruler evaluate_ruler --lengths 2048 4096 --tasks niah_single_1 niah_multikey_2 niah_multikey_3 vt fwe --samples 5
stage perplexity "    loss of ordinary text, by position" perplexity/report.html \
  evaluate perplexity evaluate_perplexity --text "$held_out_text" "$other_text" --length 16384 --memory on off frozen --memory-reset never
stage domains "    what the memory keeps of one text after it has read others" domains/report.html \
  evaluate domains evaluate_domains --domain "novel=$held_out_text" "plays=$other_text" "emma=$here/corpus/emma.txt.gz" \
  --adapt-tokens 16384 --held-out-tokens 8192
stage trace "    which tokens wrote the slots that answers read" trace/report.html \
  evaluate trace inspect_memory --haystack "$held_out_text" --length 4096 --samples 20
parts=(needle plays official streaming ruler perplexity domains trace)
stage report "    one page of it all" report.html \
  "$python" tools/build_report.py --inputs "${parts[@]/#/$out/}" --output "$out/report.html" --title "The quickstart's model"
stage card "    what was measured, in the model's card" hf/README.md \
  "$python" tools/build_card.py --model "$out/hf" --evaluation "$out/needle" "$out/perplexity" "$out/domains"
stage generate "7/7 read facts.txt and continue 'The code young sister' (the file says: $(grep '^The code young' "$here/facts.txt"))" hf/model.safetensors \
  "$python" tools/generate_text.py --model "$out/hf" --remember "$here/facts.txt" --prompt "The code young sister" --max-new-tokens 4

echo
echo "Finished in $((SECONDS - started)) s. Stages:"
for name in tokenizer dataset pretrain export verify "${parts[@]}" report card generate; do
  printf '  %-10s %5s s\n' "$name" "$(cat "$out/.$name.done")"
done
echo "Report:   $out/report.html"
echo "Heatmap:  $out/needle/heatmap.png"
echo "Model:    $out/hf   (transformers: AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True))"

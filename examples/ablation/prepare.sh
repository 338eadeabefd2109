#!/usr/bin/env bash
# Text with long-range repetition that every machine has: the source code of Python's standard library. Some long modules are held out.
# Usage: bash examples/ablation/prepare.sh [OUTPUT_FOLDER]     (default runs/ablation)
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:-runs/ablation}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || { echo "error: $python does not exist; run 'make setup' first, or set PYTHON" >&2; exit 1; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
held_out=(_pydecimal argparse inspect pydoc tarfile typing)

mkdir -p "$out/training" "$out/held_out"
"$python" - "$out" "${held_out[@]}" <<'PYTHON'
import shutil
import sys
import sysconfig
from pathlib import Path

out, held_out = Path(sys.argv[1]), set(sys.argv[2:])
library = Path(sysconfig.get_paths()["stdlib"])
left_out = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "encodings", "__pycache__"}
for file in sorted(library.rglob("*.py")):
    parts = file.relative_to(library).parts
    if not left_out & set(parts) and file.stat().st_size:
        folder = out / ("held_out" if len(parts) == 1 and file.stem in held_out else "training")
        shutil.copyfile(file, folder / ("_".join(parts).removesuffix(".py") + ".txt"))
PYTHON

[ -f "$out/tokenizer.model" ] || "$python" tools/train_tokenizer.py --input "$out"/training/*.txt --vocab-size 2048 --no-pad-token --output-prefix "$out/tokenizer"
[ -f "$out/code_text_document.idx" ] || "$python" tools/preprocess_data.py --input "$out"/training/*.txt --txt-documents file \
  --output-prefix "$out/code" --tokenizer-type SentencePieceTokenizer --tokenizer-model "$out/tokenizer.model" --append-eod --workers 2

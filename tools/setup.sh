#!/usr/bin/env bash
# Creates the Python environment: bash tools/setup.sh VENV EXTRAS      (called by `make setup`)
# PYTHON names the interpreter (3.11 or 3.12). If it already has a CUDA build of torch, that torch is kept; otherwise torch 2.13.0 is
# installed before the rest. TORCH_PIP_ARGS is passed to pip for torch only, e.g. --index-url of a CPU-only build.
# TRANSFORMERS selects a release of Transformers other than the pinned one; its dependencies are then not pinned either.
# MCORE selects a release of Megatron-Core other than the pinned one; without a wheel for this Python it is built from source.
# TRITON_VIZ selects a release of triton-viz, which is installed last, with the Triton and NumPy that it works with.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
extras=$2
torch_version=2.13.0
export DS_BUILD_OPS=0 # DeepSpeed's compiled operations are not used, and building them takes minutes

fail() {
  echo "error: $*" >&2
  exit 1
}

supported() { # does this interpreter run, and is its version one we support?
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || fail "PYTHON=$PYTHON does not run or is not Python 3.11 or 3.12; set another one, e.g. make setup PYTHON=python3.12"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11; do
    if supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or 3.12 found; install one, or set its path: make setup PYTHON=/path/to/python3.12"
}

cuda_torch_folder() { # folder of this interpreter's CUDA torch (2.10 or newer); empty if it has none
  "$1" - 2>/dev/null <<'PY' || true
import pathlib
import torch
if torch.version.cuda and tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10):
    print(pathlib.Path(torch.__file__).parents[1])
PY
}

create_venv() { # create_venv PYTHON KEPT_TORCH_FOLDER
  local options=()
  [ -z "$2" ] || options+=(--system-site-packages)
  "$1" -m venv "${options[@]}" "$venv" || fail "$1 cannot create an environment; on Debian and Ubuntu install python3-venv"
  # An interpreter that is itself an environment hands on only its base's packages: name the folder of its torch, too.
  if [ -n "$2" ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "$2" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/inherited_torch.pth"
  fi
}

log=$venv/setup.log
quietly() { # run, show the output only on failure
  "$@" >>"$log" 2>&1 || {
    tail -n 25 "$log" >&2
    fail "'$*' failed; the full log is in $log"
  }
}

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  kept=$(cuda_torch_folder "$python")
  echo "== create $venv with $("$python" --version)${kept:+, keeping the CUDA torch in $kept}"
  create_venv "$python" "$kept"
fi
python=$venv/bin/python
supported "$python" || fail "$python does not run or is not Python 3.11 or 3.12; remove $venv and run make setup again"

if [ -z "$(cuda_torch_folder "$python")" ] &&
  ! "$python" -c "import torch; assert torch.__version__.split('+')[0] == '$torch_version'" 2>/dev/null; then
  echo "== install torch $torch_version (a large download the first time)"
  # A CUDA torch pins its own Triton.
  grep -v '^triton==' constraints.txt >"$venv/constraints-torch.txt"
  # shellcheck disable=SC2086  # several options in one variable, split on purpose
  quietly "$python" -m pip install --disable-pip-version-check -c "$venv/constraints-torch.txt" ${TORCH_PIP_ARGS:-} "torch==$torch_version"
fi

constraints=constraints.txt
if [ -n "$(cuda_torch_folder "$python")" ]; then
  # torch brings its own Triton: pin both to what is there and take the other pins as they are.
  constraints=$venv/constraints.txt
  grep -vE '^(torch|triton)==' constraints.txt >"$constraints"
  "$python" -m pip freeze 2>/dev/null | grep -E '^(torch|triton)==' >>"$constraints" || true
fi

if [ -n "${TRANSFORMERS:-}" ]; then
  grep -vE '^(transformers|huggingface_hub|hf-xet|tokenizers|typer)==' "$constraints" >"$venv/constraints-transformers.txt"
  echo "transformers==$TRANSFORMERS" >>"$venv/constraints-transformers.txt"
  constraints=$venv/constraints-transformers.txt
fi

echo "== install the project with [$extras]${TRANSFORMERS:+ and transformers $TRANSFORMERS}${MCORE:+ and megatron-core $MCORE}${TRITON_VIZ:+ and triton-viz $TRITON_VIZ}"
quietly "$python" -m pip install --disable-pip-version-check -c "$constraints" "setuptools>=77"
quietly "$python" -m pip install --disable-pip-version-check -c "$constraints" --no-build-isolation -e ".${extras:+[$extras]}"
if [[ ",$extras," == *,test,* ]] && [ ! -d "$venv/share/transformer-engine" ]; then
  # The Python part of Transformer Engine, for tests without a GPU; in a folder that nothing imports from.
  quietly "$python" -m pip install --disable-pip-version-check --no-deps --target "$venv/share/transformer-engine" transformer-engine==2.11.0
fi
if [ -n "${MCORE:-}" ]; then
  # Releases from 0.17 on declare Python 3.12, but run on 3.11. Everything that they need is there.
  quietly "$python" -m pip install --disable-pip-version-check --no-deps --ignore-requires-python "megatron-core==$MCORE"
fi
if [ -n "${TRITON_VIZ:-}" ]; then
  quietly "$python" -m pip install --disable-pip-version-check "triton-viz==$TRITON_VIZ" "triton==3.6.0" "numpy<2.4"
fi
echo "== ready: source $venv/bin/activate"

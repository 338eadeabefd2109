r"""lm-evaluation-harness with the model class `fwpkm`; the flags are its own. Example:

python -m megatron_fwpkm.evaluation.harness run --model fwpkm --model_args pretrained=runs/mine/hf,memory=on \
    --tasks wikitext --batch_size 4
"""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Register the class and run the harness's command line."""
    if importlib.util.find_spec("lm_eval") is None:
        sys.exit('error: lm-evaluation-harness is not installed; use: pip install "megatron-fwpkm[lm-eval]"')
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    model_registry.register("fwpkm", target="megatron_fwpkm.evaluation.harness.harness_model:FwPKMHarnessModel")
    cli_evaluate()


if __name__ == "__main__":
    main()

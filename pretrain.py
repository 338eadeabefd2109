"""Pretrain a language model with a fast-weight product key memory: python pretrain.py --config FILE [flags].

Start it alone, or on several processes with torchrun. See docs/options.md or --help for every flag.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.config.loading import parse_pretrain

QUIET_IMPORTS = "ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then train or print what would be trained; torch is imported only when it is needed."""
    resolved = parse_pretrain(argv)
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("PYTHONWARNINGS", QUIET_IMPORTS)
    if resolved.config.training.dry_run:
        from megatron_fwpkm.training.dry_run import dry_run

        return dry_run(resolved)
    from megatron_fwpkm.training.pretrain import run

    return run(resolved)


if __name__ == "__main__":
    sys.exit(run_cli(main))

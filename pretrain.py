"""Pretrain a language model with a fast-weight product key memory: python pretrain.py --config FILE [flags].

Start it alone, or on several processes with torchrun. See docs/options.md or --help for every flag.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.config.loading import parse_pretrain


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then train or print what would be trained; torch is imported only when it is needed."""
    resolved = parse_pretrain(argv)
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing here is compiled, and Megatron's helpers cost seconds
    if resolved.config.training.dry_run:
        from megatron_fwpkm.training.dry_run import dry_run

        return dry_run(resolved)
    from megatron_fwpkm.training.startup import silence_known_warnings

    silence_known_warnings()
    from megatron_fwpkm.training.pretrain import run

    return run(resolved)


if __name__ == "__main__":
    sys.exit(run_cli(main))

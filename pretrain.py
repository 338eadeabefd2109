"""Pretrain a language model with a fast-weight product key memory: python pretrain.py --config FILE [flags].

Start it alone, or on several processes with torchrun. See docs/options.md or --help for every flag.
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import os
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.config.loading import Resolved, parse_pretrain
from megatron_fwpkm.config.value_sources import check_memory_options, sources_of_named_values


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then train or print what would be trained; torch is imported only when it is needed."""
    resolved = _with_checkpoint_values(parse_pretrain(argv))
    check_memory_options(resolved)
    try:
        return _start(resolved)
    except ValueError as error:
        for line in sources_of_named_values(str(error), resolved):
            error.add_note(line)
        raise


def _with_checkpoint_values(resolved: Resolved) -> Resolved:
    chosen = resolved.config.checkpoint
    if not (chosen.use_checkpoint_args or chosen.use_checkpoint_opt_param_scheduler):
        return resolved
    from megatron_fwpkm.checkpoint.take_over import with_checkpoint_values

    return with_checkpoint_values(resolved)


def _start(resolved: Resolved) -> int:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing here is compiled, and Megatron's helpers cost seconds
    if resolved.config.training.dry_run:
        from megatron_fwpkm.training.dry_run import dry_run

        return dry_run(resolved)
    from megatron_fwpkm.distributed.startup import silence_known_warnings, use_one_device_queue
    from megatron_fwpkm.libraries.probes import installed

    silence_known_warnings()
    use_one_device_queue(resolved.config.parallel)
    installed()  # before megatron-core is imported, which what is only half installed would end with a traceback
    from megatron_fwpkm.training.pretraining import run

    return run(resolved)


if __name__ == "__main__":
    sys.exit(run_cli(main))

"""Check, before a run starts, that its nodes can run it together. It takes the arguments of pretrain.py. Examples:

python tools/preflight.py --config FILE [flags of pretrain.py]
    one process; with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment, one process for a node of
    several: can the nodes reach each other, and are they alike?
torchrun --nproc-per-node 8 tools/preflight.py --config FILE [flags of pretrain.py]
    one process per GPU, started like the run itself: the same, and how fast is each parallel group?

exits with status 1 if the run would fail; the report names the node and what to do (docs/preflight.md).
"""

from __future__ import annotations

import megatron_fwpkm.processes.interruption  # noqa: F401

import os
import sys
from collections.abc import Sequence

from megatron_fwpkm.config.cli import run_cli
from megatron_fwpkm.preflight.preflight_options import parse_preflight


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, look, report."""
    options, resolved = parse_preflight(argv, __doc__)
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    from megatron_fwpkm.distributed.startup import silence_known_warnings, use_one_device_queue
    from megatron_fwpkm.libraries.probes import installed

    silence_known_warnings()
    use_one_device_queue(resolved.config.parallel)
    installed()
    from megatron_fwpkm.preflight.run import run

    return run(resolved, options)


if __name__ == "__main__":
    sys.exit(run_cli(main))

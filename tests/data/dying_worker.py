"""A worker function that ends its process as the kernel does when memory runs out. Apart from the tests: workers import
it without torch."""

from __future__ import annotations

import os
import signal

from megatron_fwpkm.data.encoding import EncodedBlock, EncodingOptions
from megatron_fwpkm.data.records import Block


def die(options: EncodingOptions, block: Block) -> EncodedBlock:
    """Does not return."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")

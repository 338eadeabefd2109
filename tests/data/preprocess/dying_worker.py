"""A worker function that ends its process as the kernel does when memory runs out. Apart from the tests: workers import
it without torch."""

from __future__ import annotations

import os
import signal

from megatron_fwpkm.data.corpus.records import Block
from megatron_fwpkm.data.preprocess.encoding import EncodedBlock, EncodingOptions


def die(options: EncodingOptions, block: Block) -> EncodedBlock:
    """Does not return."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")

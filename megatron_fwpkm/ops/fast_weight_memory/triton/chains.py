"""What `implementation="triton"` is made of."""

from __future__ import annotations

from ..chain import Chains
from ..triton_write_plan import make_triton_write_plan
from .key_chain import TritonKeyChain
from .value_steps import TritonValueChain, read_rows

TRITON_CHAINS = Chains(TritonKeyChain, TritonValueChain, make_triton_write_plan, read_rows)

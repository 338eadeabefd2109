"""What `implementation="triton"` is made of."""

from __future__ import annotations

from ..chain import Chains
from .key_chain import TritonKeyChain
from .value_steps import VALUE_STEPS

TRITON_CHAINS = Chains(TritonKeyChain, VALUE_STEPS)

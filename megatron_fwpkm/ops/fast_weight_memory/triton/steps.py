"""What `implementation="triton"` is made of."""

from __future__ import annotations

from ..touched_rows import ChainSteps
from .key_steps import TritonKeySteps
from .value_steps import VALUE_STEPS

TRITON_STEPS = ChainSteps(TritonKeySteps, VALUE_STEPS)

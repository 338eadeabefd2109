"""Trains in float64 what trains in float32, so that a difference between two layouts shows as itself.

In float32 a run of four steps blows rounding up by some orders: a near tie chooses another slot, Adam divides by small
moments. With 29 bits more the same run agrees to twelve digits, and what is left over is a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def double_precision() -> Iterator[None]:
    """Let float32 mean float64: for this project, for megatron.core and for torch's own default.

    Not for what was chosen before: default arguments, and tensors that exist.
    """
    from megatron_fwpkm.distributed import megatron_on_cpu
    from megatron_fwpkm.engines import megatron_optimizer as optimizer

    megatron_on_cpu.install()
    torch.storage._dtype_to_storage_type_map()  # torch.save and torch.load remember these tables of types for good:
    torch.storage._storage_type_to_dtype_map()  # they are made while the names still mean what they say
    wide, name_of_type = torch.float64, torch.Tensor.type
    kept = {f"{part}_dtype": wide for part in ("main_grads", "main_params", "exp_avg", "exp_avg_sq")}

    def type_name(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The optimizers sort parameters by the name of their type."""
        name = name_of_type(tensor, *args, **kwargs)
        return "torch.cuda.FloatTensor" if name == "torch.cuda.DoubleTensor" else name

    before = torch.get_default_dtype()
    torch.set_default_dtype(wide)
    try:
        with (
            patch.multiple(torch, float32=wide, float=wide),
            patch.multiple(torch.Tensor, float=torch.Tensor.double, type=type_name),
            patch.object(optimizer, "MegatronOptimizerConfig", partial(optimizer.MegatronOptimizerConfig, **kept)),
        ):
            yield
    finally:
        torch.set_default_dtype(before)

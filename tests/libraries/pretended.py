"""Libraries with fused kernels in torch's arithmetic, on the CPU: same arguments and same places of states."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from megatron_fwpkm.libraries import probes
from megatron_fwpkm.libraries.probes import FLASH_LINEAR_ATTENTION, GRADIENT_KERNEL, Finding

ADAM_MODULES = {"transformer_engine": "transformer_engine.pytorch.optimizers", "apex": "apex.optimizers"}


class FusedAdam(torch.optim.Optimizer):
    """AdamW that counts its steps per group, as Transformer Engine and Apex do; torch counts them per parameter."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, adam_w_mode: bool = True,
        weight_decay: float = 0.0, capturable: bool = False,
    ) -> None:  # fmt: skip
        assert adam_w_mode and bias_correction and not capturable
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of all parameters with a gradient."""
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                mean = state["exp_avg"].mul_(first).add_(p.grad, alpha=1 - first)
                square = state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                root = (square / (1 - second ** group["step"])).sqrt()
                update = mean / (1 - first ** group["step"]) / (root + group["eps"]) + group["weight_decay"] * p
                p.sub_(update, alpha=group["lr"])


class GradientKernel(types.ModuleType):
    """Apex's extension module: adds a weight gradient to a buffer, for the types that it was compiled for.

    Args:
        rounded: round the product to the type of the inputs first, as torch does without the kernel.
    """

    def __init__(self, rounded: bool) -> None:
        super().__init__(GRADIENT_KERNEL)
        self.rounded = rounded
        self.buffers: list[Tensor] = []
        """What was added to, in order."""

    def wgrad_gemm_accum_fp32(self, inputs: Tensor, outputs: Tensor, buffer: Tensor) -> None:
        """For buffers in float32 and float32, float16 or bfloat16 inputs."""
        assert buffer.dtype == torch.float32
        assert inputs.dtype == outputs.dtype and inputs.dtype in (torch.float32, torch.float16, torch.bfloat16)
        self._add(inputs, outputs, buffer)

    def wgrad_gemm_accum_fp16(self, inputs: Tensor, outputs: Tensor, buffer: Tensor) -> None:
        """For buffers in the 16 bits of the inputs."""
        assert inputs.dtype == outputs.dtype == buffer.dtype and inputs.dtype in (torch.float16, torch.bfloat16)
        self._add(inputs, outputs, buffer)

    def _add(self, inputs: Tensor, outputs: Tensor, buffer: Tensor) -> None:
        inputs, outputs = inputs.flatten(0, -2), outputs.flatten(0, -2)
        self.buffers.append(buffer)
        if self.rounded:
            buffer.add_(outputs.t().matmul(inputs))
        else:
            buffer.copy_(buffer.float() + outputs.float().t().matmul(inputs.float()))


def findings(*names: str, cuda: bool = True) -> dict[str, Finding]:
    """What a machine has that has these libraries only."""
    known = ("transformer_engine", "apex", GRADIENT_KERNEL, FLASH_LINEAR_ATTENTION)
    found = {name: Finding(name, "ok" if name in names else "absent") for name in known}
    return found | {"CUDA": Finding("CUDA", "ok" if cuda else "absent")}


@contextmanager
def pretended(*names: str, rounded: bool = True) -> Iterator[GradientKernel]:
    """A machine with CUDA and these libraries, as far as the choices of a run go; gives the gradient kernel."""
    from megatron.core.tensor_parallel import layers

    from megatron_fwpkm.engines.megatron_optimizer import use_adam

    kernel, modules = GradientKernel(rounded), {}
    for name in set(names) & ADAM_MODULES.keys():
        modules[ADAM_MODULES[name]] = types.ModuleType(ADAM_MODULES[name])
        modules[ADAM_MODULES[name]].FusedAdam = FusedAdam  # type: ignore[attr-defined]
    probes.installed.cache_clear()
    try:
        with (
            mock.patch.object(probes, "fused_libraries", lambda environment: findings(*names)),
            mock.patch.dict(sys.modules, modules),
            mock.patch.object(layers, GRADIENT_KERNEL, kernel, create=True),
            mock.patch.object(layers, "_grad_accum_fusion_available", GRADIENT_KERNEL in names),
        ):
            yield kernel
    finally:
        probes.installed.cache_clear()
        use_adam("torch")

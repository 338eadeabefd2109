"""What a layer keeps for its backward pass, in host memory; the memory stands outside, as under recompute.

megatron-core 0.16.1 offloads with Transformer Engine only. This is torch's own mechanism (hooks on what autograd saves)
and needs neither that nor a GPU: on the CPU the copies save nothing and the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _OnHost(NamedTuple):
    """What was saved, as a copy in host memory: every element once, however often a view repeats it."""

    copy: Tensor
    strides: tuple[int, ...] | None
    """Of the copied elements on the device; None when they are the memory from the first element to the last."""
    view: tuple[torch.Size, tuple[int, ...]]
    """Shape and strides of what was saved."""
    device: torch.device


def offloading(resident: Iterable[Tensor]) -> saved_tensors_hooks:
    """A context in which autograd keeps what it saves in host memory, and brings it back when backward asks for it.

    Copies are queued on the device's current stream without waiting for it, into pinned memory where the device is a
    GPU. Tensors come back with the strides they had, because kernels choose the order of their sums by them.

    Args:
        resident: tensors that stay where they are, views of them included: parameters, which live on the device anyway.
    """
    stay = {_address(tensor) for tensor in resident}

    def pack(tensor: Tensor) -> Tensor | _OnHost:
        """Move a saved tensor to the host, unless it stays."""
        return tensor if _address(tensor) in stay else _to_host(tensor)

    def unpack(saved: Tensor | _OnHost) -> Tensor:
        """Bring a saved tensor back."""
        return saved if isinstance(saved, Tensor) else _from_host(saved)

    return saved_tensors_hooks(pack, unpack)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _to_host(tensor: Tensor) -> _OnHost:
    distinct = tensor
    for dimension, step in enumerate(tensor.stride()):
        if step == 0 and tensor.shape[dimension] > 1:  # expanded
            distinct = distinct.narrow(dimension, 0, 1)
    span = 1 + sum((size - 1) * step for size, step in zip(distinct.shape, distinct.stride(), strict=True))
    strides: tuple[int, ...] | None = distinct.stride()
    if span < distinct.numel():  # overlapping windows
        distinct, strides = distinct.as_strided((span,), (1,)), None
    copy = torch.empty_like(distinct, device="cpu", pin_memory=distinct.is_cuda)
    copy.copy_(distinct, non_blocking=True)
    return _OnHost(copy, strides, (tensor.shape, tensor.stride()), tensor.device)


def _from_host(saved: _OnHost) -> Tensor:
    copy, device = saved.copy, saved.device
    if saved.strides is None:
        back = copy.to(device, non_blocking=True)
    else:
        back = torch.empty_strided(copy.shape, saved.strides, dtype=copy.dtype, device=device)
        back.copy_(copy, non_blocking=True)
    return back.as_strided(*saved.view)

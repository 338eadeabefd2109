"""The few kernels of Transformer Engine's extension module that our layers reach, in torch on the CPU.

They show wiring, names and signatures, and that the sums are the right ones; they say nothing about real kernels.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CALLS: list[str] = []
"""Names of the kernels that were called, in order."""

DType = enum.IntEnum(
    "DType",
    "kByte kInt16 kInt32 kInt64 kFloat32 kFloat16 kBFloat16 kFloat8E4M3 kFloat8E5M2 kFloat8E8M0 kFloat4E2M1",
    start=0,
)
_PLACES = {
    "FP8FwdTensors": "GEMM1_INPUT GEMM1_WEIGHT GEMM1_OUTPUT GEMM2_INPUT GEMM2_WEIGHT GEMM2_OUTPUT "
    "GEMM3_INPUT GEMM3_WEIGHT GEMM3_OUTPUT",
    "FP8BwdTensors": "GRAD_OUTPUT1 GRAD_INPUT1 GRAD_OUTPUT2 GRAD_INPUT2 GRAD_OUTPUT3 GRAD_INPUT3",
}
"""Enumerations of the places of scales."""
_EIGHT_BITS = {DType.kFloat8E4M3: torch.float8_e4m3fn, DType.kFloat8E5M2: torch.float8_e5m2}
_WIDE = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}


class _Names(type):
    """Of a class whose attributes exist when they are asked for: enumerations that are only handed on."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Extension(ModuleType):
    """`transformer_engine_torch`: a kernel that is not written here raises when it is called."""

    __file__ = "pretended"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            made: Any = _Names(name, (), {})
        else:

            def made(*args: Any, **kwargs: Any) -> None:
                raise AssertionError(f"the kernel {name} is not pretended")

        setattr(self, name, made)
        return made


def _wide(x: Any) -> Tensor:
    """A matrix in float32 or float64, from 8 bits where it lies in them."""
    if isinstance(x, Tensor) and not hasattr(x, "_scale_inv"):
        return x if x.dtype == torch.float64 else x.float()
    if x._data is not None:
        return x._data.view(_EIGHT_BITS[x._fp8_dtype]).float() * x._scale_inv
    # The last dimension first, as columns are stored.
    values = x._transpose.view(_EIGHT_BITS[x._fp8_dtype]).float() * x._scale_inv
    return values.movedim(0, -1)


def _matrix(x: Any) -> Tensor:
    wide = _wide(x)
    return wide.reshape(-1, wide.shape[-1])


def generic_gemm(
    a: Any, transpose_a: bool, b: Any, transpose_b: bool, out: Tensor | None, quantizer: Any, dtype: Any,
    bias: Tensor | None, bias_dtype: Any, gelu: bool, gelu_in: Any, grad: bool, workspace: Any, size: int,
    accumulate: bool, split_accumulator: bool, **overlap: Any,
) -> tuple[Tensor, Tensor | None, None, None]:  # fmt: skip
    """The product in the order of a column-major library: rows of b with rows or columns of a."""
    assert quantizer is None and not gelu
    left, right = _matrix(b), _matrix(a)
    product = (left.t() if transpose_b else left) @ (right.t() if transpose_a else right)
    bias_gradient = None
    if bias is not None and grad:
        bias_gradient = left.sum(0).to(bias.dtype)
    elif bias is not None:
        product = product + bias.to(product.dtype)
    if not transpose_b:
        product = product.reshape(*_wide(b).shape[:-1], product.shape[-1])
    eight = any(hasattr(x, "_scale_inv") for x in (a, b))
    wanted = _WIDE[dtype] if dtype is not None else torch.bfloat16 if eight else b.dtype
    product = product if product.dtype == torch.float64 else product.to(wanted)
    if out is not None:
        out.add_(product.view_as(out)) if accumulate else out.copy_(product.view_as(out))
        product = out
    return product, bias_gradient, None, None


def rmsnorm_fwd(
    x: Tensor, weight: Tensor, eps: float, out: Tensor | None, quantizer: Any, dtype: Any, margin: int, centred: bool
) -> tuple[Any, None, Tensor]:
    """x * rsqrt(mean(x^2) + eps) * (1 + weight), or weight alone; in 8 bits where a quantizer is given."""
    wide = _wide(x)
    inverse = torch.rsqrt(wide.square().mean(-1) + eps)
    scaled = wide * inverse[:, None] * (weight.to(wide.dtype) + (1 if centred else 0))
    result = scaled.to(x.dtype)
    if quantizer is not None:
        return quantize(result, quantizer, out), None, inverse
    return (result if out is None else out.copy_(result)), None, inverse


def rmsnorm_bwd(
    gradient: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, margin: int, centred: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    normal = _wide(x) * inverse[:, None]
    wide = _wide(gradient)
    inner = wide * (weight.to(wide.dtype) + (1 if centred else 0))
    dx = inverse[:, None] * (inner - normal * (inner * normal).mean(-1, keepdim=True))
    return dx.to(x.dtype), (wide * normal).sum(0).to(weight.dtype)


def quantize(x: Tensor, quantizer: Any, out: Any = None, no_op: Tensor | None = None) -> Any:
    """Scale and round to 8 bits: with the scale that the quantizer has (delayed), or with one made of x."""
    kind = _EIGHT_BITS[quantizer.dtype]
    largest, wide = torch.finfo(kind).max, x.detach().float()
    quantizer.amax.copy_(wide.abs().max().reshape(quantizer.amax.shape))
    if type(quantizer).__name__ == "Float8CurrentScalingQuantizer":
        quantizer.scale.copy_(largest / quantizer.amax.clamp(min=1e-12))
    data = (wide * quantizer.scale).clamp(-largest, largest).to(kind).view(torch.uint8)
    made = quantizer.make_empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    made._scale_inv.copy_(1 / quantizer.scale)
    if made._data is not None:
        made._data.copy_(data.view(made._data.shape))
    if made._transpose is not None:
        made._transpose.copy_(data.movedim(-1, 0).reshape(made._transpose.shape))
        made._transpose_invalid = False
    return made


def dequantize(x: Any, dtype: Any) -> Tensor:
    """The values of 8 bits."""
    return _wide(x).to(_WIDE[dtype])


def fp8_transpose(data: Tensor, dtype: Any, *, out: Tensor | None = None) -> Tensor:
    """The last dimension first."""
    turned = data.movedim(-1, 0).contiguous()
    return turned if out is None else out.copy_(turned.view(out.shape))


def bgrad_quantize(gradient: Tensor, quantizer: Any) -> tuple[Tensor, Any]:
    """The gradient of a bias, and the gradient in 8 bits."""
    return gradient.reshape(-1, gradient.shape[-1]).sum(0), quantize(gradient, quantizer)


def fused_rope_forward(
    x: Tensor, angles: Tensor, starts: Any, layout: Any, interleaved: bool, *others: Any
) -> Tensor:
    """Rotate the first channels of [s, b, heads, width] by angles [s, 1, 1, rotated], halves against each other."""
    return _rotate(x, angles, 1)


def fused_rope_backward(
    gradient: Tensor, angles: Tensor, starts: Any, layout: Any, interleaved: bool, *others: Any
) -> Tensor:
    """Rotate back."""
    return _rotate(gradient, angles, -1)


def _rotate(x: Tensor, angles: Tensor, direction: int) -> Tensor:
    turned, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    angles = angles[: x.shape[0]].to(x.dtype)
    against = torch.cat([-second, first], dim=-1)
    return torch.cat([turned * angles.cos() + direction * against * angles.sin(), rest], dim=-1)


def extension() -> Extension:
    """The module with the kernels above, which note that they were called."""
    made = Extension("transformer_engine_torch")
    facts: dict[str, Any] = {
        "get_cublasLt_version": 120900,
        "get_cudnn_version": 91000,
        "get_fused_attn_backend": "NVTE_Fused_Attn_Backend.NVTE_No_Backend",
        "get_num_cublas_streams": 4,
        "get_stream_priority_range": (0, -1),
    }
    kernels: tuple[Callable[..., Any], ...] = (
        generic_gemm, rmsnorm_fwd, rmsnorm_bwd, quantize, dequantize, fp8_transpose, bgrad_quantize,
        fused_rope_forward, fused_rope_backward,
    )  # fmt: skip
    setattr(made, "DType", DType)  # noqa: B010  (mypy knows no such attribute)
    for name, members in _PLACES.items():
        setattr(made, name, enum.IntEnum(name, members, start=0))
    for name, value in facts.items():
        setattr(made, name, lambda *args, value=value, **kwargs: value)
    for kernel in kernels:
        setattr(made, kernel.__name__, _noted(kernel))
    return made


def _noted(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLS.append(kernel.__name__)
        return kernel(*args, **kwargs)

    return call

"""Published peaks of accelerators: what a model FLOPs utilisation is measured against. Free of torch."""

from __future__ import annotations

# Dense bfloat16 matrix products in TFLOP/s: where a data sheet names the figure with sparsity, half of it.
# A100, SXM and PCIe alike: NVIDIA A100 Tensor Core GPU data sheet, 312.
# H100: NVIDIA H100 Tensor Core GPU data sheet, with sparsity 1,979 (SXM), 1,671 (NVL), 1,513 (PCIe).
# H200: NVIDIA H200 Tensor Core GPU data sheet, with sparsity 1,979 (SXM), 1,671 (NVL).
# B200: NVIDIA HGX platform data sheet, with sparsity 36 PFLOP/s for eight GPUs.
_BF16_PEAKS = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100": 989.5,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H200": 989.5,
    "NVIDIA B200": 2250.0,
}
"""What the name of a device begins with -> its peak; the first that fits counts."""


def bf16_peak_tflops(device_name: str) -> float | None:
    """The peak of a device by the name that CUDA gives it, such as `NVIDIA H100 80GB HBM3`; None for unknown ones."""
    return next((peak for name, peak in _BF16_PEAKS.items() if device_name.startswith(name)), None)

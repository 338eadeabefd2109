"""The examples in the READMEs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import megatron_fwpkm.ops


def run_example(folder: str) -> dict[str, Any]:
    text = (Path(megatron_fwpkm.ops.__file__).parent / folder / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    return names


@pytest.mark.parametrize("folder", ["fast_weight_memory", "fast_weight_mlp"])
def test_the_example_runs(folder: str) -> None:
    output = run_example(folder)["output"]
    assert output.retrieved.shape == (2, 100, 32)


def test_the_memory_of_the_example_is_written() -> None:
    names = run_example("fast_weight_memory")
    assert names["output"].state.values.shape == (256, 32)


def test_the_delta_net_of_the_example_reads_any_cut() -> None:
    names = run_example("gated_delta_net")
    whole, _ = names["gated_delta_net"](names["qkvz"], names["ba"], names["weights"], key_width=8, eps=1e-5)
    assert names["output"].shape == (1, 10, 16)
    assert torch.allclose(names["output"], whole[:, 90:], atol=1e-4)

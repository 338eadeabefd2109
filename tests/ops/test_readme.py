"""The example in the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import megatron_fwpkm.ops


def test_the_example_runs() -> None:
    text = (Path(megatron_fwpkm.ops.__file__).parent / "fast_weight_memory" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    output = names["output"]
    assert output.retrieved.shape == (2, 100, 32) and output.state.values.shape == (256, 32)

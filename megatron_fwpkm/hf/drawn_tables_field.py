"""The field of the configuration that says how fast weights are drawn which the files of an export do not have.

Ships inside exports.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

_DTYPES = ("fp32", "bf16")


def check_drawn_tables(config: FwPKMHFConfig) -> None:
    """Check the field of a complete configuration.

    Raises:
        ValueError: it does not say how to draw tables, or there are none to draw.
    """
    rule = config.fwpkm_drawn_tables
    if rule is None:
        return
    shape = "{'seed': an integer of at least 0, 'table_dtype': 'fp32' or 'bf16', 'sha256': 64 hexadecimal digits}"
    if not isinstance(rule, dict) or rule.keys() != {"seed", "table_dtype", "sha256"}:
        raise ValueError(f"fwpkm_drawn_tables={rule!r} must be {shape}, or None")
    seed, digest = rule["seed"], rule["sha256"]
    sound = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 1 << 63
    if not sound or rule["table_dtype"] not in _DTYPES or not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ValueError(f"fwpkm_drawn_tables={rule!r} must be {shape}, or None")
    if not config.memory_layers or config.fwpkm_memory != "initial":
        raise ValueError(
            f"fwpkm_drawn_tables needs layers with a memory that is initial, but fwpkm_memory={config.fwpkm_memory!r} "
            f"and the layers are {config.memory_layers}; set it to None"
        )

"""The options of a memory in the two kinds of call, from the fields of the configuration. Ships inside exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig


def options_of_calls(options: Any, config: FwPKMHFConfig, prefix: str) -> tuple[Any, Any]:
    """The options of calls without a cache, and of those with one.

    The authors' arithmetic is that of a stream: it has no meaning where the last tokens of a chunk are never written,
    as in a call without a cache that follows training.

    Args:
        options: the class of the options.
        config: with the fields of the memory.
        prefix: what their names begin with.
    """
    streaming = options.of(config, prefix, boundary="carry")
    if getattr(config, f"{prefix}boundary") == "carry":
        return streaming, streaming
    return options.of(config, prefix, write_scale="consistent"), streaming

"""The fields of attention in the configuration: what follows from them, and how they must fit each other.

Ships inside exports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..ops.yarn import Yarn

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

FULL, SLIDING = "fa", "swa"
"""The token mixers that are attention: to the whole text before a token, and within a window."""


def attention_mixers(windows: Sequence[int | None]) -> list[str]:
    """The token mixers of a model of attention only, from its windows."""
    return [FULL if window is None else SLIDING for window in windows]


def check_attention(config: FwPKMHFConfig) -> None:
    """Check heads, windows and rotary positions of a complete configuration.

    Raises:
        ValueError: fields do not fit each other.
    """
    heads, groups, layers = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
    if heads % groups:
        raise ValueError(f"num_attention_heads={heads} is not divisible by num_key_value_heads={groups}")
    if len(config.attention_windows) != layers:
        raise ValueError(
            f"attention_windows has length {len(config.attention_windows)}, but must have one entry for each layer "
            f"(num_hidden_layers={layers}), None for full attention"
        )
    rotated = int(config.head_dim * config.partial_rotary_factor)
    if rotated < 2 or rotated % 2:
        raise ValueError(
            f"head_dim={config.head_dim} times partial_rotary_factor={config.partial_rotary_factor} rotates {rotated} "
            "channels of a head, which must be an even number of at least 2: RoPE rotates pairs"
        )
    _check_windows(config)
    _check_yarn(config)


def yarn_scaling(config: FwPKMHFConfig) -> Yarn | None:
    """How the configuration stretches rotary positions; None for not at all."""
    if config.yarn_factor is None:
        return None
    original = config.yarn_original_length or config.training_length
    assert original is not None
    return Yarn(float(config.yarn_factor), original, float(config.yarn_beta_fast), float(config.yarn_beta_slow))


def _check_yarn(config: FwPKMHFConfig) -> None:
    if config.yarn_factor is None:
        return
    if config.rope_scaling_factor is not None:
        raise ValueError(
            f"yarn_factor={config.yarn_factor} and rope_scaling_factor={config.rope_scaling_factor} both stretch the "
            "rotary positions; remove one of them"
        )
    if config.yarn_original_length is None and config.training_length is None:
        raise ValueError(
            f"yarn_factor={config.yarn_factor} needs yarn_original_length, the tokens of the texts that the model was "
            "trained on; give it"
        )
    if config.yarn_beta_fast <= config.yarn_beta_slow:
        raise ValueError(
            f"yarn_beta_fast={config.yarn_beta_fast} must be above yarn_beta_slow={config.yarn_beta_slow}: more turns "
            "are faster"
        )


def _check_windows(config: FwPKMHFConfig) -> None:
    for layer, (mixer, window) in enumerate(zip(config.token_mixers, config.attention_windows, strict=True)):
        if mixer == SLIDING and window is None:
            raise ValueError(
                f"attention_windows contains None for layer {layer}, whose token mixer {SLIDING!r} needs a window; "
                f"give one, or make it {FULL!r} in token_mixers"
            )
        if mixer != SLIDING and window is not None:
            raise ValueError(
                f"attention_windows contains {window} for layer {layer}, but its token mixer {mixer!r} in token_mixers "
                f"has no window; make it {SLIDING!r}, or the window None"
            )

"""The check of a configuration: every field alone, then the fields together, then the bytes they ask for.

Ships inside exports. The configuration runs it when it is made, the model when it is built from one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ops.fast_weight_memory.options import CHOICES, STEP_SIZES, WHOLE_NUMBERS
from .attention_fields import check_attention
from .drawn_tables_field import check_drawn_tables
from .fast_mlp_fields import (
    FAST_MLP_LEAST,
    FAST_MLP_MOST,
    FAST_MLP_SWITCHES,
    FAST_MLP_WORDS,
    check_fast_mlps,
    fast_mlp_numbers,
)
from .linear_attention_fields import LINEAR_SIZES, check_linear_attention, linear_attention_parts
from .mlp_fields import PKM_LEAST, check_mlps, mlp_numbers

if TYPE_CHECKING:
    from .configuration_fwpkm import FwPKMHFConfig

MOST_LAYERS = 10_000
"""More layers than anyone trains; building millions of them would seem to hang."""
MOST_CHUNK = 1 << 20
"""A longer chunk is hardly ever complete, and a memory that is never written is none."""
MOST_BYTES = 1 << 44
"""16 TiB: no part of a model may ask for more."""


@dataclass(frozen=True)
class Number:
    """The numbers that a field takes."""

    least: float
    most: float = math.inf
    whole: bool = True
    above: bool = False
    """Whether the field must be above `least` instead of at least that."""
    below: bool = False
    """Whether the field must be below `most` instead of at most that."""
    optional: bool = False

    def takes(self, value: object) -> bool:
        """Whether the field may have this value."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if value < self.least or value > self.most:
            return False
        return not (self.above and value == self.least) and not (self.below and value == self.most)

    def __str__(self) -> str:
        """`an integer of at least 1`."""
        kind = "an integer" if self.whole else "a finite number"
        low = f"{'above' if self.above else 'of at least'} {self.least:g}"
        high = "" if self.most == math.inf else f" and {'below' if self.below else 'at most'} {self.most:,.10g}"
        return f"{kind} {low}{high}{', or None' if self.optional else ''}"


class Name:
    """Any text: whether it names something is seen where it is looked up."""

    def takes(self, value: object) -> bool:
        """Whether the field may have this value."""
        return isinstance(value, str)

    def __str__(self) -> str:
        """What an error message calls it."""
        return "a name"


_SIZE, _SHARE = Number(1), Number(0, 1, whole=False, below=True)
NUMBERS: dict[str, Number] = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_hidden_layers": Number(1, MOST_LAYERS),
    "num_attention_heads": _SIZE,
    "num_key_value_heads": _SIZE,
    "head_dim": Number(1, 1 << 20),
    "attention_dropout": _SHARE,
    "hidden_dropout": _SHARE,
    "rope_theta": Number(1, 1e15, whole=False, above=True),
    "partial_rotary_factor": Number(0, 1, whole=False, above=True),
    "rope_scaling_factor": Number(1, 1e6, whole=False, optional=True),
    "yarn_factor": Number(1, 1e6, whole=False, optional=True),
    "yarn_original_length": Number(1, 1 << 40, optional=True),
    "yarn_beta_fast": Number(0, 1e6, whole=False, above=True),
    "yarn_beta_slow": Number(0, 1e6, whole=False, above=True),
    "max_position_embeddings": Number(1, optional=True),
    "training_length": Number(1, optional=True),
    "rms_norm_eps": Number(0, 1, whole=False, above=True),
    "initializer_range": Number(0, 10, whole=False, above=True),
    **{name: Number(least) for name, least in PKM_LEAST.items()},
    **{name: Number(least, most) for name, (least, most) in LINEAR_SIZES.items()},
    "fwpkm_num_heads": _SIZE,
    "fwpkm_num_subkeys": _SIZE,
    "fwpkm_key_dim": Number(2),
    "fwpkm_value_dim": _SIZE,
    "fwpkm_iteration": Number(0, optional=True),
    "fwpkm_replica": Number(0, optional=True),
    **{f"fwpkm_{name}": Number(least) for name, least in WHOLE_NUMBERS.items()},
    **{f"fwpkm_{name}": Number(0, most, whole=False) for name, most in STEP_SIZES.items()},
    "fwpkm_chunk_size": Number(1, MOST_CHUNK),
    **{name: Number(least) for name, least in FAST_MLP_LEAST.items()},
    **{name: Number(0, most, whole=False) for name, most in FAST_MLP_MOST.items()},
    "fwmlp_chunk_size": Number(1, MOST_CHUNK),
}
SWITCHES = (
    "qk_norm",
    "attention_output_gate",
    "linear_bias",
    "tie_word_embeddings",
    "use_cache",
    "fwpkm_gate",
    "fwpkm_gate_writes",
    "fwpkm_normalize_targets",
    *FAST_MLP_SWITCHES,
    "return_dict",
    "output_hidden_states",
)
MEMORY_OWNERS = ("per-sequence", "shared")
"""Whose a memory is. per-sequence: every sequence of a batch has its own. shared: all have one, as in the paper."""
WORDS = {
    "memory": MEMORY_OWNERS,
    "fwpkm_memory": ("initial", "trained"),
    **{f"fwpkm_{name}": CHOICES[name] for name in ("score", "boundary", "write_scale", "implementation")},
    **FAST_MLP_WORDS,
}
DTYPES = ("float16", "bfloat16", "float32", "float64")
_MADE_UP = ("num_key_value_heads", "head_dim", "token_mixers", "mlps", "attention_windows", "fwpkm_layers",
            "fwmlp_layers")  # fmt: skip
"""Fields that the configuration fills in where they are None."""


def check_given(config: FwPKMHFConfig, others: Mapping[str, object]) -> None:
    """Check what a configuration is made from, before the fields that are None are filled in.

    Args:
        config: with its fields set.
        others: arguments that are no field of this configuration; Transformers keeps them without a look.

    Raises:
        ValueError: a field is out of its range, with its name, its value and what it may be.
    """
    for name in others:
        if name.startswith(("fwpkm_", "fwmlp_", "pkm_")):
            raise ValueError(
                f"{name} is not a field of this configuration; it may be misspelled or belong to a newer version"
            )
    _check_dtype(others.get("torch_dtype"))
    check_fields(config, may_be_none=_MADE_UP)
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not divisible by num_attention_heads={config.num_attention_heads}; "
            "change one of them, or give head_dim"
        )


def check_config(config: FwPKMHFConfig) -> None:
    """Check a complete configuration, whatever was done to it since it was made.

    Raises:
        ValueError: a field is out of its range, fields do not fit each other, or a part is larger than any machine.
    """
    check_fields(config)
    _check_mixers(config)
    check_attention(config)
    check_mlps(config)
    check_linear_attention(config)
    check_fast_mlps(config)
    if config.fwpkm_layers:
        _check_memory(config)
    check_drawn_tables(config)
    _check_tokens(config)
    _check_bytes(config)


def check_fields(config: FwPKMHFConfig, may_be_none: tuple[str, ...] = ()) -> None:
    """Check every field alone.

    Raises:
        ValueError: a field is out of its range.
    """
    for name, number in NUMBERS.items():
        value = getattr(config, name)
        if not number.takes(value) and not (value is None and name in may_be_none):
            raise ValueError(f"{name}={value!r} must be {number}")
    for name in SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={getattr(config, name)!r} must be True or False")
    for name, valid in WORDS.items():
        if getattr(config, name) not in valid:
            known = ", ".join(map(str, valid))
            raise ValueError(f"{name}={getattr(config, name)!r} is not known; choose one of: {known}")
    _check_lists(config, may_be_none)
    _check_dtype(config.dtype)
    if config.is_encoder_decoder:
        raise ValueError("is_encoder_decoder=True is not supported by this decoder-only model; remove the field")


def _check_lists(config: FwPKMHFConfig, may_be_none: tuple[str, ...]) -> None:
    entries: dict[str, Number | Name] = {
        "token_mixers": Name(), "mlps": Name(), "attention_windows": Number(1, optional=True),
        "fwpkm_layers": Number(0),
        "fwmlp_layers": Number(0),
    }  # fmt: skip
    for name, entry in entries.items():
        value = getattr(config, name)
        if value is None and name in may_be_none:
            continue
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}={value!r} must be a list")
        for item in value:
            if not entry.takes(item):
                raise ValueError(f"{name} contains {item!r}; every entry must be {entry}")


def _check_mixers(config: FwPKMHFConfig) -> None:
    layers = config.num_hidden_layers
    if len(config.token_mixers) != layers:
        raise ValueError(
            f"token_mixers has length {len(config.token_mixers)}, but must have one entry for each layer "
            f"(num_hidden_layers={layers})"
        )


def _check_dtype(dtype: object) -> None:
    if str(dtype).removeprefix("torch.") not in ("None", *DTYPES):
        raise ValueError(f"dtype={dtype!r} is not known; choose one of: {', '.join(DTYPES)}")


def _check_memory(config: FwPKMHFConfig) -> None:
    layers = list(config.fwpkm_layers)
    for layer in layers:
        if layer >= config.num_hidden_layers:
            raise ValueError(
                f"fwpkm_layers contains {layer}, but the layers are numbered from 0 to {config.num_hidden_layers - 1}"
            )
        if layers.count(layer) > 1:
            raise ValueError(f"fwpkm_layers={layers} contains {layer} more than once; a layer has at most one memory")
    if config.fwpkm_key_dim % 2:
        raise ValueError(f"fwpkm_key_dim={config.fwpkm_key_dim} must be even: a query has two halves")
    if config.fwpkm_topk > config.fwpkm_num_subkeys:
        raise ValueError(
            f"fwpkm_topk={config.fwpkm_topk} must be at most fwpkm_num_subkeys={config.fwpkm_num_subkeys}"
        )
    if config.fwpkm_lookahead >= config.fwpkm_chunk_size:
        raise ValueError(
            f"fwpkm_lookahead={config.fwpkm_lookahead} must be below fwpkm_chunk_size={config.fwpkm_chunk_size}, or no "
            "token would be written"
        )
    if config.fwpkm_normalize_targets and config.fwpkm_value_dim < 2:
        raise ValueError(
            "fwpkm_value_dim=1 cannot be z-scored: it must be at least 2, or fwpkm_normalize_targets must be False"
        )


def _check_tokens(config: FwPKMHFConfig) -> None:
    ends: Any = config.eos_token_id
    named = [("pad_token_id", config.pad_token_id), ("bos_token_id", config.bos_token_id)]
    named += [("eos_token_id", end) for end in (ends if isinstance(ends, list | tuple) else [ends])]
    for name, token in named:
        if not Number(0, config.vocab_size - 1, optional=True).takes(token):
            raise ValueError(
                f"{name}={token!r} must be a token id from 0 to {config.vocab_size - 1} "
                f"(vocab_size={config.vocab_size}), or None"
            )


def _check_bytes(config: FwPKMHFConfig) -> None:
    """Raise ValueError for a part that no machine holds, before anything is allocated."""
    hidden, head = config.hidden_size, config.head_dim
    attention = 2 * hidden * head * (config.num_attention_heads + config.num_key_value_heads)
    parts = {
        ("vocab_size", "hidden_size"): config.vocab_size * hidden,
        ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"): config.num_hidden_layers * attention,
        **mlp_numbers(config),
        **linear_attention_parts(config),
    }
    parts |= fast_mlp_numbers(config)
    if config.fwpkm_layers:
        queries, values = config.fwpkm_num_heads * config.fwpkm_key_dim, config.fwpkm_value_dim
        parts |= {
            ("fwpkm_num_subkeys", "fwpkm_value_dim"): config.fwpkm_num_subkeys**2 * values,
            ("fwpkm_num_subkeys", "fwpkm_num_heads", "fwpkm_key_dim"): config.fwpkm_num_subkeys * queries,
            ("hidden_size", "fwpkm_num_heads", "fwpkm_key_dim"): hidden * queries,
            ("hidden_size", "fwpkm_value_dim"): 2 * hidden * values,
        }
    for names, numbers in parts.items():
        if 4 * numbers > MOST_BYTES:
            sizes = ", ".join(f"{name}={getattr(config, name)}" for name in names)
            raise ValueError(
                f"{sizes} would need {4 * numbers:,} bytes in float32, but at most {MOST_BYTES:,} are supported; lower "
                "one of them"
            )

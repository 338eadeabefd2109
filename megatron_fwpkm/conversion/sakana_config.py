"""The configuration of the paper authors' checkpoints, as that of our Hugging Face model.

Their model is Transformers' Qwen3-Next with memories: what attention, linear attention and norms need has Qwen3-Next's
keys, what memories need begins with `fwpkm_` and `pkm_`. Which keys there are is known from the reference vectors of
the tests (tests/goldens), and what their code takes for a key that is missing from three places, a table for each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..hf import FwPKMHFConfig
from ..hf.attention_fields import FULL, SLIDING
from ..hf.linear_attention_fields import GATED_DELTA_NET
from ..hf.mlp_fields import DENSE, STATIC_MEMORY

logger = logging.getLogger("megatron_fwpkm")

MIXERS = {"linear_attention": GATED_DELTA_NET, "sliding_attention": SLIDING, "full_attention": FULL}
"""By the names of `layer_types`."""
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim",
)  # fmt: skip
"""Keys without which it is no configuration, for no default fits; called so on both sides."""
QWEN3_NEXT = {
    "rms_norm_eps": 1e-6, "initializer_range": 0.02, "attention_dropout": 0.0, "tie_word_embeddings": False,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "max_position_embeddings": None, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
"""Keys called so on both sides; the defaults are those of Qwen3NextConfig in Transformers."""
PAPER = {
    "fwpkm_heads": ("fwpkm_num_heads", 1), "fwpkm_n_subkeys": ("fwpkm_num_subkeys", 512),
    "fwpkm_k_dim": ("fwpkm_key_dim", 512), "fwpkm_v_dim": ("fwpkm_value_dim", 512), "fwpkm_topk": ("fwpkm_topk", 8),
    "fwpkm_update_chunk_size": ("fwpkm_chunk_size", 512), "pkm_heads": ("pkm_num_heads", 4),
    "pkm_n_subkeys": ("pkm_num_subkeys", 512), "pkm_k_dim": ("pkm_key_dim", 512), "pkm_v_dim": ("pkm_value_dim", 512),
    "pkm_topk": ("pkm_topk", 32),
}  # fmt: skip
"""Our name and the default, which is the size of the paper's models (arXiv 2601.00671)."""
SWITCHES = {"fwpkm_out_fuse_gate": "fwpkm_gate", "fwpkm_weight_loss_with_gates": "fwpkm_gate_writes"}
"""Our names; on by default, as in the reference vectors, which have them only where they are off."""
_LAYERS = ("fwpkm_layers", "pkm_layers")
_COMPRESSION = "fwpkm_compress_value"
"""`zscore`, the default, or null for values as they are projected: so in the reference vectors."""
_KNOWN = {*PAPER, *SWITCHES, *_LAYERS, _COMPRESSION}
SLIDING_WINDOW = 512
"""Of the paper's models."""
ROTARY = {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}
"""With Qwen3-Next's defaults; a newer Transformers writes them into `rope_parameters`."""
REAL_LOOKAHEAD = 1
"""The default of the authors' code, with which their released configurations were trained."""


def our_config(given: Mapping[str, Any], *, lookahead: int | None = None, write_scale: str) -> FwPKMHFConfig:
    """The configuration of our model; logs warnings about keys of memories that count for nothing.

    Args:
        given: their configuration.
        lookahead: of the memory; None for that of their code, with a warning where a key says something else.
        write_scale: arithmetic of calls with a cache.

    Raises:
        ValueError: a key is missing, or has a value that the model does not have; with the key and the value.
    """
    _check_types(given)
    _refuse_what_differs(given)
    mixers = [MIXERS[name] for name in _layer_types(given)]
    window = given.get("sliding_window", SLIDING_WINDOW)
    memory_layers, static_layers = (list(given.get(name) or []) for name in _LAYERS)
    _warn_of_unknown(given, lookahead)
    return FwPKMHFConfig(
        **{name: given[name] for name in SIZES},
        **{name: given.get(name, default) for name, default in QWEN3_NEXT.items()},
        **{ours: given.get(name, default) for name, (ours, default) in PAPER.items()},
        **{ours: given.get(name, True) for name, ours in SWITCHES.items()},
        **{name: given.get(name, default) for name, default in (ROTARY | _rope(given)).items()},
        token_mixers=mixers,
        attention_windows=[window if mixer == SLIDING else None for mixer in mixers],
        attention_output_gate=True,
        mlps=[STATIC_MEMORY if layer in static_layers else DENSE for layer in range(given["num_hidden_layers"])],
        fwpkm_layers=memory_layers,
        fwpkm_normalize_targets=given.get(_COMPRESSION, "zscore") is not None,
        fwpkm_lookahead=REAL_LOOKAHEAD if lookahead is None else lookahead,
        fwpkm_write_scale=write_scale,
        fwpkm_memory="trained",
        architectures=["FwPKMForCausalLM"],
    )


def _check_types(given: Mapping[str, Any]) -> None:
    """Raise ValueError where a key that the import itself looks into is missing or has another type."""
    missing = [name for name in SIZES if name not in given]
    if missing:
        raise ValueError(f"it is not complete: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    for names, kind in (
        (SIZES, int),
        (("full_attention_interval",), int),
        ((*_LAYERS, "layer_types"), list),
        (("rope_scaling", "rope_parameters"), dict),
    ):
        for name in names:
            value = given.get(name)
            if not isinstance(value, kind) and (value is not None or name in SIZES):
                raise ValueError(f"{name}={value!r} has the wrong type; expected {kind.__name__}")


def _layer_types(given: Mapping[str, Any]) -> list[str]:
    """The kind of every layer, by default Qwen3-Next's: every fourth layer has full attention."""
    interval, layers = given.get("full_attention_interval", 4), range(1, given["num_hidden_layers"] + 1)
    default = ["full_attention" if layer % interval == 0 else "linear_attention" for layer in layers]
    found = given.get("layer_types")
    found = default if found is None else list(found)
    for name in found:
        if name not in MIXERS:
            raise ValueError(f"layer_types contains {name!r}, which is not known; expected {', '.join(MIXERS)}")
    return found


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` says of the rotary positions, in the place of keys of their own."""
    return {name: value for name, value in (given.get("rope_parameters") or {}).items() if name in ROTARY}


def _refuse_what_differs(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that makes another model of it."""
    demanded = {"hidden_act": ("silu",), "attention_bias": (False,), _COMPRESSION: ("zscore", None)}
    for name, values in demanded.items():
        if name in given and given[name] not in values:
            known = " or ".join(map(repr, values))
            raise ValueError(f"{name}={given[name]!r} is not supported; the released models have {known}")
    for name in ("rope_scaling", "rope_parameters"):
        scaling = given.get(name) or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise ValueError(
                f"{name} has the type {kind!r}, which is not imported; remove {name} from it, and give yarn_factor and "
                "yarn_original_length to from_pretrained when you load the output"
            )
    layers = given["num_hidden_layers"]
    for layer in given.get("pkm_layers") or []:
        if layer not in range(layers):
            raise ValueError(f"pkm_layers contains {layer!r}, but the layers are numbered from 0 to {layers - 1}")


def _warn_of_unknown(given: Mapping[str, Any], lookahead: int | None) -> None:
    """Log which keys of memories count for nothing, and what was trained where one is about the lookahead."""
    used = tuple(name.removesuffix("layers") for name in _LAYERS if given.get(name))
    unknown = {name: value for name, value in given.items() if name.startswith(used) and name not in _KNOWN}
    about_lookahead = {name: value for name, value in unknown.items() if "look" in name}
    for name, value in about_lookahead.items():
        if lookahead is None and value != REAL_LOOKAHEAD:
            logger.warning(
                "%s=%r: the released configurations misspell the key of the lookahead, which the authors' code then "
                "ignored, so that the model was trained with lookahead %d: that is imported. Set --lookahead %s if "
                "this checkpoint was trained with it", name, value, REAL_LOOKAHEAD, value,
            )  # fmt: skip
    others = [f"{name}={value!r}" for name, value in unknown.items() if name not in about_lookahead]
    if others:
        logger.warning(
            "keys of the memories that the import does not know have no effect: %s. The model is imported as the "
            "paper describes it (inverse distance scores, softmax, step size 1, addressing weight 1); where a key "
            "changed that in training, change the field in the config.json of the output", ", ".join(others),
        )  # fmt: skip

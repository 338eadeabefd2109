"""From the configuration of an export to that of pretraining: the inverse of what `export` makes of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

from ..checkpoint.compatibility import differences
from ..config import ModelConfig, PretrainConfig
from ..config.layer_pattern import layer_mixers, layer_windows, pattern_problems
from ..config.loading import DEFAULT, PREFIXES, Resolved, option_groups
from ..config.validation import problems
from ..hf import FwPKMHFConfig
from ..hf.mlp_fields import STATIC_MEMORY

_HF_NAMES = frozenset(field.name for field in fields(FwPKMHFConfig))
KIND_GROUPS: dict[str, type] = {
    group: cls
    for group, cls, _ in option_groups()
    if group in PREFIXES and any(name.startswith(PREFIXES[group].replace("-", "_")) for name in _HF_NAMES)
}
"""Groups of options whose fields an export has under their names, with the prefix of the group."""
UNUSED_IN_TRAINING = frozenset({
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "fwpkm_write_scale", "fwmlp_write_scale",
    "fwpkm_implementation", "fwpkm_memory", "fwpkm_iteration", "fwpkm_replica", "memory",
})  # fmt: skip
"""Fields of an export that no option of pretraining is about: they concern calls with a cache, or are information."""


def model_options(hf: FwPKMHFConfig) -> dict[str, dict[str, Any]]:
    """What the configuration of an export says of the options of pretraining, by group and field.

    Args:
        hf: a complete configuration.
    """
    layers = range(1, hf.num_hidden_layers + 1)
    found = {group: _prefixed(hf, cls, _prefix(group)) for group, cls in KIND_GROUPS.items()}
    for group, options in found.items():
        if (name := _prefix(group) + "layers") in _HF_NAMES:
            options["layer_numbers"] = tuple(layer + 1 for layer in getattr(hf, name))
    found[STATIC_MEMORY]["layer_numbers"] = tuple(
        number for number, mlp in zip(layers, hf.mlps, strict=True) if mlp == STATIC_MEMORY
    )
    found["model"] = {
        "num_layers": hf.num_hidden_layers,
        "hidden_size": hf.hidden_size,
        "ffn_hidden_size": hf.intermediate_size,
        "layer_pattern": pattern_of(hf.token_mixers, hf.attention_windows),
        "num_attention_heads": hf.num_attention_heads,
        "num_query_groups": hf.num_key_value_heads,
        "kv_channels": hf.head_dim,
        "max_position_embeddings": hf.max_position_embeddings,
        "window_size": None,
        "rotary_base": float(hf.rope_theta),
        "rotary_percent": float(hf.partial_rotary_factor),
        "norm_epsilon": float(hf.rms_norm_eps),
        "qk_layernorm": hf.qk_norm,
        "attention_output_gate": hf.attention_output_gate,
        "add_bias_linear": hf.linear_bias,
        "untie_embeddings_and_output_weights": not hf.tie_word_embeddings,
        "init_method_std": float(hf.initializer_range),
        "attention_dropout": float(hf.attention_dropout),
        "hidden_dropout": float(hf.hidden_dropout),
        **_positions(hf),
    }
    if hf.training_length is not None:
        found["model"]["seq_length"] = hf.training_length
    if hf.fwpkm_drawn_tables is not None:  # the initial memory of the run, which resets restore
        found["training"] = {"seed": hf.fwpkm_drawn_tables["seed"]}
        found["fwpkm"]["table_dtype"] = hf.fwpkm_drawn_tables["table_dtype"]
    return found


def _prefix(group: str) -> str:
    return PREFIXES[group].replace("-", "_")


def _prefixed(hf: FwPKMHFConfig, cls: type, prefix: str) -> dict[str, Any]:
    """Fields of a group that an export has under their names, each a number of the type that the option has."""
    names = [field.name for field in fields(cls) if prefix + field.name in _HF_NAMES - UNUSED_IN_TRAINING]
    defaults = cls()
    return {name: type(getattr(defaults, name))(getattr(hf, prefix + name)) for name in names}


def _positions(hf: FwPKMHFConfig) -> dict[str, Any]:
    """How rotary positions are stretched."""
    found: dict[str, Any] = {
        "use_rope_scaling": hf.rope_scaling_factor is not None,
        "rope_type": "rope" if hf.yarn_factor is None else "yarn",
        "yarn_beta_fast": float(hf.yarn_beta_fast),
        "yarn_beta_slow": float(hf.yarn_beta_slow),
    }
    if hf.rope_scaling_factor is not None:
        found["rope_scaling_factor"] = float(hf.rope_scaling_factor)
    if hf.yarn_factor is not None:
        found["rotary_scaling_factor"] = float(hf.yarn_factor)
        found["yarn_original_max_position_embeddings"] = hf.yarn_original_length or hf.training_length
    return found


def pattern_of(mixers: Sequence[str], windows: Sequence[int | None]) -> str:
    """The shortest --layer-pattern, repeated or not, of layers with these token mixers: `swa:511*3,fa`.

    Args:
        mixers: of every layer, by name.
        windows: of every layer, the tokens that it sees, itself included; None for all.
    """
    # Megatron counts the tokens to the left, Transformers the token itself too.
    words = [
        mixer if window is None else f"{mixer}:{window - 1}" for mixer, window in zip(mixers, windows, strict=True)
    ]
    total = len(words)
    period = next(size for size in range(1, total + 1) if total % size == 0 and words == words[:size] * (total // size))
    runs = [(word, len(list(run))) for word, run in groupby(words[:period])]
    return ",".join(word if count == 1 else f"{word}*{count}" for word, count in runs)


def imported_options(hf: FwPKMHFConfig, given: Resolved, place: str) -> Resolved:
    """The configuration of an imported checkpoint: the model of an export, and all other options as they are given.

    Args:
        hf: the configuration of the export.
        given: the options of a user's file, or none.
        place: the export's config.json, for the origins of values and errors.

    Raises:
        ValueError: a given option contradicts the export, all of them at once; or the model cannot be trained.
    """
    taken = _spelled_as_given(model_options(hf), given.config)
    config = _with(given.config, taken)
    flags = {
        option.flag: (group, option.field_name)
        for group, _, options in option_groups()
        for option in options
        if option.field_name in taken.get(group, ())
    }
    sources = dict(given.value_sources)
    said = {flag: place for flag, place in flags.items() if sources[flag] != DEFAULT}
    _refuse_contradictions(config, given, said, place)
    sources |= dict.fromkeys(flags.keys() - said.keys(), place)
    found = problems(replace(config, training=replace(config.training, dry_run=True)))
    if found:
        raise ValueError(f"{place}: this model cannot be trained here: {'; '.join(found)}")
    return replace(given, config=config, value_sources=sources)


def _with(config: PretrainConfig, values: Mapping[str, Mapping[str, Any]]) -> PretrainConfig:
    """A configuration with other values, by group and field."""
    return replace(config, **{group: replace(getattr(config, group), **found) for group, found in values.items()})


def _refuse_contradictions(
    config: PretrainConfig, given: Resolved, said: Mapping[str, tuple[str, str]], place: str
) -> None:
    """Raise ValueError where options that were given make another model than the export's `config`."""
    values: dict[str, dict[str, Any]] = {}
    for group, name in said.values():
        values.setdefault(group, {})[name] = getattr(getattr(given.config, group), name)
    other = _with(config, values)
    lines = list(pattern_problems(other.model))
    if not lines:
        lines = [
            f"{one.flag} {one.given} ({given.value_sources[one.flag]}) is {one.saved} in {place}"
            for one in differences(config, other)
        ]
    if lines:
        raise ValueError(f"options that contradict the export: {'; '.join(lines)}; remove them")


def _spelled_as_given(taken: dict[str, dict[str, Any]], given: PretrainConfig) -> dict[str, dict[str, Any]]:
    """Without --layer-pattern and --window-size where the given ones describe the same layers."""
    model = replace(given.model, **taken["model"])
    own = replace(model, layer_pattern=given.model.layer_pattern, window_size=given.model.window_size)
    if any(pattern_problems(own)) or _layers(own) != _layers(model):
        return taken
    kept = {name: value for name, value in taken["model"].items() if name not in ("layer_pattern", "window_size")}
    return taken | {"model": kept}


def _layers(model: ModelConfig) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    return layer_mixers(model), layer_windows(model)

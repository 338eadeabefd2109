"""Other causal language models of Transformers as baselines: loaded from a local folder, never downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..conversion.library_messages import quiet_libraries
from ..hf import FwPKMHFConfig

_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_dim", "rotary_pct")
"""Fields of configurations whose attention knows distances, not places."""


def holds_other_model(folder: Path) -> bool:
    """Whether the folder holds a Hugging Face model of another kind than our exports."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no export, or a damaged one, which its reader describes
        return False
    kind = values.get("model_type") if isinstance(values, dict) else None
    return kind not in (None, FwPKMHFConfig.model_type)


def read_other_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model of another kind.

    Raises:
        ValueError: Transformers does not know the kind, it is no causal language model, or the file is damaged.
    """
    config: PreTrainedConfig = _read(AutoConfig, folder)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"--model {folder} is not a causal language model: its model_type is {config.model_type!r}")
    return config


def load_other_model(folder: Path) -> PreTrainedModel:
    """The model, in float32.

    Raises:
        ValueError: as `read_other_config`, or weights are missing or damaged.
    """
    model: PreTrainedModel
    model, loading = _read(AutoModelForCausalLM, folder, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"--model {folder} has no weights for {missing[0]} ({len(missing)} missing in total)")
    return model


def learned_positions(config: PreTrainedConfig) -> int | None:
    """Maximum number of tokens of a model with learned position embeddings; None for rotary or unlimited attention."""
    inner = config.get_text_config()
    if any(getattr(inner, name, None) is not None for name in _ROTARY):
        return None
    return getattr(inner, "max_position_embeddings", None)


def _read(reader: Any, folder: Path, **options: Any) -> Any:
    try:
        with quiet_libraries():
            return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # Transformers, safetensors and models raise many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"--model {folder} cannot be read by Transformers: {reason}") from error

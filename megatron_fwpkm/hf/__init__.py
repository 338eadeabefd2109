"""Hugging Face form of the model: configuration, cache and modeling files, which an export carries verbatim."""

from .cache import FwPKMCache
from .configuration_fwpkm import FwPKMHFConfig
from .modeling_fwpkm import FwPKMForCausalLM, FwPKMModel

__all__ = ["FwPKMCache", "FwPKMForCausalLM", "FwPKMHFConfig", "FwPKMModel"]

"""Configuration: frozen dataclasses, their command line, YAML and provenance. Free of torch."""

from .data import TOKENIZERS_WITHOUT_FILE, DataConfig, NeedleConfig
from .engine import EngineConfig
from .faults import FaultConfig
from .fwmlp import FwMLPConfig
from .fwpkm import FwPKMConfig
from .layer_implementation import ImplementationConfig
from .linear_attention import LinearAttentionConfig
from .model import ModelConfig
from .optimizer import OptimizerConfig
from .parallel import ParallelConfig
from .pkm import PKMConfig
from .pretrain import PretrainConfig
from .profiling import ProfilingConfig
from .training import CheckpointConfig, LoggingConfig, TrainingConfig

__all__ = [
    "TOKENIZERS_WITHOUT_FILE",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "FaultConfig",
    "FwMLPConfig",
    "FwPKMConfig",
    "ImplementationConfig",
    "LinearAttentionConfig",
    "LoggingConfig",
    "ModelConfig",
    "NeedleConfig",
    "OptimizerConfig",
    "PKMConfig",
    "ParallelConfig",
    "PretrainConfig",
    "ProfilingConfig",
    "TrainingConfig",
]

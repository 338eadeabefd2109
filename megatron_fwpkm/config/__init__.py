"""Configuration: frozen dataclasses, their command line, YAML and provenance. Free of torch."""

from .data import DataConfig, NeedleConfig
from .fwpkm import FwPKMConfig
from .model import ModelConfig
from .optimizer import OptimizerConfig
from .parallel import ParallelConfig
from .pretrain import PretrainConfig
from .training import CheckpointConfig, LoggingConfig, TrainingConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "FwPKMConfig",
    "LoggingConfig",
    "ModelConfig",
    "NeedleConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PretrainConfig",
    "TrainingConfig",
]

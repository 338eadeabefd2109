"""The whole configuration of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass, field

from .data import DataConfig, NeedleConfig
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
from .profiling import ProfilingConfig
from .training import CheckpointConfig, LoggingConfig, TrainingConfig


@dataclass(frozen=True)
class PretrainConfig:
    """All groups of `pretrain.py`; flags are flat, groups are only for reading."""

    model: ModelConfig = field(default_factory=ModelConfig)
    linear_attention: LinearAttentionConfig = field(default_factory=LinearAttentionConfig)
    fwpkm: FwPKMConfig = field(default_factory=FwPKMConfig)
    fwmlp: FwMLPConfig = field(default_factory=FwMLPConfig)
    pkm: PKMConfig = field(default_factory=PKMConfig)
    implementation: ImplementationConfig = field(default_factory=ImplementationConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)

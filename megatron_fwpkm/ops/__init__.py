"""Pure functions on tensors: no Megatron, no communication. Everything is [B, T, ...]."""

from .fast_weight_memory import fast_weight_memory, fast_weight_memory_, flush_pending, flush_pending_
from .fast_weight_memory.options import MemoryOptions
from .fast_weight_memory.rounding import make_rounding
from .fast_weight_mlp import fast_weight_mlp, flush_pending_mlp
from .fast_weight_mlp.mlp_options import FastMLPOptions
from .fast_weight_mlp.mlp_state import FastMLPOutput, FastMLPState, FastMLPWeights
from .reset_journal import ResetJournal
from .sharding import TableSharding
from .state import FastWeightOutput, FastWeightState, PendingTokens
from .undo_log import UndoLog

__all__ = [
    "FastMLPOptions",
    "FastMLPOutput",
    "FastMLPState",
    "FastMLPWeights",
    "FastWeightOutput",
    "FastWeightState",
    "MemoryOptions",
    "PendingTokens",
    "ResetJournal",
    "TableSharding",
    "UndoLog",
    "fast_weight_memory",
    "fast_weight_memory_",
    "fast_weight_mlp",
    "flush_pending",
    "flush_pending_",
    "flush_pending_mlp",
    "make_rounding",
]

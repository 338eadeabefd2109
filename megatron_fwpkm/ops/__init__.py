"""Pure functions on tensors: no Megatron, no communication. Everything is [B, T, ...]."""

from .fast_weight_memory import fast_weight_memory, fast_weight_memory_, flush_pending, flush_pending_
from .fast_weight_memory.options import MemoryOptions
from .fast_weight_memory.rounding import make_rounding
from .sharding import TableSharding
from .state import FastWeightOutput, FastWeightState, PendingTokens
from .undo_log import ResetJournal, UndoLog

__all__ = [
    "FastWeightOutput",
    "FastWeightState",
    "MemoryOptions",
    "PendingTokens",
    "ResetJournal",
    "TableSharding",
    "UndoLog",
    "fast_weight_memory",
    "fast_weight_memory_",
    "flush_pending",
    "flush_pending_",
    "make_rounding",
]

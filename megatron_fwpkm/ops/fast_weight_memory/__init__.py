"""The fast-weight memory: read by product keys, written by gradient descent after every chunk."""

from .api import fast_weight_memory, fast_weight_memory_, flush_pending, flush_pending_

__all__ = ["fast_weight_memory", "fast_weight_memory_", "flush_pending", "flush_pending_"]

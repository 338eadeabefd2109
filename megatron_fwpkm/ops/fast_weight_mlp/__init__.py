"""A fast-weight MLP: the baseline of a fast-weight memory without a table. Its maths is in this folder's README."""

from .mlp_api import fast_weight_mlp, flush_pending_mlp

__all__ = ["fast_weight_mlp", "flush_pending_mlp"]

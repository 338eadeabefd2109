"""Adaptation to domains in turn with slow weights frozen, and what is forgotten of the earlier ones."""

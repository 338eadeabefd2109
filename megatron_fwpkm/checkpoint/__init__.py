"""Checkpoints: the manager, slow and fast weights, resuming, reading, and conversion."""

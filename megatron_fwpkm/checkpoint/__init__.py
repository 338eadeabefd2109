"""Checkpoints: the manager, slow and fast weights on disk, resuming and reading."""

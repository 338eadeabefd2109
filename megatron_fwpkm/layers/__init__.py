"""Megatron modules around the memory: the memory block itself, its norm, attention and sharding."""

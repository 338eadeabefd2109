"""Tests of `megatron_fwpkm/evaluation/memory_trace`."""

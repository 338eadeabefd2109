"""Tests of `megatron_fwpkm/evaluation/trace`."""

"""Tests that need a CUDA device: what is exact on the CPU is exact there too."""

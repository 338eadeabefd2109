"""Triton kernels: in Triton's interpreter on the CPU (tests/conftest.py switches it on), compiled where there is a GPU."""

"""Triton kernels: in the interpreter on the CPU (tests/conftest.py switches it on), compiled where there is a GPU."""

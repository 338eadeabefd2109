"""The steps of both chains in Triton kernels: `implementation="triton"`."""

"""The selection of sub-keys and slots in Triton kernels."""

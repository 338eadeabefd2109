"""The steps of the block around a memory in kernels, each of which reads its inputs once."""

"""Models of Transformer Engine's modules without a GPU: its own Python sources over a pretended extension module."""

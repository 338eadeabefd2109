"""Tokenizers, corpus preprocessing, datasets and samplers.

Nothing is imported here: the tools behind `corpus`, `tokenizers`, `encoders`, `indexed` and `preprocess` must start
without torch, while the datasets and the sampler of `training` need it.
"""

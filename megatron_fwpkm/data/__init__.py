"""Tokenizers, corpus preprocessing, datasets and samplers.

Nothing is imported here: the tools behind `tokenizers`, `corpus`, `preprocess` and `train_tokenizer` must start without
torch, while `datasets` and `sampler` need it.
"""

"""Fast-weight product key memory for Megatron-style pretraining of language models."""

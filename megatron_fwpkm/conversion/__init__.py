"""Conversion: a Megatron checkpoint to a Hugging Face folder with its tokenizer and card, and its verification."""

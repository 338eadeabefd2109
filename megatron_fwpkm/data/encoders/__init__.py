"""Faster ways to the very tokens that a tokenizer gives. Free of torch."""

"""Perplexity of whole documents: by position, with the memory on, off or frozen, and beside a baseline."""

"""Needle in a haystack: facts hidden in real text, one asked for, with controls."""

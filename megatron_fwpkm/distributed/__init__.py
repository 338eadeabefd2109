"""Ranks of a run: how they meet and start alike, what they do together, and how they notice who is gone."""

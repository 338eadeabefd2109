"""The static product key memory: a table that the optimizer trains, read through product keys (README.md)."""

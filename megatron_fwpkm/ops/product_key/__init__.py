"""Product keys: n * n slots addressed by two lists of n sub-keys."""

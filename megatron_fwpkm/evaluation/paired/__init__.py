"""Two evaluations of the same samples, compared."""

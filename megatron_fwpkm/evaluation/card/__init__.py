"""What evaluations say of a model, in its card."""

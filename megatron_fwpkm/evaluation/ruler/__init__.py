"""RULER: thirteen long-context tasks, with the samples, budgets and metrics of NVIDIA's generator."""

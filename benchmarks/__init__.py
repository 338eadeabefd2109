"""Benchmarks: one command, one registry, results with their provenance."""

"""Tests of the pure memory operations."""

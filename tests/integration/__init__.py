"""Tests of the whole way, by the commands a user types."""

"""Tests of the domains evaluation."""

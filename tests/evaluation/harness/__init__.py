"""Tests of the model class for lm-evaluation-harness."""

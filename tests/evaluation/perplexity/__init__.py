"""Tests of the perplexity evaluation."""

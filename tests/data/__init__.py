"""Tests of tokenizers, preprocessing, datasets and samplers."""

"""Tests of the card's section."""

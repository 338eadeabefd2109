"""Tests of the tools, through their command lines."""

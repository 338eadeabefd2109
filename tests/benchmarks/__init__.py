"""Tests of the benchmarks: that they run and refuse, never how fast anything is."""

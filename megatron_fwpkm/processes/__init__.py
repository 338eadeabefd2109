"""Processes of one machine: parents, Ctrl-C, names that hold across hosts, freed memory. Standard library only."""

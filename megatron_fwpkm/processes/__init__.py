"""Processes of one machine: the parent they end with, Ctrl-C, names that hold across hosts. Standard library only."""

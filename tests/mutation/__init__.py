"""Small faults planted into a copy of the project, to see whether its tests notice them (tools/mutate.py)."""

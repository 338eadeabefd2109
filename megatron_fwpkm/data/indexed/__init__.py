"""Datasets on disk (.bin/.idx): written, read, merged, split and inspected. Free of torch."""

"""Engines: what turns a configuration into a model that takes steps, is measured, saved and loaded."""

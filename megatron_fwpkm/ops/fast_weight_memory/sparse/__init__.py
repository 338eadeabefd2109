"""The steps of both chains in torch, on any device: `implementation="sparse"`."""

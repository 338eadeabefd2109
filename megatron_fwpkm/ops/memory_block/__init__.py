"""What stands around a memory in its layer: norms, gate, z-score and mixture. The README has the maths."""

"""The two small numbers of the addressing (DESIGN sections 2.1 and 2.3)."""

IDW_EPSILON = 1e-3
"""Added to the squared distance inside the logarithm of the inverse-distance score."""
ENTROPY_EPSILON = 1e-8
"""Added to a probability inside the logarithm of the addressing loss."""

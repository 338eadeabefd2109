"""A grid of small models: trained, measured and compared within a stated budget, over seeds."""

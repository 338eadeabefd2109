"""Laws of the whole repository (DESIGN section 1), each a function that lists what breaks it."""

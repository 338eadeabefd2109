"""A look inside the memory: which slots an answer reads, which tokens wrote them, and whether that explains it."""

"""Which tokens wrote the slots of a memory, and which slots a token reads."""

"""A session with a model that remembers what it reads: memories with names, questions, commands."""

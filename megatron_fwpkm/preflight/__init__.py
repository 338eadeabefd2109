"""What is checked before a run starts: every node by itself, the nodes against each other, and their groups."""

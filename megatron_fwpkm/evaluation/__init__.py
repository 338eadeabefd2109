"""What a trained memory is good for: recall of facts across long contexts, measured with its controls."""

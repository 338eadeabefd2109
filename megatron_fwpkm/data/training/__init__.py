"""What training reads: datasets, their samplers and mixtures, facts in the text."""

"""Input files of any kind to records: text with the place it came from. Free of torch."""

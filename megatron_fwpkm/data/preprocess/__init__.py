"""The work of tools/preprocess_data.py: corpus to datasets, killed and resumed at will. Free of torch."""

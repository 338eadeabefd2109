"""Which libraries are installed and work, and which of them a run uses, with the reason."""

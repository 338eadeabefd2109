"""A model class for lm-evaluation-harness, whose memory goes on through a document and begins anew with the next."""

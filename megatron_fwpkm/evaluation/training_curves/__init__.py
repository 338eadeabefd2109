"""Pictures of training runs from their metrics.jsonl."""

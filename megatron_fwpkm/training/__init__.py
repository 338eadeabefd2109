"""Training: the run, its loop, schedules, logs, guards and the dry run."""

"""Training: start-up, engine, loop, schedules, logs and guards."""

"""The training loop and what it drives: engine, optimizer, schedule, the step itself."""

"""One attempt at a training run, from its data to its checkpoints."""

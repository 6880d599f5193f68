"""Which samples a run sees, in which order, and where it stands."""
